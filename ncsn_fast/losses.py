"""Denoising score matching over a ladder of noise levels."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from ncsn_fast import noise as noise_source
from ncsn_fast import ops
from ncsn_fast.levels import trusted_sigmas
from ncsn_fast.score import Score, as_score


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
) -> Tensor:
    """Annealed denoising score matching (Vincent 2011; Song & Ermon 2019, equations 5 and 6).

    Each sample is perturbed at its level, x̃ = x + σz, and pays ½ Σ (s(x̃, σ) + z/σ)² σ^p; with
    n = σs that is ½ Σ (n + z)² σ^(p-2), which is what is computed.

    Args:
        net: one of our networks, a callable score(x, labels), or a Score.
        x: (N, *shape) float32 data in model space.
        sigmas: (L,) noise levels, descending.
        labels: (N,) int64 levels; default: uniform over the L levels, from the seed.
        anneal_power: p; 2 is the papers' λ = σ².
        noise: (N, *shape), the z to use instead of the engine's.
        seed: in [0, 2⁶⁴); None draws one from torch's default generator.
        step: optimiser step; each has its own noise.
        sample_ids: N positions in the global batch; default 0 … N-1.
        reduction: "mean" over the batch, or "none" for one loss per sample.

    Returns:
        A scalar, or (N,).

    Raises:
        ValueError: for shapes, labels or settings that do not fit.
    """
    if reduction not in ("mean", "none"):
        raise ValueError(f"reduction = {reduction!r}: choose 'mean' or 'none'")
    if not x.is_floating_point() or x.ndim < 2 or len(x) == 0:
        raise ValueError(
            f"x is {x.dtype} of shape {tuple(x.shape)}: give a batch of floating-point data"
        )
    if not math.isfinite(anneal_power):
        raise ValueError(f"anneal_power = {anneal_power}: give a finite exponent, such as 2")
    if noise is not None and (noise.shape != x.shape or not noise.is_floating_point()):
        raise ValueError(
            f"noise has shape {tuple(noise.shape)} and type {noise.dtype}, x has "
            f"{tuple(x.shape)}: give floating-point noise of the same shape"
        )
    seed = noise_source.random_seed() if seed is None else noise_source.check_seed(seed)
    if sample_ids is None:
        sample_ids = torch.arange(len(x), device=x.device)
    given = sample_ids if isinstance(sample_ids, Tensor) else list(sample_ids)
    ids = noise_source.as_sample_ids(given, device=x.device)
    if len(ids) != len(x):
        raise ValueError(f"{len(ids)} sample_ids for {len(x)} samples: give one id per sample")
    levels = _device_levels(sigmas, x)
    labels = _labels(labels, len(levels), x, seed, step, ids)
    sigma = levels[labels]
    noise = None if noise is None else noise.to(sigma.dtype)
    perturbed = ops.perturb(x, sigma, seed=seed, step=step, sample_ids=ids, z=noise)
    n = _score(net, levels).normalized(perturbed, sigma, labels)
    weight = None if anneal_power == 2 else sigma ** (anneal_power - 2)
    losses = ops.dsm_loss(n, weight, seed=seed, step=step, sample_ids=ids, z=noise)
    return losses.mean() if reduction == "mean" else losses


def _device_levels(sigmas: Sequence[float] | Tensor, x: Tensor) -> Tensor:
    """The levels beside the data, in its precision but at least float32."""
    return trusted_sigmas(sigmas).to(x.device, torch.promote_types(x.dtype, torch.float32))


def _score(net: Score | Callable[..., Tensor], levels: Tensor) -> Score:
    """The network as a score that was trained, by label, on these very levels."""
    score = as_score(net, levels)
    ladder = score.sigmas
    if score.condition != "label" or ladder is None:
        return score
    on_host = ladder.device.type == levels.device.type == "cpu"
    same = len(ladder) == len(levels)
    if same and on_host:
        same = torch.allclose(ladder.double(), levels.double(), rtol=1e-5, atol=0)
    if not same:
        raise ValueError(
            f"{len(levels)} sigmas from {float(levels[0]):g} for a network whose labels count "
            f"{len(ladder)} levels from {float(ladder[0]):g}: train it on its own levels"
        )
    return score


def _labels(
    labels: Tensor | None, num_levels: int, x: Tensor, seed: int, step: int, ids: Tensor
) -> Tensor:
    if labels is None:
        return noise_source.integers(
            num_levels, seed=seed, stream=noise_source.LEVELS, sample_ids=ids, step=step
        )
    if labels.shape != x.shape[:1] or labels.dtype not in (torch.int64, torch.int32):
        raise ValueError(
            f"labels are {labels.dtype} of shape {tuple(labels.shape)}: "
            f"needed are {len(x)} integers, the level of each sample"
        )
    if x.device.type == "cpu" and not bool(((labels >= 0) & (labels < num_levels)).all()):
        raise ValueError(
            f"labels from {int(labels.min())} to {int(labels.max())}: "
            f"levels count from 0 to {num_levels - 1}"
        )
    return labels.long()


__all__ = ["dsm_loss"]
