"""An activation by itself, where no other operation is there to take it along."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ncsn_fast import reference
from ncsn_fast.device import backends
from ncsn_fast.device.backends import NATIVE_TYPES
from ncsn_fast.device.memory_format import is_dense
from ncsn_fast.ops import common
from ncsn_fast.ops.library import declare, native_kernel, no_second_derivative


def _launch(x: Tensor, activation: str) -> Tensor:
    return native_kernel("activate")(x, activation)


def _launch_gradient(x: Tensor, upstream: Tensor, activation: str) -> Tensor:
    return native_kernel("activate_backward")(x, upstream, None, activation)


def _empty(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0])
    ctx.activation = inputs[1]


def _backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    (x,) = ctx.saved_tensors
    return _pick_gradient(x, upstream)(x, upstream, ctx.activation), None


_pick = declare(
    "activate(Tensor x, str activation) -> Tensor", _launch, _empty, backward=_backward, save=_save
)
_pick_gradient = declare(
    "activate_gradient(Tensor x, Tensor upstream, str activation) -> Tensor",
    _launch_gradient,
    _empty,
    backward=no_second_derivative("activate"),
)


def activate(x: Tensor, activation: str, *, backend: str = "auto") -> Tensor:
    """act(x), of x's shape, dtype and memory format; differentiable.

    Args:
        x: of any shape, float32, float16 or bfloat16.
        activation: a name of ``reference.ACTIVATIONS``.
        backend: see :func:`ncsn_fast.use_backend`.

    Returns:
        act(x), of x's shape, dtype and memory format.

    Raises:
        ValueError: for an unknown activation, or where the backend cannot run.
    """
    common.check_activation(activation)
    # PyTorch's own kernels are one pass already, as fast as any on a GPU; on a CPU all but its ELU
    # and the leaky ReLU of 16 bits.
    chosen = backends.choose(backend, x.device)
    if chosen != "cpp" or not _gains(x, activation):
        return reference.activated(x, activation)
    return _pick(x)(x, activation)


def _gains(x: Tensor, activation: str) -> bool:
    """Whether the CPU's kernel takes x, and is faster."""
    known = x.dtype in NATIVE_TYPES and common.obstacle(x) is None and is_dense(x)
    return known and activation in ("elu", "lrelu")


__all__ = ["activate"]
