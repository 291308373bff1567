"""How Triton's kernels reduce the rows of a tile: kernels/triton/common/columns.py."""

import pytest
import torch
from cases.common import draw, every_triton_way

pytest.importorskip("triton", reason="Triton is not installed")

import triton
import triton.language as tl

from ncsn_fast.kernels.triton.common.columns import merge_rows, rows_of_a_warp, sum_rows

ROWS, COLUMNS = 16, 8


@triton.jit
def _sum_kernel(x_ptr, out_ptr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, TOGETHER: tl.constexpr):
    column = tl.arange(0, COLUMNS)
    tile = tl.load(x_ptr + tl.arange(0, ROWS)[:, None] * COLUMNS + column[None, :])
    tl.store(out_ptr + column, sum_rows(tile, TOGETHER))


@triton.jit
def _merge_kernel(
    x_ptr,
    out_ptr,
    whole,
    unit,
    rest,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TOGETHER: tl.constexpr,
):
    column = tl.arange(0, COLUMNS)
    where = tl.arange(0, ROWS)[:, None] * COLUMNS + column[None, :]
    mean, squares = tl.load(x_ptr + where), tl.load(x_ptr + ROWS * COLUMNS + where)
    mean, squares = merge_rows(mean, squares, (whole, unit, rest), TOGETHER)
    tl.store(out_ptr + column, mean)
    tl.store(out_ptr + COLUMNS + column, squares)


@every_triton_way
@pytest.mark.parametrize("together", [1, 4, ROWS])
def test_rows_are_added_column_by_column(way, together):
    tile, out = draw((ROWS, COLUMNS)), torch.zeros(COLUMNS, device=way.device)
    _sum_kernel[(1,)](tile.to(way.device), out, ROWS, COLUMNS, together)
    torch.testing.assert_close(out.cpu(), tile.sum(0), rtol=0, atol=4e-6)


@every_triton_way
@pytest.mark.parametrize("together", [1, 4, ROWS])
@pytest.mark.parametrize(
    ("whole", "unit", "rest"), [(3, 1, 0), (2, 1, 5), (0, 1, 9), (0, 7, 7 * ROWS), (0, 7, 40)]
)
def test_means_and_squares_are_those_of_all_values(way, together, whole, unit, rest):
    counts = [whole + max(0, min(unit, rest - row * unit)) for row in range(ROWS)]
    values = [100 + draw((count, COLUMNS), seed=row) for row, count in enumerate(counts)]
    mean, squares = torch.zeros(ROWS, COLUMNS), torch.zeros(ROWS, COLUMNS)
    for row, some in enumerate(values):
        if len(some):
            mean[row] = some.mean(0)
            squares[row] = (some - some.mean(0)).square().sum(0)
    out = torch.zeros(2, COLUMNS, device=way.device)
    parts = torch.stack([mean, squares]).to(way.device)
    _merge_kernel[(1,)](parts, out, whole, unit, rest, ROWS, COLUMNS, together)
    all_values = torch.cat(values).double()
    torch.testing.assert_close(out[0].cpu().double(), all_values.mean(0), rtol=1e-6, atol=0)
    exact = (all_values - all_values.mean(0)).square().sum(0)
    torch.testing.assert_close(out[1].cpu().double(), exact, rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("shape", "itemsize", "warps", "rows"),
    [
        ((8, 256), 2, 8, 1),  # a row is as wide as a warp
        ((16, 128), 2, 8, 2),
        ((32, 64), 2, 8, 4),
        ((8, 256), 4, 8, 1),
        ((32, 64), 4, 8, 2),
        ((256, 8), 2, 8, 32),
        ((4, 64), 2, 8, 1),  # fewer elements than the threads could take
        ((2, 8), 2, 8, 2),
    ],
)
def test_a_warp_has_as_many_rows_as_fit_side_by_side(shape, itemsize, warps, rows):
    assert rows_of_a_warp(*shape, itemsize, warps) == rows
