"""Denoising score matching: ½ w Σ (n + z)² per sample and its gradient g·w·(n + z), in one pass.

Specification: ``ncsn_fast.reference.dsm_loss``, with w = σ^(p-2). The noise is made again, not
read back. A program works within one sample; its sum goes into a buffer of partial sums, which
are added in a fixed order afterwards, so a result does not depend on timing. n is float32,
float16 or bfloat16 in either memory format, and its gradient takes after it.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ncsn_fast.device.memory_format import is_channels_last
from ncsn_fast.kernels.triton.common import launch, tiles
from ncsn_fast.kernels.triton.common.philox import normals
from ncsn_fast.noise import PERTURB

_PERTURB = tl.constexpr(PERTURB)


@triton.jit(
    do_not_specialize=[
        "upstream_stride", "programs", "magic", "shift", "quads", "channels", "pixels"
    ],
    do_not_specialize_on_alignment=[
        "weight_ptr", "seed_ptr", "step_ptr", "ids_ptr", "upstream_ptr", "partial_ptr"
    ],
)  # fmt: skip
def _dsm_loss_kernel(
    n_ptr,
    weight_ptr,
    seed_ptr,
    step_ptr,
    ids_ptr,
    upstream_ptr,
    partial_ptr,
    gradient_ptr,
    upstream_stride,
    programs,
    magic,
    shift,
    quads,
    channels,
    pixels,
    LAST: tl.constexpr,
    CHANNELS: tl.constexpr,
    STRIDED: tl.constexpr,
    FAST_MATH: tl.constexpr,
    IS_HIP: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    sample, place = tiles.locate_in_sample(
        programs, magic, shift, quads, channels, pixels, STRIDED, BLOCK_SIZE
    )
    ids, step, seed = tl.load(ids_ptr + sample), tl.load(step_ptr), tl.load(seed_ptr)
    n = tiles.load(n_ptr, place, LAST, CHANNELS, STRIDED)
    z = normals(place, ids, step, _PERTURB, seed, CHANNELS, FAST_MATH, IS_HIP)
    weight = 1.0
    if weight_ptr is not None:
        weight = tl.load(weight_ptr + sample)
    if gradient_ptr is not None:
        scale = weight * tl.load(upstream_ptr + sample.to(tl.int64) * upstream_stride)
    squares = tl.zeros((BLOCK_SIZE, 4), tl.float32)
    gradient = ()
    for k in tl.static_range(CHANNELS):
        difference = n[k].to(tl.float32) + z[k]
        squares += tl.where(place[3], difference * difference, 0.0)
        gradient = gradient + (difference * scale if gradient_ptr is not None else difference,)
    if gradient_ptr is not None:
        tiles.store(gradient_ptr, gradient, place, LAST, CHANNELS, STRIDED)
    if partial_ptr is not None:
        tl.store(partial_ptr + tl.program_id(0), 0.5 * weight * tl.sum(squares))


def dsm_loss(
    n: Tensor,
    weight: Tensor | None,
    seed: Tensor,
    step: Tensor,
    sample_ids: Tensor,
    upstream: Tensor | None = None,
    *,
    loss: Tensor | None = None,
    gradient: Tensor | None = None,
    fast_math: bool = launch.FAST_MATH,
) -> None:
    """Launch the kernel for the loss, the gradient (which needs ``upstream``), or both.

    All tensors lie on n's device.

    Args:
        n: (N, *shape) float32, float16 or bfloat16, contiguous or channels_last.
        weight: (N,) float32, contiguous; None for 1.
        seed, step: () int64.
        sample_ids: (N,) int64, contiguous.
        upstream: (N,) float32 of any stride: the mean's is one number, expanded.
        loss: (N,) float32, contiguous, written; None where it is not wanted.
        gradient: (N, *shape) of n's dtype and layout, written; None likewise.
        fast_math: whether with the hardware's approximate functions.
    """
    last = is_channels_last(n)
    geometry = launch.within_samples(n.shape, last)
    if geometry.plan.samples < n.shape[0]:
        for cut in launch.cuts(geometry.plan.samples, n.shape[0]):
            dsm_loss(
                cut(n), cut(weight), seed, step, cut(sample_ids), cut(upstream),
                loss=cut(loss), gradient=cut(gradient), fast_math=fast_math,
            )  # fmt: skip
        return
    partial = loss
    if loss is not None and geometry.programs > 1:
        partial = loss.new_empty(loss.shape[0], geometry.programs)
    with launch.on_device_of(n):
        _dsm_loss_kernel[geometry.grid](
            n, weight, seed, step, sample_ids, upstream, partial, gradient,
            0 if upstream is None else upstream.stride(0),
            *geometry.numbers,
            LAST=last,
            FAST_MATH=fast_math,
            **geometry.settings,
        )  # fmt: skip
    if partial is not None and partial is not loss:
        torch.sum(partial, 1, out=loss)


__all__ = ["dsm_loss"]
