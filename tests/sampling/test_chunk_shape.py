"""On a GPU all chunks of a call have one shape, so that no sample depends on which it is in."""

from __future__ import annotations

import pytest
import torch
from engine_cases import SIGMAS
from graph_cases import TABLE

import ncsn_fast as nf
from ncsn_fast.device import precision
from ncsn_fast.sampling import chunks, loop

pytest_plugins = ["helpers.recorded_capture"]


class ByShape:
    """A score whose last bits depend on the shape, as those of a library's convolutions do."""

    def __init__(self):
        self.shapes = []

    def __call__(self, x, labels, shift=None):
        self.shapes.append(len(x))
        shift = 0 if shift is None else shift.view(-1, 1)
        return (shift - x) / (1 + SIGMAS[labels].view(-1, 1) ** 2) + 1e-6 * len(x)


def drawn(n, batch_size, graph=False, **call):
    score = ByShape()
    made = nf.Sampler(score, (3,), SIGMAS, TABLE, device="cpu", graph=graph)
    return made(n, seed=1, batch_size=batch_size, **call), score.shapes


@pytest.mark.parametrize("graph", [False, True])
def test_a_sample_is_the_same_bit_for_bit_in_every_batch_of_that_shape(recorded, graph):
    few, shapes = drawn(5, 3, graph)
    assert set(shapes) == {3}
    assert torch.equal(drawn(7, 3, graph)[0][:5], few)
    assert torch.equal(drawn(4, 3, graph, sample_ids=[4, 3, 2, 1])[0].flip(0), few[1:])
    assert torch.equal(drawn(3, 3, graph, sample_ids=[4, 0, 2])[0], few[[4, 0, 2]])
    assert not torch.equal(drawn(5, 2, graph)[0], few)  # the stand-in is one
    if graph:
        assert len(recorded.captured) == 5  # one shape, one graph: a sampler each


def test_a_cpu_computes_nothing_twice():
    assert set(drawn(7, 3)[1]) == {3, 1}
    assert len(drawn(7, 3)[1]) == 3 * len(TABLE)


def test_what_comes_per_sample_comes_with_it(recorded):
    call = {
        "extra": {"shift": torch.linspace(0, 1, 7)},
        "initial": torch.rand(7, 3),
        "mask": torch.tensor([[1.0, 0, 0]] * 4 + [[0, 0, 1.0]] * 3),
        "known": torch.rand(7, 3),
        "every": 10,
    }
    whole, states = drawn(7, 3, **call)[0]
    for part in (slice(0, 3), slice(1, 4), slice(4, 7)):
        ids = range(7)[part]
        own = {name: value[part] for name, value in call.items() if torch.is_tensor(value)}
        own |= {"extra": {"shift": call["extra"]["shift"][part]}, "every": 10}
        x, kept = drawn(3, 3, sample_ids=ids, **own)[0]
        assert torch.equal(x, whole[part])
        assert torch.equal(kept, states[:, part])


def test_progress_ends_at_its_end(recorded):
    told = []
    drawn(7, 3, progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (7 * len(TABLE), 7 * len(TABLE))
    assert max(told)[0] == 7 * len(TABLE)


def test_chunks_that_do_not_fit_get_another_shape_and_keep_it(recorded, monkeypatch):
    run, sizes = loop.run, []

    def narrow(chain, x, ids, *rest, **keywords):
        sizes.append(ids.tolist())
        if len(ids) > 2:
            raise torch.OutOfMemoryError("there is no room")
        return run(chain, x, ids, *rest, **keywords)

    monkeypatch.setattr(loop, "run", narrow)
    assert torch.equal(drawn(7, 4)[0], drawn(7, 2)[0])
    assert sizes[:5] == [[0, 1, 2, 3], [0, 1], [2, 3], [4, 5], [5, 6]]


def test_chunks_of_the_engines_choice_are_even(recorded, monkeypatch):
    monkeypatch.setattr(chunks, "_AUTO_ELEMENTS", {"cpu": 8 * 3, "cuda": 8 * 3})
    made = nf.Sampler(ByShape(), (3,), SIGMAS, TABLE, device="cpu")
    assert [made.chunk_size(n) for n in (1, 8, 9, 10, 17, 24)] == [1, 8, 5, 5, 6, 8]
    assert made.chunk_size(9, 8) == 8
    monkeypatch.undo()
    monkeypatch.setattr(chunks, "_AUTO_ELEMENTS", {"cpu": 8 * 3})
    assert made.chunk_size(9) == 8


def test_chains_convolve_by_algorithms_that_repeat(monkeypatch):
    asked, inside = [], []
    real = precision.repeatable

    def watched(device):
        asked.append(device)
        return real(torch.device("cuda"))

    monkeypatch.setattr(precision, "repeatable", watched)
    before = torch.backends.cudnn.deterministic

    def score(x, labels):
        inside.append(torch.backends.cudnn.deterministic)
        return -x

    nf.Sampler(score, (3,), SIGMAS, TABLE, device="cpu", graph=False)(2, seed=1)
    assert asked == [torch.device("cpu")]
    assert set(inside) == {True}
    assert torch.backends.cudnn.deterministic == before
    with real(torch.device("cpu")):
        assert torch.backends.cudnn.deterministic == before
