"""The training perturbation in one pass: x̃ = x + σ·z, z made in registers and not stored.

Specification: ``ncsn_fast.reference.perturb``. Both are contiguous float32: networks under
autocast round for themselves.
"""

import triton
import triton.language as tl
from torch import Tensor

from ncsn_fast.kernels.triton.common import launch, tiles
from ncsn_fast.kernels.triton.common.philox import normals
from ncsn_fast.noise import PERTURB

_PERTURB = tl.constexpr(PERTURB)


@triton.jit(
    do_not_specialize=["programs", "magic", "shift", "quads", "channels", "pixels"],
    do_not_specialize_on_alignment=["sigma_ptr", "seed_ptr", "step_ptr", "ids_ptr"],
)
def _perturb_kernel(
    x_ptr,
    sigma_ptr,
    seed_ptr,
    step_ptr,
    ids_ptr,
    out_ptr,
    programs,
    magic,
    shift,
    quads,
    channels,
    pixels,
    CHANNELS: tl.constexpr,
    STRIDED: tl.constexpr,
    FAST_MATH: tl.constexpr,
    IS_HIP: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    sample, place = tiles.locate_in_sample(
        programs, magic, shift, quads, channels, pixels, STRIDED, BLOCK_SIZE
    )
    sigma, ids = tl.load(sigma_ptr + sample), tl.load(ids_ptr + sample)
    step, seed = tl.load(step_ptr), tl.load(seed_ptr)
    x = tiles.load(x_ptr, place, False, CHANNELS, STRIDED)
    z = normals(place, ids, step, _PERTURB, seed, CHANNELS, FAST_MATH, IS_HIP)
    out = ()
    for k in tl.static_range(CHANNELS):
        out = out + (x[k] + sigma * z[k],)
    tiles.store(out_ptr, out, place, False, CHANNELS, STRIDED)


def perturb(
    x: Tensor,
    sigma: Tensor,
    seed: Tensor,
    step: Tensor,
    sample_ids: Tensor,
    out: Tensor,
    *,
    fast_math: bool = launch.FAST_MATH,
) -> None:
    """Launch the kernel. All tensors lie on x's device and are contiguous.

    Args:
        x: (N, *shape) float32.
        sigma: (N,) float32.
        seed, step: () int64.
        sample_ids: (N,) int64.
        out: (N, *shape) float32, written.
        fast_math: whether with the hardware's approximate functions.
    """
    geometry = launch.within_samples(x.shape, False)
    if geometry.plan.samples < x.shape[0]:
        for cut in launch.cuts(geometry.plan.samples, x.shape[0]):
            perturb(cut(x), cut(sigma), seed, step, cut(sample_ids), cut(out), fast_math=fast_math)
        return
    with launch.on_device_of(x):
        _perturb_kernel[geometry.grid](
            x, sigma, seed, step, sample_ids, out, *geometry.numbers,
            FAST_MATH=fast_math,
            **geometry.settings,
        )  # fmt: skip


__all__ = ["perturb"]
