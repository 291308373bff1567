"""The end of a residual unit in one pass: total = x + residual and act(total); and its gradient.

Specification: ``ncsn_fast.reference.residual_add``. All tensors have one shape, dtype and memory
format, so that they are read as they lie in memory. The first program takes what is left over
where vectors do not divide the number of elements: a mask of every element would make all accesses
scalar.
"""

import triton
import triton.language as tl
from torch import Tensor

from ncsn_fast.kernels.triton.common import launch
from ncsn_fast.kernels.triton.common.activations import activate, derivative

_BLOCK, _WARPS = 1024, 4
_VECTOR = tl.constexpr(8)  # elements of a thread: 128 bits of a 16-bit type


@triton.jit
def _vectors(n_elements, BLOCK_SIZE: tl.constexpr):
    """(offsets of a program, which of them are whole vectors')."""
    offsets = tl.program_id(0).to(tl.int64) * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
    return offsets, offsets < n_elements // _VECTOR * _VECTOR


@triton.jit
def _rest(n_elements):
    """(offsets of the last elements, which of them no vector has)."""
    offsets = n_elements // _VECTOR * _VECTOR + tl.arange(0, _VECTOR)
    return offsets, offsets < n_elements


@triton.jit
def _add(
    x_ptr,
    residual_ptr,
    total_ptr,
    active_ptr,
    at,
    ACTIVATION: tl.constexpr,
    FAST_MATH: tl.constexpr,
):
    offsets, exists = at
    x = tl.load(x_ptr + offsets, mask=exists).to(tl.float32)
    residual = tl.load(residual_ptr + offsets, mask=exists).to(tl.float32)
    total = (x + residual).to(total_ptr.dtype.element_ty)
    active = activate(total.to(tl.float32), ACTIVATION, FAST_MATH)
    tl.store(total_ptr + offsets, total, mask=exists)
    tl.store(active_ptr + offsets, active.to(active_ptr.dtype.element_ty), mask=exists)


@triton.jit
def _residual_add_kernel(
    x_ptr,
    residual_ptr,
    total_ptr,
    active_ptr,
    n_elements,
    ACTIVATION: tl.constexpr,
    FAST_MATH: tl.constexpr,
    RAGGED: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    at = _vectors(n_elements, BLOCK_SIZE)
    _add(x_ptr, residual_ptr, total_ptr, active_ptr, at, ACTIVATION, FAST_MATH)
    if RAGGED and tl.program_id(0) == 0:
        rest = _rest(n_elements)
        _add(x_ptr, residual_ptr, total_ptr, active_ptr, rest, ACTIVATION, FAST_MATH)


@triton.jit
def _derive(
    total_ptr,
    upstream_ptr,
    active_upstream_ptr,
    gradient_ptr,
    at,
    ACTIVATION: tl.constexpr,
    FAST_MATH: tl.constexpr,
):
    offsets, exists = at
    total = tl.load(total_ptr + offsets, mask=exists).to(tl.float32)
    upstream = tl.load(upstream_ptr + offsets, mask=exists).to(tl.float32)
    of_active = tl.load(active_upstream_ptr + offsets, mask=exists).to(tl.float32)
    gradient = upstream + of_active * derivative(total, ACTIVATION, FAST_MATH)
    tl.store(gradient_ptr + offsets, gradient.to(gradient_ptr.dtype.element_ty), mask=exists)


@triton.jit
def _residual_add_gradient_kernel(
    total_ptr,
    upstream_ptr,
    active_upstream_ptr,
    gradient_ptr,
    n_elements,
    ACTIVATION: tl.constexpr,
    FAST_MATH: tl.constexpr,
    RAGGED: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    at = _vectors(n_elements, BLOCK_SIZE)
    _derive(total_ptr, upstream_ptr, active_upstream_ptr, gradient_ptr, at, ACTIVATION, FAST_MATH)
    if RAGGED and tl.program_id(0) == 0:
        rest = _rest(n_elements)
        _derive(
            total_ptr, upstream_ptr, active_upstream_ptr, gradient_ptr, rest,
            ACTIVATION, FAST_MATH,
        )  # fmt: skip


def residual_add(
    x: Tensor,
    residual: Tensor,
    total: Tensor,
    active: Tensor,
    activation: str,
    *,
    fast_math: bool = launch.FAST_MATH,
) -> None:
    """Launch the kernel. All tensors lie on one device and are of one dtype and layout.

    Args:
        x, residual: (N, C, H, W) float32, float16 or bfloat16, contiguous or channels_last, not
            empty.
        total: (N, C, H, W), written: x + residual.
        active: (N, C, H, W), written: act(total).
        activation: a name of ``reference.ACTIVATIONS``.
        fast_math: whether with the hardware's approximate functions.
    """
    _launch(_residual_add_kernel, (x, residual, total, active), activation, fast_math)


def residual_add_gradient(
    total: Tensor,
    upstream: Tensor,
    active_upstream: Tensor,
    gradient: Tensor,
    activation: str,
    *,
    fast_math: bool = launch.FAST_MATH,
) -> None:
    """Launch the kernel for the gradient of either summand, which is the same.

    All tensors lie on one device and are of one dtype and layout.

    Args:
        total: (N, C, H, W) float32, float16 or bfloat16, contiguous or channels_last, not empty.
        upstream, active_upstream: (N, C, H, W), the gradients of total and of act(total).
        gradient: (N, C, H, W), written.
        activation: that of the forward pass.
        fast_math: whether with the hardware's approximate functions.
    """
    tensors = (total, upstream, active_upstream, gradient)
    _launch(_residual_add_gradient_kernel, tensors, activation, fast_math)


def _launch(kernel, tensors: tuple[Tensor, ...], activation: str, fast_math: bool) -> None:
    count = tensors[0].numel()
    with launch.on_device_of(tensors[0]):
        kernel[(triton.cdiv(count, _BLOCK),)](
            *tensors, count,
            ACTIVATION=activation, FAST_MATH=fast_math, RAGGED=count % _VECTOR.value != 0,
            BLOCK_SIZE=_BLOCK, num_warps=_WARPS,
        )  # fmt: skip


__all__ = ["residual_add", "residual_add_gradient"]
