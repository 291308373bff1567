"""Networks that are told a time t, and see α(t)·x₀ + σ(t)·z: noise levels σ/α, and their times."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ncsn_fast.methods.levels import SAME_LEVEL, check_sigmas

Scales = Callable[[Tensor], tuple[Tensor, Tensor]]
# A level's time is searched for among so many, so often: to 64⁻⁷ = 2⁻⁴² of all times.
_PARTS, _TIMES = 64, 7
_LEVELS = 1000


class Clock:
    """The time of a noise level σ/α: what a :class:`nf.Score` is told as its condition.

    Args:
        scales: times (B,), float64 → α and σ (B,) of the states at these.
        first, last: the times of the smallest and of the largest noise level.

    Attributes:
        sigmas: (L,) float64, descending, the levels of evenly spaced times.

    Raises:
        ValueError: where σ/α does not rise with the time.
    """

    def __init__(self, scales: Scales, first: float, last: float) -> None:
        self._scales, self._ends = scales, (first, last)
        times = torch.linspace(last, first, _LEVELS, dtype=torch.float64, device="cpu")
        levels = self._level(times)
        # At an end there may be no noise, or nothing else.
        seen = torch.isfinite(levels) & (levels > 0)
        try:
            self.sigmas = check_sigmas(levels[seen])
        except ValueError as error:
            raise ValueError(f"σ/α of this schedule has to rise with the time: {error}") from None

    def __call__(self, sigma: Tensor) -> Tensor:
        """The time of each noise level, of its shape and dtype.

        Raises:
            ValueError: for levels beyond those of the schedule, on a CPU.
        """
        largest, smallest = float(self.sigmas[0]), float(self.sigmas[-1])
        if sigma.device.type == "cpu" and not torch.compiler.is_compiling():
            beyond = (sigma.log() - sigma.clamp(smallest, largest).log()).abs() > SAME_LEVEL
            if bool(beyond.any()):
                raise ValueError(
                    f"asked for is σ = {float(sigma[beyond][0]):g}, but the network's schedule has "
                    f"σ/α from {largest:g} to {smallest:g}: stay between them"
                )
        wanted = sigma.double()[..., None]
        low, high = (torch.full_like(wanted, end) for end in self._ends)
        shares = torch.linspace(0, 1, _PARTS + 1, dtype=wanted.dtype, device=wanted.device)
        for _ in range(_TIMES):
            times = torch.lerp(low, high, shares)
            early = self._level(times.flatten()).view_as(times) < wanted
            place = early.sum(-1, keepdim=True).clamp(1, _PARTS)
            low, high = times.gather(-1, place - 1), times.gather(-1, place)
        return high[..., 0].to(sigma.dtype)

    def scale(self, sigma: Tensor) -> Tensor:
        """α at each noise level, of its shape and dtype; below the smallest, that of this one.

        Raises:
            ValueError: for levels above those of the schedule, on a CPU.
        """
        time = self(sigma.clamp(min=float(self.sigmas[-1])))
        return self._scales(time)[0].to(sigma)

    def _level(self, times: Tensor) -> Tensor:
        alpha, sigma = self._scales(times)
        return (sigma / alpha).to(times)


__all__ = ["Clock"]
