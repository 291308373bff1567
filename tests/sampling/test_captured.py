"""Captured sampling, through a stand-in that records a step and replays exactly its operations."""

from __future__ import annotations

import ast
import inspect
import textwrap

import pytest
import torch
from engine_cases import SIGMAS
from graph_cases import SCORE, TABLE, Gaussian, Module, chain, network, simple
from torch import nn

import ncsn_fast as nf
from ncsn_fast.methods.tables import annealed_langevin
from ncsn_fast.sampling import captured as captured_module
from ncsn_fast.sampling import loop as loop_module
from ncsn_fast.sampling import step as step_module
from ncsn_fast.sampling.graph_cache import Graphs
from ncsn_fast.table import Table

pytest_plugins = ["helpers.recorded_capture"]


# Two evaluations a step with a history between them, and an input that is scaled.
HEUN = Table.of(
    [4.0, 2.0, 2.0, 0.5] * 3,
    b=[2.0, 1.0, 1.5, 0.7] * 3,
    c=[0.0, -1.0, 0.0, -0.7] * 3,
    f=[1.0, 0.0, 1.0, 0.0] * 3,
    c_in=[0.2, 0.4, 0.4, 0.9] * 3,
)


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


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_chain_of_a_multistep_method_is_captured_from_any_level(recorded, eta):
    eager, captured = (
        nf.Sampler(Gaussian(), (3,), SIGMAS, "dpmpp_2m", eta=eta, graph=graph)
        for graph in (False, True)
    )
    for level in (4, 2, 0, 4):
        assert same(*(one(3, seed=3, start_level=level) for one in (eager, captured)))
    assert len(recorded.captured) == 1


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
    assert len(recorded.captured) == 1  # the third sample comes with the second
    captured(3, **{**call, "extra": {**extra(0), "power": 2}})
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


def test_progress_counts_the_rows_of_a_captured_chain(recorded):
    counts = []
    simple()(2, seed=1, progress=lambda done, total: counts.append(done))
    assert counts == [2 * row for row in range(1, len(TABLE) + 1)]
    assert [one.replays for one in recorded.captured] == [len(TABLE)]


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


STEP = (
    step_module.Step.__call__,
    step_module.Step._normalized,
    step_module.Step._drift,
    step_module._harmless,
    captured_module.CapturedLoop._next,
    captured_module.CapturedLoop.run,
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
