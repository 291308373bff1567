"""torchebm's energies (github.com/soran-ghaderi/torchebm): the score is minus their gradient."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ncsn_fast.models.score import Score


class _Downhill(nn.Module):
    def __init__(self, energy: Any) -> None:
        super().__init__()
        self.energy = energy

    def forward(self, x: Tensor, **extra: Any) -> Tensor:
        gradient: Tensor = self.energy.gradient(x, extra) if extra else self.energy.gradient(x)
        return -gradient


def score(energy: Any) -> Score:
    """An energy E(x) of torchebm as the score -∇E of exp(-E), told no noise level.

        x = nf.langevin(score(energy), x, step_size=0.01, steps=500, seed=0)

    An energy that is told the noise level is nf.Score(fn, "score", "sigma"), with fn(x, sigma) =
    -energy.gradient(x, {"sigma": sigma}) by the name that it has there.

    Args:
        energy: a model of torchebm: a module whose ``gradient(x)`` is ∇E (B, *shape).

    Returns:
        What a Sampler and nf.langevin take.

    Raises:
        ValueError: for what has no gradient.
    """
    if not isinstance(energy, nn.Module) or not callable(getattr(energy, "gradient", None)):
        raise ValueError(
            f"energy is a {type(energy).__name__}: give a model of torchebm, a module with "
            "gradient(x)"
        )
    return Score(_Downhill(energy), "score", "none")


__all__ = ["score"]
