"""Multi-scale fusion in one pass: base + x resized to its size, bilinearly, corners aligned.

Specification: ``ncsn_fast.reference.resize_add``. An output pixel reads the four pixels of x
around it; arithmetic is float32. For the gradient a pixel of x gathers, in a fixed order, from the
output pixels that have read it: no atomic additions, so that training repeats bit for bit.
"""

import functools

import triton
import triton.language as tl
from torch import Tensor

from ncsn_fast.device.memory_format import is_channels_last
from ncsn_fast.kernels.triton.common import launch
from ncsn_fast.kernels.triton.common.rows import locate, rows, start

_MOST_PRODUCT = (1 << 32) - 1  # of two positions, in 32 bits


@triton.jit(do_not_specialize=["x_height", "x_width", "total", "bands", "across", "step", "height"])
def _resize_add_kernel(
    base_ptr,
    x_ptr,
    out_ptr,
    bias_ptr,
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
    if bias_ptr is not None:
        of_channel = channel * VECTOR + tl.arange(0, VECTOR)[None, :]
        base += tl.load(bias_ptr + of_channel).to(tl.float32)
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


@triton.jit
def _first_reader(pixel, size, wanted, WIDE: tl.constexpr):
    """The first of ``wanted`` output pixels that reads this one of ``size`` pixels of x."""
    before = (tl.maximum(pixel, 1) - 1).to(tl.uint64 if WIDE else tl.uint32)
    whole = before * (wanted - 1).to(before.dtype) // tl.maximum(size - 1, 1).to(before.dtype)
    return tl.where(pixel > 0, whole.to(tl.int32) + 1, 0)


@triton.jit
def _weight(position, pixel, scale, size, wanted):
    """What an output pixel has read this pixel of x with; 0 where it has not, or is none."""
    first, second, along = _between(position, scale, size)
    weight = tl.where(first == pixel, 1.0 - along, 0.0) + tl.where(second == pixel, along, 0.0)
    return tl.where(position < wanted, weight, 0.0)


@triton.jit(
    do_not_specialize=[
        "readers_down", "readers_along", "wanted_height", "wanted_width",
        "total", "bands", "across", "step", "height",
    ]
)  # fmt: skip
def _resize_gradient_kernel(
    gradient_ptr,
    upstream_ptr,
    row_scale,
    column_scale,
    readers_down,
    readers_along,
    wanted_height,
    wanted_width,
    total,
    bands,
    across,
    step,
    height,
    WIDE: tl.constexpr,
    VECTOR: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    live, image, row, vector = locate(total, bands, across, BLOCK_SIZE)
    column = (vector.to(tl.uint32) // step.to(tl.uint32)).to(tl.int32)
    channel, width = vector - column * step, across // step
    first_row = _first_reader(row, height, wanted_height, WIDE)
    first_column = _first_reader(column, width, wanted_width, WIDE)
    gradient = tl.zeros((BLOCK_SIZE, VECTOR), tl.float32)
    for down in range(readers_down):
        position = first_row + down
        of_row = _weight(position, row, row_scale, height, wanted_height)
        line = start(image, position, channel, wanted_width * step, wanted_height, VECTOR)
        for along in range(readers_along):
            place = first_column + along
            weight = of_row * _weight(place, column, column_scale, width, wanted_width)
            # Who has not read is not asked: what lies there may be no number.
            where = line + place.to(tl.int64) * (step * VECTOR)
            upstream = tl.load(upstream_ptr + where, mask=live & (weight > 0), other=0.0)
            gradient += weight * upstream.to(tl.float32)
    # Vectors are counted as they lie; the offsets kept from above would cost the loops registers.
    vector = tl.program_id(0).to(tl.int64) * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)[:, None]
    offset = vector * VECTOR + tl.arange(0, VECTOR)[None, :]
    tl.store(gradient_ptr + offset, gradient.to(gradient_ptr.dtype.element_ty), mask=vector < total)


def resize_add(x: Tensor, base: Tensor, out: Tensor, bias: Tensor | None = None) -> None:
    """Launch the kernel. All tensors lie on one device and are of one dtype and layout.

    Args:
        x: (N, C, h, w) float32, float16 or bfloat16, contiguous or channels_last, not empty.
        base: (N, C, H, W).
        out: (N, C, H, W), written: base + x resized, + bias.
        bias: (C,) of any of these dtypes, contiguous, where all others are channels_last; or None.
    """
    last = is_channels_last(base)
    most = rows(base.shape, last, base.element_size()).samples
    for cut in launch.cuts(most, base.shape[0]):
        part = cut(base)
        found = rows(part.shape, last, part.element_size())
        (x_height, x_width), (height, width) = x.shape[2:], base.shape[2:]
        with launch.on_device_of(base):
            _resize_add_kernel[found.grid](
                part, cut(x), cut(out), bias,
                _scale(x_height, height), _scale(x_width, width), x_height, x_width,
                *found.numbers, **found.settings,
            )  # fmt: skip


def resize_gradient(upstream: Tensor, gradient: Tensor) -> None:
    """Launch the kernel for the gradient of x. Both lie on one device, of one dtype and layout.

    Args:
        upstream: (N, C, H, W) float32, float16 or bfloat16, contiguous or channels_last, not empty:
            the gradient of the sum.
        gradient: (N, C, h, w), not empty, written: that of x.
    """
    (height, width), (wanted_height, wanted_width) = gradient.shape[2:], upstream.shape[2:]
    last = is_channels_last(gradient)
    most = rows(gradient.shape, last, gradient.element_size()).samples
    readers = _readers(height, wanted_height), _readers(width, wanted_width)
    wide = max(height * wanted_height, width * wanted_width) > _MOST_PRODUCT
    for cut in launch.cuts(most, gradient.shape[0]):
        part = cut(gradient)
        found = rows(part.shape, last, part.element_size())
        with launch.on_device_of(gradient):
            _resize_gradient_kernel[found.grid](
                part, cut(upstream),
                _scale(height, wanted_height), _scale(width, wanted_width), *readers,
                wanted_height, wanted_width, *found.numbers, WIDE=wide, **found.settings,
            )  # fmt: skip


@functools.lru_cache(maxsize=1024)
def _readers(size: int, wanted: int) -> int:
    """The most of ``wanted`` output pixels that read the same one of ``size`` pixels."""
    if size == 1 or wanted == 1:
        return wanted
    return max(
        min(wanted - 1, ((pixel + 1) * (wanted - 1) - 1) // (size - 1))
        - (0 if pixel == 0 else (pixel - 1) * (wanted - 1) // (size - 1) + 1)
        + 1
        for pixel in range(size)
    )


def _scale(size: int, wanted: int) -> float:
    """Pixels of x from one output pixel to the next."""
    return (size - 1) / (wanted - 1) if wanted > 1 else 0.0


__all__ = ["resize_add", "resize_gradient"]
