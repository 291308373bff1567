"""The gradient of InstanceNorm++ and its activation; specification: autograd through
``ncsn_fast.reference.instance_norm_plus``.

With the upstream gradient u, z = γ·(x̂ + α·t) + β, g = u·act'(z), P pixels, r = 1/√(variance + ε)
of a channel's pixels and q = 1/√(variance + ε) of the means of a sample's C channels:

    ∂β = Σ g    ∂γ = Σ g·x̂ + α·t·Σ g    ∂α = γ·t·Σ g        per sample, sums over the pixels
    d = γ·α·Σ g                                             what reaches t
    m = q·(d - mean of d - t·Σ(d·t)/(C - 1))                what reaches the mean through t
    ∂x = γ·r·g + B·(x - mean) + D    B = -γ·r²·Σ(g·x̂)/P    D = (m - γ·r·Σ g)/P

in three launches: the two sums of each channel, in parts of its pixels; all that is per channel, by
one program per sample in a fixed order; ∂x. The second leaves to the third the *terms*, (N, 4, C)
float32: γ·r, γ·α·t + β, B and D.
"""

import triton
import triton.language as tl
from torch import Tensor

from ncsn_fast.device.memory_format import is_channels_last
from ncsn_fast.kernels.triton.common import launch
from ncsn_fast.kernels.triton.common.activations import derivative
from ncsn_fast.kernels.triton.common.columns import sum_rows
from ncsn_fast.kernels.triton.instance_norm import (
    coefficients,
    elementwise,
    locate,
    per_channel,
    row_stride,
)
from ncsn_fast.kernels.triton.instance_norm_statistics import (
    inside,
    of_parts,
    place,
    reduction,
)

_UNROLL = 4


