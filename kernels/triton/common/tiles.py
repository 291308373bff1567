"""Which elements a program works on, and where they lie in memory.

Noise comes in blocks of four consecutive elements of a sample (in (C, H, W) order), so a thread
works on *quads* of them: its loads and stores are as wide as the hardware has them. Where a tensor
is channels_last a thread takes four pixels of all channels and permutes them in registers. What
does not divide by four, or has too many channels for that, is addressed element by element
(STRIDED): slower, never wrong.

Quads are counted in 32 bits and addresses in 64. The sample of a quad comes from a multiplication
with a number that the host has made (Granlund & Montgomery 1994): a division costs eight times as
much.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

MOST_CHANNELS = 8  # of a channels_last tensor that is permuted in registers
_MOST_QUADS = (1 << 31) - (1 << 16)  # of one launch; the slack keeps the last program's in 32 bits


class Plan(NamedTuple):
    """How the elements of a batch are shared out among programs."""

    samples: int  # of one launch
    quads: int  # of one sample and channel
    magic: int  # with shift: i // divisor = i·magic >> shift for 0 ≤ i < 2³¹
    shift: int
    channels: int
    pixels: int
    CHANNELS: int  # that one thread takes together
    STRIDED: bool


def plan(shape: torch.Size, channels_last: bool) -> Plan:
    """The plan for a batch of this shape, any of whose tensors is channels_last or none.

    Raises:
        ValueError: for a sample of 2³³ elements, or close to it.
    """
    elements = shape[1:].numel()
    channels = shape[1] if channels_last else 1
    pixels = elements // max(1, channels)
    together = channels if pixels % 4 == 0 and channels <= MOST_CHANNELS else 1
    strided = elements % 4 != 0 or together != channels
    quads = -(-elements // 4) if strided else elements // (4 * together)
    if elements >= 1 << 33 or quads > _MOST_QUADS:
        raise ValueError(f"a sample of {elements} elements: kernels take less than 2³³ - 2¹⁸")
    samples = max(1, min(shape[0], _MOST_QUADS // max(1, quads)))
    return Plan(samples, quads, *magic_number(quads), channels, pixels, together, strided)


def magic_number(divisor: int) -> tuple[int, int]:
    """(magic, shift) with i // divisor = i·magic >> shift for all 0 ≤ i < 2³¹.

    The magic number lies in [2³¹, 2³²): an argument of one type whatever the divisor.
    """
    bits = max(0, divisor - 1).bit_length()
    return -(-(1 << (31 + bits)) // max(1, divisor)), 31 + bits


@triton.jit
def divide(index, magic, shift):
    """index // divisor for the divisor of (magic, shift); index is uint32 below 2³¹."""
    product = index.to(tl.uint64) * magic.to(tl.uint32).to(tl.uint64)
    return (product >> shift.to(tl.uint64)).to(tl.uint32)


@triton.jit
def locate(quad, sample, live, quads, channels, pixels, STRIDED: tl.constexpr):
    """A place: what load, store and the noise need to know of some quads.

    Args:
        quad: (B,) int32, counted through all samples, but within one channel.
        sample: (B,) or a scalar, quad // quads.
        live: (B,) whether there is such a quad.
        quads: of one sample and channel.

    Returns:
        (quad, sample, block, exists, quads, channels, pixels): ``block`` counts within the sample;
        ``exists`` says which elements there are, (B, 4), or (B, 1) where quads are whole.
    """
    block = quad - sample * quads
    exists = live[:, None]
    if STRIDED:
        exists = exists & (_element(block) < pixels.to(tl.int64) * channels)
    return quad, sample, block, exists, quads, channels, pixels


