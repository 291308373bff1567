"""Denoising score matching over a ladder of noise levels, or over all σ between its ends."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from ncsn_fast import ops
from ncsn_fast.losses.common import check_batch, noise_key, place, reduce
from ncsn_fast.models.score import Score
from ncsn_fast.support import checks


def dsm_loss(
    net: Score | Callable[..., Tensor],
    x: Tensor,
    sigmas: Sequence[float] | Tensor,
    labels: Tensor | None = None,
    anneal_power: float = 2.0,
    *,
    noise: Tensor | None = None,
    seed: int | None = None,
    step: int = 0,
    sample_ids: Iterable[int] | Tensor | None = None,
    reduction: str = "mean",
    continuous: bool = False,
    weight: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Annealed denoising score matching (Vincent 2011; Song & Ermon 2019, equations 5 and 6).

    Each sample is perturbed at its level, x̃ = x + σz, and pays ½ λ(σ) Σ (s(x̃, σ) + z/σ)² with
    λ = σ^p; with n = σs that is ½ (λ/σ²) Σ (n + z)², which is what is computed. A ladder of one
    level is legal: ``sigmas=[σ], anneal_power=0`` is Vincent's loss at σ.

    Args:
        net: one of our networks, a callable score(x, labels), or a Score.
        x: (N, *shape) floating-point data in model space; float64 is computed in float64.
        sigmas: (L,) noise levels, descending.
        labels: (N,) int64 levels; drawn uniformly from [0, L) where not given.
        anneal_power: p; 2 is the papers' λ = σ².
        noise: (N, *shape), the z to use instead of the engine's.
        seed: in [0, 2⁶⁴); None draws one from torch's default generator.
        step: optimiser step, in [0, 2³²); each has its own noise.
        sample_ids: N positions in the global batch; default 0 … N-1.
        reduction: "mean" over the batch of the sums over a sample's values, as published; "none",
            (N,) such sums; "mean_values", over the batch and the values, so that one learning rate
            suits data of any size.
        continuous: σ = σ_1·(σ_L/σ_1)^u with u uniform, instead of a level of the ladder. For
            networks that take any σ. draw_labels then gives the part, of L equal parts in ln σ,
            in which a sample's σ lies.
        weight: λ as a function of σ, (N,) → (N,) finite and positive, in place of σ^p.

    Returns:
        A scalar, or (N,); at least float32.

    Raises:
        ValueError: for shapes, labels or settings that do not fit. Values of labels and weights
            are looked at on the CPU only: reading them from a GPU would stall it.
    """
    check_batch(x, reduction)
    if not math.isfinite(anneal_power):
        raise ValueError(f"anneal_power = {anneal_power}: give a finite exponent, such as 2")
    if noise is not None and (noise.shape != x.shape or not noise.is_floating_point()):
        raise ValueError(
            f"noise has shape {tuple(noise.shape)} and type {noise.dtype}, x has "
            f"{tuple(x.shape)}: give floating-point noise of the same shape"
        )
    key = noise_key(x, seed, step, sample_ids)
    score, sigma, labels = place(net, x, sigmas, labels, key, continuous=continuous)
    factor = _factor(weight, anneal_power, sigma)
    noise = None if noise is None else noise.to(sigma.dtype)
    perturbed = ops.perturb(x, sigma, **key, z=noise)
    n = score.normalized(perturbed, sigma, labels)
    return reduce(ops.dsm_loss(n, factor, **key, z=noise), reduction, x)


def loss_weight(anneal_power: float, sigma: Tensor) -> Tensor | None:
    """σ^(p-2), the weight of ‖n + z‖² for λ = σ^p, of sigma's shape (N,); None for 1."""
    return None if anneal_power == 2 else sigma ** (anneal_power - 2)


def _factor(
    weight: Callable[[Tensor], Tensor] | None, anneal_power: float, sigma: Tensor
) -> Tensor | None:
    """λ/σ², the weight of ‖n + z‖², per sample; None for 1."""
    if weight is None:
        return loss_weight(anneal_power, sigma)
    if anneal_power != 2:
        raise ValueError(
            f"weight and anneal_power = {anneal_power} both say what λ(σ) is: give one of the two"
        )
    if not callable(weight):
        raise ValueError(f"weight = {weight!r}: give λ as a function of σ, (N,) → (N,)")
    values = checks.same_shape("weight", weight(sigma), sigma.shape, sigma)
    readable = values.device.type == "cpu" and not torch.compiler.is_compiling()
    if readable and not bool((torch.isfinite(values) & (values > 0)).all()):
        bad = int((~(torch.isfinite(values) & (values > 0))).nonzero()[0])
        raise ValueError(
            f"weight returned {float(values[bad]):g} at σ = {float(sigma[bad]):g}: weights are "
            "finite and positive"
        )
    return values.to(sigma.dtype) / sigma.square()


__all__ = ["dsm_loss", "loss_weight"]
