"""How Triton's kernels find neighbouring pixels: kernels/triton/common/rows.py."""

import itertools

import pytest
import torch
from cases.common import every_triton_way

pytest.importorskip("triton", reason="Triton is not installed")

import triton
import triton.language as tl

from ncsn_fast.kernels.triton.common.rows import locate, rows, start


@triton.jit
def _locate_kernel(out_ptr, total, bands, across, BLOCK_SIZE: tl.constexpr):
    live, image, band, vector = locate(total, bands, across, BLOCK_SIZE)
    index = tl.arange(0, BLOCK_SIZE)[:, None]
    tl.store(out_ptr + 4 * index, live.to(tl.int32))
    tl.store(out_ptr + 4 * index + 1, image)
    tl.store(out_ptr + 4 * index + 2, band)
    tl.store(out_ptr + 4 * index + 3, vector)


@triton.jit
def _start_kernel(out_ptr, image, row, vector, across, height, VECTOR: tl.constexpr):
    at = tl.zeros((1, 1), tl.int32)
    offsets = start(at + image, at + row, at + vector, across, height, VECTOR)
    tl.store(out_ptr + tl.arange(0, VECTOR)[None, :], offsets)


@every_triton_way
def test_vectors_are_counted_along_rows_bands_and_images_and_the_last_one_repeated(way):
    out = torch.full((32, 4), -1, dtype=torch.int32, device=way.device)
    images, bands, across = 2, 3, 5
    _locate_kernel[(1,)](out, images * bands * across, bands, across, BLOCK_SIZE=32)
    places = itertools.product(range(images), range(bands), range(across))
    last = [0, images - 1, bands - 1, across - 1]
    assert out.tolist() == [[1, *place] for place in places] + [last, last]


@every_triton_way
def test_rows_beyond_32_bits_of_elements_are_found_where_they_lie(way):
    out = torch.zeros(8, dtype=torch.int64, device=way.device)
    image, row, vector, across, height = 40_000, 301, 1_003, 4_096, 512
    _start_kernel[(1,)](out, image, row, vector, across, height, VECTOR=8)
    first = ((image * height + row) * across + vector) * 8
    assert first > 1 << 36
    assert out.tolist() == list(range(first, first + 8))


def test_no_launch_counts_beyond_31_bits():
    for last in (False, True):
        found = rows(torch.Size((1 << 20, 12, 64, 64)), last, 2, 4)
        assert 1 <= found.samples < 1 << 20
        assert found.numbers[0] + found.settings["BLOCK_SIZE"] < 1 << 31
