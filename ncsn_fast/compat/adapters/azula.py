"""azula's denoisers (github.com/probabilists/azula): E[x₀ | α·x₀ + σ·z] of a time."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ncsn_fast.compat.adapters.times import Clock
from ncsn_fast.models.score import Score


class _Denoiser(nn.Module):
    def __init__(self, denoiser: Any) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(self, x: Tensor, time: Tensor, **extra: Any) -> Tensor:
        mean: Tensor = self.denoiser(x, time, **extra).mean
        return mean


def score(denoiser: Any) -> Score:
    """A denoiser of azula as a Score, whose states are x₀ + σz with the σ/α of its schedule.

        sampler = nf.Sampler(score(denoiser), (3, 64, 64), method="dpmpp_2m", steps=20)
        x = sampler(16, extra={"label": labels})  # what the denoiser takes by name

    A state of azula's is α(t) times ours at σ = σ(t)/α(t): ``score.to_state(x, sigma)``.

    Args:
        denoiser: a module called as denoiser(x_t, t) for t (B,), with ``schedule(t)`` → (α, σ) and
            a posterior with ``mean`` as its answer: azula's, but for its analytic
            ``GaussianDenoiser``, which takes one time for all.

    Returns:
        A Score told the time, with ``sigmas`` of 1,000 times from 1 to 0.

    Raises:
        ValueError: for what has no schedule, one whose σ/α does not rise, and a
            ``GaussianDenoiser``.
    """
    schedule = getattr(denoiser, "schedule", None)
    if not isinstance(denoiser, nn.Module) or not callable(schedule):
        raise ValueError(
            f"denoiser is a {type(denoiser).__name__}: give a denoiser of azula, a module with "
            "schedule(t)"
        )
    if isinstance(getattr(denoiser, "mean", None), Tensor) and hasattr(denoiser, "cov"):
        raise ValueError(
            f"a {type(denoiser).__name__} takes one time for all samples, not one each: its score "
            'is nf.Score(lambda x, sigma: …, "score", "sigma") of the formula'
        )
    clock = Clock(schedule, 0.0, 1.0)
    fn = _Denoiser(denoiser)
    return Score(fn, "denoiser", clock, clock.sigmas, input_scale=clock.scale)


__all__ = ["score"]
