"""Captured sampling, through a stand-in that records a step and replays exactly its operations."""

from __future__ import annotations

import ast
import copy
import inspect
import logging
import pickle
import textwrap
import threading
import time
from contextlib import nullcontext

import pytest
import torch
from torch import nn

import ncsn_fast as nf
from ncsn_fast.device import capture as capture_module
from ncsn_fast.device.capture import CaptureError
from ncsn_fast.methods.tables import annealed_langevin
from ncsn_fast.sampling import captured as graphs_module
from ncsn_fast.sampling import loop as loop_module
from ncsn_fast.sampling import step as step_module
from ncsn_fast.sampling.chain import Chain
from ncsn_fast.sampling.graph_cache import Graphs
from ncsn_fast.table import Table

pytest_plugins = ["helpers.recorded_capture"]

SIGMAS = nf.geometric_sigmas(5, 0.01, 10)
TABLE = annealed_langevin(SIGMAS, 2e-5, 2)
SHORT = {"step_size": 2e-5, "steps_per_level": 1}
# Two evaluations a step with a history between them, and an input that is scaled.
HEUN = Table.of(
    [4.0, 2.0, 2.0, 0.5] * 3,
    b=[2.0, 1.0, 1.5, 0.7] * 3,
    c=[0.0, -1.0, 0.0, -0.7] * 3,
    f=[1.0, 0.0, 1.0, 0.0] * 3,
    c_in=[0.2, 0.4, 0.4, 0.9] * 3,
)


class Gaussian(nn.Module):
    """The score of N(mean, I) blurred by the level's σ."""

    def __init__(self):
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(3))
        self.register_buffer("sigmas", SIGMAS.clone())

    def forward(self, x, labels):
        sigma = self.sigmas[labels].view(-1, 1)
        return (self.mean - x) / (1 + sigma**2)


def network(kind):
    torch.manual_seed(0)
    if kind == "MLPScore":
        net = nf.MLPScore(sigmas=SIGMAS, hidden=8)
        nn.init.normal_(net.head.weight)
        return net.eval()
    made = getattr(nf, kind)(channels=1, image_size=8, ngf=4, sigmas=SIGMAS)
    return made.eval()


def both(score, *arguments, settings=None, call=None):
    """The samples of an eager and of a captured sampler; both are drawn twice."""
    call = {"seed": 3, **(call or {})}
    settings = settings or {}
    eager = nf.Sampler(score, *arguments, graph=False, **settings)
    captured = nf.Sampler(score, *arguments, graph=True, **settings)
    return eager(3, **call), captured(3, **call)


def same(eager, captured):
    if isinstance(eager, tuple):
        return all(torch.equal(a, b) for a, b in zip(eager, captured, strict=True))
    return torch.equal(eager, captured)


def simple(**settings):
    return nf.Sampler(Gaussian(), (3,), SIGMAS, TABLE, **{"graph": True, **settings})


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("kind", ["NCSN", "NCSNv2", "MLPScore"])
def test_replay_equals_eager_bit_for_bit(recorded, kind, backend):
    table = TABLE[::2] if kind == "MLPScore" else TABLE[15:]
    settings = {"method": table, "backend": backend}
    assert same(*both(network(kind), settings=settings))
    assert [one.replays for one in recorded.captured] == [len(table)]
    assert recorded.warm_ups == 3


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_a_denoiser_with_history_and_scaled_input_is_captured(recorded, backend):
    score = nf.Score(lambda x, sigma: x / (1 + sigma.view(-1, 1)), "denoiser", "sigma")
    settings = {"method": HEUN, "backend": backend}
    assert same(*both(score, (5,), settings=settings))
    assert same(*both(score, (5,), settings=settings, call={"clip": 0.5}))
    assert len(recorded.captured) == 2


def guidance(x, n, sigma, row):
    return -0.1 * sigma * x + 0.01 * row * n


