"""Multi-scale fusion: base + a coarser image resized to it.

Formula and tensors: :func:`ncsn_fast.reference.resize_add`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ncsn_fast import reference
from ncsn_fast.device import backends
from ncsn_fast.device.memory_format import dense, is_channels_last
from ncsn_fast.ops import common
from ncsn_fast.ops.library import declare, native_kernel, no_second_derivative, triton_kernel


def _empty(x: Tensor, base: Tensor, bias: Tensor | None, backend: str) -> Tensor:
    return torch.empty_like(dense(base))


def _launch(x: Tensor, base: Tensor, bias: Tensor | None, backend: str) -> Tensor:
    if bias is not None and (backend == "cpp" or not is_channels_last(base)):
        base, bias = common.biased(base, bias), None  # those add none
    if backend == "cpp":
        return native_kernel("resize_add")(x, base)
    base = dense(base)
    out = torch.empty_like(base)
    if base.numel():
        triton_kernel("resize_add")(common.laid_out_like(base, x), base, out, bias)
    return out


def _empty_gradient(upstream: Tensor, height: int, width: int, backend: str) -> Tensor:
    shape = *upstream.shape[:2], height, width
    layout = torch.channels_last if is_channels_last(upstream) else torch.contiguous_format
    return torch.empty(shape, dtype=upstream.dtype, device=upstream.device, memory_format=layout)


def _gradient(upstream: Tensor, height: int, width: int, backend: str) -> Tensor:
    if backend == "cpp":
        return native_kernel("resize_add_backward")(upstream, height, width)
    gradient = _empty_gradient(upstream, height, width, backend)
    if upstream.numel():
        launch = triton_kernel("resize_gradient", "resize_add")
        launch(common.laid_out_like(gradient, upstream), gradient)
    return gradient


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.size, ctx.backend = inputs[0].shape[2:], inputs[3]


def _backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    gradient = None
    if ctx.needs_input_grad[0]:
        gradient = _pick_gradient(upstream)(upstream, *ctx.size, ctx.backend)
    return gradient, upstream, None, None


_pick = declare(
    "resize_add(Tensor x, Tensor base, Tensor? bias, str backend) -> Tensor",
    _launch,
    _empty,
    backward=_backward,
    save=_save,
)
_pick_gradient = declare(
    "resize_gradient(Tensor upstream, SymInt height, SymInt width, str backend) -> Tensor",
    _gradient,
    _empty_gradient,
    backward=no_second_derivative("resize_add"),
)


def resize_add(
    x: Tensor, base: Tensor, *, bias: Tensor | None = None, backend: str = "auto"
) -> Tensor:
    """base + x resized to base's size (bilinear, corners aligned), in one pass; differentiable.

    Args:
        x: (N, C, h, w) float32, float16 or bfloat16, in any memory format.
        base: (N, C, H, W) of x's dtype. Of x's very size the result is the plain sum.
        bias: (C,), added to the sum: in the same pass on a GPU, in channels_last.
        backend: see :func:`ncsn_fast.use_backend`.

    Returns:
        (N, C, H, W) in base's dtype and memory format.

    Raises:
        ValueError: where batch, channels, dtypes or devices differ, or the backend cannot run.
    """
    _check(x, base)
    common.check_bias(bias, base)
    same_size = x.shape == base.shape
    obstacle = None
    if not same_size:  # the gradient goes over x as the sum does over base
        obstacle = common.image_obstacle(base) or common.image_obstacle(x)
    chosen = backends.choose(backend, x.device, obstacle, half=x.dtype == torch.float16)
    if same_size:  # PyTorch's addition is one pass already
        return common.biased(base, bias) + x
    if chosen != "triton" or not is_channels_last(base) or common.wants_gradient(x, base, bias):
        base, bias = common.biased(base, bias), None
    if chosen == "torch":
        return reference.resize_add(x, base)
    return _pick(x, base)(x, base, bias, chosen)


def _check(x: Tensor, base: Tensor) -> None:
    common.check_images("x", x)
    common.check_images("base", base)
    common.check_kind("base", base, x)
    if x.shape[:2] != base.shape[:2]:
        raise ValueError(
            f"x is {tuple(x.shape)} and base {tuple(base.shape)}: batch and channels have to agree"
        )
    if base.numel() and not x.numel():
        raise ValueError(f"x is {tuple(x.shape)}: an image without pixels cannot be resized")


__all__ = ["resize_add"]
