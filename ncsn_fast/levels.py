"""Noise levels, step sizes, and the rules that choose both from the data.

The rules are Techniques 1, 2 and 4 of Song & Ermon 2020 ("Improved Techniques for Training
Score-Based Generative Models"): the largest level is the largest distance between two data points,
neighbouring levels overlap by a fixed probability, and the step size keeps the variance of the
annealed chain where it should be.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ncsn_fast.checks import count

# Overlap C of neighbouring levels in Technique 2, as the paper states it.
OVERLAP = 0.5


@dataclass(frozen=True)
class Schedule:
    """Everything annealed Langevin dynamics needs to know besides the network.

    Attributes:
        sigmas: (L,) float32 noise levels, descending.
        step_size: ε, the step size at the smallest level is ε itself.
        steps_per_level: T.
    """

    sigmas: Tensor
    step_size: float
    steps_per_level: int

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
    data: Tensor,
    *,
    sigma_min: float = 0.01,
    steps_per_level: int = 5,
    overlap: float = OVERLAP,
    max_points: int = 10_000,
    seed: int = 0,
) -> Schedule:
    """Noise levels and step size from the training data (Techniques 1, 2 and 4).

    Args:
        data: (N, *shape) training data in model space, on any device.
        sigma_min: the smallest level; 0.01 for data in [0, 1].
        steps_per_level: T.
        overlap: C, the overlap of neighbouring levels, in (0, 0.997).
        max_points: distances are taken between all points, or this many random ones.
        seed: which random ones.

    Raises:
        ValueError: for fewer than two distinct points, values that are not finite, or settings
            out of range.
    """
    steps_per_level = count("steps_per_level", steps_per_level)
    if not (math.isfinite(sigma_min) and sigma_min > 0):
        raise ValueError(f"sigma_min = {sigma_min}: the smallest level is positive, such as 0.01")
    sigma_max = largest_distance(data, max_points=max_points, seed=seed)
    if sigma_max <= sigma_min:
        raise ValueError(
            f"the largest distance between two data points is {sigma_max:g}, not above "
            f"sigma_min = {sigma_min:g}: scale the data to [0, 1], or lower sigma_min"
        )
    ratio = level_ratio(math.prod(data.shape[1:]), overlap)
    num_levels = max(2, round(num_levels_for(sigma_max, sigma_min, ratio)))
    sigmas = geometric_sigmas(sigma_max, sigma_min, num_levels)
    # The step size belongs to the ladder that came out, whose ratio rounding has changed a little.
    ratio = (sigma_max / sigma_min) ** (1 / (num_levels - 1))
    return Schedule(sigmas, best_step_size(ratio, sigma_min, steps_per_level), steps_per_level)


def largest_distance(data: Tensor, *, max_points: int = 10_000, seed: int = 0) -> float:
    """σ₁ of Technique 1: the largest Euclidean distance between two data points.

    Exact for up to ``max_points`` points, otherwise over that many random ones. Computed in blocks
    on the data's device, so that memory stays bounded.
    """
    if data.ndim < 2:
        raise ValueError(f"data have shape {tuple(data.shape)}: give (N, *shape of one sample)")
    points = data.flatten(1)
    if len(points) < 2:
        raise ValueError(f"{len(points)} data points: a distance needs at least two")
    if not bool(torch.isfinite(points).all()):
        raise ValueError("the data hold values that are not finite: clean them first")
    if len(points) > max_points:
        generator = torch.Generator("cpu").manual_seed(seed)
        chosen = torch.randperm(len(points), generator=generator, device="cpu")[:max_points]
        points = points[chosen.to(points.device)]
    points = points.float()
    # Centring loses no distance and keeps digits: |a|² + |b|² - 2ab cancels badly far from 0.
    points = points - points.mean(0)
    squares = points.square().sum(1)
    largest = 0.0
    for block, block_squares in zip(points.split(1024), squares.split(1024), strict=True):
        distances = block_squares[:, None] + squares[None, :] - 2 * block @ points.T
        largest = max(largest, float(distances.max()))
    return math.sqrt(largest)


def level_ratio(dimension: int, overlap: float = OVERLAP) -> float:
    """g = σ_{i-1}/σ_i of Technique 2: the solution of Φ(u + 3g) - Φ(u - 3g) = C, u = √(2D)(g - 1).

    Args:
        dimension: D, values per data point.
        overlap: C, in (0, 1).
    """
    most = 2 * _normal_cdf(3.0) - 1  # at g = 1
    if dimension < 1 or not 0 < overlap < most:
        raise ValueError(
            f"dimension = {dimension}, overlap = {overlap}: D ≥ 1 and 0 < C < {most:.4f}, the "
            "overlap of a level with itself, are needed"
        )

    def excess(g: float) -> float:
        u = math.sqrt(2 * dimension) * (g - 1)
        return _normal_cdf(u + 3 * g) - _normal_cdf(u - 3 * g) - overlap

    upper = 2.0
    while excess(upper) > 0:
        upper *= 2
        # In very low dimensions a wide level covers its neighbour at any ratio.
        if upper > 1e6:
            raise ValueError(
                f"no ratio of levels has an overlap as low as {overlap} in {dimension} "
                "dimensions: raise overlap, or give the levels with nf.geometric_sigmas"
            )
    return _bisect(excess, 1.0, upper)


def num_levels_for(sigma_max: float, sigma_min: float, ratio: float) -> float:
    """L = 1 + ln(σ₁/σ_L)/ln g, not rounded."""
    return 1 + math.log(sigma_max / sigma_min) / math.log(ratio)


def best_step_size(ratio: float, sigma_min: float, steps_per_level: int) -> float:
    """ε of Technique 4: where the variance after T steps is closest to that of the next level.

    With a = ε/σ_L² and b = 2a/(1 - (1 - a)²), T Langevin steps at a level turn the relative
    variance g² it is entered with into r(ε) = (1 - a)^{2T}(g² - b) + b; ε brings r closest to 1.

    Args:
        ratio: g > 1.
        sigma_min: σ_L.
        steps_per_level: T.
    """

    def distance(a: np.ndarray) -> np.ndarray:
        b = 2 * a / (1 - (1 - a) ** 2)
        return np.abs((1 - a) ** (2 * steps_per_level) * (ratio**2 - b) + b - 1)

    low, high = 1e-8, 2.0 - 1e-8
    for _ in range(8):  # each pass narrows the best interval of a logarithmic grid
        grid = np.geomspace(low, high, 1001)
        best = int(np.argmin(distance(grid)))
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
    "largest_distance",
    "level_ratio",
    "num_levels_for",
    "trusted_sigmas",
]
