"""What the parts of the Triton kernels have to do, each in a tiny kernel of its own."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ncsn_fast import noise
from ncsn_fast.kernels.triton.common import launch, tiles
from ncsn_fast.kernels.triton.common.philox import box_muller, philox4x32

ONES = (1 << 32) - 1
# (key, counter) and their words: zeros, all ones, digits of pi; published with the algorithm.
KNOWN_ANSWERS = (
    ((0, 0, 0, 0, 0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ((ONES,) * 6, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (
        (0xA4093822, 0x299F31D0, 0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
)
_WORDS = 1 << 12  # a power of two

# A batch, whether any of its tensors is channels_last, whether this one is: offsets beyond 2³².
_IMAGES, _ODD, _MANY_CHANNELS = (
    (1 << 13, 3, 1 << 10, 1 << 10),
    (1 << 13, 3, 999, 999),
    (64, 9, 1 << 13, 1 << 13),
)
OFFSETS = (
    ((70_000, 1), False, False),
    ((1 << 16, 1 << 17), False, False),
    ((1, (1 << 33) - (1 << 20)), False, False),
    ((1, (1 << 33) - (1 << 20) + 1), False, False),
    (_IMAGES, True, True),
    (_IMAGES, True, False),
    (_ODD, True, True),
    (_ODD, True, False),
    (_MANY_CHANNELS, True, True),
)


@triton.jit
def _philox_kernel(in_ptr, out_ptr, BLOCK_SIZE: tl.constexpr):
    """Keys and counters (6, B) to words (4, B), all int64."""
    i = tl.arange(0, BLOCK_SIZE)
    k0 = tl.load(in_ptr + i).to(tl.uint32)
    k1 = tl.load(in_ptr + BLOCK_SIZE + i).to(tl.uint32)
    c0 = tl.load(in_ptr + 2 * BLOCK_SIZE + i).to(tl.uint32)
    c1 = tl.load(in_ptr + 3 * BLOCK_SIZE + i).to(tl.uint32)
    c2 = tl.load(in_ptr + 4 * BLOCK_SIZE + i).to(tl.uint32)
    c3 = tl.load(in_ptr + 5 * BLOCK_SIZE + i).to(tl.uint32)
    words = philox4x32(c0, c1, c2, c3, k0, k1)
    for w in tl.static_range(4):
        tl.store(out_ptr + w * BLOCK_SIZE + i, words[w].to(tl.int64))


@triton.jit
def _box_muller_kernel(
    in_ptr, out_ptr, FAST_MATH: tl.constexpr, IS_HIP: tl.constexpr, BLOCK_SIZE: tl.constexpr
):
    """Words (2, B) int64 to normals (2, B) float32."""
    i = tl.arange(0, BLOCK_SIZE)
    radius, angle = tl.load(in_ptr + i), tl.load(in_ptr + BLOCK_SIZE + i)
    z0, z1 = box_muller(radius.to(tl.uint32), angle.to(tl.uint32), FAST_MATH, IS_HIP)
    tl.store(out_ptr + i, z0)
    tl.store(out_ptr + BLOCK_SIZE + i, z1)


@triton.jit(do_not_specialize=["quads", "magic", "shift", "channels", "pixels"])
def _offset_kernel(
    quad_ptr,
    offset_ptr,
    quads,
    magic,
    shift,
    channels,
    pixels,
    LAST: tl.constexpr,
    CHANNELS: tl.constexpr,
    STRIDED: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    """Quads (B,) int64 to the offsets of their elements, (CHANNELS, B, 4) int64."""
    i = tl.arange(0, BLOCK_SIZE)
    quad = tl.load(quad_ptr + i).to(tl.uint32)
    sample = tiles.divide(quad, magic, shift)
    place = tiles.locate(quad, sample, quad >= 0, quads, channels, pixels, STRIDED)
    for c in tl.static_range(CHANNELS):
        where = (c * BLOCK_SIZE + i[:, None]) * 4 + tl.arange(0, 4)[None, :]
        tl.store(offset_ptr + where, tiles._offset(c, place, LAST, CHANNELS, STRIDED))


def check_words(device: str) -> None:
    """Assert that Philox gives its known answers and, elsewhere, the words of the specification."""
    generator = torch.Generator().manual_seed(5)
    given = torch.randint(0, 1 << 32, (6, _WORDS), generator=generator)
    for i, (known, _) in enumerate(KNOWN_ANSWERS):
        given[:, i] = torch.tensor(known)
    words = torch.empty(4, _WORDS, dtype=torch.int64, device=device)
    _philox_kernel[(1,)](given.to(device), words, BLOCK_SIZE=_WORDS)
    k0, k1, *counter = given
    assert torch.equal(words.cpu(), torch.stack(noise.philox4x32((k0, k1), tuple(counter))))
    for i, (_, answer) in enumerate(KNOWN_ANSWERS):
        assert [f"{word:08x}" for word in words[:, i].tolist()] == answer.split()


def normals_error(device: str, fast_math: bool) -> float:
    """The largest error of a normal, with the ends of the range and small radii among them."""
    ends = torch.tensor([0, 1, (1 << 31) - 1, 1 << 31, ONES - (1 << 25), ONES - 1, ONES])
    words = torch.randint(0, 1 << 32, (2, _WORDS), generator=torch.Generator().manual_seed(6))
    # A quarter of the radii below 0.1, where float32 cannot hold u.
    words[0, : _WORDS // 4] = ONES - words[0, : _WORDS // 4] // 200
    words[:, : len(ends) ** 2] = torch.cartesian_prod(ends, ends).T
    normals = torch.empty(2, _WORDS, device=device)
    _box_muller_kernel[(1,)](words.to(device), normals, fast_math, launch.IS_HIP, _WORDS)
    exact = torch.stack(noise._box_muller((*words, *words), torch.float64)[:2])
    return float((normals.cpu() - exact).abs().max())


def normals_at(blocks: Tensor, seed: int, stream: int, sample_id: int, step: int) -> Tensor:
    """The (B, 4) normals of single blocks of a sample, in float64."""
    key = (seed & ONES, seed >> 32)
    counter = (blocks, step, sample_id & ONES, (sample_id >> 32) | (stream << 16))
    return torch.stack(noise._box_muller(noise.philox4x32(key, counter), torch.float64), 1)


def check_offsets(shape: tuple[int, ...], plan_last: bool, last: bool, device: str) -> None:
    """Assert that quads of a batch lie where they should, up to the last that a launch counts.

    Args:
        shape: of the batch.
        plan_last: whether any tensor of the launch is channels_last.
        last: whether this one is.
    """
    plan = tiles.plan(torch.Size(shape), plan_last)
    count = plan.samples * plan.quads
    quad = torch.randint(0, count, (1024,), generator=torch.Generator().manual_seed(7))
    quad[:4] = torch.tensor([0, plan.quads - 1, plan.quads % count, count - 1])
    offset = torch.empty(plan.CHANNELS, len(quad), 4, dtype=torch.int64, device=device)
    arguments = (plan.quads, plan.magic, plan.shift, plan.channels, plan.pixels)
    settings = {"LAST": last, "CHANNELS": plan.CHANNELS, "STRIDED": plan.STRIDED}
    _offset_kernel[(1,)](quad.to(device), offset, *arguments, **settings, BLOCK_SIZE=len(quad))
    sample, block = quad // plan.quads, quad % plan.quads
    element = 4 * block[:, None] + torch.arange(4)  # of the sample, or of one of its channels
    pixels, channels = plan.pixels, plan.channels
    for c, found in enumerate(offset.cpu()):
        if last and plan.STRIDED:
            within = element % pixels * channels + element // pixels
        elif last:  # the c-th quad of the 4·CHANNELS elements of four pixels
            within = 4 * (block[:, None] * channels + c) + torch.arange(4)
        else:
            within = element + c * pixels
        assert torch.equal(found, sample[:, None] * channels * pixels + within)
