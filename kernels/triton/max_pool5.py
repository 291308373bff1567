"""act(x) and its maximum over 5×5 neighbourhoods in one pass, and the gradient, without indices.

Specification: ``ncsn_fast.reference.max_pool5``. A thread goes down the columns of a few output
rows: the maxima of five neighbours in a row serve all output rows that see that row. Where the
image ends, a pixel of the neighbourhood is read again: cheaper than not to read, and no maximum
changes. The activation does not decrease, so that the maximum of act(x) is act of the maximum.

The gradient of a maximum belongs to its first place in the order of rows, as in PyTorch (and to
the last NaN). Where that is, a first pass writes down, a byte per window; a second one gathers for
each pixel what it gets, in a fixed order.
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
_BAND_OF_VECTORS = 3  # with an activation a fourth row of vectors does not fit in the registers
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
def _first(best, place, value, candidate, exists):
    """The first maximum (place -1 for none) of one so far and what comes after it."""
    better = exists & ((value > best) | (value != value) | (place < 0))
    return tl.where(better, value, best), tl.where(better, candidate, place)


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
    offset = start(image, first, vector, across, height, VECTOR)
    down, right = across.to(tl.int64) * VECTOR, step.to(tl.int64) * VECTOR
    maxima, columns = (), ()
    for i in tl.static_range(BAND + 4):
        there = live & _inside(first + (i - 2), height)
        best = tl.full((BLOCK_SIZE, VECTOR), float("-inf"), tl.float32)
        place = tl.full((BLOCK_SIZE, VECTOR), -1, tl.int32)
        for k in tl.static_range(5):
            exists = there & _inside(vector + (k - 2) * step, across)
            where = offset + ((i - 2) * down + (k - 2) * right)
            value = tl.load(active_ptr + where, mask=exists).to(tl.float32)
            best, place = _first(best, place, value, k, exists)
        maxima, columns = maxima + (best,), columns + (place,)
    for i in tl.static_range(BAND):
        best, place = maxima[i], columns[i]
        for k in tl.static_range(1, 5):
            lower, exists = 5 * k + columns[i + k], columns[i + k] >= 0
            best, place = _first(best, place, maxima[i + k], lower, exists)
        exists = live & (first + i < height)
        tl.store(place_ptr + (offset + i * down), place.to(tl.int8), mask=exists)


@triton.jit
def _gather(gradient, place, upstream, row: tl.constexpr, column: tl.constexpr):
    """The gradient of a pixel with what it gets from a window that is so far down and right of the
    first that reaches it, if that is one of the five."""
    if row >= 0 and row < 5:
        # In that window this pixel has the place opposite to the window's from here.
        gradient += tl.where(place == 5 * (4 - row) + (4 - column), upstream, 0.0)
    return gradient


@triton.jit(do_not_specialize=_ROW_ARGUMENTS)
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
    ACTIVATION: tl.constexpr,
    FAST_MATH: tl.constexpr,
    VECTOR: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BAND: tl.constexpr,
):
    live, image, band, vector = locate(total, bands, across, BLOCK_SIZE)
    first = band * BAND
    offset = start(image, first, vector, across, height, VECTOR)
    down, right = across.to(tl.int64) * VECTOR, step.to(tl.int64) * VECTOR
    nothing = tl.zeros((BLOCK_SIZE, VECTOR), tl.float32)
    gradients = (nothing,)
    for _ in tl.static_range(1, BAND):
        gradients = gradients + (nothing,)
    for i in tl.static_range(BAND + 4):
        there = live & _inside(first + (i - 2), height)
        for k in tl.static_range(5):
            exists = there & _inside(vector + (k - 2) * step, across)
            where = offset + ((i - 2) * down + (k - 2) * right)
            place = tl.load(place_ptr + where, mask=exists, other=-1)
            upstream = tl.load(upstream_ptr + where, mask=exists, other=0.0).to(tl.float32)
            gathered = ()
            for b in tl.static_range(BAND):
                gathered = gathered + (_gather(gradients[b], place, upstream, i - b, k),)
            gradients = gathered
    for b in tl.static_range(BAND):
        exists, at = live & (first + b < height), offset + b * down
        gradient = gradients[b]
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
            _max_pool5_kernel, band, tensors,
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
        place = torch.empty_like(part, dtype=torch.int8)
        _run(_max_pool5_places_kernel, _BAND, (cut(active), place), BAND=_BAND)
        tensors = part, place, cut(active_upstream), cut(upstream), cut(gradient)
        # The windows of several rows of vectors do not fit in the registers.
        band = _BAND if _rows(part, 1).settings["VECTOR"] == 1 else 1
        _run(
            _max_pool5_gradient_kernel, band, tensors,
            ACTIVATION=activation, FAST_MATH=fast_math, BAND=band,
        )  # fmt: skip


def _rows(x: Tensor, band: int) -> Rows:
    return rows(x.shape, is_channels_last(x), x.element_size(), band)


def _run(kernel, band: int, tensors: tuple[Any, ...], **constants) -> None:
    """Launch a kernel whose first tensor says how all of them lie."""
    found = _rows(tensors[0], band)
    with launch.on_device_of(tensors[0]):
        kernel[found.grid](*tensors, *found.numbers, **constants, **found.settings)


__all__ = ["max_pool5", "max_pool5_gradient"]
