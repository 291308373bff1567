"""The end of a residual unit: x + residual, with what the next operation needs of the sum.

That is act(x + residual) where a convolution follows (:func:`ncsn_fast.reference.residual_add`), or
the statistics of the sum where InstanceNorm++ does.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ncsn_fast import reference
from ncsn_fast.device import backends
from ncsn_fast.device.memory_format import dense
from ncsn_fast.ops import common
from ncsn_fast.ops.instance_norm_plus import empty_statistics
from ncsn_fast.ops.library import declare, native_kernel, no_second_derivative, triton_kernel


class Sum(NamedTuple):
    """What :func:`residual_add` returns."""

    total: Tensor  # (N, C, H, W), x + residual
    active: Tensor | None  # (N, C, H, W), act(total), where an activation was asked for
    statistics: Tensor | None  # for instance_norm_plus of the total, where a kernel made them


def _empty(x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    x = dense(x)
    return torch.empty_like(x), torch.empty_like(x)


def _launch(x: Tensor, residual: Tensor, activation: str, backend: str) -> tuple[Tensor, Tensor]:
    if backend == "cpp":
        return native_kernel("residual_add")(x, residual, activation)
    x = dense(x)
    total, active = torch.empty_like(x), torch.empty_like(x)
    if x.numel():
        residual = common.laid_out_like(x, residual)
        triton_kernel("residual_add")(x, residual, total, active, activation)
    return total, active


def _empty_total(x: Tensor, residual: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    return torch.empty_like(dense(x)), empty_statistics(x)


def _launch_statistics(x: Tensor, residual: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    x = dense(x)
    total, statistics = _empty_total(x, residual, bias)
    if x.numel():
        measure = triton_kernel("statistics", "instance_norm_statistics")
        measure(x, statistics, common.laid_out_like(x, residual), total, bias)
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
        upstream = common.laid_out_like(total, upstream)
        active_upstream = common.laid_out_like(total, active_upstream)
        kernel = triton_kernel("residual_add_gradient", "residual_add")
        kernel(total, upstream, active_upstream, gradient, activation)
    return gradient


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[0])
    ctx.how = inputs[2:]


def _backward(ctx: Any, upstream: Tensor, active_upstream: Tensor) -> tuple[Tensor | None, ...]:
    given = *ctx.saved_tensors, upstream, active_upstream
    gradient = _pick_gradient(*given)(*given, *ctx.how)
    return gradient, gradient, None, None


_pick = declare(
    "residual_add(Tensor x, Tensor residual, str activation, str backend) -> (Tensor, Tensor)",
    _launch,
    _empty,
    backward=_backward,
    save=_save,
)
_pick_statistics = declare(
    "residual_add_statistics(Tensor x, Tensor residual, Tensor? bias) -> (Tensor, Tensor)",
    _launch_statistics,
    _empty_total,
)
_pick_gradient = declare(
    "residual_add_gradient(Tensor total, Tensor upstream, Tensor active_upstream, "
    "str activation, str backend) -> Tensor",
    _launch_gradient,
    _empty_gradient,
    backward=no_second_derivative("residual_add"),
)


def residual_add(
    x: Tensor,
    residual: Tensor,
    *,
    bias: Tensor | None = None,
    activation: str | None = None,
    statistics: bool = False,
    backend: str = "auto",
) -> Sum:
    """x + residual and what comes after it, in one pass; differentiable.

    Args:
        x, residual: (N, C, H, W) float32, float16 or bfloat16, of one shape and dtype.
        bias: (C,), added to x first: in the same pass where statistics are made.
        activation: a name of ``reference.ACTIVATIONS``: also return act(x + residual).
        statistics: whether instance_norm_plus follows. They are returned where a kernel makes them
            and neither a gradient nor an activation is needed.
        backend: see :func:`ncsn_fast.use_backend`.

    Returns:
        total: (N, C, H, W), x + residual, of x's dtype.
        active: act(total) likewise, or None.
        statistics: of the total, for :func:`ncsn_fast.ops.instance_norm_plus`, or None.

    Raises:
        ValueError: for shapes, dtypes or devices that differ, an unknown activation, or where the
            backend cannot run.
    """
    common.check_images("x", x)
    common.check_activation(activation)
    if residual.shape != x.shape:
        raise ValueError(
            f"residual has shape {tuple(residual.shape)}, x {tuple(x.shape)}: they have to agree"
        )
    common.check_kind("residual", residual, x)
    common.check_bias(bias, x)
    obstacle = common.obstacle(x) if activation or statistics else None
    half = activation is not None and x.dtype == torch.float16
    chosen = backends.choose(backend, x.device, obstacle, half=half)
    if activation is None:
        if chosen != "triton" or not statistics or common.wants_gradient(x, residual, bias):
            # PyTorch's addition is one pass already.
            return Sum(common.biased(x, bias) + residual, None, None)
        total, found = _pick_statistics(x, residual)(x, residual, bias)
        return Sum(total, None, found)
    x = common.biased(x, bias)
    if chosen == "torch":
        total, active = reference.residual_add(x, residual, activation)
    else:
        total, active = _pick(x, residual)(x, residual, activation, chosen)
    return Sum(total, active, None)


__all__ = ["Sum", "residual_add"]
