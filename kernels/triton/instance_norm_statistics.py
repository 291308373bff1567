"""The statistics that InstanceNorm++ needs of x, or of a sum x + residual that is made on the way.

x is float32, float16 or bfloat16 in either memory format; statistics are float32, and hold what
the norm's parameters have no part in, one after the other:

    (N, C) means, (N, C) biased variances, (N,) means over the channels of the means, (N,) their
    unbiased variances

They take one launch where a program has a sample for itself: of many samples, or small ones.
Otherwise programs leave partial (mean, Σ(x - mean)²) of their pixels, and a second launch, of a
program per sample, merges them in a fixed order. How samples are shared out depends on the shape
and the layout alone.

There is no counter by which the last program would know that it may merge at once: a counter has
to live on between launches, and two graphs that are replayed at the same time would count on the
same one.
"""

import functools
import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ncsn_fast.device.memory_format import is_channels_last
from ncsn_fast.kernels.triton.common import launch
from ncsn_fast.kernels.triton.common.columns import merge_rows, rows_of_a_warp

_WARPS = 8
_WARPS_OF_PARTS = 4
_UNROLL = 4
LANES = 8  # elements that a thread takes at once: 128 bits of a 16-bit type
_ENOUGH = 256  # programs keep a GPU busy: samples are split until there are as many
MULTIPROCESSORS = 128  # about as many as large GPUs have (A100 108, H100 and H200 132, B200 148)
_ALONE = 2 * 32 * _WARPS * LANES * _UNROLL  # elements of two turns: sooner read than launched twice
# Channels of a program that leaves partial results: a cache line of 16-bit types or, where programs
# are many and small, a sector. The fewer, the more pixels, and the fewer results to be merged.
_LINE, _SECTOR = 64, 16
_MOST_PIXELS = 256  # that a lane sums up before its rounding errors are merged
_MOST_PARTS = 16  # partial results of a channel that are read at once


class Reduction(NamedTuple):
    """A grid that goes through the pixels of each sample to sum something per channel."""

    splits: int  # of a sample's pixels
    per_split: int  # pixels, but for the last split
    blocks: int  # of a sample's channels
    full: bool  # whether no program lacks a channel
    even: bool  # whether none lacks a pixel in any turn
    block_pixels: int
    block_channels: int
    unroll: int
    warps: int
    last: bool  # whether the channels of a pixel lie side by side
    aligned: int  # a divisor of all counts of pixels that lie side by side

    @property
    def whole(self) -> bool:
        """Whether a program has a sample for itself."""
        return self.splits == self.blocks == 1

    @property
    def programs(self) -> int:
        """Per sample."""
        return self.splits * self.blocks

    def settings(self, itemsize: int) -> dict[str, Any]:
        """What a kernel is compiled for that reads elements of so many bytes."""
        pixels, channels = self.block_pixels, self.block_channels
        # Planar, a warp has channels to itself.
        rows = rows_of_a_warp(pixels, channels, itemsize, self.warps) if self.last else pixels
        return {
            "FULL": self.full,
            "EVEN": self.even,
            "BLOCKS": self.blocks,
            "BLOCK_PIXELS": pixels,
            "BLOCK_CHANNELS": channels,
            "UNROLL": self.unroll,
            "WARP_ROWS": rows,
            "LAST": self.last,
            "ALIGNED": self.aligned,
            "num_warps": self.warps,
        }


@functools.lru_cache(maxsize=1024)
def reduction(shape: torch.Size, last: bool, unroll: int, alone: bool = True) -> Reduction:
    """The grid for a shape (N, C, H, W) in a memory format; a turn has up to ``unroll`` tiles.

    Where whole turns of large programs leave multiprocessors without work, programs get smaller.

    Args:
        alone: whether a program that has a sample for itself saves a launch: it gets small ones.
    """
    samples, channels, pixels = shape[0], shape[1], shape[2] * shape[3]
    whole = _cut(shape, last, _WARPS, unroll, channels, 1)
    if whole.whole and (samples >= _ENOUGH or (alone and channels * pixels <= _ALONE)):
        return whole
    wanted = triton.cdiv(_ENOUGH, samples)
    sizes = ((_WARPS, unroll, _LINE), *((warps, 1, _SECTOR) for warps in (_WARPS, 4, 2, 1)))
    for warps, turn, width in sizes:
        found = _cut(shape, last, warps, turn, width, wanted)
        if samples * found.programs >= MULTIPROCESSORS:
            break
    return found


