"""The end of a residual unit: x + residual, with what the next operation needs of the sum.

That is act(x + residual) where a convolution follows (:func:`ncsn_fast.reference.residual_add`), or
the statistics of the sum where InstanceNorm++ does.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ncsn_fast import reference
from ncsn_fast.device import backends
from ncsn_fast.device.memory_format import dense
from ncsn_fast.ops import common as passes
from ncsn_fast.ops.instance_norm_plus import empty_statistics
from ncsn_fast.ops.library import KERNEL, LIBRARY, native_kernel

LIBRARY.define(
    "residual_add(Tensor x, Tensor residual, str activation, str backend) -> (Tensor, Tensor)"
)
LIBRARY.define("residual_add_statistics(Tensor x, Tensor residual) -> (Tensor, Tensor)")
LIBRARY.define(
    "residual_add_gradient(Tensor total, Tensor upstream, Tensor active_upstream, "
    "str activation, str backend) -> Tensor"
)


class Sum(NamedTuple):
    """What :func:`residual_add` returns."""

    total: Tensor  # (N, C, H, W), x + residual
    active: Tensor | None  # (N, C, H, W), act(total), where an activation was asked for
    statistics: Tensor | None  # for instance_norm_plus of the total, where a kernel made them


@functools.cache
def _kernels() -> Any:
    from ncsn_fast.kernels.triton import residual_add

    return residual_add


@functools.cache
def _statistics_kernel() -> Any:
    from ncsn_fast.kernels.triton.instance_norm_statistics import statistics

    return statistics


def _empty(x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    x = dense(x)
    return torch.empty_like(x), torch.empty_like(x)


def _launch(x: Tensor, residual: Tensor, activation: str, backend: str) -> tuple[Tensor, Tensor]:
    if backend == "cpp":
        return native_kernel("residual_add")(x, residual, activation)
    x = dense(x)
    total, active = torch.empty_like(x), torch.empty_like(x)
    if x.numel():
        residual = passes.laid_out_like(x, residual)
        _kernels().residual_add(x, residual, total, active, activation)
    return total, active


def _empty_total(x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(dense(x)), empty_statistics(x)


def _launch_statistics(x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
    x = dense(x)
    total, statistics = _empty_total(x, residual)
    if x.numel():
        _statistics_kernel()(x, statistics, passes.laid_out_like(x, residual), total)
    return total, statistics


def _empty_gradient(total: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(total)


def _launch_gradient(
    total: Tensor, upstream: Tensor, active_upstream: Tensor, activation: str, backend: str
) -> Tensor:
    if backend == "cpp":
        return native_kernel("activate_backward")(total, active_upstream, upstream, activation)
    gradient = torch.empty_like(total)
    if total.numel():
        upstream = passes.laid_out_like(total, upstream)
        active_upstream = passes.laid_out_like(total, active_upstream)
        _kernels().residual_add_gradient(total, upstream, active_upstream, gradient, activation)
    return gradient


for _name, _implementation, _fake in (
    ("residual_add", _launch, _empty),
    ("residual_add_statistics", _launch_statistics, _empty_total),
    ("residual_add_gradient", _launch_gradient, _empty_gradient),
):
    LIBRARY.impl(_name, _implementation, KERNEL)
    torch.library.register_fake(f"ncsn_fast::{_name}", _fake, lib=LIBRARY)
_op = torch.ops.ncsn_fast.residual_add.default
_statistics_op = torch.ops.ncsn_fast.residual_add_statistics.default
_gradient_op = torch.ops.ncsn_fast.residual_add_gradient.default


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[0])
    ctx.how = inputs[2:]


def _backward(ctx: Any, upstream: Tensor, active_upstream: Tensor) -> tuple[Tensor | None, ...]:
    gradient = _gradient_op(*ctx.saved_tensors, upstream, active_upstream, *ctx.how)
    return gradient, gradient, None, None


torch.library.register_autograd(
    "ncsn_fast::residual_add", _backward, setup_context=_save, lib=LIBRARY
)
torch.library.register_autograd(
    "ncsn_fast::residual_add_gradient",
    passes.refuse_second_backward("residual_add"),
    lib=LIBRARY,
)


def residual_add(
    x: Tensor,
    residual: Tensor,
    *,
    activation: str | None = None,
    statistics: bool = False,
    backend: str = "auto",
) -> Sum:
    """x + residual and what comes after it, in one pass; differentiable.

    Args:
        x, residual: (N, C, H, W) float32, float16 or bfloat16, of one shape and dtype.
        activation: a name of ``reference.ACTIVATIONS``: also return act(x + residual).
        statistics: whether instance_norm_plus follows. They are returned where a kernel makes them
            and neither a gradient nor an activation is needed.
        backend: see :func:`ncsn_fast.use_backend`.

    Raises:
        ValueError: for shapes, dtypes or devices that differ, an unknown activation, or where the
            backend cannot run.
    """
    passes.check_images("x", x)
    passes.check_activation(activation)
    if residual.shape != x.shape:
        raise ValueError(
            f"residual has shape {tuple(residual.shape)}, x {tuple(x.shape)}: they have to agree"
        )
    passes.check_kind("residual", residual, x)
    obstacle = passes.obstacle(x) if activation or statistics else None
    half = activation is not None and x.dtype == torch.float16
    chosen = backends.choose(backend, x.device, obstacle, half=half)
    if activation is None:
        needs_gradient = x.requires_grad or residual.requires_grad
        if chosen != "triton" or not statistics or (torch.is_grad_enabled() and needs_gradient):
            return Sum(x + residual, None, None)  # PyTorch's addition is one pass already
        sum_up = _launch_statistics if passes.unwatched(x, residual) else _statistics_op
        total, found = sum_up(x, residual)
        return Sum(total, None, found)
    if chosen == "torch":
        total, active = reference.residual_add(x, residual, activation)
    else:
        run = _launch if passes.unwatched(x, residual) else _op
        total, active = run(x, residual, activation, chosen)
    return Sum(total, active, None)


__all__ = ["Sum", "residual_add"]
