"""InstanceNorm++ and an activation where the statistics are known: y = act(γ·(h + α·t) + β).

Specification: ``ncsn_fast.reference.instance_norm_plus``; statistics as in
``instance_norm_statistics``. x and y are float32, float16 or bfloat16 in either memory format. A
thread computes scale and shift of its eight channels and uses them for several pixels.
"""

import functools
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ncsn_fast.device.memory_format import is_channels_last
from ncsn_fast.kernels.triton.common import launch, tiles
from ncsn_fast.kernels.triton.common.activations import activate
from ncsn_fast.kernels.triton.instance_norm_statistics import (
    LANES,
    MULTIPROCESSORS,
    aligned,
    inside,
    offsets,
)

_CHANNELS = 64  # of a program
_WARPS, _UNROLL = 4, 8
_FEW = 4  # tiles


class Elementwise(NamedTuple):
    """A grid that goes through all elements once."""

    programs: int  # per sample
    magic: int
    shift: int
    settings: dict[str, Any]


@functools.lru_cache(maxsize=1024)
def elementwise(shape: torch.Size, last: bool, unroll: int) -> Elementwise:
    """The grid for a shape (N, C, H, W) in a memory format; a thread takes ``unroll`` tiles or, of
    a small image, as many as there are.

    What a thread computes per channel is paid by its pixels: where an image is a few tiles of a
    whole program, fewer warps take more of smaller ones, and those of which fewest lie outside. A
    few tiles pay for it: where more would leave multiprocessors without work, a thread takes no
    more.
    """
    samples, channels, pixels = shape[0], shape[1], shape[2] * shape[3]
    cuts = []
    for warps in (1, 2, _WARPS):
        block_channels, block_pixels = _tile(channels, pixels, last, 32 * warps * LANES)
        tiles_of_image = triton.cdiv(pixels, block_pixels)
        blocks = triton.cdiv(channels, block_channels)
        busy = max(_FEW, samples * blocks * tiles_of_image // MULTIPROCESSORS)
        turns = triton.cdiv(tiles_of_image, min(unroll, busy))
        each = triton.cdiv(tiles_of_image, turns)
        rank = min(_FEW, tiles_of_image), -turns * each * block_pixels, warps
        cuts.append((rank, warps, block_channels, block_pixels, blocks, turns, each))
    _, warps, block_channels, block_pixels, blocks, turns, unroll = max(cuts)
    settings = {
        "FULL": channels % block_channels == 0,
        "EVEN": pixels % (block_pixels * unroll) == 0,
        "BLOCKS": blocks,
        "BLOCK_PIXELS": block_pixels,
        "BLOCK_CHANNELS": block_channels,
        "UNROLL": unroll,
        "ALIGNED": aligned(pixels, last),
        "num_warps": warps,
    }
    magic, shift = tiles.magic_number(blocks * turns)
    return Elementwise(blocks * turns, magic, shift, settings)


def _tile(channels: int, pixels: int, last: bool, elements: int) -> tuple[int, int]:
    """Channels and pixels of a tile of so many elements, or fewer of a small planar image."""
    if last:
        block_channels = min(triton.next_power_of_2(channels), _CHANNELS)
        return block_channels, elements // block_channels
    block_pixels = min(triton.next_power_of_2(pixels), elements)
    return min(triton.next_power_of_2(channels), elements // block_pixels), block_pixels


@triton.jit
def locate(
    programs,
    magic,
    shift,
    channels,
    pixels,
    LAST: tl.constexpr,
    BLOCKS: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    UNROLL: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """(sample, rows, channels, offsets of the first tile, between tiles, pixels that are left)."""
    pixels = pixels // ALIGNED * ALIGNED  # as it is, and known to be a multiple
    program = tl.program_id(0).to(tl.uint32)
    sample = tiles.divide(program, magic, shift)
    rest = (program - sample * programs).to(tl.int32)
    channel = rest % BLOCKS * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    first = (rest // BLOCKS).to(tl.int64) * (BLOCK_PIXELS * UNROLL)
    row = tl.arange(0, BLOCK_PIXELS)
    step = channels if LAST else 1
    base = sample.to(tl.int64) * channels * pixels + first * step
    left = tl.minimum(pixels - first, BLOCK_PIXELS * UNROLL).to(tl.int32)
    left = tl.multiple_of(left, ALIGNED)
    where = base + offsets(row, channel, channels, pixels, LAST)
    return sample.to(tl.int64), row, channel, where, step * BLOCK_PIXELS, left


@triton.jit
def per_channel(
    ptr,
    channel,
    channels,
    LAST: tl.constexpr,
    FULL: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr,
):
    """float32 values of the channels, (P, C) where pixels of a channel are apart, else (1, C).

    As large as a tile of x each thread loads them for its own elements, as it loads x: nothing has
    to be exchanged between threads.
    """
    where = channel[None, :]
    if LAST:
        where = tl.broadcast_to(where, (BLOCK_PIXELS, channel.shape[0]))
    if FULL:
        return tl.load(ptr + where).to(tl.float32)
    return tl.load(ptr + where, mask=where < channels).to(tl.float32)


@triton.jit
def coefficients(
    gamma_ptr,
    alpha_ptr,
    beta_ptr,
    statistics_ptr,
    strides,
    eps,
    samples,
    sample,
    channel,
    channels,
    ROWS: tl.constexpr,
    LAST: tl.constexpr,
    FULL: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr,
):
    """(mean, 1/√(variance + ε), γ, α, β, t) of the channels, and 1/√(ε + variance over them)."""
    row = statistics_ptr + sample * channels
    every = samples.to(tl.int64) * channels
    mean = per_channel(row, channel, channels, LAST, FULL, BLOCK_PIXELS)
    variance = per_channel(row + every, channel, channels, LAST, FULL, BLOCK_PIXELS)
    over = tl.load(statistics_ptr + 2 * every + sample)
    spread = tl.rsqrt(tl.load(statistics_ptr + 2 * every + samples + sample) + eps)
    if ROWS:
        gamma_ptr += sample * strides[0]
        alpha_ptr += sample * strides[1]
        beta_ptr += sample * strides[2]
    gamma = per_channel(gamma_ptr, channel, channels, LAST, FULL, BLOCK_PIXELS)
    alpha = per_channel(alpha_ptr, channel, channels, LAST, FULL, BLOCK_PIXELS)
    beta = per_channel(beta_ptr, channel, channels, LAST, FULL, BLOCK_PIXELS)
    return mean, tl.rsqrt(variance + eps), gamma, alpha, beta, (mean - over) * spread, spread


@triton.jit(
    do_not_specialize=["samples", "programs", "magic", "shift"],
)
def _instance_norm_apply_kernel(
    x_ptr,
    gamma_ptr,
    alpha_ptr,
    beta_ptr,
    statistics_ptr,
    y_ptr,
    bias_ptr,
    gamma_stride,
    alpha_stride,
    beta_stride,
    eps,
    samples,
    channels,
    pixels,
    programs,
    magic,
    shift,
    ACTIVATION: tl.constexpr,
    FAST_MATH: tl.constexpr,
    ROWS: tl.constexpr,
    LAST: tl.constexpr,
    FULL: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCKS: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    UNROLL: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    sample, row, channel, where, step, left = locate(
        programs, magic, shift, channels, pixels,
        LAST, BLOCKS, BLOCK_PIXELS, BLOCK_CHANNELS, UNROLL, ALIGNED,
    )  # fmt: skip
    x = ()
    for k in tl.static_range(UNROLL):
        exists = inside(row, channel, left, channels, k, FULL, EVEN)
        x = x + (tl.load(x_ptr + where + k * step, mask=exists),)
    mean, rstd, gamma, alpha, beta, t, spread = coefficients(
        gamma_ptr, alpha_ptr, beta_ptr, statistics_ptr,
        (gamma_stride, alpha_stride, beta_stride),
        eps, samples, sample, channel, channels, ROWS, LAST, FULL, BLOCK_PIXELS,
    )  # fmt: skip
    if bias_ptr is not None:  # the mean of a channel comes off with it, but it sets channels apart
        t += per_channel(bias_ptr, channel, channels, LAST, FULL, BLOCK_PIXELS) * spread
    scale, offset = gamma * rstd, gamma * alpha * t + beta
    for k in tl.static_range(UNROLL):
        # The mean comes off first, as in the specification: nothing is lost where it is large.
        z = (x[k].to(tl.float32) - mean) * scale + offset
        y = activate(z, ACTIVATION, FAST_MATH).to(y_ptr.dtype.element_ty)
        exists = inside(row, channel, left, channels, k, FULL, EVEN)
        tl.store(y_ptr + where + k * step, y, mask=exists)


def row_stride(parameter: Tensor) -> int:
    """Between the rows of a parameter (N, C), or none where all samples share one, (C,)."""
    return parameter.stride(0) if parameter.ndim == 2 else 0


def apply(
    x: Tensor,
    gamma: Tensor,
    alpha: Tensor,
    beta: Tensor,
    statistics: Tensor,
    y: Tensor,
    bias: Tensor | None = None,
    *,
    eps: float,
    activation: str | None,
    fast_math: bool = launch.FAST_MATH,
) -> None:
    """Launch the kernel. All tensors lie on x's device.

    Args:
        x: (N, C, H, W) float32, float16 or bfloat16, contiguous or channels_last, not empty.
        gamma, alpha, beta: (C,) or (N, C) of any of these dtypes, each row without gaps.
        statistics: (N · (2·C + 2),) float32, contiguous, those of x.
        y: (N, C, H, W) of x's dtype and layout, written.
        bias: (C,) of any of these dtypes, contiguous: that which the statistics were made with.
        eps: added to both variances.
        activation: a name of ``reference.ACTIVATIONS``, or None for none.
        fast_math: whether with the hardware's approximate functions.
    """
    last = is_channels_last(x)
    grid = elementwise(x.shape, last, _UNROLL)
    with launch.on_device_of(x):
        _instance_norm_apply_kernel[(x.shape[0] * grid.programs,)](
            x, gamma, alpha, beta, statistics, y, bias,
            row_stride(gamma), row_stride(alpha), row_stride(beta),
            eps, x.shape[0], x.shape[1], x.shape[2] * x.shape[3],
            grid.programs, grid.magic, grid.shift,
            ROWS=max(gamma.ndim, alpha.ndim, beta.ndim) == 2,
            ACTIVATION=activation,
            FAST_MATH=fast_math,
            LAST=last,
            **grid.settings,
        )  # fmt: skip


__all__ = [
    "Elementwise",
    "apply",
    "coefficients",
    "elementwise",
    "locate",
    "per_channel",
    "row_stride",
]