def _cut(
    shape: torch.Size, last: bool, warps: int, unroll: int, width: int, wanted: int
) -> Reduction:
    """Programs of so many warps and, where channels lie side by side, ``width`` channels or, of
    few pixels, more; up to ``wanted`` of them per sample, or as many as the accuracy takes."""
    channels, pixels = shape[1], shape[2] * shape[3]
    tile, padded = 32 * warps * LANES, triton.next_power_of_2(pixels)
    if last:
        width = min(tile, max(triton.next_power_of_2(width), tile // padded))
        block_channels = min(triton.next_power_of_2(channels), width)
        block_pixels = min(padded, tile // block_channels)
    else:
        block_pixels = min(padded, 32 * LANES)
        block_channels = min(triton.next_power_of_2(channels), tile // block_pixels)
    if pixels < block_pixels * unroll:
        unroll = 1
    turn = block_pixels * unroll
    blocks = triton.cdiv(channels, block_channels)
    splits = max(
        min(triton.cdiv(wanted, blocks), triton.cdiv(pixels, turn)),
        triton.cdiv(pixels, block_pixels * _MOST_PIXELS),
    )
    per_split = triton.cdiv(triton.cdiv(pixels, splits), turn) * turn
    splits = triton.cdiv(pixels, per_split)
    full, even = channels % block_channels == 0, pixels % turn == 0
    return Reduction(
        splits, per_split, blocks, full, even, block_pixels, block_channels, unroll, warps,
        last, aligned(pixels, last),
    )  # fmt: skip


def aligned(pixels: int, last: bool) -> int:
    """How many pixels that lie side by side are there together or not at all, up to LANES."""
    return 1 if last else math.gcd(pixels, LANES)


def of_parts(channels: int, splits: int) -> dict[str, int]:
    """What a kernel is compiled for that puts the partial results of a sample together: a thread
    has all parts of its channels, so that nothing is exchanged between threads."""
    parts = min(triton.next_power_of_2(splits), _MOST_PARTS)
    block = min(triton.next_power_of_2(channels), 64 * _WARPS_OF_PARTS)
    return {"PARTS": parts, "BLOCK_CHANNELS": block, "num_warps": _WARPS_OF_PARTS}


@triton.jit
def offsets(row, channel, channels, pixels, LAST: tl.constexpr):
    """(P, C) int64 offsets within a sample."""
    if LAST:
        return row.to(tl.int64)[:, None] * channels + channel[None, :]
    return channel.to(tl.int64)[None, :] * pixels + row[:, None]


@triton.jit
def inside(
    row,
    channel,
    left,
    channels,
    k: tl.constexpr,
    FULL: tl.constexpr,
    EVEN: tl.constexpr,
):
    """(P, C): which elements of the k-th tile exist, where ``left`` pixels do.

    FULL says that no channel is missing, EVEN that no pixel is: what is always true costs nothing.
    """
    exists = tl.full((row.shape[0], channel.shape[0]), True, tl.int1)
    if not FULL:
        exists &= (channel < channels)[None, :]
    if not EVEN:
        exists &= (row + k * row.shape[0] < left)[:, None]
    return exists


@triton.jit
def _value(x_ptr, residual_ptr, bias, where, exists):
    """x, or the sum x + bias + residual as it is stored."""
    x = tl.load(x_ptr + where, mask=exists, other=0.0)
    if residual_ptr is not None:
        residual = tl.load(residual_ptr + where, mask=exists, other=0.0)
        x = x.to(tl.float32)
        if bias is not None:
            x += bias
        x = (x + residual.to(tl.float32)).to(x_ptr.dtype.element_ty)
    return x


@triton.jit
def _bias(bias_ptr, channel, channels, BLOCK_PIXELS: tl.constexpr):
    """float32 values for a tile (P, C), which each thread loads for its own elements."""
    where = tl.broadcast_to(channel[None, :], (BLOCK_PIXELS, channel.shape[0]))
    return tl.load(bias_ptr + where, mask=where < channels, other=0.0).to(tl.float32)


@triton.jit
def _apart(mean, bias_ptr, channel, channels):
    """Means of channels with their bias, where it is not in them already: None."""
    if bias_ptr is not None:
        mean += tl.load(bias_ptr + channel, mask=channel < channels, other=0.0).to(tl.float32)
    return mean


@triton.jit
def _store_statistics(ptr, sample, samples, channel, mean, variance, channels):
    """Store those of some channels of a sample."""
    where = sample.to(tl.int64) * channels + channel
    tl.store(ptr + where, mean, mask=channel < channels)
    tl.store(ptr + samples.to(tl.int64) * channels + where, variance, mask=channel < channels)


@triton.jit
def _store_channel_statistics(ptr, sample, samples, mean, squares, channels):
    where = 2 * samples.to(tl.int64) * channels + sample
    tl.store(ptr + where, mean)
    tl.store(ptr + where + samples, squares / (channels - 1))


@triton.jit
def _over_channels(mean, channel, channels, held):
    """(mean, Σ(mean - its mean)²) of the means of ``held`` channels."""
    base = tl.sum(tl.where(tl.arange(0, channel.shape[0]) == 0, mean, 0.0))
    from_base = tl.where(channel < channels, mean - base, 0.0)
    over = tl.sum(from_base) / held
    deviation = tl.where(channel < channels, from_base - over, 0.0)
    return base + over, tl.sum(deviation * deviation)


@triton.jit
def merge(count, mean, squares, more, more_mean, more_squares):
    """(count, mean, Σ(x - mean)²) of two sets together, not both empty."""
    total = count + more
    difference = more_mean - mean
    share = more / total
    squares += more_squares + difference * (difference * (count * share))
    return total, mean + difference * share, squares


@triton.jit
def place(
    splits,
    per_split,
    channels,
    pixels,
    LAST: tl.constexpr,
    BLOCKS: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """(sample, split, rows, channels, offsets of the first tile, between pixels, number of pixels)
    of a program of a reduction."""
    pixels = pixels // ALIGNED * ALIGNED  # as it is, and known to be a multiple
    program = tl.program_id(0)
    sample = program // (splits * BLOCKS)
    rest = program % (splits * BLOCKS)
    split = rest // BLOCKS
    channel = rest % BLOCKS * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    first = tl.multiple_of(split.to(tl.int64) * per_split, BLOCK_PIXELS)
    held = tl.multiple_of(tl.minimum(pixels - first, per_split), ALIGNED)
    row = tl.arange(0, BLOCK_PIXELS)
    step = channels if LAST else 1
    base = sample.to(tl.int64) * channels * pixels + first * step
    where = base + offsets(row, channel, channels, pixels, LAST)
    return sample, split, row, channel, where, step, held


@triton.jit(do_not_specialize=["samples", "splits", "per_split"])
def _instance_norm_statistics_kernel(
    x_ptr,
    residual_ptr,
    bias_ptr,
    total_ptr,
    out_ptr,
    samples,
    channels,
    pixels,
    splits,
    per_split,
    LAST: tl.constexpr,
    FULL: tl.constexpr,
    EVEN: tl.constexpr,
    WHOLE: tl.constexpr,
    BLOCKS: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    UNROLL: tl.constexpr,
    WARP_ROWS: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    sample, split, row, channel, where, step, held = place(
        splits, per_split, channels, pixels, LAST, BLOCKS, BLOCK_PIXELS, BLOCK_CHANNELS, ALIGNED
    )
    # No more than ``per_split``: counted in 32 bits, fewer registers are taken.
    held = tl.multiple_of(held.to(tl.int32), ALIGNED)
    # Sums of differences from a value among those summed: of n of them, Σd² is at most n times
    # Σ(x - mean)², so that the subtraction at the end costs few digits, whatever the mean.
    bias = None
    if bias_ptr is not None and residual_ptr is not None:
        bias = _bias(bias_ptr, channel, channels, BLOCK_PIXELS)
    exists = inside(row, channel, held, channels, 0, FULL, EVEN)
    pivot = _value(x_ptr, residual_ptr, bias, where, exists).to(tl.float32)
    sums = tl.zeros((BLOCK_PIXELS, BLOCK_CHANNELS), tl.float32)
    squares = tl.zeros((BLOCK_PIXELS, BLOCK_CHANNELS), tl.float32)
    done = held * 0
    while done < held:
        done = tl.multiple_of(done, BLOCK_PIXELS)
        left = tl.multiple_of(tl.minimum(held - done, BLOCK_PIXELS * UNROLL), ALIGNED)
        values = ()
        for k in tl.static_range(UNROLL):
            exists = inside(row, channel, left, channels, k, FULL, EVEN)
            at = where + (done + k * BLOCK_PIXELS).to(tl.int64) * step
            value = _value(x_ptr, residual_ptr, bias, at, exists)
            if total_ptr is not None:
                tl.store(total_ptr + at, value, mask=exists)
            values = values + (value,)
        for k in tl.static_range(UNROLL):
            difference = values[k].to(tl.float32) - pivot
            if not EVEN:
                exists = inside(row, channel, left, channels, k, FULL, EVEN)
                difference = tl.where(exists, difference, 0.0)
            sums += difference
            squares += difference * difference
        done += BLOCK_PIXELS * UNROLL
    count = (tl.maximum(held - row + BLOCK_PIXELS - 1, 0) // BLOCK_PIXELS).to(tl.float32)
    shift = sums / tl.maximum(count, 1.0)[:, None]
    shares = (held // BLOCK_PIXELS, 1, held % BLOCK_PIXELS)
    mean, squares = merge_rows(pivot + shift, squares - sums * shift, shares, WARP_ROWS)
    if WHOLE:
        _store_statistics(out_ptr, sample, samples, channel, mean, squares / held, channels)
        if residual_ptr is None:
            mean = _apart(mean, bias_ptr, channel, channels)
        over, deviations = _over_channels(mean, channel, channels, channels)
        _store_channel_statistics(out_ptr, sample, samples, over, deviations, channels)
    else:
        at = out_ptr + (sample.to(tl.int64) * splits + split) * 2 * channels + channel
        tl.store(at, mean, mask=channel < channels)
        tl.store(at + channels, squares, mask=channel < channels)


@triton.jit(do_not_specialize=["samples", "splits", "per_split"])
def _instance_norm_combine_kernel(
    partial_ptr,
    bias_ptr,
    out_ptr,
    samples,
    channels,
    pixels,
    splits,
    per_split,
    PARTS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    sample = tl.program_id(0)
    partial_ptr += sample.to(tl.int64) * splits * 2 * channels
    first = 0
    seen, over, deviations = 0.0, 0.0, 0.0
    while first < channels:
        channel = first + tl.arange(0, BLOCK_CHANNELS)
        count = 0.0
        mean = tl.zeros((BLOCK_CHANNELS,), tl.float32)
        squares = tl.zeros((BLOCK_CHANNELS,), tl.float32)
        done = splits * 0
        while done < splits:
            means, within = (), ()
            for k in tl.static_range(PARTS):
                at = partial_ptr + (done + k).to(tl.int64) * 2 * channels + channel
                exists = (channel < channels) & (done + k < splits)
                means = means + (tl.load(at, mask=exists, other=0.0),)
                within = within + (tl.load(at + channels, mask=exists, other=0.0),)
            for k in tl.static_range(PARTS):
                left = pixels - (done + k).to(tl.int64) * per_split
                more = tl.minimum(tl.maximum(left, 0), per_split).to(tl.float32)
                count, mean, squares = merge(count, mean, squares, more, means[k], within[k])
            done += PARTS
        _store_statistics(out_ptr, sample, samples, channel, mean, squares / pixels, channels)
        held_channels = tl.minimum(channels - first, BLOCK_CHANNELS).to(tl.float32)
        mean = _apart(mean, bias_ptr, channel, channels)
        block_mean, block_squares = _over_channels(mean, channel, channels, held_channels)
        seen, over, deviations = merge(
            seen, over, deviations, held_channels, block_mean, block_squares
        )
        first += BLOCK_CHANNELS
    _store_channel_statistics(out_ptr, sample, samples, over, deviations, channels)


def statistics(
    x: Tensor,
    out: Tensor,
    residual: Tensor | None = None,
    total: Tensor | None = None,
    bias: Tensor | None = None,
) -> None:
    """Launch the kernels. All tensors lie on x's device.

    Args:
        x: (N, C, H, W) float32, float16 or bfloat16, contiguous or channels_last, not empty.
        out: (N · (2·C + 2),) float32, contiguous, written: the statistics of x, or of the total.
        residual: (N, C, H, W) of x's dtype and layout; None for none.
        total: (N, C, H, W) of x's dtype and layout, written: x + bias + residual. Given with it.
        bias: (C,) of any of these dtypes, contiguous; None for none. Without a residual it enters
            only what is over the channels, which are then those of x + bias.
    """
    last = is_channels_last(x)
    (samples, channels), pixels = x.shape[:2], x.shape[2] * x.shape[3]
    grid = reduction(x.shape, last, _UNROLL)
    splits = grid.splits
    partial = out if grid.whole else out.new_empty(samples, splits, 2, channels)
    with launch.on_device_of(x):
        _instance_norm_statistics_kernel[(samples * grid.programs,)](
            x, residual, bias, total, partial, samples, channels, pixels, splits, grid.per_split,
            WHOLE=grid.whole, **grid.settings(x.element_size()),
        )  # fmt: skip
        if not grid.whole:
            _instance_norm_combine_kernel[(samples,)](
                partial, bias if residual is None else None, out,
                samples, channels, pixels, splits, grid.per_split, **of_parts(channels, splits),
            )  # fmt: skip


__all__ = [
    "LANES",
    "MULTIPROCESSORS",
    "Reduction",
    "aligned",
    "inside",
    "merge",
    "of_parts",
    "offsets",
    "place",
    "reduction",
    "statistics",
]