MASK = {"mask": torch.tensor([1, 0, 0]), "known": torch.tensor([3.0, 0.0, 0.0])}


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize(
    "call",
    [
        MASK,
        {"guidance": guidance},
        {"clip": 0.3},
        {**MASK, "guidance": guidance, "clip": 0.3, "temperature": 0.5},
        {"temperature": 0},
        {"start_level": 4},
        {"every": 5},
        {"every": 5, "batch_size": 2},
        {"initial": torch.full((3, 3), 0.5)},
        {"sample_ids": [7, 2, (1 << 40) + 1]},
    ],
    ids=lambda call: "+".join(call),
)
def test_every_input_is_captured_as_it_is_run(recorded, call, backend):
    table = TABLE if backend == "torch" else TABLE[::2]  # Triton's interpreter is slow
    eager, captured = both(
        Gaussian(), (3,), SIGMAS, table, call=call, settings={"backend": backend}
    )
    assert same(eager, captured)
    assert recorded.captured


def test_extra_inputs_are_copied_into_the_graph(recorded):
    def fn(x, labels, classes, scale, power):
        s = -x / (1 + SIGMAS[labels].view(-1, 1) ** 2)
        return s * scale**power / (1 + classes.view(-1, 1))

    def extra(shift):
        classes = torch.arange(3) + shift
        return {"classes": classes, "scale": torch.tensor([0.1 + shift]), "power": 1}

    call = {"seed": 1, "batch_size": 2}
    module = Module(fn)
    captured = nf.Sampler(module, (3,), SIGMAS, TABLE, graph=True)
    eager = nf.Sampler(module, (3,), SIGMAS, TABLE, graph=False)
    for shift in (0, 1):
        given = {**call, "extra": extra(shift)}
        assert same(eager(3, **given), captured(3, **given))
    assert len(recorded.captured) == 2  # of two samples and of one
    captured(3, **{**call, "extra": {**extra(0), "power": 2}})
    assert len(recorded.captured) == 4


class Module(nn.Module):
    def __init__(self, fn):
        super().__init__()
        self.fn = fn

    def forward(self, *arguments, **keywords):
        return self.fn(*arguments, **keywords)


def test_other_seeds_temperatures_levels_and_clips_need_no_other_graph(recorded):
    captured, eager = simple(), simple(graph=False)
    a, b = captured(4, seed=1), captured(4, seed=2)
    assert not torch.equal(a, b)
    assert torch.equal(captured(4, seed=1), a)
    for call in ({"temperature": 0.3}, {"start_level": 5}, {"seed": 2**64 - 1}):
        call = {"seed": 1, **call}
        assert same(eager(4, **call), captured(4, **call))
    assert len(recorded.captured) == 1
    for clip in (0.1, 0.7):
        assert same(eager(4, seed=1, clip=clip), captured(4, seed=1, clip=clip))
    assert len(recorded.captured) == 2


def chain(table, **settings):
    given = {"shape": (3,), "device": torch.device("cpu"), "seed": 1, "n": 2, **settings}
    return Chain(score=SCORE, table=table, **given)


SCORE = nf.Score(Gaussian(), "score", "label", SIGMAS)


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


def test_samples_outlive_the_next_call(recorded):
    sampler = simple()
    first = sampler(2, seed=0)
    kept = first.clone()
    sampler(2, seed=1)
    assert torch.equal(first, kept)
    x, ids, graphs = torch.rand(2, 3), torch.arange(2), Graphs(True)
    direct = loop_module.run(chain(TABLE), x, ids, graphs=graphs)
    kept = direct.clone()
    loop_module.run(chain(TABLE, seed=9), x, ids, graphs=graphs)
    assert torch.equal(direct, kept)


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


