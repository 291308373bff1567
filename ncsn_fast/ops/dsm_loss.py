"""Denoising score matching per sample, ½ w Σ (n + z)² with w = σ^(p-2), noise named, not stored.

The noise is that of :func:`ncsn_fast.ops.perturb` for the same (seed, step, sample_ids): it is
made a second time here, which on a GPU is cheaper than reading it back from memory. The gradient
g·w·(n + z) needs the upstream gradient g of each sample. Autograd knows it only in its backward
pass, which makes the noise a third time; who knows it before takes loss and gradient in one pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ncsn_fast import noise, reference
from ncsn_fast.device import backends
from ncsn_fast.device.backends import NETWORK_TYPES
from ncsn_fast.device.memory_format import dense
from ncsn_fast.noise import Word
from ncsn_fast.ops.library import (
    declare,
    native_kernel,
    no_second_derivative,
    triton_kernel,
)
from ncsn_fast.ops.perturb import check_batch, perturbation_noise

_ARGUMENTS = "Tensor n, Tensor? weight, Tensor seed, Tensor step, Tensor sample_ids"


def _empty_loss(n: Tensor, *_: Any) -> Tensor:
    return n.new_empty(n.shape[:1], dtype=torch.float32)


def _empty_gradient(n: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(dense(n))


def _empty_both(n: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return _empty_loss(n), _empty_gradient(n)


def _launch(
    loss: Tensor | None,
    gradient: Tensor | None,
    n: Tensor,
    weight: Tensor | None,
    seed: Tensor,
    step: Tensor,
    sample_ids: Tensor,
    upstream: Tensor | None,
    backend: str,
) -> None:
    """n is dense, and the gradient like it."""
    if n.numel():
        weight = None if weight is None else weight.contiguous()
        if upstream is not None and backend == "cpp":
            upstream = upstream.contiguous()  # the mean's is one number, expanded
        given = n, weight, seed, step, sample_ids.contiguous(), upstream
        kernel = native_kernel if backend == "cpp" else triton_kernel
        kernel("dsm_loss")(*given, loss=loss, gradient=gradient)
    elif loss is not None:
        loss.zero_()


def _loss(
    n: Tensor, weight: Tensor | None, seed: Tensor, step: Tensor, sample_ids: Tensor, backend: str
) -> Tensor:
    loss = _empty_loss(n)
    _launch(loss, None, dense(n), weight, seed, step, sample_ids, None, backend)
    return loss


def _gradient(n: Tensor, *arguments: Any) -> Tensor:
    n = dense(n)
    gradient = torch.empty_like(n)
    _launch(None, gradient, n, *arguments)
    return gradient


def _both(n: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    n = dense(n)
    loss, gradient = _empty_loss(n), torch.empty_like(n)
    _launch(loss, gradient, n, *arguments)
    return loss, gradient


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:-1])
    ctx.backend = inputs[-1]


def _backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    n = ctx.saved_tensors[0]
    run = _pick_gradient(n, upstream)
    return run(*ctx.saved_tensors, upstream, ctx.backend), *(None,) * 5


_pick = declare(
    f"dsm_loss({_ARGUMENTS}, str backend) -> Tensor",
    _loss,
    _empty_loss,
    backward=_backward,
    save=_save,
)
_pick_gradient = declare(
    f"dsm_gradient({_ARGUMENTS}, Tensor upstream, str backend) -> Tensor",
    _gradient,
    _empty_gradient,
    backward=no_second_derivative("dsm_loss"),
)
_pick_both = declare(
    f"dsm_loss_and_gradient({_ARGUMENTS}, Tensor upstream, str backend) -> (Tensor, Tensor)",
    _both,
    _empty_both,
)


def dsm_loss(
    n: Tensor,
    weight: Tensor | None = None,
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
        weight: (N,) float32, w = σ^(p-2) for the papers' weight σ^p of the level; None for 1,
            which is their p = 2.
        seed, step, sample_ids: which noise; see :func:`ncsn_fast.noise.normal`.
        z: (N, *shape), noise to use instead.
        backend: see :func:`ncsn_fast.use_backend`.

    Returns:
        (N,) float32 losses (float64 for a float64 n).

    Raises:
        ValueError: where the numbers of samples, weights and ids differ, or the backend cannot run.
    """
    check_batch(n, weight, sample_ids, z)
    chosen = _choose(backend, n, weight, z)
    if chosen == "torch":
        if z is None:
            z = perturbation_noise(n, seed, step, sample_ids)
        return reference.dsm_loss(n, z, weight)
    seed, step = noise.seed_tensor(seed, n.device), noise.step_tensor(step, n.device)
    return _pick(n)(n, weight, seed, step, sample_ids, chosen)


def dsm_loss_and_gradient(
    n: Tensor,
    weight: Tensor | None = None,
    *,
    upstream: Tensor,
    seed: Word,
    step: Word,
    sample_ids: Tensor,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """The losses and their gradient with respect to n, in one pass over n and outside autograd.

    Args:
        upstream: (N,) float32, the gradient of what is minimised with respect to each loss: 1/N
            for their mean, times the scale of a GradScaler.
        n, weight, seed, step, backend: as for :func:`dsm_loss`.
        sample_ids: (N,), likewise.

    Returns:
        (N,) losses, and g·w·(n + z) of n's shape and dtype: give it to ``n.backward``.

    Raises:
        ValueError: as :func:`dsm_loss`.
    """
    check_batch(n, weight, sample_ids)
    check_batch(n, upstream, sample_ids)
    n, upstream = n.detach(), upstream.detach()
    weight = None if weight is None else weight.detach()
    chosen = _choose(backend, n, weight)
    if chosen == "torch":
        z = perturbation_noise(n, seed, step, sample_ids)
        gradient = reference.dsm_gradient(n, z, weight, upstream)
        return reference.dsm_loss(n, z, weight), gradient
    seed, step = noise.seed_tensor(seed, n.device), noise.step_tensor(step, n.device)
    return _pick_both(n)(n, weight, seed, step, sample_ids, upstream.float(), chosen)


def _choose(backend: str, n: Tensor, weight: Tensor | None, z: Tensor | None = None) -> str:
    half = n.dtype == torch.float16
    return backends.choose(backend, n.device, _obstacle(n, weight, z), half=half)


def _obstacle(n: Tensor, weight: Tensor | None, z: Tensor | None) -> str | None:
    """Why the kernel cannot take this."""
    if z is not None:
        return "noise was given as a tensor, and the kernel makes its own"
    if n.dtype not in NETWORK_TYPES:
        return f"the kernel takes float32, float16 and bfloat16, n is {n.dtype}"
    if weight is not None and (weight.requires_grad or weight.dtype != torch.float32):
        return f"weights are float32 and without gradient, these are {weight.dtype}"
    return backends.general_obstacle(n)


__all__ = ["dsm_loss", "dsm_loss_and_gradient"]
