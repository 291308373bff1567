"""Noise in Triton's kernels: Philox and Box-Muller, each in a tiny kernel of its own."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from cases.states import KNOWN_ANSWERS, ONES
from torch import Tensor

from ncsn_fast import noise
from ncsn_fast.kernels.triton.common import launch
from ncsn_fast.kernels.triton.common.philox import box_muller, philox4x32

_WORDS = 1 << 12  # a power of two


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
