"""Images as rows: how kernels that look at neighbouring pixels find them in either memory format.

A channels_last batch is N images whose rows have W·C elements, with C elements from a pixel to the
next; a contiguous one is N·C images with rows of W. A thread takes a *vector* of channels that lie
side by side: 16 bytes where the channels divide so, else fewer; a single one of a contiguous
tensor. Vectors are counted in 32 bits and addresses in 64.
"""

import functools
from typing import NamedTuple

import torch
import triton
import triton.language as tl

# Of one launch; the slack keeps the last program's in 32 bits.
_MOST_VECTORS = (1 << 31) - (1 << 16)
_WARPS = 4
_VECTORS = 32 * _WARPS  # of a program: one a thread


class Rows(NamedTuple):
    """How the images of a batch lie in memory, and how they are shared out."""

    samples: int  # of one launch
    grid: tuple[int]
    # Threads' places; bands of an image; threads along a band; vectors of a pixel; rows.
    numbers: tuple[int, ...]
    settings: dict[str, int]  # what a kernel is compiled for


# Cached, since a launch is to cost no more than a few microseconds of Python.
@functools.lru_cache(maxsize=1024)
def rows(
    shape: torch.Size, channels_last: bool, itemsize: int, band: int = 1, columns: int = 1
) -> Rows:
    """The rows of a batch of a shape, ``columns`` of vectors in ``band`` of them to a thread.

    Args:
        itemsize: bytes of an element.
    """
    count, channels, height, width = shape
    step = channels if channels_last else 1
    vector = next(size for size in (8, 4, 2, 1) if size * itemsize <= 16 and step % size == 0)
    bands, across = -(-height // band), -(-width // columns) * (step // vector)
    of_sample = bands * across * (1 if channels_last else channels)
    samples = max(1, min(count, _MOST_VECTORS // of_sample))
    numbers = (samples * of_sample, bands, across, step // vector, height)
    settings = {"VECTOR": vector, "BLOCK_SIZE": _VECTORS, "num_warps": _WARPS}
    return Rows(samples, (-(-numbers[0] // _VECTORS),), numbers, settings)


@triton.jit
def locate(total, bands, across, BLOCK_SIZE: tl.constexpr):
    """(live, image, band, vector) of a program's vectors, each (B, 1) and int32 but the first.

    What is not live is the last vector once more: it may be read.
    """
    index = (tl.program_id(0) * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE))[:, None]
    live = index < total
    index = tl.minimum(index, total - 1).to(tl.uint32)
    above = index // across.to(tl.uint32)
    image = above // bands.to(tl.uint32)
    band, vector = above - image * bands, index - above * across
    return live, image.to(tl.int32), band.to(tl.int32), vector.to(tl.int32)


@triton.jit
def start(image, row, vector, across, height, VECTOR: tl.constexpr):
    """(B, VECTOR) int64 offsets of vectors."""
    line = image.to(tl.int64) * height + row
    return (line * across + vector) * VECTOR + tl.arange(0, VECTOR)[None, :]


__all__ = ["Rows", "locate", "rows", "start"]
