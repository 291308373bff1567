"""Noise levels, step sizes, and the rules that choose both from the data.

The rules are Techniques 1, 2 and 4 of Song & Ermon 2020 ("Improved Techniques for Training
Score-Based Generative Models"): the largest level is the largest distance between two data points,
neighbouring levels overlap by a fixed probability, and the step size keeps the variance of the
annealed chain where it should be.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ncsn_fast.checks import count
from ncsn_fast.distances import Distances, measure_distances
from ncsn_fast.placement import Data
from ncsn_fast.progress import ProgressWish

# Overlap C of neighbouring levels in Technique 2, as the paper states it.
OVERLAP = 0.5
_MOST_RATIO = 2.0
_FEW_POINTS, _MANY_CALLS = 100, 10_000
_log = logging.getLogger("ncsn_fast")


@dataclass(frozen=True)
class Schedule:
    """Everything annealed Langevin dynamics needs to know besides the network.

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


def geometric_sigmas(sigma_max: float, sigma_min: float, num_levels: int) -> Tensor:
    """A geometric ladder of noise levels, (num_levels,) float32, from sigma_max to sigma_min.

    Raises:
        ValueError: unless sigma_max > sigma_min > 0 and num_levels ≥ 2.
    """
    if not (math.isfinite(sigma_max) and sigma_max > sigma_min > 0):
        raise ValueError(
            f"sigma_max = {sigma_max}, sigma_min = {sigma_min}: levels are positive and "
            "descending, so finite sigma_max > sigma_min > 0 is needed"
        )
    if num_levels < 2:
        raise ValueError(f"num_levels = {num_levels}: a ladder has at least 2 levels")
    ladder = np.exp(np.linspace(math.log(sigma_max), math.log(sigma_min), num_levels))
    return torch.from_numpy(ladder).float()


def check_sigmas(sigmas: Sequence[float] | np.ndarray | Tensor) -> Tensor:
    """Noise levels as a (L,) float32 CPU tensor.

    Raises:
        ValueError: unless they are finite, positive and strictly descending.
    """
    if not isinstance(sigmas, Tensor):
        sigmas = torch.from_numpy(np.array(sigmas, dtype=np.float64))
    levels = sigmas.detach().to("cpu", torch.float32)
    if levels.ndim != 1 or len(levels) == 0:
        raise ValueError(f"sigmas has shape {tuple(levels.shape)}: give a 1-D list of noise levels")
    if not bool(torch.isfinite(levels).all() and (levels > 0).all()):
        bad = int((~(torch.isfinite(levels) & (levels > 0))).nonzero()[0])
        raise ValueError(
            f"sigmas[{bad}] = {float(levels[bad])}: noise levels are finite and positive"
        )
    rises = (levels.diff() >= 0).nonzero()
    if len(rises):
        i = int(rises[0])
        raise ValueError(
            f"sigmas[{i}] = {float(levels[i]):g} is followed by {float(levels[i + 1]):g}: noise "
            "levels descend from the largest to the smallest (reverse the list?)"
        )
    return levels


def trusted_sigmas(sigmas: Sequence[float] | np.ndarray | Tensor) -> Tensor:
    """:func:`check_sigmas`, but levels that are on a GPU stay there: looking would stall it."""
    if isinstance(sigmas, Tensor) and sigmas.device.type != "cpu":
        return sigmas.detach().float()
    return check_sigmas(sigmas)


def check_step_size(step_size: float, sigma_min: float) -> float:
    """Return ε, or raise ValueError unless 0 < ε < 2σ_L², where the chain does not diverge."""
    limit = 2 * sigma_min**2
    if not 0 < step_size < limit:
        raise ValueError(
            f"step_size = {step_size:g}: annealed Langevin dynamics needs 0 < ε < 2σ_L² = "
            f"{limit:g} (σ_L = {sigma_min:g}), beyond which every chain diverges. Published "
            "values lie near 0.06·σ_L²; nf.auto_schedule(data) computes one"
        )
    return step_size


