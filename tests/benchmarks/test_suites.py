"""Each suite's contestants agree with their reference, and say what they say."""

from dataclasses import replace

import pytest
import torch
from helpers.benchmarks import CPU, PLAN, TINY

from ncsn_fast.benchmarks.contest import contest
from ncsn_fast.benchmarks.contest.rows import Results
from ncsn_fast.benchmarks.contestants import networks
from ncsn_fast.benchmarks.report import tables
from ncsn_fast.benchmarks.suites.host_memory import host_memory
from ncsn_fast.benchmarks.suites.operations import CASES, operation_contest, operations
from ncsn_fast.benchmarks.suites.overhead import overhead
from ncsn_fast.benchmarks.suites.sampling import chain_contest, forward_contest
from ncsn_fast.benchmarks.suites.training import training_contest


def test_a_longer_chain_needs_no_more_memory_of_the_host():
    (row,) = host_memory(PLAN)
    assert row.message == ""
    assert row.figures["growth_bytes"] < 0.2 * row.figures["states_bytes"]


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