@triton.jit
def locate_in_sample(
    programs,
    magic,
    shift,
    quads,
    channels,
    pixels,
    STRIDED: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    """(sample, place) of a program that stays within one sample, which has ``programs`` of them.

    (magic, shift) stand for a division by ``programs``.
    """
    program = tl.program_id(0).to(tl.uint32)
    sample = divide(program, magic, shift)
    first = (program - sample * programs) * BLOCK_SIZE
    block = first + tl.arange(0, BLOCK_SIZE).to(tl.uint32)
    quad = sample * quads + block
    return sample, locate(quad, sample, block < quads, quads, channels, pixels, STRIDED)


@triton.jit
def _element(block):
    """(B, 4) int64, the elements of a sample's quads."""
    return block.to(tl.int64)[:, None] * 4 + tl.arange(0, 4)[None, :]


@triton.jit
def _offset(
    c: tl.constexpr, place, LAST: tl.constexpr, CHANNELS: tl.constexpr, STRIDED: tl.constexpr
):
    """(B, 4) int64 offsets of the c-th quads of a tensor.

    Planar, these are four pixels of channel c; of a channels_last tensor the c-th four of the
    4·CHANNELS elements of four pixels. The sample enters only where it must: 64-bit products and
    sums of vectors cost as much as the rest of the address.
    """
    quad, sample, block, _, quads, channels, pixels = place
    if STRIDED:
        element = _element(block)
        # One row for each quad, also where one program has one sample.
        first = (sample + block * 0).to(tl.int64)[:, None] * pixels * channels
        if LAST:
            return first + (element % pixels) * channels + element // pixels
        return first + element
    lane = tl.arange(0, 4)[None, :]
    if LAST:
        return (quad.to(tl.int64) * CHANNELS + c)[:, None] * 4 + lane
    if CHANNELS == 1:
        return quad.to(tl.int64)[:, None] * 4 + lane
    # The samples before hold CHANNELS planes each, of which ``quad`` has counted one.
    planes = sample.to(tl.int64) * (CHANNELS - 1) + c
    return (quad.to(tl.int64) + planes * quads)[:, None] * 4 + lane


@triton.jit
def _pair_offset(c: tl.constexpr, place, CHANNELS: tl.constexpr):
    """(B, 8) int64 offsets of the c-th quads of a channels_last tensor with those that follow: 128
    bits where an element has 16."""
    return (place[0].to(tl.int64) * CHANNELS + c)[:, None] * 4 + tl.arange(0, 8)[None, :]


@triton.jit
def load(ptr, place, LAST: tl.constexpr, CHANNELS: tl.constexpr, STRIDED: tl.constexpr):
    """CHANNELS planar (B, 4) quads of a tensor in either memory format."""
    tile = ()
    if LAST and CHANNELS % 2 == 0 and ptr.dtype.element_ty.primitive_bitwidth == 16:
        for c in tl.static_range(0, CHANNELS, 2):
            pair = tl.load(ptr + _pair_offset(c, place, CHANNELS), mask=place[3])
            pair = tl.permute(tl.reshape(pair, (pair.shape[0], 2, 4)), (0, 2, 1))
            tile = tile + tl.split(pair)
    else:
        for c in tl.static_range(CHANNELS):
            where = _offset(c, place, LAST, CHANNELS, STRIDED)
            tile = tile + (tl.load(ptr + where, mask=place[3]),)
    if LAST and CHANNELS > 1:
        return deinterleave(tile, CHANNELS)
    return tile


@triton.jit
def store(ptr, tile, place, LAST: tl.constexpr, CHANNELS: tl.constexpr, STRIDED: tl.constexpr):
    """Store CHANNELS planar (B, 4) quads into a tensor in either memory format."""
    if LAST and CHANNELS > 1:
        tile = interleave(tile, CHANNELS)
    if LAST and CHANNELS % 2 == 0 and ptr.dtype.element_ty.primitive_bitwidth == 16:
        for c in tl.static_range(0, CHANNELS, 2):
            pair = tl.permute(tl.join(tile[c], tile[c + 1]), (0, 2, 1))
            pair = tl.reshape(pair, (pair.shape[0], 8)).to(ptr.dtype.element_ty)
            tl.store(ptr + _pair_offset(c, place, CHANNELS), pair, mask=place[3])
    else:
        for c in tl.static_range(CHANNELS):
            where = _offset(c, place, LAST, CHANNELS, STRIDED)
            tl.store(ptr + where, tile[c].to(ptr.dtype.element_ty), mask=place[3])


@triton.jit
def deinterleave(tile, CHANNELS: tl.constexpr):
    """Four pixels of all channels, in (pixel, channel) order, to one quad per channel."""
    flat = _lanes(tile, CHANNELS)
    planes = ()
    for c in tl.static_range(CHANNELS):
        plane = _quad(flat[c], flat[CHANNELS + c], flat[2 * CHANNELS + c], flat[3 * CHANNELS + c])
        planes = planes + (plane,)
    return planes


@triton.jit
def interleave(tile, CHANNELS: tl.constexpr):
    """One quad per channel to four pixels of all channels, in (pixel, channel) order."""
    flat = _lanes(tile, CHANNELS)  # pixel p of channel c is at 4c + p
    chunks = ()
    for k in tl.static_range(CHANNELS):
        chunk = _quad(
            flat[4 * ((4 * k) % CHANNELS) + (4 * k) // CHANNELS],
            flat[4 * ((4 * k + 1) % CHANNELS) + (4 * k + 1) // CHANNELS],
            flat[4 * ((4 * k + 2) % CHANNELS) + (4 * k + 2) // CHANNELS],
            flat[4 * ((4 * k + 3) % CHANNELS) + (4 * k + 3) // CHANNELS],
        )
        chunks = chunks + (chunk,)
    return chunks


@triton.jit
def _lanes(tile, CHANNELS: tl.constexpr):
    """The columns of all quads, one after the other."""
    flat = ()
    for c in tl.static_range(CHANNELS):
        even, odd = tl.split(tl.reshape(tile[c], (tile[c].shape[0], 2, 2)))
        v0, v2 = tl.split(even)
        v1, v3 = tl.split(odd)
        flat = flat + (v0, v1, v2, v3)
    return flat


@triton.jit
def _quad(v0, v1, v2, v3):
    return tl.reshape(tl.join(tl.join(v0, v2), tl.join(v1, v3)), (v0.shape[0], 4))
