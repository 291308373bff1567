"""The figure of what a schedule was chosen from: its levels, distances, overlaps and step size."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np

from ncsn_fast.methods.levels import level_overlap, relative_variance
from ncsn_fast.pictures.curves import check_figure_path, new_figure, save_figure
from ncsn_fast.training.schedule import Schedule

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def save_schedule(path: str | os.PathLike[str], schedule: Schedule) -> None:
    """Plot what ``nf.auto_schedule`` chose, and what it was chosen from, in four panels.

    The noise levels; the distances between data points, the largest of which is σ₁; the overlap of
    neighbouring levels over their number; and the relative variance r(ε) of the chain over the
    step size (Techniques 1, 2 and 4 of Song & Ermon 2020).

    Args:
        path: a ``.png``, ``.svg`` or ``.pdf`` file in a folder that exists.
        schedule: of :func:`ncsn_fast.auto_schedule`.

    Raises:
        ValueError: for a schedule that knows no data, another type of file, or a folder that does
            not exist.
    """
    check_figure_path(path)
    if schedule.distances is None:
        raise ValueError(
            "this schedule was not chosen from data, so there are no distances to show: plot one "
            "that nf.auto_schedule returned"
        )
    figure = new_figure(11, 7.5, dpi=110)
    panels = figure.subplots(2, 2).flatten()
    for draw, axes in zip((_levels, _distances, _overlaps, _variances), panels, strict=True):
        draw(axes, schedule)
        axes.grid(True, which="major", alpha=0.3)
        axes.legend(framealpha=0.8, edgecolor="none", fontsize=10)  # curves may pass behind it
    save_figure(path, figure)


def _levels(axes: Axes, schedule: Schedule) -> None:
    sigmas = schedule.sigmas.numpy()
    few = len(sigmas) <= 60
    axes.plot(
        np.arange(1, len(sigmas) + 1),
        sigmas,
        color="tab:blue",
        marker="o" if few else "",
        markersize=4,
        label=f"{len(sigmas):,} levels, neighbours {_ratio(schedule):.4g} times apart",
    )
    axes.set_yscale("log")
    axes.locator_params(axis="x", integer=True)
    axes.set_title("Noise levels")
    axes.set_xlabel("level")
    axes.set_ylabel("σ")


def _distances(axes: Axes, schedule: Schedule) -> None:
    found = schedule.distances
    assert found is not None
    # Fine bins are put together to about eighty from 0 to the largest distance.
    used = min(len(found.counts), int(found.largest / found.width) + 1)
    together = max(1, used // 80)
    bins = -(-used // together)
    counts = np.zeros(bins * together)
    part = found.counts[: len(counts)].numpy()
    counts[: len(part)] = part
    edges = np.arange(bins + 1) * found.width * together
    share = 100 * counts.reshape(bins, together).sum(1) / counts.sum()
    axes.stairs(share, edges, fill=True, color="tab:blue", alpha=0.4, label="pairs of data points")
    label = f"σ₁ = {found.largest:.4g}, the largest"
    axes.axvline(found.largest, color="tab:red", linewidth=2, label=label)
    axes.set_xlim(0, found.largest * 1.05)
    looked = f"all {found.of:,}" if found.exact else f"{found.points:,} of {found.of:,}"
    axes.set_title(f"Distances between data points ({looked})")
    axes.set_xlabel("Euclidean distance")
    axes.set_ylabel("percent of the pairs")


def _overlaps(axes: Axes, schedule: Schedule) -> None:
    found, count = schedule.distances, len(schedule.sigmas)
    assert found is not None
    top, bottom = float(schedule.sigmas[0]), float(schedule.sigmas[-1])
    numbers = np.unique(np.linspace(2, max(6, 2 * count), 400).round().astype(int))
    ratios = [(top / bottom) ** (1 / (number - 1)) for number in numbers.tolist()]
    overlaps = [level_overlap(found.dimension, ratio) for ratio in ratios]
    axes.plot(numbers, overlaps, color="tab:blue", label="overlap C of neighbouring levels")
    chosen = level_overlap(found.dimension, _ratio(schedule))
    axes.plot(
        count, chosen, "o", color="tab:red", label=f"chosen: {count:,} levels, C = {chosen:.3f}"
    )
    axes.set_ylim(-0.02, 1.1)
    axes.locator_params(axis="x", integer=True)
    few = min(overlaps) > 0.9
    axes.set_title("In few dimensions all levels overlap" if few else "Fewer levels overlap less")
    axes.set_xlabel("number of levels")
    axes.set_ylabel("overlap C")


def _variances(axes: Axes, schedule: Schedule) -> None:
    bottom, steps = float(schedule.sigmas[-1]), schedule.steps_per_level
    chosen = schedule.step_size / bottom**2
    relative = np.geomspace(chosen / 30, min(chosen * 30, 1.9), 400)
    values = relative_variance(relative, _ratio(schedule), steps)
    label = f"r after {steps} step{'s' if steps > 1 else ''} a level"
    axes.plot(relative * bottom**2, values, color="tab:blue", label=label)
    reached = float(relative_variance(np.array(chosen), _ratio(schedule), steps))
    label = f"chosen: ε = {schedule.step_size:.4g}, r = {reached:.3f}"
    axes.plot(schedule.step_size, reached, "o", color="tab:red", label=label)
    axes.axhline(1, color="black", linewidth=1, linestyle="--", label="the level's own variance")
    axes.set_xscale("log")
    axes.set_ylim(min(0.9, values.min()), min(values.max(), 3 * max(1.0, reached)))
    axes.set_title("The step size keeps the chain's variance")
    axes.set_xlabel("step size ε")
    axes.set_ylabel("relative variance r")


def _ratio(schedule: Schedule) -> float:
    """Of neighbouring levels, g."""
    ends = float(schedule.sigmas[0]), float(schedule.sigmas[-1])
    return (ends[0] / ends[1]) ** (1 / (len(schedule.sigmas) - 1))


__all__ = ["save_schedule"]
