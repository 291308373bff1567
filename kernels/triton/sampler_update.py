"""The sampler update in one pass: x ← a·x + b·n + c·h + d·z + w·g, h ← e·x_old + f·n.

Specification: ``ncsn_fast.reference.sampler_update``. The noise is made in registers. The
state and what belongs to it are contiguous float32; n is as the network left it. Coefficients,
seed, step and sample ids are read from the device, so that a captured launch serves every row, seed
and sample.
"""

import triton
import triton.language as tl
from torch import Tensor

from ncsn_fast.device.memory_format import dense, is_channels_last
from ncsn_fast.kernels.triton.common import launch, tiles
from ncsn_fast.kernels.triton.common.philox import normals
from ncsn_fast.noise import KNOWN, SAMPLER

_SAMPLER, _KNOWN = tl.constexpr(SAMPLER), tl.constexpr(KNOWN)


# Rows, steps and slices of ids lie anywhere: a variant for each alignment would compile mid-chain.
@triton.jit(
    do_not_specialize=["total", "quads", "magic", "shift", "channels", "pixels"],
    do_not_specialize_on_alignment=["row_ptr", "seed_ptr", "step_ptr", "ids_ptr"],
)
def _sampler_update_kernel(
    x_ptr,
    n_ptr,
    row_ptr,
    seed_ptr,
    step_ptr,
    ids_ptr,
    z_ptr,
    history_ptr,
    guidance_ptr,
    mask_ptr,
    known_ptr,
    x_out_ptr,
    history_out_ptr,
    input_out_ptr,
    total,
    quads,
    magic,
    shift,
    channels,
    pixels,
    ADD_NOISE: tl.constexpr,
    N_LAST: tl.constexpr,
    FAST_MATH: tl.constexpr,
    CHANNELS: tl.constexpr,
    STRIDED: tl.constexpr,
    IS_HIP: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    quad = (tl.program_id(0) * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)).to(tl.uint32)
    live = quad < total
    sample = tiles.divide(quad, magic, shift)
    place = tiles.locate(quad, sample, live, quads, channels, pixels, STRIDED)
    # Everything is read before anything is written: x_out may be x, and no load waits for a store.
    a, b = tl.load(row_ptr), tl.load(row_ptr + 1)
    x = tiles.load(x_ptr, place, False, CHANNELS, STRIDED)
    n = tiles.load(n_ptr, place, N_LAST, CHANNELS, STRIDED)
    if history_ptr is not None:
        c, e, f = tl.load(row_ptr + 2), tl.load(row_ptr + 4), tl.load(row_ptr + 5)
        history = tiles.load(history_ptr, place, False, CHANNELS, STRIDED)
    if guidance_ptr is not None:
        w = tl.load(row_ptr + 6)
        guidance = tiles.load(guidance_ptr, place, False, CHANNELS, STRIDED)
    if mask_ptr is not None:
        next_sigma = tl.load(row_ptr + 8)
        is_known = tiles.load(mask_ptr, place, False, CHANNELS, STRIDED)
        known = tiles.load(known_ptr, place, False, CHANNELS, STRIDED)
    if ADD_NOISE or mask_ptr is not None:
        seed, step = tl.load(seed_ptr), tl.load(step_ptr)
        ids = tl.load(ids_ptr + sample, mask=live, other=0)
    if z_ptr is not None:
        d = tl.load(row_ptr + 3)
        z = tiles.load(z_ptr, place, False, CHANNELS, STRIDED)
    elif ADD_NOISE:
        d = tl.load(row_ptr + 3)
        z = normals(place, ids, step, _SAMPLER, seed, CHANNELS, FAST_MATH, IS_HIP)
    if mask_ptr is not None:
        known_z = normals(place, ids, step + 1, _KNOWN, seed, CHANNELS, FAST_MATH, IS_HIP)
    if input_out_ptr is not None:
        next_c_in = tl.load(row_ptr + 7)

    new, network_input, new_history = (), (), ()
    for k in tl.static_range(CHANNELS):
        n_k = n[k].to(tl.float32)
        value = a * x[k] + b * n_k
        if history_ptr is not None:
            value += c * history[k]
            new_history = new_history + (e * x[k] + f * n_k,)
        if z_ptr is not None or ADD_NOISE:
            value += d * z[k]
        if guidance_ptr is not None:
            value += w * guidance[k]
        if mask_ptr is not None:
            value = tl.where(is_known[k] != 0, known[k] + next_sigma * known_z[k], value)
        new = new + (value,)
        if input_out_ptr is not None:
            network_input = network_input + (value * next_c_in,)
    tiles.store(x_out_ptr, new, place, False, CHANNELS, STRIDED)
    if history_ptr is not None:
        tiles.store(history_out_ptr, new_history, place, False, CHANNELS, STRIDED)
    if input_out_ptr is not None:
        tiles.store(input_out_ptr, network_input, place, False, CHANNELS, STRIDED)


def sampler_update(
    x: Tensor,
    n: Tensor,
    row: Tensor,
    seed: Tensor,
    step: Tensor,
    sample_ids: Tensor,
    z: Tensor | None,
    history: Tensor | None,
    guidance: Tensor | None,
    mask: Tensor | None,
    known: Tensor | None,
    x_out: Tensor,
    history_out: Tensor | None,
    input_out: Tensor | None,
    *,
    add_noise: bool,
    fast_math: bool = launch.FAST_MATH,
) -> None:
    """Launch the kernel. All tensors lie on x's device.

    Args:
        x: (N, *shape) float32, contiguous, as are all tensors of that shape but n.
        n: (N, *shape) float32, float16 or bfloat16; in another layout than contiguous or
            channels_last it is copied.
        row: (9,) float32, contiguous, the coefficients ``reference.ROW``.
        seed, step: () int64.
        sample_ids: (N,) int64, contiguous.
        z: (N, *shape) float32, noise to use instead of the kernel's; None for none.
        history, guidance, known: (N, *shape) float32; None for none.
        mask: (N, *shape) bool, given with ``known``.
        x_out: (N, *shape) float32, the new state; it may be x.
        history_out: (N, *shape) float32, given with ``history``, which it may be.
        input_out: (N, *shape) float32, the network's next input c_in·x; None where it is not
            scaled.
        add_noise: whether the kernel makes noise, where z is None.
        fast_math: whether with the hardware's approximate functions.
    """
    n = dense(n)
    n_last = is_channels_last(n)
    geometry = launch.over_all(x.shape, n_last)
    if geometry.plan.samples < x.shape[0]:
        for cut in launch.cuts(geometry.plan.samples, x.shape[0]):
            sampler_update(
                cut(x), cut(n), row, seed, step, cut(sample_ids), cut(z), cut(history),
                cut(guidance), cut(mask), cut(known), cut(x_out), cut(history_out), cut(input_out),
                add_noise=add_noise, fast_math=fast_math,
            )  # fmt: skip
        return
    with launch.on_device_of(x):
        _sampler_update_kernel[geometry.grid](
            x, n, row, seed, step, sample_ids, z, history, guidance, mask, known,
            x_out, history_out, input_out, *geometry.numbers,
            ADD_NOISE=add_noise and z is None,
            N_LAST=n_last,
            FAST_MATH=fast_math,
            **geometry.settings,
        )  # fmt: skip


__all__ = ["sampler_update"]
