"""Which noise levels a method of few steps visits between the largest and the smallest."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from ncsn_fast.methods.levels import SAME_LEVEL, check_sigmas, nearest_level
from ncsn_fast.support import checks

AUTO = "auto"
# Steps of ln σ that differ from their mean by no more than this share of it are even: published
# ladders that were rounded to two digits are.
EVEN_WITHIN = 0.1


def ladder(levels: np.ndarray, number: int, rho: float) -> np.ndarray:
    """An even subset of the model's own levels, with the first and the last.

    Raises:
        ValueError: for more levels than there are.
    """
    _check_number(number, levels)
    return levels[np.rint(np.linspace(0, len(levels) - 1, number)).astype(int)]


def nearest(levels: np.ndarray, number: int, rho: float) -> np.ndarray:
    """Those of the model's own levels that lie nearest to geometric ones, each of them once.

    Raises:
        ValueError: for more levels than there are.
    """
    _check_number(number, levels)
    wanted = np.log(geometric(levels, number, rho))
    place = np.abs(wanted[:, None] - np.log(levels)).argmin(1)
    for i in range(number - 2, -1, -1):  # where the ladder is coarse, the next ones above
        place[i] = max(min(place[i], place[i + 1] - 1), i)
    return levels[place]


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
    "nearest": nearest,
    "geometric": geometric,
    "karras": karras,
    "linear": linear,
}


def evenly_spaced(values: np.ndarray) -> bool:
    """Whether all steps of (L,) values are within ``EVEN_WITHIN`` of their mean."""
    steps = np.diff(values)
    return len(steps) == 0 or bool((np.abs(steps / steps.mean() - 1) <= EVEN_WITHIN).all())


def resolve(
    spacing: str, sigmas: Sequence[float] | np.ndarray | Tensor, only_levels: bool = False
) -> str:
    """What "auto" stands for on a ladder: a name of ``SPACINGS``; others stay what they are.

    On a geometric ladder (by :func:`evenly_spaced` of its ln σ) that is "ladder". An even subset of
    another one takes uneven steps in ln σ, which multistep methods amplify: there it is
    "geometric", or "nearest" for networks that know their own levels only.

    Args:
        spacing: "auto" or a name of ``SPACINGS``.
        sigmas: (L,) the model's own levels, descending.
        only_levels: whether the network can be told those levels and no other.

    Raises:
        ValueError: for an unknown spacing.
    """
    if not isinstance(spacing, str) or spacing not in (AUTO, *SPACINGS):
        raise ValueError(f"spacing = {spacing!r:.80} is unknown; choose one of {[AUTO, *SPACINGS]}")
    if spacing != AUTO:
        return spacing
    if evenly_spaced(np.log(check_sigmas(sigmas).double().numpy())):
        return "ladder"
    return "nearest" if only_levels else "geometric"


def noise_levels(
    sigmas: Sequence[float] | np.ndarray | Tensor,
    number: int | None = None,
    spacing: str = AUTO,
    rho: float = 7.0,
) -> np.ndarray:
    """(number,) float64 noise levels from the first to the last of ``sigmas``, descending.

    Args:
        sigmas: (L,) the model's own levels, descending.
        number: how many; None: L. A single one is the largest.
        spacing: a name of ``SPACINGS`` ("karras": Karras et al. 2022, equation 5), or "auto":
            ``sigmas`` themselves where no number is given, else an even subset of them where they
            are geometric, and "geometric" where not.
        rho: ρ of "karras", finite and positive.

    Returns:
        (number,) float64.

    Raises:
        ValueError: for an unknown spacing, ρ out of range, or more levels than a ladder has.
    """
    levels = check_sigmas(sigmas).double().numpy()
    given = resolve(spacing, sigmas)
    spacing = "ladder" if spacing == AUTO and number is None else given
    number = len(levels) if number is None else checks.count("number", number)
    rho = checks.number("rho", rho)
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


def _check_number(number: int, levels: np.ndarray) -> None:
    if number > len(levels):
        raise ValueError(
            f"{number} noise levels wanted, but the model's own ladder has {len(levels)}: take "
            "fewer steps, or, for a network that takes any σ, another spacing: geometric, karras "
            "or linear"
        )


__all__ = ["AUTO", "SPACINGS", "evenly_spaced", "level_indices", "noise_levels", "resolve"]
