"""Ids of samples as ranges: first and one behind the last; ascending, no two of them touch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

Range = tuple[int, int]


def union(ranges: Iterable[Range]) -> list[Range]:
    """Any ranges, as those of all their ids."""
    found: list[Range] = []
    for first, stop in sorted(ranges):
        if found and first <= found[-1][1]:
            found[-1] = found[-1][0], max(stop, found[-1][1])
        elif first < stop:
            found.append((first, stop))
    return found


def without(ranges: Iterable[Range], others: Iterable[Range]) -> list[Range]:
    """The ids of ``ranges`` that are in none of ``others``."""
    left, taken = [], union(others)
    k = 0
    for first, stop in union(ranges):
        while k < len(taken) and taken[k][1] <= first:
            k += 1
        last = k
        while last < len(taken) and taken[last][0] < stop:
            if first < taken[last][0]:
                left.append((first, taken[last][0]))
            first = taken[last][1]
            last += 1
        if first < stop:
            left.append((first, stop))
        k = max(k, last - 1)
    return left


def pieces(ranges: Iterable[Range], size: int) -> Iterator[Range]:
    """Ranges cut at the multiples of ``size``: the same cuts whatever is there already."""
    for first, stop in ranges:
        while first < stop:
            end = min(stop, first - first % size + size)
            yield first, end
            first = end


def ranges_of(ids: np.ndarray) -> list[Range]:
    """The ranges of ids (N,) int64."""
    if not len(ids):
        return []
    ids = np.sort(ids)
    ends = np.flatnonzero(np.diff(ids) != 1)
    firsts, lasts = ids[np.r_[0, ends + 1]], ids[np.r_[ends, len(ids) - 1]]
    return [(int(first), int(last) + 1) for first, last in zip(firsts, lasts, strict=True)]


def number(ranges: Iterable[Range]) -> int:
    """How many ids they hold."""
    return sum(stop - first for first, stop in ranges)


__all__ = ["Range", "number", "pieces", "ranges_of", "union", "without"]
