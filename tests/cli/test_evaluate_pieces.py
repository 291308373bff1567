"""The images of several places as one array, of which one piece at a time is in memory."""

import numpy as np
import pytest

from ncsn_fast.runs.evaluation.given import InPieces

WHOLE = np.arange(23 * 2, dtype=np.uint8).reshape(23, 2, 1, 1)


def in_pieces(sizes, most=100):
    reads = []
    starts = np.cumsum([0, *sizes])

    def reader(i):
        def read():
            reads.append(i)
            return WHOLE[starts[i] : starts[i + 1]]

        return read

    ranges = zip(starts.tolist(), starts[1:].tolist(), strict=False)
    return InPieces([(ids, reader(i)) for i, ids in enumerate(ranges)], (2, 1, 1), most), reads


@pytest.mark.parametrize("sizes", [[23], [1] * 23, [5, 10, 8], [22, 1]])
@pytest.mark.parametrize("most", [100, 17])
def test_every_slice_is_that_of_the_whole(sizes, most):
    found, _ = in_pieces(sizes, most)
    whole = WHOLE[:most]
    assert (len(found), found.shape) == (len(whole), whole.shape)
    for start in range(0, 23, 3):
        for stop in (start, start + 1, start + 4, 23, 40):
            if whole[start:stop].size:
                np.testing.assert_array_equal(found[start:stop], whole[start:stop])
    np.testing.assert_array_equal(found[:], whole)
    assert found.ids() == list(range(len(whole)))


def test_each_piece_is_read_once_by_who_goes_from_the_first_to_the_last():
    found, reads = in_pieces([5, 10, 8])
    for start in range(0, 23, 2):
        found[start : start + 2]
    assert reads == [0, 1, 2]
    found[0:1]
    assert reads == [0, 1, 2, 0]