@triton.jit(do_not_specialize=["samples", "splits", "per_split"])
def _instance_norm_sums_kernel(
    x_ptr,
    upstream_ptr,
    gamma_ptr,
    alpha_ptr,
    beta_ptr,
    statistics_ptr,
    partial_ptr,
    gamma_stride,
    alpha_stride,
    beta_stride,
    eps,
    samples,
    channels,
    pixels,
    splits,
    per_split,
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
    WARP_ROWS: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    sample, split, row, channel, where, step, held = place(
        splits, per_split, channels, pixels, LAST, BLOCKS, BLOCK_PIXELS, BLOCK_CHANNELS, ALIGNED
    )
    mean, rstd, gamma, alpha, beta, t, _ = coefficients(
        gamma_ptr, alpha_ptr, beta_ptr, statistics_ptr,
        (gamma_stride, alpha_stride, beta_stride),
        eps, samples, sample.to(tl.int64), channel, channels, ROWS, LAST, FULL, BLOCK_PIXELS,
    )  # fmt: skip
    offset = gamma * alpha * t + beta
    sums = tl.zeros((BLOCK_PIXELS, BLOCK_CHANNELS), tl.float32)
    products = tl.zeros((BLOCK_PIXELS, BLOCK_CHANNELS), tl.float32)
    done = held * 0
    while done < held:
        done = tl.multiple_of(done, BLOCK_PIXELS)
        left = tl.minimum(held - done, BLOCK_PIXELS * UNROLL).to(tl.int32)
        left = tl.multiple_of(left, ALIGNED)
        x, upstream = (), ()
        for k in tl.static_range(UNROLL):
            exists = inside(row, channel, left, channels, k, FULL, EVEN)
            at = where + (done + k * BLOCK_PIXELS) * step
            x = x + (tl.load(x_ptr + at, mask=exists, other=0.0),)
            upstream = upstream + (tl.load(upstream_ptr + at, mask=exists, other=0.0),)
        for k in tl.static_range(UNROLL):
            normal = (x[k].to(tl.float32) - mean) * rstd
            slope = derivative(normal * gamma + offset, ACTIVATION, FAST_MATH)
            gradient = upstream[k].to(tl.float32) * slope
            if not EVEN:
                # Where there is no pixel the slope of another value may be infinite.
                exists = inside(row, channel, left, channels, k, FULL, EVEN)
                gradient = tl.where(exists, gradient, 0.0)
            sums += gradient
            products += gradient * normal
        done += BLOCK_PIXELS * UNROLL
    at = partial_ptr + (sample.to(tl.int64) * splits + split) * 2 * channels + channel
    tl.store(at, sum_rows(sums, WARP_ROWS), mask=channel < channels)
    tl.store(at + channels, sum_rows(products, WARP_ROWS), mask=channel < channels)


@triton.jit
def _sum_of_parts(
    ptr,
    channel,
    channels,
    splits,
    PARTS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """(Σ g, Σ g·x̂) of some channels of a sample."""
    sums = tl.zeros((BLOCK_CHANNELS,), tl.float32)
    products = tl.zeros((BLOCK_CHANNELS,), tl.float32)
    done = splits * 0
    while done < splits:
        for k in tl.static_range(PARTS):
            at = ptr + (done + k).to(tl.int64) * 2 * channels + channel
            exists = (channel < channels) & (done + k < splits)
            sums += tl.load(at, mask=exists, other=0.0)
            products += tl.load(at + channels, mask=exists, other=0.0)
        done += PARTS
    return sums, products


@triton.jit(do_not_specialize=["samples", "splits"])
def _instance_norm_coefficients_kernel(
    partial_ptr,
    gamma_ptr,
    alpha_ptr,
    beta_ptr,
    statistics_ptr,
    rows_ptr,
    terms_ptr,
    gamma_stride,
    alpha_stride,
    beta_stride,
    eps,
    samples,
    channels,
    pixels,
    splits,
    ROWS: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    sample = tl.program_id(0).to(tl.int64)
    partial_ptr += sample * splits * 2 * channels
    reached, turned = 0.0, 0.0
    for last_pass in tl.static_range(2):
        first = 0
        while first < channels:
            channel = first + tl.arange(0, BLOCK_CHANNELS)
            exists = channel < channels
            _, rstd, gamma, alpha, beta, t, spread = coefficients(
                gamma_ptr, alpha_ptr, beta_ptr, statistics_ptr,
                (gamma_stride, alpha_stride, beta_stride),
                eps, samples, sample, channel, channels, ROWS, False, False, 1,
            )  # fmt: skip
            rstd, gamma = tl.reshape(rstd, (BLOCK_CHANNELS,)), tl.reshape(gamma, (BLOCK_CHANNELS,))
            alpha, beta = tl.reshape(alpha, (BLOCK_CHANNELS,)), tl.reshape(beta, (BLOCK_CHANNELS,))
            t = tl.reshape(t, (BLOCK_CHANNELS,))
            sums, products = _sum_of_parts(
                partial_ptr, channel, channels, splits, PARTS, BLOCK_CHANNELS
            )
            to_t = tl.where(exists, gamma * alpha * sums, 0.0)
            if last_pass == 0:
                reached += tl.sum(to_t)
                turned += tl.sum(tl.where(exists, to_t * t, 0.0))
            else:
                at = sample * 3 * channels + channel
                tl.store(rows_ptr + at, products + alpha * t * sums, mask=exists)
                tl.store(rows_ptr + at + channels, gamma * t * sums, mask=exists)
                tl.store(rows_ptr + at + 2 * channels, sums, mask=exists)
                to_mean = spread * (to_t - reached / channels - t * (turned / (channels - 1)))
                scale = gamma * rstd
                constant = (to_mean - scale * sums) / pixels
                at = sample * 4 * channels + channel
                tl.store(terms_ptr + at, scale, mask=exists)
                tl.store(terms_ptr + at + channels, gamma * alpha * t + beta, mask=exists)
                of_difference = -scale * rstd * products / pixels
                tl.store(terms_ptr + at + 2 * channels, of_difference, mask=exists)
                tl.store(terms_ptr + at + 3 * channels, constant, mask=exists)
            first += BLOCK_CHANNELS


@triton.jit(do_not_specialize=["programs", "magic", "shift"])
def _instance_norm_gradient_kernel(
    x_ptr,
    upstream_ptr,
    mean_ptr,
    terms_ptr,
    gradient_ptr,
    channels,
    pixels,
    programs,
    magic,
    shift,
    ACTIVATION: tl.constexpr,
    FAST_MATH: tl.constexpr,
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
    mean_ptr += sample * channels
    terms_ptr += sample * 4 * channels
    mean = per_channel(mean_ptr, channel, channels, LAST, FULL, BLOCK_PIXELS)
    scale = per_channel(terms_ptr, channel, channels, LAST, FULL, BLOCK_PIXELS)
    offset = per_channel(terms_ptr + channels, channel, channels, LAST, FULL, BLOCK_PIXELS)
    terms_ptr += 2 * channels
    of_difference = per_channel(terms_ptr, channel, channels, LAST, FULL, BLOCK_PIXELS)
    constant = per_channel(terms_ptr + channels, channel, channels, LAST, FULL, BLOCK_PIXELS)
    for k in tl.static_range(UNROLL):
        exists = inside(row, channel, left, channels, k, FULL, EVEN)
        x = tl.load(x_ptr + where + k * step, mask=exists).to(tl.float32)
        upstream = tl.load(upstream_ptr + where + k * step, mask=exists).to(tl.float32)
        difference = x - mean
        slope = derivative(difference * scale + offset, ACTIVATION, FAST_MATH)
        gradient = upstream * slope * scale + (difference * of_difference + constant)
        gradient = gradient.to(gradient_ptr.dtype.element_ty)
        tl.store(gradient_ptr + where + k * step, gradient, mask=exists)


def gradient(
    x: Tensor,
    upstream: Tensor,
    gamma: Tensor,
    alpha: Tensor,
    beta: Tensor,
    statistics: Tensor,
    out: Tensor,
    rows: Tensor,
    *,
    eps: float,
    activation: str | None,
    fast_math: bool = launch.FAST_MATH,
) -> None:
    """Launch the kernels. All tensors lie on x's device.

    Args:
        x: (N, C, H, W) float32, float16 or bfloat16, contiguous or channels_last, not empty.
        upstream: (N, C, H, W) of x's dtype and layout, the gradient of y.
        gamma, alpha, beta, statistics, eps, activation: as for ``instance_norm.apply``.
        out: (N, C, H, W) of x's dtype and layout, written: ∂x.
        rows: (N, 3, C) float32, contiguous, written: the gradients of each sample's γ, α and β.
        fast_math: whether with the hardware's approximate functions.
    """
    last = is_channels_last(x)
    samples, channels, pixels = x.shape[0], x.shape[1], x.shape[2] * x.shape[3]
    strides = (row_stride(gamma), row_stride(alpha), row_stride(beta))
    shared = {"ROWS": any(strides)}
    per_sample = (gamma, alpha, beta, statistics)
    sums = reduction(x.shape, last, _UNROLL, alone=False)
    every = elementwise(x.shape, last, _UNROLL)
    partial = statistics.new_empty(samples, sums.splits, 2, channels)
    terms = rows.new_empty(samples, 4, channels)
    with launch.on_device_of(x):
        _instance_norm_sums_kernel[(samples * sums.programs,)](
            x, upstream, *per_sample, partial, *strides,
            eps, samples, channels, pixels, sums.splits, sums.per_split,
            ACTIVATION=activation, FAST_MATH=fast_math, **shared,
            **sums.settings(x.element_size()),
        )  # fmt: skip
        _instance_norm_coefficients_kernel[(samples,)](
            partial, *per_sample, rows, terms, *strides,
            eps, samples, channels, pixels, sums.splits,
            **shared, **of_parts(channels, sums.splits),
        )  # fmt: skip
        _instance_norm_gradient_kernel[(samples * every.programs,)](
            x, upstream, statistics, terms, out,
            channels, pixels, every.programs, every.magic, every.shift,
            ACTIVATION=activation, FAST_MATH=fast_math, LAST=last, **every.settings,
        )  # fmt: skip


__all__ = ["gradient"]
