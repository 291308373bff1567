"""What the kernels of sampling and training share in their tests: layouts, which noise, launches
of few samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from cases.common import SEED, STEP, Buffers, Way, sample_ids
from torch import Tensor

from ncsn_fast import noise

Layout = tuple[tuple[int, ...], bool]
HALF = torch.float16

# Shapes, and whether the network's output is channels_last. A program of Triton's takes 256 quads
# of four elements where they lie one after the other (FLAT), else 64.
FLAT, STRIDED, INTERLEAVED = ((2, 1100), False), ((2, 3, 9, 11), True), ((2, 3, 16, 18), True)
PLACES = ("flat", "strided", "interleaved")  # in the order of all such triples
SEVERAL_PROGRAMS = (FLAT, STRIDED, INTERLEAVED)
ONE_PROGRAM = (((2, 3, 8, 8), False), ((2, 3, 5, 7), True), ((2, 3, 8, 8), True))
LAYOUTS = (
    *SEVERAL_PROGRAMS,
    *ONE_PROGRAM,
    ((2, 3, 9, 11), False),
    ((5, 2), False),
    ((6, 1), False),
    ((3, 1, 7, 7), True),  # the same strides in both formats
    ((3, 5, 1, 1), True),
    *(((2, channels, 4, 6), True) for channels in (2, 4, 5, 6, 7, 8)),
    ((2, 9, 4, 4), True),  # too many channels to permute in registers
)
MANY_SAMPLES = (((260, 4), False), ((70, 3), False), ((24, 3, 4, 4), True))  # in one program
NATIVE_LAYOUTS = (
    *(((2, 1100), False), ((2, 3, 9, 11), True), ((2, 3, 16, 18), True), ((2, 3, 9, 11), False)),
    *(((1, 3, 40, 50), True), ((260, 4), False), ((70, 3), False), ((5, 2), False)),
    *(((6, 1), False), ((3, 5, 1, 1), True), ((3, 1, 7, 7), True), ((2, 9, 4, 4), True)),
)
# Of batches that are cut: two samples go into a launch.
CUT = (((3, 24), False), ((3, 3, 3, 3), True), ((3, 3, 4, 4), True))
# On a GPU: a launch that counts beyond 2³¹ elements.
HUGE = (
    ((1 << 21) + 2, 1024),
    ((1 << 31) // 1023 + 2, 1023),
    ((1 << 31) // 3072 + 2, 3, 32, 32),
)
MANY = (((70_000, 1), False), ((70_000, 3, 2, 2), True))  # samples: more than a grid has rows
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
each_place = pytest.mark.parametrize("place", range(3), ids=PLACES.__getitem__)


def layout_of(place: int, way: Way) -> Layout:
    """A way of addressing: on a GPU in several programs; one is enough where they take turns."""
    return (SEVERAL_PROGRAMS if way.device == "cuda" else ONE_PROGRAM)[place]


def which_noise(count: int, buffers: Buffers) -> dict[str, Tensor]:
    return {**step_on(buffers.device), "sample_ids": buffers.input(sample_ids(count))}


def step_on(device: str) -> dict[str, Tensor]:
    """Seed and step, where kernels read them."""
    where = torch.device(device)
    return {"seed": noise.seed_tensor(SEED, where), "step": noise.step_tensor(STEP, where)}


def check_cut(run: Callable[[Buffers], Any], shape: tuple[int, ...], last: bool, way: Way) -> None:
    """Assert that a batch too large for one launch comes out as from one, bit for bit.

    Args:
        run: runs a kernel on a batch of this shape, and returns tensors.
        last: whether any of its tensors is channels_last.
    """
    from ncsn_fast.kernels.triton.common import tiles

    whole, buffers = run(Buffers(way.device)), Buffers(way.device)
    with _launches_of(2 * tiles.plan(torch.Size(shape), last).quads):
        assert tiles.plan(torch.Size(shape), last).samples == 2 < shape[0]
        cut = run(buffers)
    buffers.check()
    for one, other in zip(cut, whole, strict=True):
        assert torch.equal(one, other)


@contextmanager
def _launches_of(quads: int) -> Iterator[None]:
    """Let no launch take more quads than this."""
    from ncsn_fast.kernels.triton.common import launch, tiles

    def forget() -> None:
        launch.over_all.cache_clear()
        launch.within_samples.cache_clear()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "_MOST_QUADS", quads)
        forget()
        yield
    forget()


def need_memory(gigabytes: float) -> None:
    torch.cuda.empty_cache()
    if torch.cuda.mem_get_info()[0] < gigabytes * 1e9:
        pytest.skip(f"needs {gigabytes} GB of free memory on the GPU")
