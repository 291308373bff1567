"""act(x) and its maximum over 5×5 neighbourhoods in one pass, and the gradient, without indices.

Specification: ``ncsn_fast.reference.max_pool5``. A thread goes down the columns of a few output
rows: the maxima of five neighbours in a row serve all output rows that see that row. Where the
image ends, a pixel of the neighbourhood is read again: cheaper than not to read, and no maximum
changes. The activation does not decrease, so that the maximum of act(x) is act of the maximum.

The gradient of a maximum belongs to its first place in the order of rows, as in PyTorch (and to
the last NaN): to the first maximum of the first row whose maximum is that of the window. A first
pass writes down, a byte per pixel, which row of its window that is, and where the maximum of the
five pixels of its own row is. A second one gathers in a fixed order: each row gets what the windows
above and below give it, and gives that to its pixels. That takes 5 + 5 comparisons, not 25.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ncsn_fast.device.memory_format import is_channels_last
from ncsn_fast.kernels.triton.common import launch
from ncsn_fast.kernels.triton.common.activations import activate, derivative
from ncsn_fast.kernels.triton.common.rows import Rows, locate, rows, start

_BAND = 4  # output rows of a thread
_BAND_OF_FOURS = 2  # of the gradient
_BAND_OF_VECTORS = 3  # with an activation a fourth row of vectors does not fit in the registers
_WIDTH = 4  # columns of a thread of the gradient
_WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32}  # of the places of a vector
_ROW_ARGUMENTS = ["total", "bands", "across", "step", "height"]


@triton.jit
def _inside(position, size):
    return (position >= 0) & (position < size)


@triton.jit(do_not_specialize=_ROW_ARGUMENTS)
def _max_pool5_kernel(
    x_ptr,
    active_ptr,
    pooled_ptr,
    total,
    bands,
    across,
    step,
    height,
    ACTIVATION: tl.constexpr,
    FAST_MATH: tl.constexpr,
    VECTOR: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BAND: tl.constexpr,
):
    live, image, band, vector = locate(total, bands, across, BLOCK_SIZE)
    first = band * BAND
    rows_at, columns_at = (), ()
    for i in tl.static_range(BAND + 4):
        row = tl.minimum(tl.maximum(first + (i - 2), 0), height - 1)
        rows_at = rows_at + (start(image, row, vector, across, height, VECTOR),)
    for k in tl.static_range(5):
        right = (k - 2) * step
        columns_at = columns_at + (tl.where(_inside(vector + right, across), right, 0) * VECTOR,)
    maxima, centres = (), ()
    for i in tl.static_range(BAND + 4):
        centre = tl.load(x_ptr + rows_at[i])
        maximum = centre.to(tl.float32)
        for k in tl.static_range(5):
            if k != 2:
                x = tl.load(x_ptr + (rows_at[i] + columns_at[k])).to(tl.float32)
                maximum = tl.maximum(maximum, x, propagate_nan=tl.PropagateNan.ALL)
        maxima, centres = maxima + (maximum,), centres + (centre,)
    for i in tl.static_range(BAND):
        maximum = maxima[i]
        for k in tl.static_range(1, 5):
            maximum = tl.maximum(maximum, maxima[i + k], propagate_nan=tl.PropagateNan.ALL)
        exists = live & (first + i < height)
        maximum = activate(maximum, ACTIVATION, FAST_MATH).to(pooled_ptr.dtype.element_ty)
        tl.store(pooled_ptr + rows_at[i + 2], maximum, mask=exists)
        if active_ptr is not None:
            active = activate(centres[i + 2].to(tl.float32), ACTIVATION, FAST_MATH)
            active = active.to(active_ptr.dtype.element_ty)
            tl.store(active_ptr + rows_at[i + 2], active, mask=exists)


@triton.jit
def _code(place, ROW: tl.constexpr):
    """A place among five as it is written down: one of five bits for a row, and above them a number
    for a column. Codes are in the order of places."""
    return 1 << place if ROW else place << 5


@triton.jit
def _later(best, code, value, place: tl.constexpr, ROW: tl.constexpr):
    """The first maximum, or the last NaN, of what there is so far and of what comes after it."""
    better = (value > best) | (value != value)
    best = tl.maximum(best, value, propagate_nan=tl.PropagateNan.ALL)
    return best, tl.where(better, _code(place, ROW), code)


@triton.jit
def _first_of_five(values, none_before, none_after, ROW: tl.constexpr):
    """The code of the place of the first maximum, or of the last NaN, and the maximum.

    Where the image ends the last that is there has been read once more: so many places at the
    beginning and at the end are not there, and what has been found there is its.
    """
    best, code = values[0], tl.full(values[0].shape, _code(0, ROW), tl.int32)
    for place in tl.static_range(1, 5):
        best, code = _later(best, code, values[place], place, ROW)
    code = tl.maximum(code, _code(none_before, ROW))
    return tl.minimum(code, _code(4 - none_after, ROW)), best


@triton.jit
def _missing(position, size, step):
    """How many of the two neighbours before a position and of those after it do not exist."""
    before = (position < step).to(tl.int32) + (position < 2 * step).to(tl.int32)
    after = (position >= size - step).to(tl.int32) + (position >= size - 2 * step).to(tl.int32)
    return before, after


@triton.jit(do_not_specialize=_ROW_ARGUMENTS)
def _max_pool5_places_kernel(
    active_ptr,
    place_ptr,
    total,
    bands,
    across,
    step,
    height,
    VECTOR: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BAND: tl.constexpr,
):
    live, image, band, vector = locate(total, bands, across, BLOCK_SIZE)
    first = band * BAND
    left, right = _missing(vector, across, step)
    maxima, columns = (), ()
    for i in tl.static_range(BAND + 4):
        row = tl.minimum(tl.maximum(first + (i - 2), 0), height - 1)
        at = active_ptr + start(image, row, vector, across, height, VECTOR)
        x = ()
        for k in tl.static_range(5):
            over = tl.maximum(k - 2, left - 2) if k < 2 else tl.minimum(k - 2, 2 - right)
            x = x + (tl.load(at + over * step * VECTOR).to(tl.float32),)
        column, maximum = _first_of_five(x, left, right, False)
        maxima, columns = maxima + (maximum,), columns + (column,)
    for i in tl.static_range(BAND):
        above, below = _missing(first + i, height, 1)
        of_rows = ()
        for k in tl.static_range(5):
            of_rows = of_rows + (maxima[i + k],)
        row, _ = _first_of_five(of_rows, above, below, True)
        exists = live & (first + i < height)
        at = place_ptr + start(image, first + i, vector, across, height, VECTOR)
        tl.store(at, (row | columns[i + 2]).to(tl.int8), mask=exists)


@triton.jit
def _spread(gradients, upstream, word, here: tl.constexpr, ROW: tl.constexpr):
    """Gradients of neighbours, each with what it gets of something that goes to one of five.

    Args:
        word: (B, 1) codes of a vector, a byte each.
        here: the place of the first of the neighbours, among the five.
    """
    byte = tl.arange(0, upstream.shape[1])[None, :] * 8
    found = ()
    for n in tl.static_range(len(gradients)):
        gradient = gradients[n]
        if here + n >= 0 and here + n < 5:
            code = _code(here + n, ROW) << byte
            mine = (word & code) != 0 if ROW else (word & (7 << (byte + 5))) == code
            gradient = tl.where(mine, gradient + upstream, gradient)
        found = found + (gradient,)
    return found


@triton.jit(do_not_specialize=[*_ROW_ARGUMENTS, "width"])
def _max_pool5_gradient_kernel(
    x_ptr,
    place_ptr,
    active_upstream_ptr,
    upstream_ptr,
    gradient_ptr,
    total,
    bands,
    across,
    step,
    height,
    width,
    ACTIVATION: tl.constexpr,
    FAST_MATH: tl.constexpr,
    VECTOR: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BAND: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    live, image, band, vector = locate(total, bands, across, BLOCK_SIZE)
    group = (vector.to(tl.uint32) // step.to(tl.uint32)).to(tl.int32)
    first, column = band * BAND, group * COLUMNS
    vector += group * (COLUMNS - 1) * step
    across = width * step
    offset = start(image, first, vector, across, height, VECTOR)
    word_offset = start(image, first, vector, across, height, 1)
    down, right = across.to(tl.int64), step.to(tl.int64)
    nothing = tl.zeros((BLOCK_SIZE, VECTOR), tl.float32)
    line = (nothing,)
    for _ in tl.static_range(1, COLUMNS):
        line = line + (nothing,)
    gradients = (line,)
    for _ in tl.static_range(1, BAND):
        gradients = gradients + (line,)
    for k in tl.static_range(COLUMNS + 4):
        # What the rows of this column get of the windows whose middle it is...
        there = live & _inside(column + (k - 2), width)
        words, of_rows = (), ()
        for _ in tl.static_range(BAND):
            of_rows = of_rows + (nothing,)
        for i in tl.static_range(BAND + 4):
            exists = there & _inside(first + (i - 2), height)
            away = (i - 2) * down + (k - 2) * right
            at = upstream_ptr + (offset + away * VECTOR)
            upstream = tl.load(at, mask=exists, other=0.0).to(tl.float32)
            word = tl.load(place_ptr + (word_offset + away), mask=exists, other=0).to(tl.int32)
            of_rows = _spread(of_rows, upstream, word, 4 - i, True)
            words = words + (word,)
        # ...goes to the columns that have the maxima of the rows.
        spread = ()
        for b in tl.static_range(BAND):
            spread = spread + (_spread(gradients[b], of_rows[b], words[b + 2], 4 - k, False),)
        gradients = spread
    for b in tl.static_range(BAND):
        for k in tl.static_range(COLUMNS):
            exists = live & (first + b < height) & (column + k < width)
            at = offset + (b * down + k * right) * VECTOR
            gradient = gradients[b][k]
            if active_upstream_ptr is not None:
                gradient += tl.load(active_upstream_ptr + at, mask=exists).to(tl.float32)
            if ACTIVATION is not None:
                x = tl.load(x_ptr + at, mask=exists).to(tl.float32)
                gradient *= derivative(x, ACTIVATION, FAST_MATH)
            tl.store(gradient_ptr + at, gradient.to(gradient_ptr.dtype.element_ty), mask=exists)


def max_pool5(
    x: Tensor,
    active: Tensor | None,
    pooled: Tensor,
    activation: str | None,
    *,
    fast_math: bool = launch.FAST_MATH,
) -> None:
    """Launch the kernel.

    All tensors lie on one device and are of one dtype and layout.

    Args:
        x: (N, C, H, W) float32, float16 or bfloat16, contiguous or channels_last, not empty.
        active: (N, C, H, W), written: act(x); None where the activation is None.
        pooled: (N, C, H, W), written: the maxima of act(x).
        activation: one that does not decrease, so not "swish"; None for none.
        fast_math: whether with the hardware's approximate functions.
    """
    band = _BAND_OF_VECTORS if activation is not None and is_channels_last(x) else _BAND
    for cut in launch.cuts(_rows(x, band).samples, x.shape[0]):
        tensors = cut(x), cut(active), cut(pooled)
        _run(
            _max_pool5_kernel, _rows(tensors[0], band), tensors,
            ACTIVATION=activation, FAST_MATH=fast_math, BAND=band,
        )  # fmt: skip


def max_pool5_gradient(
    x: Tensor,
    active: Tensor,
    active_upstream: Tensor | None,
    upstream: Tensor,
    gradient: Tensor,
    activation: str | None,
    *,
    fast_math: bool = launch.FAST_MATH,
) -> None:
    """Launch the two kernels of the gradient.

    All tensors lie on one device and are of one dtype and layout.

    Args:
        x: (N, C, H, W) float32, float16 or bfloat16, contiguous or channels_last, not empty.
        active: (N, C, H, W), the act(x) that was pooled; x itself without activation.
        active_upstream: (N, C, H, W), the gradient of act(x); None for none.
        upstream: (N, C, H, W), the gradient of the maxima.
        gradient: (N, C, H, W), written: ∂x.
        activation: that of the forward pass.
        fast_math: whether with the hardware's approximate functions.
    """
    for cut in launch.cuts(_rows(x, 1).samples, x.shape[0]):
        part = cut(x)
        places = part.new_empty(part.numel(), dtype=torch.int8)
        _run(_max_pool5_places_kernel, _rows(part, _BAND), (cut(active), places), BAND=_BAND)
        last, width = is_channels_last(part), part.shape[3]
        # More rows of larger vectors do not fit in the registers.
        band = _BAND_OF_FOURS if last else _BAND
        found = rows(part.shape, last, 4, band, _WIDTH)
        words = places.view(_WORDS[found.settings["VECTOR"]])
        tensors = part, words, cut(active_upstream), cut(upstream), cut(gradient)
        _run(
            _max_pool5_gradient_kernel, found, tensors, width,
            ACTIVATION=activation, FAST_MATH=fast_math, BAND=band, COLUMNS=_WIDTH,
        )  # fmt: skip


def _rows(x: Tensor, band: int) -> Rows:
    return rows(x.shape, is_channels_last(x), x.element_size(), band)


def _run(kernel, found: Rows, tensors: tuple[Any, ...], *numbers: int, **constants) -> None:
    """Launch a kernel for all rows."""
    with launch.on_device_of(tensors[0]):
        kernel[found.grid](*tensors, *found.numbers, *numbers, **constants, **found.settings)


__all__ = ["max_pool5", "max_pool5_gradient"]
