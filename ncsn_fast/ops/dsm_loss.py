"""Denoising score matching per sample, ½ Σ (n + z)² σ^(p-2), noise named, not stored.

The noise is that of :func:`ncsn_fast.ops.perturb` for the same (seed, step, sample_ids): it is
made a second time here, which on a GPU is cheaper than reading it back from memory.
"""

from __future__ import annotations

from torch import Tensor

from ncsn_fast import reference
from ncsn_fast.noise import Word
from ncsn_fast.ops import backends
from ncsn_fast.ops.perturb import check_batch, perturbation_noise


def dsm_loss(
    n: Tensor,
    sigma: Tensor,
    anneal_power: float = 2.0,
    *,
    seed: Word,
    step: Word,
    sample_ids: Tensor,
    z: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Loss of the normalised score n = σs at the perturbed data; differentiable in n.

    Args:
        n: (N, *shape) float32, float16 or bfloat16.
        sigma: (N,) float32 noise levels on n's device.
        anneal_power: the weight is σ^p; 2 is the papers' λ = σ².
        seed, step, sample_ids: which noise; see :func:`ncsn_fast.noise.normal`.
        z: (N, *shape), noise to use instead.
        backend: see :func:`ncsn_fast.use_backend`.

    Returns:
        (N,) float32 losses (float64 for a float64 n).

    Raises:
        ValueError: where the numbers of samples, levels and ids differ.
    """
    backends.resolve(backend, n.device)
    check_batch(n, sigma, sample_ids, z)
    if z is None:
        z = perturbation_noise(n, seed, step, sample_ids)
    return reference.dsm_loss(n, z, sigma, anneal_power)


__all__ = ["dsm_loss"]
