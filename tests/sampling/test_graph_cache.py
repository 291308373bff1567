"""Which captured loops a sampler keeps, when it needs another, and what it runs eagerly."""

from __future__ import annotations

import copy
import logging
import pickle

import pytest
import torch
from engine_cases import SIGMAS
from graph_cases import TABLE, Gaussian, Module, chain, network, simple
from torch import nn

import ncsn_fast as nf
from ncsn_fast.device.capture import CaptureError
from ncsn_fast.methods.tables import annealed_langevin
from ncsn_fast.sampling import captured as captured_module
from ncsn_fast.sampling import loop as loop_module
from ncsn_fast.sampling.chain import Chain
from ncsn_fast.sampling.graph_cache import Graphs

pytest_plugins = ["helpers.recorded_capture"]


def test_other_seeds_temperatures_levels_and_clips_need_no_other_graph(recorded):
    captured, eager = simple(), simple(graph=False)
    a, b = captured(4, seed=1), captured(4, seed=2)
    assert not torch.equal(a, b)
    assert torch.equal(captured(4, seed=1), a)
    for call in ({"temperature": 0.3}, {"start_level": 5}, {"seed": 2**64 - 1}):
        call = {"seed": 1, **call}
        assert torch.equal(eager(4, **call), captured(4, **call))
    assert len(recorded.captured) == 1
    for clip in (0.1, 0.7):
        assert torch.equal(eager(4, seed=1, clip=clip), captured(4, seed=1, clip=clip))
    assert len(recorded.captured) == 2


def test_one_graph_serves_other_methods_of_its_family(recorded):
    graphs, x, ids = Graphs(True), torch.rand(2, 3), torch.arange(2)
    for table in (TABLE, annealed_langevin(SIGMAS, 1e-5, 6), TABLE[3:15]):
        expected = loop_module.run(chain(table), x, ids)
        assert torch.equal(loop_module.run(chain(table), x, ids, graphs=graphs), expected)
    assert len(recorded.captured) == 1
    longer = annealed_langevin(SIGMAS, 1e-5, 7)  # more than 64 rows
    loop_module.run(chain(longer), x, ids, graphs=graphs)
    assert len(recorded.captured) == 2


def test_the_cache_is_bounded_and_drops_the_least_recently_used(recorded):
    sampler = simple()
    for n in (1, 2, 3, 4, 1, 5):
        sampler(n, seed=0)
    assert [one.released for one in recorded.captured] == [False, True, False, False, False]
    sampler(1, seed=0)
    assert len(recorded.captured) == 5


def test_release_frees_all_and_sampling_goes_on(recorded):
    sampler = simple()
    before = sampler(2, seed=0)
    sampler.release()
    assert [one.released for one in recorded.captured] == [True]
    assert torch.equal(sampler(2, seed=0), before)
    assert len(recorded.captured) == 2


def test_a_score_that_waits_runs_eagerly_with_one_warning(recorded, caplog):
    def waits(x, labels):
        return -x * float(labels[0] * 0 + 1) / (1 + SIGMAS[labels].view(-1, 1) ** 2)

    sampler = nf.Sampler(waits, (3,), SIGMAS, TABLE)
    with caplog.at_level(logging.WARNING, "ncsn_fast"):
        result = sampler(3, seed=1)
        sampler(3, seed=2)
        sampler(2, seed=2)
    assert torch.equal(result, simple(graph=False)(3, seed=1))
    (said,) = (record.message for record in caplog.records)
    assert "it waits for the device" in said
    assert recorded.warm_ups == 4  # two at the first call, two at the other batch
    assert not recorded.captured


def test_a_score_that_waits_is_refused_where_a_graph_is_wanted(recorded):
    sampler = nf.Sampler(lambda x, labels: -x * float(x.sum()), (3,), SIGMAS, TABLE, graph=True)
    with pytest.raises(CaptureError, match=r"cannot be captured .* it waits for the device"):
        sampler(3, seed=1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"noise": lambda row: torch.zeros(2, 3)}, "noise= is a function that the host calls"),
        ({"extra": {"labels2": [1]}}, r"extra\['labels2'\] is a list, which may change"),
        ({"extra": {"y": torch.zeros((), device="meta")}}, r"extra\['y'\] is on meta, not on cpu"),
    ],
)
def test_what_only_the_host_can_do_is_refused_or_run_eagerly(recorded, call, message):
    fn = Module(lambda x, labels, **extra: Gaussian()(x, labels))
    with pytest.raises(ValueError, match=f"graph=True: {message}"):
        nf.Sampler(fn, (3,), SIGMAS, TABLE, graph=True)(2, seed=1, **call)
    eager = nf.Sampler(fn, (3,), SIGMAS, TABLE, graph=False)(2, seed=1, **call)
    assert torch.equal(nf.Sampler(fn, (3,), SIGMAS, TABLE)(2, seed=1, **call), eager)
    assert not recorded.captured


