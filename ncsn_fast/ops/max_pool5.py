"""The 5×5 maximum of chained residual pooling, with the activation before it.

Formula and tensors: :func:`ncsn_fast.reference.max_pool5`. No indices are kept: the backward pass
finds the maxima again.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from ncsn_fast import reference
from ncsn_fast.device import backends
from ncsn_fast.device.memory_format import dense
from ncsn_fast.ops import common as passes
from ncsn_fast.ops.library import KERNEL, LIBRARY, native_kernel

LIBRARY.define("max_pool5(Tensor x, str backend) -> Tensor")
LIBRARY.define("max_pool5_active(Tensor x, str activation, str backend) -> (Tensor, Tensor)")
LIBRARY.define(
    "max_pool5_gradient(Tensor x, Tensor active, Tensor? active_upstream, Tensor upstream, "
    "str? activation, str backend) -> Tensor"
)


@functools.cache
def _kernels() -> Any:
    from ncsn_fast.kernels.triton import max_pool5

    return max_pool5


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
        _kernels().max_pool5(x, None, pooled, None)
    return pooled


def _launch_active(x: Tensor, activation: str, backend: str) -> tuple[Tensor, Tensor]:
    if backend == "cpp":
        return native_kernel("max_pool5")(x, activation)
    x = dense(x)
    active, pooled = torch.empty_like(x), torch.empty_like(x)
    if x.numel():
        _kernels().max_pool5(x, active, pooled, activation)
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
        x, upstream = passes.laid_out_like(active, x), passes.laid_out_like(active, upstream)
        if active_upstream is not None:
            active_upstream = passes.laid_out_like(active, active_upstream)
        _kernels().max_pool5_gradient(x, active, active_upstream, upstream, gradient, activation)
    return gradient


for _name, _implementation, _fake in (
    ("max_pool5", _launch, _empty),
    ("max_pool5_active", _launch_active, _empty_both),
    ("max_pool5_gradient", _launch_gradient, _empty_gradient),
):
    LIBRARY.impl(_name, _implementation, KERNEL)
    torch.library.register_fake(f"ncsn_fast::{_name}", _fake, lib=LIBRARY)
_op = torch.ops.ncsn_fast.max_pool5.default
_active_op = torch.ops.ncsn_fast.max_pool5_active.default
_gradient_op = torch.ops.ncsn_fast.max_pool5_gradient.default


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0])
    ctx.backend = inputs[1]


def _backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    (x,) = ctx.saved_tensors
    return _gradient_op(x, x, None, upstream, None, ctx.backend), None


def _save_active(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(inputs[0], output[0])
    ctx.how = inputs[1:]


def _backward_active(
    ctx: Any, active_upstream: Tensor, upstream: Tensor
) -> tuple[Tensor | None, ...]:
    return _gradient_op(*ctx.saved_tensors, active_upstream, upstream, *ctx.how), None, None


_refuse = passes.refuse_second_backward("max_pool5")
for _name, _derivative, _saved in (
    ("max_pool5", _backward, _save),
    ("max_pool5_active", _backward_active, _save_active),
    ("max_pool5_gradient", _refuse, None),
):
    torch.library.register_autograd(
        f"ncsn_fast::{_name}", _derivative, setup_context=_saved, lib=LIBRARY
    )


def max_pool5(
    x: Tensor, *, activation: str | None = None, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """(act(x), the maximum of its 5×5 neighbourhoods); stride 1, image size kept; differentiable.

    Args:
        x: (N, C, H, W) float32, float16 or bfloat16, in any memory format.
        activation: a name of ``reference.ACTIVATIONS``, or None: the first result is then x itself.
        backend: see :func:`ncsn_fast.use_backend`.

    Raises:
        ValueError: for a tensor that is not of images, an unknown activation, or where the backend
            cannot run.
    """
    passes.check_images("x", x)
    passes.check_activation(activation)
    half = x.dtype == torch.float16
    chosen = backends.choose(backend, x.device, passes.image_obstacle(x), half=half)
    if chosen == "torch":
        return reference.max_pool5(x, activation)
    if activation == "swish" and chosen == "triton":
        # It falls and rises: a maximum of swish is not swish of a maximum, as the kernel takes it.
        x, activation = reference.activated(x, activation), None
    direct = passes.unwatched(x)
    if activation is None:
        return x, (_launch if direct else _op)(x, chosen)
    return (_launch_active if direct else _active_op)(x, activation, chosen)


__all__ = ["max_pool5"]
