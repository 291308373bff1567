"""The 5×5 maximum of chained residual pooling, with the activation before it.

Formula and tensors: :func:`ncsn_fast.reference.max_pool5`. No indices are kept: the backward pass
finds the maxima again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ncsn_fast import reference
from ncsn_fast.device import backends
from ncsn_fast.device.memory_format import dense
from ncsn_fast.ops import common
from ncsn_fast.ops.library import declare, native_kernel, no_second_derivative, triton_kernel


def _empty(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(dense(x))


def _empty_both(x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return _empty(x), _empty(x)


def _empty_gradient(x: Tensor, active: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(dense(active))


def _launch(x: Tensor, backend: str) -> Tensor:
    if backend == "cpp":
        return native_kernel("max_pool5")(x, "")[1]
    x = dense(x)
    pooled = torch.empty_like(x)
    if x.numel():
        triton_kernel("max_pool5")(x, None, pooled, None)
    return pooled


def _launch_active(x: Tensor, activation: str, backend: str) -> tuple[Tensor, Tensor]:
    if backend == "cpp":
        return native_kernel("max_pool5")(x, activation)
    x = dense(x)
    active, pooled = torch.empty_like(x), torch.empty_like(x)
    if x.numel():
        triton_kernel("max_pool5")(x, active, pooled, activation)
    return active, pooled


def _launch_gradient(
    x: Tensor,
    active: Tensor,
    active_upstream: Tensor | None,
    upstream: Tensor,
    activation: str | None,
    backend: str,
) -> Tensor:
    if backend == "cpp":
        return native_kernel("max_pool5_backward")(x, active_upstream, upstream, activation or "")
    active = dense(active)
    gradient = torch.empty_like(active)
    if active.numel():
        x, upstream = common.laid_out_like(active, x), common.laid_out_like(active, upstream)
        if active_upstream is not None:
            active_upstream = common.laid_out_like(active, active_upstream)
        kernel = triton_kernel("max_pool5_gradient", "max_pool5")
        kernel(x, active, active_upstream, upstream, gradient, activation)
    return gradient


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0])
    ctx.backend = inputs[1]


def _backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    (x,) = ctx.saved_tensors
    return _pick_gradient(x, upstream)(x, x, None, upstream, None, ctx.backend), None


def _save_active(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(inputs[0], output[0])
    ctx.how = inputs[1:]


def _backward_active(
    ctx: Any, active_upstream: Tensor, upstream: Tensor
) -> tuple[Tensor | None, ...]:
    given = *ctx.saved_tensors, active_upstream, upstream
    return _pick_gradient(*given)(*given, *ctx.how), None, None


_pick = declare(
    "max_pool5(Tensor x, str backend) -> Tensor", _launch, _empty, backward=_backward, save=_save
)
_pick_active = declare(
    "max_pool5_active(Tensor x, str activation, str backend) -> (Tensor, Tensor)",
    _launch_active,
    _empty_both,
    backward=_backward_active,
    save=_save_active,
)
_pick_gradient = declare(
    "max_pool5_gradient(Tensor x, Tensor active, Tensor? active_upstream, Tensor upstream, "
    "str? activation, str backend) -> Tensor",
    _launch_gradient,
    _empty_gradient,
    backward=no_second_derivative("max_pool5"),
)


def max_pool5(
    x: Tensor, *, activation: str | None = None, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """(act(x), the maximum of its 5×5 neighbourhoods); stride 1, image size kept; differentiable.

    Args:
        x: (N, C, H, W) float32, float16 or bfloat16, in any memory format.
        activation: a name of ``reference.ACTIVATIONS``, or None: the first result is then x itself.
        backend: see :func:`ncsn_fast.use_backend`.

    Returns:
        Two tensors (N, C, H, W) of x's dtype and memory format.

    Raises:
        ValueError: for a tensor that is not of images, an unknown activation, or where the backend
            cannot run.
    """
    common.check_images("x", x)
    common.check_activation(activation)
    half = x.dtype == torch.float16
    chosen = backends.choose(backend, x.device, common.image_obstacle(x), half=half)
    if chosen == "torch":
        return reference.max_pool5(x, activation)
    if activation == "swish" and chosen == "triton":
        # It falls and rises: a maximum of swish is not swish of a maximum, as the kernel takes it.
        x, activation = reference.activated(x, activation), None
    if activation is None:
        return x, _pick(x)(x, chosen)
    return _pick_active(x)(x, activation, chosen)


__all__ = ["max_pool5"]
