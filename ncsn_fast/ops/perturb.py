"""The training perturbation x̃ = x + σ·z, with the noise named by (seed, step, sample_ids)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ncsn_fast import noise, reference
from ncsn_fast.device import backends
from ncsn_fast.noise import Word
from ncsn_fast.ops.library import declare, native_kernel, triton_kernel

_SCHEMA = (
    "perturb(Tensor x, Tensor sigma, Tensor seed, Tensor step, Tensor sample_ids, str backend) "
    "-> Tensor"
)


def _empty(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _launch(
    x: Tensor, sigma: Tensor, seed: Tensor, step: Tensor, sample_ids: Tensor, backend: str
) -> Tensor:
    out = _empty(x)
    if x.numel():
        given = x.contiguous(), sigma.contiguous(), seed, step, sample_ids.contiguous()
        kernel = native_kernel if backend == "cpp" else triton_kernel
        kernel("perturb")(*given, out)
    return out


_pick = declare(_SCHEMA, _launch, _empty)


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
        (N, *shape) of x's dtype, contiguous.

    Raises:
        ValueError: where the numbers of samples, levels and ids differ, or the backend cannot run.
    """
    check_batch(x, sigma, sample_ids, z)
    chosen = backends.choose(backend, x.device, _obstacle(x, sigma, z))
    if chosen == "torch":
        if z is None:
            z = perturbation_noise(x, seed, step, sample_ids)
        perturbed = reference.perturb(x, sigma, z)
        return perturbed.to(x.dtype, memory_format=torch.contiguous_format)
    seed, step = noise.seed_tensor(seed, x.device), noise.step_tensor(step, x.device)
    return _pick(x)(x, sigma, seed, step, sample_ids, chosen)


def _obstacle(x: Tensor, sigma: Tensor, z: Tensor | None) -> str | None:
    """Why the kernel cannot take this."""
    if z is not None:
        return "noise was given as a tensor, and the kernel makes its own"
    if sigma.dtype != torch.float32:
        return f"kernels take noise levels in float32, sigma is {sigma.dtype}"
    return backends.obstacle(x, sigma)


def check_batch(
    x: Tensor, per_sample: Tensor | None, sample_ids: Tensor, z: Tensor | None = None
) -> None:
    """Refuse what would broadcast into a wrong answer: every sample has a level, an id, a noise."""
    if x.ndim < 2:
        raise ValueError(f"the samples have shape {tuple(x.shape)}: needed is (N, *shape)")
    one_each = per_sample is None or per_sample.shape == x.shape[:1]
    if not one_each or sample_ids.shape != x.shape[:1]:
        told = "no" if per_sample is None else str(tuple(per_sample.shape))
        raise ValueError(
            f"{len(x)} samples with {told} noise levels or weights and "
            f"{tuple(sample_ids.shape)} sample ids: each sample has one of both"
        )
    for tensor in (per_sample, sample_ids, z):
        if tensor is not None and tensor.device != x.device:
            raise ValueError(
                f"the samples are on {x.device}, and what belongs to them on {tensor.device}"
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
        backend="torch",
    )


__all__ = ["check_batch", "perturb", "perturbation_noise"]
