"""Which noise levels a method of few steps visits between the largest and the smallest."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from ncsn_fast.methods.levels import SAME_LEVEL, check_sigmas, nearest_level
from ncsn_fast.support.checks import count


def ladder(levels: np.ndarray, number: int, rho: float) -> np.ndarray:
    """An even subset of the model's own levels, with the first and the last.

    Raises:
        ValueError: for more levels than there are.
    """
    if number > len(levels):
        raise ValueError(
            f"{number} noise levels wanted, but the model's own ladder has {len(levels)}: take "
            "fewer steps, or, for a network that takes any σ, another spacing: geometric, karras "
            "or linear"
        )
    return levels[np.rint(np.linspace(0, len(levels) - 1, number)).astype(int)]


def geometric(levels: np.ndarray, number: int, rho: float) -> np.ndarray:
    """A constant ratio of neighbours."""
    return np.geomspace(levels[0], levels[-1], number)


def karras(levels: np.ndarray, number: int, rho: float) -> np.ndarray:
    """Evenly spaced in σ^(1/ρ) (Karras et al. 2022, equation 5): a larger ρ dwells at small σ."""
    return np.linspace(levels[0] ** (1 / rho), levels[-1] ** (1 / rho), number) ** rho


def linear(levels: np.ndarray, number: int, rho: float) -> np.ndarray:
    """A constant difference of neighbours."""
    return np.linspace(levels[0], levels[-1], number)


SPACINGS: dict[str, Callable[[np.ndarray, int, float], np.ndarray]] = {
    "ladder": ladder,
    "geometric": geometric,
    "karras": karras,
    "linear": linear,
}


def noise_levels(
    sigmas: Sequence[float] | np.ndarray | Tensor,
    number: int | None = None,
    spacing: str = "ladder",
    rho: float = 7.0,
) -> np.ndarray:
    """(number,) float64 noise levels from the first to the last of ``sigmas``, descending.

    Args:
        sigmas: (L,) the model's own levels, descending.
        number: how many; None: L. A single one is the largest.
        spacing: a name of ``SPACINGS``.
        rho: ρ of "karras", finite and positive.

    Raises:
        ValueError: for an unknown spacing, ρ out of range, or more levels than a ladder has.
    """
    levels = check_sigmas(sigmas).double().numpy()
    number = len(levels) if number is None else count("number", number)
    if spacing not in SPACINGS:
        raise ValueError(f"spacing = {spacing!r} is unknown; choose one of {list(SPACINGS)}")
    if not (math.isfinite(rho) and rho > 0):
        raise ValueError(f"rho = {rho}: Karras' ρ is finite and positive; 7 is the usual one")
    chosen = SPACINGS[spacing](levels, number, rho)
    # Powers and logarithms miss the ends by a rounding error.
    chosen[0] = levels[0]
    if number > 1:
        chosen[-1] = levels[-1]
    return chosen


def level_indices(
    sigma: np.ndarray, sigmas: Sequence[float] | np.ndarray | Tensor
) -> tuple[int, ...]:
    """The index in the ladder ``sigmas`` (L,) of each of ``sigma`` (K,), -1 off the ladder."""
    nearest, gap = nearest_level(torch.from_numpy(sigma), check_sigmas(sigmas).double())
    return tuple(torch.where(gap <= SAME_LEVEL, nearest, -1).tolist())


__all__ = ["SPACINGS", "level_indices", "noise_levels"]
