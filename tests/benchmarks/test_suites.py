"""Each suite's contestants agree with their reference, and say what they say."""

import inspect
import os
import sys
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import pytest
import torch
from helpers.benchmarks import CPU, PLAN, TINY

import ncsn_fast as nf
from ncsn_fast.benchmarks.contest import contest
from ncsn_fast.benchmarks.contest.plans import PLANS
from ncsn_fast.benchmarks.contest.rows import Results, Row
from ncsn_fast.benchmarks.contestants import networks
from ncsn_fast.benchmarks.report import tables
from ncsn_fast.benchmarks.suites import hardware
from ncsn_fast.benchmarks.suites.common import flop_of_ours, network_contest, rows_of
from ncsn_fast.benchmarks.suites.foreign import foreign_contest
from ncsn_fast.benchmarks.suites.host_memory import host_memory
from ncsn_fast.benchmarks.suites.operations import (
    CASES,
    NOISE,
    cases,
    operation_contest,
    operations,
)
from ncsn_fast.benchmarks.suites.overhead import overhead
from ncsn_fast.benchmarks.suites.sampling import (
    PASSES,
    SEVERAL,
    TUNED,
    Chains,
    chain_contest,
    forward_contest,
)
from ncsn_fast.benchmarks.suites.training import training_contest
from ncsn_fast.device import native
from ncsn_fast.models import packed_conv

pytest_plugins = ["helpers.recorded_capture"]


def test_a_longer_chain_needs_no_more_memory_of_the_host():
    (row,) = host_memory(PLAN)
    assert row.message == ""
    assert row.figures["growth_bytes"] < 0.2 * row.figures["states_bytes"]


def test_the_roof_is_the_fastest_of_several_products():
    rows = [Row("hardware", name, "torch", 1, "fp32", figures={"flops": flops})
            for name, flops in (("a", 1.0), ("b", 3.0), ("c", 2.0))]  # fmt: skip
    rows += [replace(rows[0], precision="bf16", figures={"flops": 9.0})]
    rows += [Row("chain", "", "ours", 1, "fp32", figures={"flops": 7.0})]
    assert hardware.facts(rows) == {"peak_fp32": 3.0, "peak_bf16": 9.0}
    kinds = {product.name.rsplit(" ", 1)[0] for product in hardware.products("cpu")}
    assert kinds == {"matrix product", "oneDNN product", "oneDNN convolution"}


def test_what_is_copied_is_random(monkeypatch):
    copied = []
    monkeypatch.setattr(hardware, "CACHE", 1 << 16)
    monkeypatch.setattr(hardware, "measure", lambda calls, *_: copied.extend(calls))
    hardware.copy_times(CPU, 0.0)
    cells = inspect.getclosurevars(copied[0]).nonlocals
    assert len(cells["source"].unique()) == 256
    assert torch.equal(cells["source"], cells["target"])


def test_plans_of_a_gpu_begin_with_the_batch_that_tells_most():
    quick = PLANS["cuda", "quick"]
    assert quick.sampled[0].batches == (512, 1, 128)
    assert [quick.rows_for_ours(batch) for batch in (1, 128, 512)] == [256, 128, 40]
    assert [quick.rows_for(batch) for batch in (1, 128, 512)] == [40, 20, 5]
    assert PLAN.rows_for_ours(2) == PLAN.rows_for(2)
    assert NOISE in {case.name for case in cases(PLAN)}
    assert {case.name for case in cases(quick)} == {case.name for case in CASES} - {NOISE}


def test_ours_is_timed_over_more_rows_and_checked_over_those_of_the_others(monkeypatch):
    plan = replace(PLAN, rows_of_ours=7)
    work = networks.make(TINY, CPU)
    made = chain_contest(plan, "chain", TINY, work, 2)
    (ours,) = (o for o in made.contestants if (o.name, o.precision) == ("ours", "fp32"))
    ready, _ = contest.admitted(made, ours, made.expected(), CPU)
    assert (made.units, ready.units) == (2, 7)
    rows, run = [], nf.Sampler.__call__

    def counted(sampler, n, **call):
        rows.append((len(sampler.table), call.get("every")))
        return run(sampler, n, **call)

    monkeypatch.setattr(nf.Sampler, "__call__", counted)
    ready.calls[0]()
    ready.result()
    assert rows == [(7, None), (7, 2)]


