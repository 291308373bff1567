"""Noise levels and step size chosen from the data (Techniques 1, 2 and 4 of Song & Ermon 2020).

The rules themselves are in ``methods/levels.py``; here they meet a data set.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ncsn_fast.data.pixels import unit_interval
from ncsn_fast.data.samples import Data, open_samples
from ncsn_fast.evaluation.seen_score import look, remarks, steepness
from ncsn_fast.methods.levels import (
    MOST_ROWS,
    OVERLAP,
    best_step_size,
    check_sigmas,
    geometric_sigmas,
    level_ratio,
    num_levels_for,
)
from ncsn_fast.models.score import Score, as_score
from ncsn_fast.models.space import Space
from ncsn_fast.support.checks import count, number
from ncsn_fast.support.progress import ProgressWish
from ncsn_fast.training.distances import Distances, measure_distances

_FEW_POINTS, _MANY_CALLS = 100, 10_000
_log = logging.getLogger("ncsn_fast")


@dataclass(frozen=True)
class Schedule:
    """What annealed Langevin dynamics (Song & Ermon 2020) needs to know besides the network.

    Attributes:
        sigmas: (L,) float32 noise levels, descending.
        step_size: ε, the step size at the smallest level is ε itself.
        steps_per_level: T.
        distances: what the largest level was chosen from, and how many points of how many were
            looked at; None for levels that were given.
        warnings: what a user should know about the data or the choice.
    """

    sigmas: Tensor
    step_size: float
    steps_per_level: int
    distances: Distances | None = None
    warnings: tuple[str, ...] = ()

    @property
    def sampling(self) -> dict[str, Any]:
        """What ``net.sampling`` takes: the settings of annealed Langevin dynamics."""
        return {
            "method": "annealed_langevin",
            "step_size": self.step_size,
            "steps_per_level": self.steps_per_level,
            "denoise": True,
        }

    def __str__(self) -> str:
        return (
            f"{len(self.sigmas)} noise levels from {float(self.sigmas[0]):.4g} down to "
            f"{float(self.sigmas[-1]):.4g}, {self.steps_per_level} steps per level, "
            f"step size {self.step_size:.4g}"
        )


def auto_schedule(
    data: Data,
    *,
    score: Score | Callable[..., Tensor] | None = None,
    sigma_min: float = 0.01,
    steps_per_level: int = 5,
    overlap: float = OVERLAP,
    max_points: int = 10_000,
    seed: int = 0,
    rescaled: bool = False,
    logit_transform: bool = False,
    device: torch.device | str | None = None,
    progress: ProgressWish = None,
) -> Schedule:
    """Noise levels and step size from the training data (Song & Ermon 2020, Techniques 1, 2 and 4).

    What a user should know about the data and the choice is logged as warnings, and kept in the
    result.

    Args:
        data: (N, *shape) training data: a tensor on any device or an array, which may be
            memory-mapped, floating point in model space or (images) uint8, which are divided by
            255; or a map-style Dataset of such samples or of (sample, label) pairs.
        score: a network that is there, as :class:`nf.Sampler` takes it, and that needs no further
            input (a function that gives it such has to be around it). Its own levels are taken,
            if it has some, with the rule's ε for them, or a smaller one where its score is too
            steep for that; and its score is looked at on noised samples of the data: warnings say
            where it knows nothing, or is not as long as the score of this data.
        sigma_min: the smallest level; 0.01 for data in [0, 1]. (Not of a ``score`` with levels.)
        steps_per_level: T.
        overlap: C, the overlap of neighbouring levels, in (0, 0.997). In few dimensions it is
            more, as levels are no more than about a factor of 2 apart; see
            :func:`ncsn_fast.methods.levels.level_ratio`.
        max_points: distances are taken between all points, or this many random ones (fewer where
            they would fill more than 4 GiB); the result says which.
        seed: which random ones.
        rescaled, logit_transform: data are in [0, 1], but the network works on 2x - 1, or on the
            logit.
        device: where distances are computed; default: the data's, or the CPU.
        progress: True for a bar, or a function (done, total).

    Returns:
        The noise levels, ε, T, and what they were chosen from.

    Raises:
        ValueError: for fewer than two distinct points, values that are not finite, or settings
            out of range.
    """
    steps_per_level = count("steps_per_level", steps_per_level, 1, MOST_ROWS)
    sigma_min = number("sigma_min", sigma_min)
    if not (math.isfinite(sigma_min) and sigma_min > 0):
        raise ValueError(f"sigma_min = {sigma_min}: the smallest level is positive, such as 0.01")
    if 0 in (shape := tuple(getattr(data, "shape", ()))):
        raise ValueError(f"data of shape {shape} hold no values")
    space = Space(rescaled, logit_transform)
    distances = measure_distances(
        data, max_points=max_points, seed=seed, space=space, device=device, progress=progress
    )
    sigma_max = distances.largest
    if sigma_max == 0:
        raise ValueError(f"all {distances.points:,} data points are equal: there is no distance")
    if sigma_max <= sigma_min:
        raise ValueError(
            f"the largest distance between two data points is {sigma_max:g}, not above "
            f"sigma_min = {sigma_min:g}: scale the data to [0, 1], or lower sigma_min"
        )
    schedule = schedule_between(
        sigma_max, sigma_min, steps_per_level, dimension=distances.dimension, overlap=overlap
    )
    images = isinstance(data, Tensor | np.ndarray) and data.ndim == 4
    seen: list[str] = []
    if score is not None:
        schedule, seen = _with_score(schedule, as_score(score, None), data, space, seed)
        if sigma_max > 1.5 * float(schedule.sigmas[0]):
            seen.append(
                f"the network's largest level is {float(schedule.sigmas[0]):g}, two data points "
                f"are {sigma_max:g} apart: chains may not find the way between them"
            )
    warnings = (*_warnings(schedule, distances, space if images else None), *seen)
    for warning in warnings:
        _log.warning("%s", warning)
    return replace(schedule, distances=distances, warnings=warnings)


def _with_score(
    schedule: Schedule, score: Score, data: Data, space: Space, seed: int
) -> tuple[Schedule, list[str]]:
    """The schedule of a network that is there, and what is to be said of its score."""
    if score.sigmas is not None:
        levels = check_sigmas(score.sigmas)
        ratio = float(levels[0] / levels[-1]) ** (1 / max(1, len(levels) - 1))
        steps = schedule.steps_per_level
        step_size = best_step_size(ratio, float(levels[-1]), steps) if ratio > 1 else None
        schedule = Schedule(levels.float(), step_size or float(levels[-1]) ** 2 / 10, steps)
    elif score.condition == "label":
        score = replace(score, sigmas=schedule.sigmas)
    samples = open_samples(data)
    x = torch.cat([samples.take(one) for one in samples.spread()])
    tensors = () if score.module is None else (*score.module.parameters(), *score.module.buffers())
    x = x.to(tensors[0].device if tensors else x.device)
    x = space.enter(unit_interval(x) if x.dtype == torch.uint8 else x.float())
    sigmas = schedule.sigmas
    found = remarks(look(score, x, sigmas, seed))
    steep = steepness(score, x, sigmas, seed)
    limit = float(sigmas[-1]) ** 2 / steep if steep > 0 else math.inf
    if limit < schedule.step_size:
        found.append(
            f"at the smallest level the score is {steep:.3g} times as steep as 1/σ², the most that "
            f"an exact one is: ε is {limit:.3g} for that, the rule's {schedule.step_size:.3g}"
        )
        schedule = replace(schedule, step_size=limit)
    return schedule, found


def schedule_between(
    sigma_max: float,
    sigma_min: float,
    steps_per_level: int,
    *,
    dimension: int,
    overlap: float,
    num_levels: int | None = None,
    step_size: float | None = None,
) -> Schedule:
    """Levels between two ends, with the rules' number of them and step size unless given.

    Args:
        dimension: D, values per data point.
        overlap: C, as for :func:`auto_schedule`, where the number of levels is not given.

    Raises:
        ValueError: for ends or an overlap out of range.
    """
    if num_levels is None:
        ratio = level_ratio(dimension, overlap)
        num_levels = max(2, round(num_levels_for(sigma_max, sigma_min, ratio)))
    sigmas = geometric_sigmas(sigma_max, sigma_min, num_levels)
    if step_size is None:
        # Of the ladder that came out, whose ratio rounding has changed a little.
        ratio = (sigma_max / sigma_min) ** (1 / (num_levels - 1))
        step_size = best_step_size(ratio, sigma_min, steps_per_level)
    return Schedule(sigmas, step_size, steps_per_level)


def _warnings(schedule: Schedule, distances: Distances, space: Space | None) -> tuple[str, ...]:
    """What a user should know; ``space`` is that of images, None where the data are others."""
    found = _data_warnings(distances)
    low, high, sigma_min = distances.low, distances.high, float(schedule.sigmas[-1])
    if space and space.plain and not (low >= 0 and high <= 1):
        mend = "scale them to [0, 1]"
        if low >= -1 and high <= 1:
            mend = (
                "if they are 2x - 1 of images in [0, 1], distances and noise levels are twice "
                f"theirs, and sigma_min = {sigma_min:g} is {sigma_min / 2:g} there"
            )
        elif low >= 0 and high <= 255:
            mend = "divide 8-bit images by 255, or give them as uint8"
        found.append(f"the images have values from {low:g} to {high:g}, not in [0, 1]: {mend}")
    elif space and not space.logit_transform:
        step = (2 if space.rescaled else 1) / 255
        if sigma_min < step / 2:
            found.append(
                f"sigma_min = {sigma_min:g} is less than half the step of 8-bit values, "
                f"{step:.4f}: the network would learn their grid; raise it, or dequantize"
            )
        if sigma_min > 10 * step:
            found.append(
                f"sigma_min = {sigma_min:g} is more than ten steps of 8-bit values, "
                f"{10 * step:.4f}: samples would lack their finest detail; lower it"
            )
    calls = len(schedule.sigmas) * schedule.steps_per_level
    if calls > _MANY_CALLS:
        found.append(
            f"{len(schedule.sigmas):,} levels of {schedule.steps_per_level} steps are {calls:,} "
            "network evaluations for each sample (published: 1,160 to 6,933): lower overlap or "
            "steps_per_level, raise sigma_min, or sample with fewer steps by another method"
        )
    return tuple(found)


def _data_warnings(distances: Distances) -> list[str]:
    found = []
    if distances.points < _FEW_POINTS:
        found.append(
            f"{distances.points} data points are few: the largest distance grows with their number"
        )
    if distances.copies * 100 > distances.points:
        found.append(
            f"{distances.copies:,} of {distances.points:,} data points are copies of others: "
            "leave them out, or the network will prefer them"
        )
    if distances.largest > 2 * distances.core:
        one, other = distances.pair
        found.append(
            f"few far points decide the largest level: samples {one} and {other} are "
            f"{distances.largest:.4g} apart, all but the farthest at most {distances.core:.4g}; "
            "look at them, and leave them out if they are damaged"
        )
    return found


__all__ = ["Schedule", "auto_schedule", "schedule_between"]
