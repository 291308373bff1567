"""The noise level that a state really has, as a network that is not told one says it.

Of x = x₀ + t·z such a network returns n = -E[z | x] whatever t is, and a step of the ODE takes away
noise of the length that the table's σ stands for: nothing brings t back to σ. But E⟨x, z⟩ = t·D
(Stein), so the state says its t itself. ``docs/few_steps.md`` derives what is computed here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ncsn_fast.models.base import ScoreNetwork
from ncsn_fast.models.score import Score
from ncsn_fast.reference import per_sample
from ncsn_fast.support import checks
from ncsn_fast.support.callables import layers
from ncsn_fast.table import Table

Number = float | Tensor

# How far t is expected to lie from σ, in parts of σ, before the state is asked.
_PRIOR_SPREAD = 0.3
# What is believed of t/σ at most.
_LEAST, _MOST = 0.5, 2.0
# What a network returns that n is made of without the table's σ, by what it is told. One that
# divides by the σ of its label is multiplied by it again.
_KINDS = {"none": ("normalized", "epsilon"), "label": ("normalized", "epsilon", "score")}


def holds_noise(wish: bool | None, score: Score, table: Table) -> bool:
    """Whether the states of a chain are held at the noise level of each row.

    Args:
        wish: None wherever the network is known not to see σ, in methods of the ODE and of second
            order: others with fresh noise make up for errors themselves. True says so of a network
            that is given labels and cannot be looked into, and of such a method.

    Raises:
        ValueError: for True where it makes no sense, with the reason.
    """
    checks.choice("hold_noise", wish, (None, True, False), "whether the noise level is held")
    inner = list(layers(score.fn))[-1]
    ours = inner if isinstance(inner, ScoreNetwork) else None
    reason = None
    if score.condition not in ("none", "label") or (ours is not None and ours.sees_sigma):
        reason = "this network is told the noise level, and what n is follows it"
    elif score.kind not in _KINDS[str(score.condition)] or (score.sigma_data or score.input_scale):
        reason = (
            f"of a network that returns {score.kind!r} and is told {score.condition!r} n goes by "
            "the table's σ; held is the noise of those that return it normalised, whatever it is"
        )
    elif not table.keeps_levels:
        reason = (
            "the rows of this method do not leave states at the level of the row after them; it is "
            "held in euler, heun, dpmpp_2m, ancestral, consistent_annealed, and whatever adds none"
        )
    if wish and reason is not None:
        raise ValueError(f"hold_noise=True: {reason}. Leave it out")
    blind = score.condition == "none" or ours is not None
    needed = blind and (table.has_history or not table.adds_noise)
    return reason is None and (needed if wish is None else wish)


def measured(
    x: Tensor, n: Tensor, sigma: Number, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """What states say of their noise level, in parts of σ, and how much that weighs.

    Args:
        x: (B, *shape) float32.
        n: (B, *shape) float32, the normalised score there.
        sigma: σ > 0, of the host or () on the device.
        mask: (B, *shape) bool, what is imposed and has noise σ: it is left out.

    Returns:
        t̂/σ and its weight in (0, 1), (B,) float32 each.
    """
    inverse = 1 / sigma
    free = torch.ones_like(x) if mask is None else mask.logical_not().to(x.dtype)
    count = _sums(free).clamp(min=1)
    clean = x + sigma * n
    centre = per_sample(_sums(free * clean) / count, x)
    ratio = -_sums(free * (x - centre) * n) / count * inverse
    energy = _sums(free * (clean - centre).square()) / count * inverse * inverse
    weight = _PRIOR_SPREAD**2 / (_PRIOR_SPREAD**2 + (energy + 2.0) / count)
    return ratio, weight


def excess(x: Tensor, n: Tensor, sigma: Number, mask: Tensor | None = None) -> Tensor:
    """How much more noise than σ the states are believed to have: (B,) float32 in [-σ/2, σ].

    Args:
        x, n, sigma, mask: as for :func:`measured`.
    """
    ratio, weight = measured(x, n, sigma, mask)
    return (weight * (ratio - 1.0)).clamp(_LEAST - 1, _MOST - 1) * sigma


def held(x: Tensor, n: Tensor, level: Tensor, mask: Tensor | None = None) -> Tensor:
    """The states x + (t̂ - σ)·n, whose noise has the level σ; those that are imposed as they are.

    Args:
        x, n, mask: as for :func:`excess`.
        level: (B,), what that returned.
    """
    moved = x + per_sample(level, n) * n
    return moved if mask is None else torch.where(mask, x, moved)


def _sums(values: Tensor) -> Tensor:
    """(B,), each of one sample: no sample depends on those beside it."""
    return values.flatten(1).sum(1)


__all__ = ["excess", "held", "holds_noise", "measured"]
