"""Multi-scale fusion in one pass: base + x resized to its size, bilinearly, corners aligned.

Specification: ``ncsn_fast.reference.resize_add``. An output pixel reads the four pixels of x
around it; arithmetic is float32.
"""

import triton
import triton.language as tl
from torch import Tensor

from ncsn_fast.device.memory_format import is_channels_last
from ncsn_fast.kernels.triton.common import launch
from ncsn_fast.kernels.triton.common.rows import locate, rows, start


@triton.jit(do_not_specialize=["x_height", "x_width", "total", "bands", "across", "step", "height"])
def _resize_add_kernel(
    base_ptr,
    x_ptr,
    out_ptr,
    row_scale,
    column_scale,
    x_height,
    x_width,
    total,
    bands,
    across,
    step,
    height,
    VECTOR: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    live, image, row, vector = locate(total, bands, across, BLOCK_SIZE)
    offset = start(image, row, vector, across, height, VECTOR)
    base = tl.load(base_ptr + offset).to(tl.float32)
    column = (vector.to(tl.uint32) // step.to(tl.uint32)).to(tl.int32)
    above, below, down = _between(row, row_scale, x_height)
    left, right, along = _between(column, column_scale, x_width)
    channel = vector - column * step
    x_across = x_width * step
    upper = start(image, above, channel, x_across, x_height, VECTOR)
    lower = start(image, below, channel, x_across, x_height, VECTOR)
    left, right = left * step * VECTOR, right * step * VECTOR
    top = _mix(x_ptr + (upper + left), x_ptr + (upper + right), along)
    bottom = _mix(x_ptr + (lower + left), x_ptr + (lower + right), along)
    out = base + (top * (1.0 - down) + bottom * down)
    tl.store(out_ptr + offset, out.to(out_ptr.dtype.element_ty), mask=live)


@triton.jit
def _between(position, scale, size):
    """The two pixels of x beside an output pixel, and how far it lies beyond the first."""
    exact = position.to(tl.float32) * scale
    first = tl.minimum(exact.to(tl.int32), size - 1)
    return first, tl.minimum(first + 1, size - 1), exact - first.to(tl.float32)


@triton.jit
def _mix(first_ptr, second_ptr, weight):
    first, second = tl.load(first_ptr).to(tl.float32), tl.load(second_ptr).to(tl.float32)
    return first * (1.0 - weight) + second * weight


def resize_add(x: Tensor, base: Tensor, out: Tensor) -> None:
    """Launch the kernel. All tensors lie on one device and are of one dtype and layout.

    Args:
        x: (N, C, h, w) float32, float16 or bfloat16, contiguous or channels_last, not empty.
        base: (N, C, H, W).
        out: (N, C, H, W), written: base + x resized.
    """
    last = is_channels_last(base)
    most = rows(base.shape, last, base.element_size()).samples
    for cut in launch.cuts(most, base.shape[0]):
        part = cut(base)
        found = rows(part.shape, last, part.element_size())
        (x_height, x_width), (height, width) = x.shape[2:], base.shape[2:]
        with launch.on_device_of(base):
            _resize_add_kernel[found.grid](
                part, cut(x), cut(out),
                _scale(x_height, height), _scale(x_width, width), x_height, x_width,
                *found.numbers, **found.settings,
            )  # fmt: skip


def _scale(size: int, wanted: int) -> float:
    """Pixels of x from one output pixel to the next."""
    return (size - 1) / (wanted - 1) if wanted > 1 else 0.0


__all__ = ["resize_add"]
