"""What comes one per sample and what all samples share is said, not guessed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from engine_cases import SIGMAS
from graph_cases import TABLE, Module
from torch import Tensor

import ncsn_fast as nf
from ncsn_fast.guidance.base import Guidance

pytest_plugins = ["helpers.recorded_capture"]

N = 4


def seen_by(sampler_of=nf.Sampler, n: int = N, **call) -> list[dict]:
    """What the network is given, for each chunk of two."""
    seen = []

    def fn(x, labels, **inputs):
        seen.append(inputs)
        return torch.zeros_like(x)

    sampler = sampler_of(fn, (2,), [1.0, 0.5], step_size=0.1, steps_per_level=1, denoise=False)
    sampler(n, seed=0, batch_size=2, **call)
    return seen[:: len(sampler.table)]


@pytest.mark.parametrize(
    "values",
    [torch.arange(N), np.arange(N), list("abcd"), tuple("abcd")],
    ids=["tensor", "array", "list", "tuple"],
)
def test_what_has_one_entry_per_sample_is_cut_with_the_batch(values):
    parts = [one["y"] for one in seen_by(extra={"y": values})]
    assert [type(part) for part in parts] == [type(values)] * 2
    assert [list(part) for part in parts] == [list(values[:2]), list(values[2:])]


@pytest.mark.parametrize("values", [torch.rand(N, 3), np.arange(N), list("abcd"), torch.rand(7)])
def test_what_is_shared_reaches_every_chunk_as_it_is(values):
    assert all(one["table"] is values for one in seen_by(shared={"table": values}))


@pytest.mark.parametrize("value", [None, 2, "a word", torch.tensor(1.0), torch.rand(1, 3), ["a"]])
def test_a_single_entry_goes_to_all(value):
    assert all(one["y"] is value for one in seen_by(extra={"y": value}))


@pytest.mark.parametrize("values", [torch.rand(7), np.zeros((7, 2)), [1, 2], torch.rand(0)])
def test_another_length_is_refused(values):
    length = len(values)
    with pytest.raises(ValueError, match=rf"extra\['y'\] has {length} entries.*shared=\{{'y'"):
        seen_by(extra={"y": values})
    x = torch.rand(N, 2)
    with pytest.raises(ValueError, match=rf"extra\['y'\] has {length} entries.*shared=\{{'y'"):
        nf.log_likelihood(lambda x, labels, y: -x, x, [1.0, 0.5], extra={"y": values})


def test_an_input_is_given_once():
    with pytest.raises(ValueError, match=r"\['y'\] are in extra and in shared"):
        seen_by(extra={"y": 1}, shared={"y": 1})
    with pytest.raises(ValueError, match="extra = 'y': give a mapping"):
        seen_by(extra="y")
    with pytest.raises(ValueError, match=r"shared = \{1: 2\}: give a mapping"):
        seen_by(shared={1: 2})


def test_a_captured_chain_shares_as_an_eager_one_does(recorded):
    def fn(x, labels, y, table):
        return -x / (1 + SIGMAS[labels].view(-1, 1) ** 2) + table[y].sum(1, keepdim=True)

    call = {"extra": {"y": torch.arange(N)}, "seed": 0, "batch_size": 2}
    for table in (torch.rand(N, 2), torch.rand(N, 2)):
        call["shared"] = {"table": table}
        samples = [
            nf.Sampler(Module(fn), (3,), SIGMAS, TABLE, graph=graph)(N, **call)
            for graph in (False, True)
        ]
        assert torch.equal(*samples)
    assert recorded.captured


def test_guidance_without_a_condition_keeps_what_is_shared_whole():
    def fn(x, sigma, y, table):
        assert len(table) == 2
        return x + table.mean() + y.view(-1, 1)

    score = nf.Score(fn, "denoiser", "sigma")
    guided = nf.guided(score, 2.0, unconditional={"y": 0.0})
    x = torch.rand(2, 3)
    table = torch.rand(2, 5)
    call = {"seed": 0, "initial": x, "extra": {"y": torch.ones(2)}, "shared": {"table": table}}
    sampler = nf.Sampler(guided, (3,), SIGMAS, TABLE)
    whole = sampler(2, **call)
    by_one = sampler(2, **call, batch_size=1)
    assert torch.allclose(whole, by_one, atol=1e-5)


def test_a_guidance_of_others_has_inputs_for_each_sample_or_for_all():
    class Odd(Guidance):
        @property
        def inputs(self) -> dict[str, Tensor]:
            return {"y": torch.zeros(3, 2)}

        def __call__(self, x, n, sigma, row, **inputs):
            return torch.zeros_like(x)

    with pytest.raises(ValueError, match=r"guidance\.inputs\['y'\] has 3 entries, for n = 4"):
        seen_by(guidance=Odd())


def test_the_likelihood_shares_and_cuts_as_sampling_does():
    def fn(x, labels, y, table):
        return -(x - table[y.long()].view(-1, 1)) / (1 + sigmas[labels].view(-1, 1) ** 2)

    sigmas = torch.tensor([2.0, 0.5])
    x, y, table = torch.rand(N, 2), torch.arange(N), torch.rand(N)
    score = nf.Score(fn, "score", "label", sigmas)
    call = {"extra": {"y": y}, "shared": {"table": table}, "exact": True, "seed": 0}
    whole, parts = (nf.log_likelihood(score, x, batch_size=size, **call) for size in (N, 1))
    assert torch.allclose(whole.log_likelihood, parts.log_likelihood)


# Masks.


def images(n: int, **call) -> Tensor:
    sampler = nf.Sampler(
        lambda x, labels: -x, (3, 4, 4), [1.0, 0.5], step_size=0.1, steps_per_level=2
    )
    return sampler(n, seed=0, **call)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8, bool, ">f4", np.int64])
def test_arrays_are_masks_and_known_states(dtype):
    mask = np.zeros((4, 4)[::-1], dtype)
    mask[:2] = 1
    known = np.random.default_rng(0).random((3, 4, 4))[:, ::-1]
    expected = images(
        2, mask=torch.tensor(mask.astype(np.float32)), known=torch.tensor(known.copy())
    )
    assert torch.equal(images(2, mask=mask, known=known), expected)


def test_initial_states_and_images_to_edit_may_be_arrays():
    x = np.random.default_rng(0).random((2, 3, 4, 4))
    assert torch.equal(images(2, initial=x), images(2, initial=torch.tensor(x)))
    net = nf.MLPScore(sigmas=SIGMAS, hidden=4)
    sampler = nf.Sampler(net, step_size=1e-5, steps_per_level=1)
    points = x[:, 0, 0, :2]
    edited = [nf.edit(sampler, one, 8, seed=0) for one in (points, torch.tensor(points))]
    assert torch.equal(*edited)
    ends = [
        nf.langevin(lambda x: -x, one, 0.1, 2, seed=0) for one in (points, torch.tensor(points))
    ]
    assert torch.equal(*ends)
    found = [nf.log_likelihood(net, one, seed=0) for one in (points, torch.tensor(points))]
    assert torch.equal(*(one.log_likelihood for one in found))
    with pytest.raises(ValueError, match=r"initial is a ndarray that is no array of numbers"):
        images(2, initial=np.full((2, 3, 4, 4), "x"))
    with pytest.raises(ValueError, match=r"mask is list: give a tensor or a NumPy array"):
        images(2, mask=[[1]], known=x)


def test_a_mask_whose_first_size_has_two_meanings_is_refused():
    ones, known = torch.ones(3, 4, 4), torch.zeros(3, 3, 4, 4)
    with pytest.raises(ValueError, match=r"mask\[None\] for one that all .* mask\[:, None\]"):
        images(3, mask=ones, known=known)
    with pytest.raises(ValueError, match=r"known\[None\] for one that all"):
        images(3, mask=ones[None], known=known[0])
    for given in (ones[None], ones[:, None]):
        assert not images(3, mask=given, known=known).any()
    assert not images(2, mask=ones, known=known[0]).any()