def test_a_callback_hears_every_row_of_a_captured_chain(recorded):
    def heard(graph):
        rows = []
        simple(graph=graph)(2, seed=1, callback=lambda *arguments: rows.append(arguments))
        return rows

    eager, captured = heard(False), heard(True)
    assert [row for row, _, _ in captured] == list(range(len(TABLE)))
    for (_, x, n), (_, x2, n2) in zip(eager, captured, strict=True):
        assert torch.equal(x, x2)
        assert torch.equal(n, n2)
    assert len(recorded.captured) == 1


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


def test_threads_capture_one_after_the_other(monkeypatch):
    inside, together = [], []

    def step():
        inside.append(1)
        time.sleep(0.005)
        together.append(len(inside))
        inside.pop()

    for name in ("side_stream", "waiting_refused"):
        monkeypatch.setattr(capture_module, name, lambda *_: nullcontext())
    monkeypatch.setattr(capture_module, "obstacle", lambda device: None)
    monkeypatch.setattr(capture_module, "_captured", lambda step, device: step())
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    threads = [
        threading.Thread(target=capture_module.capture, args=(step, torch.device("cuda")))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == [1] * 12


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


def test_numbers_of_another_default_type_change_nothing(recorded):
    expected = simple(graph=False)(2, seed=1)
    torch.set_default_dtype(torch.float64)
    try:
        found = nf.Sampler(SCORE, (3,), None, TABLE, graph=True)(2, seed=1)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("graph", [True, False])
def test_the_network_sees_one_layout_from_the_first_row_on(recorded, graph):
    seen = set()

    class Sees(nn.Module):
        def forward(self, x, labels):
            seen.add(x.stride())
            return -x / 200

    initial = torch.rand(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    nf.Sampler(Sees(), (3, 4, 4), SIGMAS, TABLE, graph=graph)(2, seed=1, initial=initial)
    assert seen == {(48, 16, 4, 1)}


def test_a_guidance_is_not_warmed_up_beyond_the_last_row(recorded):
    rows = []

    def guided(x, n, sigma, row):
        rows.append(row.clone())
        return 0.1 * x

    simple()(2, seed=1, guidance=guided, start_level=9)
    first = TABLE.level.index(9)
    assert [int(row) for row in rows[:-1]] == list(range(first, len(TABLE)))[:3]
    simple_short = nf.Sampler(Gaussian(), (3,), SIGMAS, TABLE[19:], graph=True)
    rows.clear()
    simple_short(2, seed=1, guidance=guided)
    assert [int(row) for row in rows[:-1]] == [0, 1]


@pytest.mark.parametrize("broken_level", [0, 5, 9])
def test_nan_is_found_with_row_level_and_the_last_good_state(recorded, broken_level):
    class Broken(Gaussian):
        def forward(self, x, labels):
            bad = (labels == broken_level).view(-1, 1) & (torch.arange(len(x)) == 1).view(-1, 1)
            return torch.where(bad, torch.nan, super().forward(x, labels))

    table = annealed_langevin(SIGMAS, 2e-5, 9)
    x, row = torch.rand(3, 3), 9 * broken_level
    sampler = nf.Sampler(Broken(), (3,), SIGMAS, table, graph=True)
    with pytest.raises(nf.SamplingError, match=rf"row {row} of 91 .*in sample \[6\]") as error:
        sampler(3, seed=1, initial=x, sample_ids=[5, 6, 7])
    assert error.value.sigma == table.sigma[row]
    assert error.value.state_ids == [5, 6, 7]
    good = nf.Sampler(Gaussian(), (3,), SIGMAS, table, graph=False)
    _, states = good(3, seed=1, initial=x, sample_ids=[5, 6, 7], every=1)
    assert torch.equal(error.value.state, states[row])
    assert torch.equal(simple()(3, seed=1), simple(graph=False)(3, seed=1))


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

    monkeypatch.setattr(graphs_module.capture, "capture", small)
    assert torch.allclose(sampler(8, seed=1), simple(graph=False)(8, seed=1), atol=1e-6)
    assert recorded.captured[0].released
    assert [len(one._tape.overwritten) > 0 for one in recorded.captured[2:]] == [True]


def test_ctrl_c_leaves_the_sampler_as_good_as_new(recorded):
    sampler = simple()
    whole = sampler(4, seed=1)

    def impatient(done, total):
        if done > 2 * len(TABLE) + 5:
            raise KeyboardInterrupt

    with pytest.raises(nf.SamplingInterrupted) as stop:
        sampler(4, seed=1, batch_size=2, progress=impatient)
    assert torch.equal(stop.value.samples, whole[:2])
    assert torch.equal(sampler(4, seed=1), whole)


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


def test_sampling_works_in_and_out_of_inference_mode(recorded):
    sampler = simple()
    with torch.inference_mode():
        inside = sampler(2, seed=1)
    assert torch.equal(sampler(2, seed=1), inside)
    assert len(recorded.captured) == 1


def test_the_callers_region_of_autocast_changes_nothing(recorded):
    net = Module(nn.Linear(3, 3))
    net.forward = lambda x, labels: -net.fn(x)
    expected = nf.Sampler(net, (3,), SIGMAS, TABLE, graph=False)(2, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(nf.Sampler(net, (3,), SIGMAS, TABLE, graph=True)(2, seed=1), expected)


@pytest.mark.parametrize("graph", [True, False])
def test_a_foreign_network_runs_in_the_precision_asked_for(recorded, graph):
    seen = set()

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 3)

        def forward(self, x, labels):
            h = self.linear(x)
            seen.add((x.dtype, h.dtype))
            return -h

    settings = {"precision": "bf16", "graph": graph}
    result = nf.Sampler(Net(), (3,), SIGMAS, TABLE, **settings)(2, seed=1)
    assert seen == {(torch.float32, torch.bfloat16)}
    assert result.dtype == torch.float32


def test_the_stand_in_itself_refuses_to_wait(recorded):
    x, device = torch.rand(3), torch.device("cpu")
    for wait in (
        lambda: x.sum().item(),
        lambda: x[x > 0],
        lambda: bool(x.isnan().any()),
        lambda: torch.equal(x, x),
        lambda: x.to("meta"),
        lambda: x.nonzero(),
    ):
        with pytest.raises(CaptureError, match="waits for the device"):
            recorded.capture(wait, device)
        with pytest.raises(CaptureError, match="waits for the device"):
            recorded.capture(wait, device, warm_ups=0)


def test_the_stand_in_captures_without_doing_the_work(recorded):
    total, made = torch.zeros(2), []

    def step():
        made.append(total * 2 + 1)
        total.copy_(made[-1])

    graph = recorded.capture(step, torch.device("cpu"), warm_ups=0)
    assert total.tolist() == [0, 0]
    assert made[0].isnan().all()
    version = total._version
    graph.replay()
    graph.replay()
    assert total.tolist() == made[0].tolist() == [3, 3]
    assert total._version == version
    assert len(made) == 1


# --- the source -----------------------------------------------------------------------------------

STEP = (
    step_module.Step.__call__,
    step_module.Step._normalized,
    step_module.Step._drift,
    step_module._harmless,
    graphs_module.CapturedLoop._next,
    graphs_module.CapturedLoop.run,
    loop_module.EagerLoop.run,
    loop_module.Finite.look,
)
WAITING = {"item", "cpu", "tolist", "numpy", "nonzero", "synchronize", "tensor", "as_tensor", "all"}
CASTS = {"float", "int", "bool", "print"}


def waiting_calls(function):
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Attribute) and node.func.attr in WAITING:
                yield node.func.attr
            if isinstance(node.func, ast.Name) and node.func.id in CASTS:
                yield node.func.id


@pytest.mark.parametrize("function", STEP, ids=lambda function: function.__qualname__)
def test_nothing_inside_a_chain_waits_for_the_device(function):
    allowed = {"look": ["all", "bool"]}  # a reduction on the device, and the CPU's own look
    assert list(waiting_calls(function)) == allowed.get(function.__name__, [])