def test_hooks_of_the_network_are_not_lost(recorded):
    net, seen = Gaussian(), []
    net.register_forward_hook(lambda *_: seen.append(1))
    nf.Sampler(net, (3,), SIGMAS, TABLE)(2, seed=1)
    assert len(seen) == len(TABLE)
    assert not recorded.captured


def test_a_chain_inside_a_chain_runs_eagerly(recorded):
    sampler, inner = simple(), []
    sampler(
        2, seed=1, callback=lambda row, x, n: inner.append(sampler(2, seed=1)) if row == 3 else 0
    )
    assert torch.equal(inner[0], sampler(2, seed=1))
    with pytest.raises(RuntimeError, match="under way"):
        sampler(2, seed=1, callback=lambda row, x, n: sampler.release())


def test_a_chain_inside_another_call_leaves_its_graph_alone(recorded):
    sampler = nf.Sampler(lambda x, labels: -x / 200, (3,), SIGMAS, TABLE, graph=True)
    expected = sampler(2, seed=1)

    def inner(row, x, n):
        if row == 3:
            assert torch.equal(sampler(2, seed=1), expected)

    outer = sampler(2, seed=1, callback=inner)
    assert torch.allclose(outer, expected, atol=1e-6)
    assert all(one.released for one in recorded.captured)


def test_memory_that_runs_out_inside_a_chain_halves_the_chunk_there(recorded):
    class Small(Gaussian):
        def forward(self, x, labels):
            if len(x) > 4:
                raise torch.OutOfMemoryError("does not fit")
            return super().forward(x, labels)

    sampler, inner = nf.Sampler(Small(), (3,), SIGMAS, TABLE, graph=True), []
    sampler(
        2, seed=1, callback=lambda row, x, n: inner.append(sampler(8, seed=1)) if row == 3 else 0
    )
    assert torch.allclose(inner[0], simple(graph=False)(8, seed=1), atol=1e-6)


def add_in_place(net):
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1)


def swap_data(net):
    for parameter in net.parameters():
        parameter.data = parameter.data + 0.1


def load(net, assign=False):
    state = {name: value + 0.1 for name, value in net.state_dict().items() if name != "sigmas"}
    net.load_state_dict(state, strict=False, assign=assign)


def load_assign(net):
    load(net, assign=True)


def to_half_and_back(net):
    sigmas = net.sigmas
    net.to(torch.float16).to(torch.float32)
    net.sigmas = sigmas


@pytest.mark.parametrize("change", [add_in_place, swap_data, load, load_assign, to_half_and_back])
@pytest.mark.parametrize("kind", ["foreign", "MLPScore"])
def test_changed_weights_are_followed(recorded, kind, change):
    net = Gaussian() if kind == "foreign" else network(kind)
    arguments = ((3,), SIGMAS, TABLE) if kind == "foreign" else (None, None, TABLE)
    sampler = nf.Sampler(net, *arguments, graph=True)
    with torch.no_grad():
        net.get_parameter("mean" if kind == "foreign" else "head.bias").add_(1 / 3)
    before = sampler(2, seed=1)
    change(net)
    after = sampler(2, seed=1)
    assert not torch.equal(after, before)
    assert torch.equal(after, nf.Sampler(net, *arguments, graph=False)(2, seed=1))


def test_what_hides_its_weights_is_captured_anew_for_each_call(recorded):
    scale = {"now": -1.0}

    def fn(x, labels):
        return x * scale["now"]

    sampler = nf.Sampler(fn, (3,), SIGMAS, TABLE, graph=True)
    sampler(2, seed=1)
    scale["now"] = -2.0
    assert torch.equal(
        sampler(2, seed=1), nf.Sampler(fn, (3,), SIGMAS, TABLE, graph=False)(2, seed=1)
    )
    assert [one.released for one in recorded.captured] == [True, True]
    sampler(4, seed=1, batch_size=2)
    assert len(recorded.captured) == 3


