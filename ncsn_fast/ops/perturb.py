"""The training perturbation x̃ = x + σ·z, with the noise named by (seed, step, sample_ids)."""

from __future__ import annotations

import torch
from torch import Tensor

from ncsn_fast import noise, reference
from ncsn_fast.noise import Word
from ncsn_fast.ops import backends


def perturb(
    x: Tensor,
    sigma: Tensor,
    *,
    seed: Word,
    step: Word,
    sample_ids: Tensor,
    z: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Perturbed data x + σz.

    Args:
        x: (N, *shape) float32 data.
        sigma: (N,) float32 noise levels on x's device.
        seed, step, sample_ids: which noise; see :func:`ncsn_fast.noise.normal`.
        z: (N, *shape), noise to use instead.
        backend: see :func:`ncsn_fast.use_backend`.

    Returns:
        (N, *shape).

    Raises:
        ValueError: where the numbers of samples, levels and ids differ.
    """
    backends.resolve(backend, x.device)
    check_batch(x, sigma, sample_ids, z)
    if z is None:
        z = perturbation_noise(x, seed, step, sample_ids)
    return reference.perturb(x, sigma, z)


def check_batch(x: Tensor, sigma: Tensor, sample_ids: Tensor, z: Tensor | None) -> None:
    """Refuse what would broadcast into a wrong answer: every sample has a level, an id, a noise."""
    if sigma.shape != x.shape[:1] or sample_ids.shape != x.shape[:1]:
        raise ValueError(
            f"{len(x)} samples with {tuple(sigma.shape)} noise levels and "
            f"{tuple(sample_ids.shape)} sample ids: each sample has one of both"
        )
    if z is not None and z.shape != x.shape:
        raise ValueError(f"z has shape {tuple(z.shape)}, the samples {tuple(x.shape)}")


def perturbation_noise(like: Tensor, seed: Word, step: Word, sample_ids: Tensor) -> Tensor:
    """The z of a training step, (N, *shape) of ``like``'s shape and device, at least float32."""
    return noise.normal(
        like.shape[1:],
        seed=seed,
        stream=noise.PERTURB,
        sample_ids=sample_ids,
        step=step,
        device=like.device,
        dtype=torch.promote_types(like.dtype, torch.float32),
    )


__all__ = ["check_batch", "perturb", "perturbation_noise"]
