"""Sums, and means with squares, over the rows of a tile, column by column.

Where warps have different rows, ``tl.sum`` hands their parts over through shared memory with the
rows side by side: all lanes of a warp write to one bank, and wait for each other. Here each warp
adds the rows that it has side by side, and neighbours among what is left are added column by
column, which lie in different banks.
"""

import functools

import triton
import triton.language as tl


# Cached, since a launch is to cost no more than a few microseconds of Python.
@functools.lru_cache(maxsize=1024)
def rows_of_a_warp(rows: int, columns: int, itemsize: int, warps: int) -> int:
    """How many rows side by side a warp has of a (rows, columns) tile, as Triton shares it out.

    Were it to share it out differently, sums would be as right and take longer.

    Args:
        rows, columns: powers of two; the columns lie side by side in memory.
        itemsize: bytes of an element there.
        warps: of the program.
    """
    vector = min(16 // itemsize, max(1, rows * columns // (32 * warps)))
    return min(rows, 32 // min(32, max(1, columns // vector)))


@triton.jit
def sum_rows(tile, WARP_ROWS: tl.constexpr):
    """(C,) sums over the rows of a (P, C) tile.

    Args:
        WARP_ROWS: that a warp has side by side, a divisor of P.
    """
    groups: tl.constexpr = tile.shape[0] // WARP_ROWS
    return _sum_groups(tl.sum(tl.reshape(tile, (groups, WARP_ROWS, tile.shape[1])), 1))


@triton.jit
def _sum_groups(tile):
    if tile.shape[0] == 1:
        total = tl.reshape(tile, (tile.shape[1],))
    else:
        first, second = _neighbours(tile)
        total = _sum_groups(first + second)
    return total


@triton.jit
def _neighbours(tile):
    """The even and the odd rows, (P/2, C) each."""
    pairs = tl.reshape(tile, (tile.shape[0] // 2, 2, tile.shape[1]))
    return tl.split(tl.permute(pairs, (0, 2, 1)))


@triton.jit
def merge_rows(mean, squares, held, WARP_ROWS: tl.constexpr):
    """(means, Σ(x - mean)²), (C,) each, of all values together whose rows' these are, (P, C) each.

    Args:
        held: (whole, unit, rest): of how many values row r is, as scalars; it is of ``whole`` and
            what is left of ``rest`` after r times ``unit``, at most ``unit``. None but the last
            rows may be of none.
        WARP_ROWS: as in :func:`sum_rows`.
    """
    rows: tl.constexpr = mean.shape[0]
    groups: tl.constexpr = rows // WARP_ROWS
    if WARP_ROWS > 1:
        shape: tl.constexpr = (groups, WARP_ROWS, mean.shape[1])
        mean, squares = tl.reshape(mean, shape), tl.reshape(squares, shape)
        count = tl.reshape(_held(tl.arange(0, rows), 1, held), (groups, WARP_ROWS, 1))
        total = _held(tl.arange(0, groups) * WARP_ROWS, WARP_ROWS, held)[:, None]
        # Means are averaged as differences from one of them: a sum of large ones would lose digits.
        is_first = (tl.arange(0, WARP_ROWS) == 0)[None, :, None]
        base = tl.sum(tl.where(is_first, mean, 0.0), 1)
        from_base = mean - base[:, None, :]
        mean = tl.sum(from_base * count, 1) / tl.maximum(total, 1.0)
        deviation = from_base - mean[:, None, :]
        # Weighted before it is squared: where there is nothing, a square that overflows is no zero.
        squares = tl.sum(squares + deviation * (deviation * count), 1)
        mean += base
    return _merge_groups(mean, squares, held, WARP_ROWS)


@triton.jit
def _merge_groups(mean, squares, held, WIDTH: tl.constexpr):
    """Of groups of WIDTH rows."""
    groups: tl.constexpr = mean.shape[0]
    if groups == 1:
        mean, squares = tl.reshape(mean, (mean.shape[1],)), tl.reshape(squares, (mean.shape[1],))
    else:
        first, second = _neighbours(mean)
        squares, more = _neighbours(squares)
        row = tl.arange(0, groups // 2) * (2 * WIDTH)
        count, other = _held(row, WIDTH, held), _held(row + WIDTH, WIDTH, held)
        share = other / tl.maximum(count + other, 1.0)
        difference = second - first
        weighted = difference * (count * share)[:, None]
        mean = first + difference * share[:, None]
        mean, squares = _merge_groups(mean, squares + more + difference * weighted, held, 2 * WIDTH)
    return mean, squares


@triton.jit
def _held(row, rows: tl.constexpr, held):
    """Of how many values so many rows are from each of ``row`` on, float32."""
    whole, unit, rest = held
    left = tl.minimum(tl.maximum(rest - row * unit, 0), rows * unit)
    return (whole * rows + left).to(tl.float32)


__all__ = ["merge_rows", "rows_of_a_warp", "sum_rows"]
