"""Curves: the loss of a training run, and the page that every figure is drawn on.

Files are complete or absent. matplotlib's global state is never touched.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from ncsn_fast.support import checks
from ncsn_fast.support.files import atomic_write, check_suffix

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SUFFIXES = (".png", ".svg", ".pdf")


def save_loss_plot(
    path: str | os.PathLike[str],
    steps: Sequence[float] | Tensor,
    losses: Sequence[float] | Tensor,
    *,
    title: str = "Training loss",
    xlabel: str = "optimiser step",
    ylabel: str = "denoising score matching loss (per image)",
) -> None:
    """Plot a loss curve: every value faint, their running mean strong.

    The mean is centred and spans a twenty-fifth of the curve. The vertical axis is logarithmic if
    all values are positive and the mean falls or rises more than fivefold.

    Args:
        path: a ``.png``, ``.svg`` or ``.pdf`` file in a folder that exists.
        steps: (K,) ascending.
        losses: (K,) finite.
        title, xlabel, ylabel: texts; say the unit in the labels.

    Raises:
        ValueError: for no values, lengths that differ, steps that do not ascend, values that are
            not finite, another type of file, or a folder that does not exist.
    """
    check_figure_path(path)
    x, y = _curve(steps, losses)
    smooth = running_mean(y)
    figure = new_figure(8, 4.5, dpi=120)
    axes = figure.add_subplot()
    marker = "o" if len(x) == 1 else ""  # a line through one point is invisible
    axes.plot(x, y, color="tab:blue", alpha=0.25, linewidth=1, label="each value")
    axes.plot(x, smooth, color="tab:blue", linewidth=2, marker=marker, label="running mean")
    if y.min() > 0 and smooth.max() > 5 * smooth.min():
        _log_axis(axes)
    axes.margins(x=0.01)
    axes.set_title(title, fontsize=14)
    axes.set_xlabel(xlabel, fontsize=12)
    axes.set_ylabel(ylabel, fontsize=12)
    axes.grid(True, which="major", alpha=0.3)
    axes.legend(frameon=False, fontsize=11)
    save_figure(path, figure)


def check_figure_path(path: str | os.PathLike[str]) -> None:
    """Refuse a file that no figure can be written to, before anything is drawn.

    Raises:
        ValueError: for another type of file than ``.png``, ``.svg`` and ``.pdf``.
    """
    check_suffix(path, _SUFFIXES)


def new_figure(width: float, height: float, dpi: int) -> Figure:
    """A white page without panels, width × height inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=dpi, layout="constrained", facecolor="white")


def save_figure(path: str | os.PathLike[str], figure: Figure) -> None:
    """Write a figure in the format that the file's name ends on."""
    with atomic_write(path) as temporary:
        figure.savefig(temporary)


def _curve(
    steps: Sequence[float] | Tensor, losses: Sequence[float] | Tensor
) -> tuple[np.ndarray, np.ndarray]:
    x, y = (
        checks.tensor(name, values).double().cpu().numpy()
        for name, values in (("steps", steps), ("losses", losses))
    )
    if x.ndim != 1 or x.shape != y.shape or not len(x):
        raise ValueError(
            f"steps have shape {x.shape} and losses {y.shape}: give one loss for each step, "
            "at least one"
        )
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("steps and losses must be finite: leave out values that are NaN")
    if (np.diff(x) <= 0).any():
        raise ValueError("steps must ascend: sort them, and give each step once")
    return x, y


def running_mean(values: np.ndarray, window: int | None = None) -> np.ndarray:
    """Mean over up to window // 2 neighbours on either side.

    Args:
        values: (K,).
        window: None: a twenty-fifth of them.

    Returns:
        (K,).
    """
    half = (len(values) // 25 if window is None else window) // 2
    total = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    # At the start, where losses fall steeply, the window shrinks on both sides alike, or the curve
    # would be drawn too low; at the end it does not, or the last point would be one raw value.
    reach = np.minimum(index, half)
    start, stop = index - reach, np.minimum(index + reach + 1, len(values))
    return (total[stop] - total[start]) / (stop - start)


def _log_axis(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator

    axes.set_yscale("log")
    # Plain numbers, between the powers of ten too: a loss seldom spans many of those.
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


__all__ = ["check_figure_path", "new_figure", "running_mean", "save_figure", "save_loss_plot"]
