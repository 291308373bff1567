"""How Triton's kernels find their elements: kernels/triton/common/tiles.py and launch.py."""

import pytest
import torch
from cases.common import every_triton_way
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("triton", reason="Triton is not installed")

import triton
import triton.language as tl

from ncsn_fast.kernels.triton.common import launch, tiles

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


@every_triton_way
@pytest.mark.parametrize(("shape", "plan_last", "last"), OFFSETS)
def test_elements_beyond_32_bits_are_found(way, shape, plan_last, last):
    """Quads of a batch lie where they should, up to the last that a launch counts."""
    plan = tiles.plan(torch.Size(shape), plan_last)
    count = plan.samples * plan.quads
    quad = torch.randint(0, count, (1024,), generator=torch.Generator().manual_seed(7))
    quad[:4] = torch.tensor([0, plan.quads - 1, plan.quads % count, count - 1])
    offset = torch.empty(plan.CHANNELS, len(quad), 4, dtype=torch.int64, device=way.device)
    arguments = (plan.quads, plan.magic, plan.shift, plan.channels, plan.pixels)
    settings = {"LAST": last, "CHANNELS": plan.CHANNELS, "STRIDED": plan.STRIDED}
    _offset_kernel[(1,)](quad.to(way.device), offset, *arguments, **settings, BLOCK_SIZE=len(quad))
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


@pytest.mark.parametrize("samples", [70_000, 3_000_000])
def test_the_grid_has_one_dimension_however_many_samples(samples):
    """The other dimensions end at 65,535."""
    shape = torch.Size((samples, 1))
    flat = launch.over_all(shape, False)
    assert flat.grid == (-(-samples // flat.settings["BLOCK_SIZE"]),)
    assert launch.within_samples(shape, False).grid == (samples,)


@given(st.integers(1, (1 << 31) - 1), st.integers(0, (1 << 31) - 1), st.data())
def test_the_magic_number_divides(divisor, index, data):
    magic, shift = tiles.magic_number(divisor)
    multiple = divisor * data.draw(st.integers(1, ((1 << 31) - 1) // divisor))
    for i in (0, index, multiple - 1, multiple, (1 << 31) - 1):
        assert i * magic >> shift == i // divisor
    assert 1 << 31 <= magic < 1 << 32
    assert ((1 << 31) - 1) * magic < 1 << 64


@pytest.mark.parametrize(
    ("shape", "last"),
    [((1, 1 << 33), False), ((2, (1 << 33) + 1), False), ((1, 8, 1 << 15, 1 << 15), True)],
)
def test_a_sample_of_8_gibi_elements_is_refused(shape, last):
    with pytest.raises(ValueError, match="kernels take less than"):
        tiles.plan(torch.Size(shape), last)


def test_no_launch_counts_beyond_31_bits():
    for shape, last in (((1 << 22, 3, 64, 64), True), ((1 << 22, 3, 63, 65), False)):
        plan = tiles.plan(torch.Size(shape), last)
        assert 1 <= plan.samples < shape[0]
        assert plan.samples * plan.quads + 256 < 1 << 31