def test_another_call_captures_anew_though_the_first_has_not_ended(recorded):
    scale, graphs, x, ids = [-1.0], Graphs(True), torch.rand(2, 3), torch.arange(2)
    score = nf.Score(lambda x, sigma: x * scale[0], "score", "sigma")
    for scale[0] in (-1.0, -2.0):
        one = Chain(score, TABLE, shape=(3,), device=torch.device("cpu"), seed=1, n=2)
        assert torch.equal(
            loop_module.run(one, x, ids, graphs=graphs), loop_module.run(one, x, ids)
        )
    assert len(recorded.captured) == 2


def test_attributes_of_a_module_are_followed(recorded):
    class Scaled(Gaussian):
        def __init__(self):
            super().__init__()
            self.factor, self.shift = 1.0, torch.ones(3)
            self.calls = 0

        def forward(self, x, labels):
            self.calls += 1
            return self.factor * super().forward(x + self.shift, labels)

    net = Scaled()
    captured = nf.Sampler(net, (3,), SIGMAS, TABLE, graph=True)
    eager = nf.Sampler(net, (3,), SIGMAS, TABLE, graph=False)
    for name, value in (("factor", 1.0), ("factor", 2.0), ("shift", torch.zeros(3))):
        setattr(net, name, value)
        samples = captured(4, seed=1, batch_size=2)
        assert torch.equal(samples, captured(4, seed=1, batch_size=2))
        expected = eager(4, seed=1, batch_size=2)
        assert torch.equal(samples, expected)
    assert [one.released for one in recorded.captured] == [True, True, False]


def test_a_network_that_casts_its_weights_itself_is_followed(recorded):
    class Casts(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 3)

        @torch.autocast("cpu", torch.bfloat16)  # keeps casts, as one made inside would not
        def forward(self, x, labels):
            return -self.linear(x).float()

    net = Casts()
    captured = nf.Sampler(net, (3,), SIGMAS, TABLE, graph=True)
    before = captured(2, seed=1)
    add_in_place(net)
    after = captured(2, seed=1)
    assert len(recorded.captured) == 1
    assert not torch.equal(after, before)
    assert torch.equal(after, nf.Sampler(net, (3,), SIGMAS, TABLE, graph=False)(2, seed=1))


def test_the_backend_of_the_networks_operations_is_followed(recorded):
    sampler = nf.Sampler(network("MLPScore"), method=TABLE[15:], backend="torch", graph=True)
    with nf.use_backend("torch"):
        sampler(2, seed=1)
    with nf.use_backend("triton"):
        sampler(2, seed=1)
    assert len(recorded.captured) == 2


def test_chains_too_short_to_pay_run_eagerly(recorded):
    sampler = nf.Sampler(Gaussian(), (3,), SIGMAS, TABLE[:5])
    sampler(2, seed=1)
    assert not recorded.captured
    nf.Sampler(Gaussian(), (3,), SIGMAS, TABLE[:5], graph=True)(2, seed=1)
    assert len(recorded.captured) == 1


def test_memory_that_runs_out_frees_the_graphs_and_halves_the_chunk(recorded, monkeypatch):
    sampler = simple()
    sampler(2, seed=1)
    record = recorded.capture

    def small(step, device, **settings):
        if len(recorded.captured) == 1:
            record(step, device)
            recorded.captured[-1].release()
            raise torch.OutOfMemoryError("does not fit")
        return record(step, device, **settings)

    monkeypatch.setattr(captured_module.capture, "capture", small)
    assert torch.allclose(sampler(8, seed=1), simple(graph=False)(8, seed=1), atol=1e-6)
    assert recorded.captured[0].released
    assert [len(one._tape.overwritten) > 0 for one in recorded.captured[2:]] == [True]


def test_an_error_of_the_network_is_not_taken_for_one_of_capturing(recorded):
    def fn(x, labels):
        raise IndexError("a bug of the network's")

    with pytest.raises(IndexError, match="a bug of the network's"):
        nf.Sampler(fn, (3,), SIGMAS, TABLE)(2, seed=1)


def test_a_copy_of_a_sampler_captures_for_itself(recorded):
    sampler = simple()
    expected = sampler(2, seed=1)
    for other in (copy.deepcopy(sampler), pickle.loads(pickle.dumps(sampler))):
        assert torch.equal(other(2, seed=1), expected)
    assert len(recorded.captured) == 3
