"""What does not fit in memory is halved, or refused."""

import pytest
import torch

from ncsn_fast.device import memory
from ncsn_fast.device.memory import in_chunks


def test_a_chunk_that_does_not_fit_is_halved_and_the_rest_keep_its_size(caplog):
    tried, taken_back = [], []

    def work(part):
        tried.append((part.start, part.stop))
        if part.stop - part.start > 2 and part.start >= 5:
            raise torch.OutOfMemoryError("does not fit")

    assert in_chunks(11, 5, work, taken_back.append) == 2
    assert tried == [(0, 5), (5, 10), (5, 7), (7, 9), (9, 11)]
    assert taken_back == [5]
    assert caplog.messages == [
        "5 samples at once do not fit in memory: going on with 2, or fewer if need be "
        "(batch_size= avoids this)"
    ]


@pytest.mark.parametrize("said", ["can't allocate memory: 3 GB", "CUBLAS_STATUS_ALLOC_FAILED"])
def test_memory_that_ends_elsewhere_is_known_by_its_words(said):
    done = []

    def work(part):
        if part.stop - part.start > 1:
            raise RuntimeError(said)
        done.append(part.start)

    in_chunks(2, 2, work, lambda done: None)
    assert done == [0, 1]


@pytest.mark.parametrize(
    ("error", "n"),
    [(torch.OutOfMemoryError("one does not fit"), 1), (RuntimeError("a bug"), 4)],
    ids=["one", "bug"],
)
def test_one_sample_that_does_not_fit_and_other_errors_pass_through(error, n):
    def work(part):
        raise error

    with pytest.raises(type(error), match=str(error)):
        in_chunks(n, n, work, lambda done: None)


def test_what_does_not_fit_is_refused_before_it_is_read(monkeypatch):
    monkeypatch.setattr(memory, "free_host_bytes", lambda: 3 << 29)
    memory.check_host_memory(3 << 29, "the data", "shrink them")
    with pytest.raises(ValueError, match=r"the data takes 2 GiB .* 1\.5 are free: shrink them"):
        memory.check_host_memory(1 << 31, "the data", "shrink them")
    monkeypatch.setattr(memory, "free_host_bytes", lambda: None)
    memory.check_host_memory(1 << 60, "the data", "shrink them")


def test_free_memory_is_known_or_said_to_be_unknown():
    free = memory.free_host_bytes()
    assert free is None or 1 << 20 < free < 1 << 50