@pytest.mark.parametrize("tuned", [False, True])
def test_ours_runs_as_its_user_has_it_and_tuned_beside_that(monkeypatch, tuned):
    seen, run = [], nf.Sampler.__call__

    def watched(sampler, n, **call):
        seen.append(torch.backends.cudnn.benchmark)
        return run(sampler, n, **call)

    monkeypatch.setattr(nf.Sampler, "__call__", watched)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", not tuned)
    work = networks.make(TINY, CPU)
    under = partial(networks.tuned, True) if tuned else nullcontext
    ready = Chains(work, 2, 2, 2).ours("fp32", "auto", under)
    ready.calls[0]()
    ready.result()
    assert seen == [tuned] * 2
    assert torch.backends.cudnn.benchmark is not tuned
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    on_gpu = chain_contest(replace(PLAN, device="cuda"), "chain", TINY, work, 2)
    assert {TUNED, PASSES, SEVERAL} <= {one.name for one in on_gpu.contestants}


def test_several_rows_a_replay_are_those_of_as_many_replays(recorded):
    work = networks.make(TINY, CPU)
    chains = Chains(work, 2, 4, 8)
    found = [
        chains.ours("fp32", True, under).result()
        for under in (nullcontext, networks.several_rows_a_replay)
    ]
    torch.testing.assert_close(*found, atol=0, rtol=0)
    assert [one.replays for one in recorded.captured] == [8, 2]
    with pytest.raises(ValueError, match="no multiple of 4"):
        Chains(work, 2, 3, 6).ours("fp32", True, networks.several_rows_a_replay).result()


@pytest.mark.usefixtures("one_thread")
def test_biases_in_passes_are_pytorchs_and_change_nothing_else(monkeypatch):
    monkeypatch.setattr(packed_conv, "can_pack", lambda weight: False)
    work = networks.make(TINY, CPU)
    convs = [module for module in work.net.modules() if isinstance(module, torch.nn.Conv2d)]
    biases = [conv.bias for conv in convs if conv.bias is not None]
    for bias in biases:
        torch.nn.init.normal_(bias)
    given = []
    plain = torch.nn.Conv2d._conv_forward

    def watched(conv, x, weight, bias):
        given.append(bias)
        return plain(conv, x, weight, bias)

    monkeypatch.setattr(torch.nn.Conv2d, "_conv_forward", watched)
    found = []
    for under in (nullcontext, networks.biases_in_passes):
        given.clear()
        (result,) = Chains(work, 2, 2, 2).ours("fp32", "auto", under).result()
        found.append((result, sum(bias is not None for bias in given)))
    (ours, few), (theirs, many) = found
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    runs = len(given) // len(convs)
    assert few == runs  # that of the last convolution
    assert many == runs * len(biases) > 20 * runs


def test_a_process_profiles_when_it_has_timed_everybody(monkeypatch):
    order = []
    for name in ("run", "profiles"):
        say = lambda made, device, name=name: order.append((name, made.profiled)) or ()  # noqa: E731
        monkeypatch.setattr(contest, name, say)
    monkeypatch.setattr(networks, "make", lambda subject, device: None)

    def rows_on(device, subject):
        order.clear()
        plan = replace(PLAN, device=device)
        made = lambda plan, suite, subject, work, batch: network_contest(  # noqa: E731
            plan, suite, subject, batch, contestants=[], expected=list, tolerance={}
        )
        assert list(rows_of(plan, "chain", made, [subject])) == []
        return list(order)

    two = replace(TINY, batches=(2, 1))
    assert rows_on("cuda", two) == [("run", False)] * 2 + [("profiles", False)] * 2
    assert rows_on("cpu", two) == [("run", True)] * 2
    assert rows_on("cuda", replace(two, compiled=("compile",))) == [("run", True)] * 2


def test_every_product_counts_what_it_does():
    products = [
        hardware._matrices(64, 32, 48),
        hardware._packed_matrices(64, 32, 48),
        hardware._packed_convolution(1, 16, 8),
    ]
    with torch.inference_mode():
        made = [product.make(torch.float32, CPU) for product in products]
        assert [call().numel() for call in made] == [product.results for product in products]
    assert [product.flop for product in products] == [2 * 64 * 32 * 48] * 2 + [2 * 9 * 16 * 16 * 64]


def test_ours_takes_fewer_multiplications_than_the_published_network(monkeypatch):
    # Which forms are the fastest is measured: on a busy machine it may be any.
    monkeypatch.setenv("NCSN_FAST_CONV", "direct")
    work = networks.make(TINY, CPU)
    published, ours = work.cost.flops, flop_of_ours(work, "fp32")
    assert 0.5 * published < ours < published