def auto_schedule(
    data: Data,
    *,
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
    """Noise levels and step size from the training data (Techniques 1, 2 and 4).

    What a user should know about the data and the choice is logged as warnings, and kept in the
    result.

    Args:
        data: (N, *shape) training data: a tensor on any device or an array, which may be
            memory-mapped, floating point in model space or (images) uint8, which are divided by
            255; or a map-style Dataset of such samples or of (sample, label) pairs.
        sigma_min: the smallest level; 0.01 for data in [0, 1].
        steps_per_level: T.
        overlap: C, the overlap of neighbouring levels, in (0, 0.997). In few dimensions it is
            more, as levels are no more than about a factor of 2 apart; see :func:`level_ratio`.
        max_points: distances are taken between all points, or this many random ones (fewer where
            they would fill more than 4 GiB); the result says which.
        seed: which random ones.
        rescaled, logit_transform: data are in [0, 1], but the network works on 2x - 1, or on the
            logit.
        device: where distances are computed; default: the data's, or the CPU.
        progress: True for a bar, or a function (done, total).

    Raises:
        ValueError: for fewer than two distinct points, values that are not finite, or settings
            out of range.
    """
    steps_per_level = count("steps_per_level", steps_per_level)
    if not (math.isfinite(sigma_min) and sigma_min > 0):
        raise ValueError(f"sigma_min = {sigma_min}: the smallest level is positive, such as 0.01")
    distances = measure_distances(
        data,
        max_points=max_points,
        seed=seed,
        rescaled=rescaled,
        logit_transform=logit_transform,
        device=device,
        progress=progress,
    )
    sigma_max = distances.largest
    if sigma_max == 0:
        raise ValueError(f"all {distances.points:,} data points are equal: there is no distance")
    if sigma_max <= sigma_min:
        raise ValueError(
            f"the largest distance between two data points is {sigma_max:g}, not above "
            f"sigma_min = {sigma_min:g}: scale the data to [0, 1], or lower sigma_min"
        )
    ratio = level_ratio(distances.dimension, overlap)
    num_levels = max(2, round(num_levels_for(sigma_max, sigma_min, ratio)))
    sigmas = geometric_sigmas(sigma_max, sigma_min, num_levels)
    # The step size belongs to the ladder that came out, whose ratio rounding has changed a little.
    ratio = (sigma_max / sigma_min) ** (1 / (num_levels - 1))
    step_size = best_step_size(ratio, sigma_min, steps_per_level)
    schedule = Schedule(sigmas, step_size, steps_per_level, distances)
    images = isinstance(data, Tensor | np.ndarray) and data.ndim == 4
    space = "logit" if logit_transform else "rescaled" if rescaled else "plain"
    warnings = _warnings(schedule, distances, space if images else None)
    for warning in warnings:
        _log.warning("%s", warning)
    return replace(schedule, warnings=warnings)


def _warnings(schedule: Schedule, distances: Distances, space: str | None) -> tuple[str, ...]:
    """What a user should know; ``space`` is that of images: plain, rescaled or logit."""
    found = _data_warnings(distances)
    low, high, sigma_min = distances.low, distances.high, float(schedule.sigmas[-1])
    if space == "plain" and not (low >= 0 and high <= 1):
        mend = "scale them to [0, 1]"
        if low >= -1 and high <= 1:
            mend = (
                "if they are 2x - 1 of images in [0, 1], distances and noise levels are twice "
                f"theirs, and sigma_min = {sigma_min:g} is {sigma_min / 2:g} there"
            )
        elif low >= 0 and high <= 255:
            mend = "divide 8-bit images by 255, or give them as uint8"
        found.append(f"the images have values from {low:g} to {high:g}, not in [0, 1]: {mend}")
    elif space in ("plain", "rescaled"):
        step = (2 if space == "rescaled" else 1) / 255
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


def level_overlap(dimension: int, ratio: float) -> float:
    """C of Technique 2: Φ(u + 3g) - Φ(u - 3g), u = √(2D)(g - 1), for the ratio g of two levels.

    Args:
        dimension: D, values per data point.
        ratio: g ≥ 1.
    """
    u = math.sqrt(2 * dimension) * (ratio - 1)
    return _normal_cdf(u + 3 * ratio) - _normal_cdf(u - 3 * ratio)


def level_ratio(dimension: int, overlap: float = OVERLAP) -> float:
    """g = σ_{i-1}/σ_i of Technique 2: the solution of Φ(u + 3g) - Φ(u - 3g) = C, u = √(2D)(g - 1).

    At most 2: in fewer than 18 dimensions a level overlaps even more distant ones, up to four
    dimensions any, but the few steps at a level cannot bring a chain so far down.

    Args:
        dimension: D, values per data point.
        overlap: C, in (0, 1).
    """
    most = 2 * _normal_cdf(3.0) - 1  # at g = 1
    if dimension < 1:
        raise ValueError(f"dimension = {dimension}: data points have at least one value")
    if not 0 < overlap < most:
        raise ValueError(
            f"overlap = {overlap}: give one above 0 and below {most:.4f}, the overlap of a level "
            "with itself; 0.5 is usual"
        )

    def excess(g: float) -> float:
        return level_overlap(dimension, g) - overlap

    return _MOST_RATIO if excess(_MOST_RATIO) > 0 else _bisect(excess, 1.0, _MOST_RATIO)


def num_levels_for(sigma_max: float, sigma_min: float, ratio: float) -> float:
    """L = 1 + ln(σ₁/σ_L)/ln g, not rounded."""
    return 1 + math.log(sigma_max / sigma_min) / math.log(ratio)


def relative_variance(step_size: np.ndarray, ratio: float, steps_per_level: int) -> np.ndarray:
    """r(ε) of Technique 4: the chain's variance after a level, over that of the level.

    With a = ε/σ_L² and b = 2a/(1 - (1 - a)²), T Langevin steps turn the relative variance g² that
    a level is entered with into r = (1 - a)^{2T}(g² - b) + b.

    Args:
        step_size: a, the step size over σ_L², in (0, 2).
        ratio: g.
        steps_per_level: T.
    """
    b = 2 * step_size / (1 - (1 - step_size) ** 2)
    return (1 - step_size) ** (2 * steps_per_level) * (ratio**2 - b) + b


def best_step_size(ratio: float, sigma_min: float, steps_per_level: int) -> float:
    """ε of Technique 4, for which :func:`relative_variance` is closest to 1.

    Args:
        ratio: g > 1.
        sigma_min: σ_L.
        steps_per_level: T.
    """
    low, high = 1e-8, 2.0 - 1e-8
    for _ in range(8):  # each pass narrows the best interval of a logarithmic grid
        grid = np.geomspace(low, high, 1001)
        best = int(np.argmin(np.abs(relative_variance(grid, ratio, steps_per_level) - 1)))
        low, high = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    return float(grid[best]) * sigma_min**2


def _normal_cdf(value: float) -> float:
    return 0.5 * math.erfc(-value / math.sqrt(2))


def _bisect(falling: Callable[[float], float], low: float, high: float) -> float:
    """The root of a falling function between two bounds, to the last bit."""
    for _ in range(200):
        middle = 0.5 * (low + high)
        if falling(middle) > 0:
            low = middle
        else:
            high = middle
    return 0.5 * (low + high)


__all__ = [
    "Schedule",
    "auto_schedule",
    "best_step_size",
    "check_sigmas",
    "check_step_size",
    "geometric_sigmas",
    "level_overlap",
    "level_ratio",
    "num_levels_for",
    "relative_variance",
    "trusted_sigmas",
]
