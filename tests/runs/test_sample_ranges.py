"""Ranges of ids, against sets of them."""

from __future__ import annotations

import itertools
import random

import numpy as np

from ncsn_fast.runs.samples.ranges import Range, number, pieces, ranges_of, union, without


def some(rng: random.Random) -> list[Range]:
    firsts = [rng.randrange(30) for _ in range(rng.randrange(6))]
    return [(first, first + rng.randrange(8)) for first in firsts]


def ids(ranges: list[Range]) -> set[int]:
    return {i for first, stop in ranges for i in range(first, stop)}


def is_plain(ranges: list[Range]) -> bool:
    """Whether they are ascending, not empty, and do not touch."""
    ends = [end for pair in ranges for end in pair]
    return all(a < b for a, b in itertools.pairwise(ends))


def test_they_are_what_sets_of_their_ids_are() -> None:
    rng = random.Random(0)
    for _ in range(2000):
        a, b = some(rng), some(rng)
        assert ids(union(a)) == ids(a)
        assert is_plain(union(a))
        assert ids(without(a, b)) == ids(a) - ids(b)
        assert is_plain(without(a, b))
        assert number(union(a)) == len(ids(a))
        assert ranges_of(np.array(rng.sample(sorted(ids(a)), len(ids(a))), np.int64)) == union(a)


def test_pieces_are_cut_at_the_same_places_whatever_is_there() -> None:
    rng = random.Random(1)
    for _ in range(500):
        size, there = rng.randrange(1, 9), some(rng)
        cut = list(pieces(without([(0, 40)], there), size))
        assert ids(cut) == set(range(40)) - ids(there)
        grid = list(pieces([(0, 40)], size))
        assert all(any(a <= first and stop <= b for a, b in grid) for first, stop in cut)