@pytest.mark.skipif(native.missing() is not None, reason="filters natively")
@pytest.mark.parametrize(("form", "share"), [("F2", 4 / 9), ("F4", 1 / 4)])
def test_filtered_convolutions_count_the_products_that_they_take(monkeypatch, form, share):
    work = networks.make(replace(TINY, preset="digits"), CPU)
    monkeypatch.setenv("NCSN_FAST_CONV", "direct")
    direct = flop_of_ours(work, "fp32")
    monkeypatch.setenv("NCSN_FAST_CONV", form)
    filtered = flop_of_ours(work, "fp32")
    # Nearly all of this network's convolutions are 3×3 and of stride 1.
    assert share * direct < filtered < (share + 0.1) * direct
    # In 16 bits none is filtered but the first, which sees the image in float32.
    assert 0.999 * direct < flop_of_ours(work, "bf16") < direct


def test_our_direct_convolutions_take_part_where_they_are_asked_for(monkeypatch):
    monkeypatch.setenv("NCSN_FAST_CONV", "F4")
    work = networks.make(TINY, CPU)
    made = chain_contest(PLAN, "chain", replace(TINY, direct=True), work, 2)
    entries = [one for one in made.contestants if one.name.startswith("ours")]
    rows = {row.contestant: row for row in contest.run(replace(made, contestants=entries), CPU)}
    assert {row.status for row in rows.values()} == {"ok"}
    assert rows["ours, direct"].figures["done_flop"] == flop_of_ours_directly(work, monkeypatch)
    assert os.environ["NCSN_FAST_CONV"] == "direct"


def flop_of_ours_directly(work, monkeypatch):
    monkeypatch.setenv("NCSN_FAST_CONV", "direct")
    return 2 * flop_of_ours(work, "fp32")


@pytest.mark.slow
def test_loops_over_somebody_elses_network_agree():
    pytest.importorskip("diffusers")
    made = foreign_contest(PLAN, 2, channels=(32, 32), side=8)
    rows = list(contest.run(made, CPU))
    assert [(row.contestant, row.status, row.message) for row in rows] == [
        ("its own loop", "ok", ""),
        ("its own loop, channels_last", "ok", ""),
        ("ours, network as it is", "ok", ""),
        ("ours", "ok", ""),
    ]


def test_without_diffusers_its_rows_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    rows = list(contest.run(foreign_contest(PLAN, 2, channels=(32, 32), side=8), CPU))
    assert {(row.status, row.message) for row in rows} == {
        ("left out", "not installed: pip install ncsn_fast[peers]")
    }


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_operation_and_its_rivals_agree_with_the_specification(case):
    rows = list(contest.run(operation_contest(PLAN, case, PLAN.elements[0]), CPU))
    assert {row.contestant: (row.status, row.message) for row in rows} == {
        "ours": ("ok", ""),
        "eager": ("ok", ""),
    }
    assert all(row.figures["bandwidth"] > 0 for row in rows)


def test_only_the_operations_of_a_plan_are_measured():
    plan = replace(PLAN, operations=("normal numbers",))
    assert {row.case for row in operations(plan)} == {"normal numbers"}


@pytest.mark.parametrize("preset", ["cifar10", "cifar10-v1"])
def test_chains_agree_and_say_what_their_convolutions_take(preset):
    subject = replace(TINY, preset=preset)
    work = networks.make(subject, CPU)
    rows = list(contest.run(chain_contest(PLAN, "chain", subject, work, 2), CPU))
    assert [(row.contestant, row.precision, row.message) for row in rows] == [
        ("official", "fp32", ""),
        ("eager channels_last", "bf16", ""),
        ("ours", "fp32", ""),
        ("ours", "bf16", ""),
    ]
    for row in rows:
        assert row.figures["over_convolutions"] > 1
        assert row.figures["images_per_s"] == pytest.approx(2 / (row.median_s * work.rows))


def test_a_chain_of_other_weights_is_found_out():
    work = networks.make(TINY, CPU)
    found = chain_contest(PLAN, "chain", TINY, work, 2)
    expected = found.expected()
    with torch.no_grad():
        work.net.end_conv.weight.mul_(1.001)
    with pytest.raises(contest.Disagreement):
        contest.admitted(found, found.contestants[0], expected, CPU)


def test_forward_passes_agree():
    work = networks.make(TINY, CPU)
    rows = list(contest.run(forward_contest(PLAN, "forward", TINY, work, 2), CPU))
    assert {row.status for row in rows} == {"ok"}


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_training_steps_agree():
    work = networks.make(TINY, CPU)
    rows = list(contest.run(training_contest(PLAN, "training", TINY, work, 2), CPU))
    assert {(row.status, row.message) for row in rows} == {("ok", "")}


def test_the_overhead_of_small_problems_is_beside_their_network_calls():
    rows = list(overhead(replace(PLAN, seconds=0.01)))
    assert {row.contestant for row in rows} == {"network calls", "ours"}
    found = Results(replace(row, environment={"kind": "cpu"}) for row in rows)
    (line,) = [line for line in tables.targets(found).lines if "points" in line[0]]
    assert line[4] in ("met", "not met")
