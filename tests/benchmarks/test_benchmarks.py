"""The benchmarks: the official equivalent is one, the gate holds, and a run keeps what it finds."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from helpers.golden import load_golden

import ncsn_fast as nf
from ncsn_fast import noise
from ncsn_fast.benchmarks import __main__ as command
from ncsn_fast.benchmarks import runner as front
from ncsn_fast.benchmarks.contest import contest, timing
from ncsn_fast.benchmarks.contest.contest import Contest, Contestant, Ready
from ncsn_fast.benchmarks.contest.plans import CIFAR, PLANS, Subject
from ncsn_fast.benchmarks.contest.rows import Results, Row, read_rows, write_rows
from ncsn_fast.benchmarks.contestants import networks, official, peer
from ncsn_fast.benchmarks.report import tables
from ncsn_fast.benchmarks.report.targets import TARGETS
from ncsn_fast.benchmarks.suites.host_memory import host_memory
from ncsn_fast.benchmarks.suites.operations import CASES, operation_contest, operations
from ncsn_fast.benchmarks.suites.overhead import overhead
from ncsn_fast.benchmarks.suites.sampling import chain_contest, forward_contest
from ncsn_fast.benchmarks.suites.training import training_contest
from ncsn_fast.cli.bench import bench

CPU = torch.device("cpu")
TINY = Subject("tiny", "cifar10", (2,), ngf=4, image_size=8)
PLAN = replace(
    PLANS["cpu", "quick"],
    elements=(1 << 13,),
    sampled=(TINY,),
    passed=(TINY,),
    trained=(TINY,),
    seconds=0.001,
    rows=2,
)
NETWORKS = {
    "NCSNv2": (nf.NCSNv2, 413),
    "NCSN": (nf.NCSN, 1130),
    "NCSNv2Deeper": (nf.NCSNv2Deeper, 521),
    "NCSNv2Deepest": (nf.NCSNv2Deepest, 629),
}


def network(name):
    torch.manual_seed(0)
    cls, operations = NETWORKS[name]
    net = cls(channels=3, image_size=16, ngf=4, sigmas=nf.geometric_sigmas(5, 0.01, 10))
    return net.eval(), operations


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_the_official_equivalent_has_the_published_number_of_operations(name):
    net, operations = network(name)
    x, labels = torch.rand(2, 3, 16, 16), torch.tensor([0, 9])
    with official.OperationCount() as count:
        official.OfficialNetwork(net)(x, labels)
    assert count.total == operations


@torch.no_grad()
def test_the_operations_are_of_the_published_kinds():
    net, _ = network("NCSNv2")
    with official.OperationCount() as count:
        official.OfficialNetwork(net)(torch.rand(2, 3, 16, 16), torch.tensor([0, 9]))
    kinds = ("convolution", "elu", "max_pool2d_with_indices", "upsample_bilinear2d", "var")
    assert [count.operations[kind] for kind in kinds] == [75, 61, 8, 6, 17]


@torch.no_grad()
def test_a_step_of_the_official_loop_has_17_operations_beside_the_network():
    net, operations = network("NCSNv2")
    totals = []
    for rows in (1, 2):
        with official.OperationCount() as count:
            official.chain(
                official.OfficialNetwork(net), torch.rand(2, 3, 16, 16), [5, 0.01], 6e-6, 2, rows
            )
        totals.append(count.total)
    assert totals[1] - totals[0] == operations + 17


@pytest.mark.parametrize("name", ["ncsn_28", "ncsnv2_32"])
@torch.no_grad()
def test_the_official_equivalent_gives_the_official_score(name):
    golden = load_golden(name)
    found = official.OfficialNetwork(golden.network())(golden.x, golden.labels)
    expected = torch.from_numpy(golden.values["score"])
    for one, other in zip(found, expected, strict=True):
        assert float((one - other).abs().max()) <= 1e-5 * float(other.abs().max())


@pytest.mark.parametrize("name", ["NCSN", "NCSNv2"])
@torch.no_grad()
def test_the_official_loop_and_the_sampler_make_the_same_images(name):
    net, _ = network(name)
    sampler = nf.Sampler(net, step_size=6e-6, steps_per_level=2, denoise=False, precision="fp32")
    x = torch.rand(3, 3, 16, 16)
    ids = torch.arange(3)

    def draw(row):
        return noise.normal(x.shape[1:], seed=5, stream=noise.SAMPLER, sample_ids=ids, step=row)

    found = official.chain(official.OfficialNetwork(net), x, net.sigmas.tolist(), 6e-6, 2, 20, draw)
    expected = sampler(3, seed=5, initial=x)
    assert float((found - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


def test_the_official_loss_and_ours_are_the_same():
    net, _ = network("NCSNv2")
    x, z = torch.rand(2, 3, 16, 16), torch.randn(2, 3, 16, 16)
    labels = torch.tensor([0, 9])
    found = official.dsm_loss(official.OfficialNetwork(net), x, labels, net.sigmas, z)
    expected = nf.dsm_loss(net, x, net.sigmas, labels, noise=z)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


def contest_of(**results):
    """A contest of contestants that return these values; the reference is 1."""

    def contestant(name, value):
        def prepare():
            if isinstance(value, Exception):
                raise value
            return Ready([lambda: None], lambda: [torch.tensor([value])])

        return Contestant(name, "fp32", prepare)

    entries = [contestant(name, value) for name, value in results.items()]
    return Contest(
        "suite", "case", 1, entries, lambda: [torch.ones(1)], {"fp32": 1e-4}, seconds=0.001
    )


@pytest.mark.parametrize("wrong", [1.001, float("nan"), float("inf")])
def test_a_contestant_that_disagrees_gets_no_figure(wrong):
    good, bad = contest.run(contest_of(good=1.0, bad=wrong), CPU)
    assert (good.status, bad.status) == ("ok", "disagrees")
    assert good.median_s is not None
    assert bad.median_s is None
    assert "differs from the reference" in bad.message


def test_a_contestant_that_fails_is_a_row_and_the_others_go_on():
    bad, good = contest.run(contest_of(bad=RuntimeError("no compiler"), good=1.0), CPU)
    assert (bad.status, bad.message) == ("failed", "RuntimeError: no compiler")
    assert good.status == "ok"


def test_a_reference_that_fails_leaves_nobody_with_a_figure():
    def expected():
        raise RuntimeError("no reference")

    rows = list(contest.run(replace(contest_of(one=1.0, two=1.0), expected=expected), CPU))
    assert [row.status for row in rows] == ["failed", "failed"]


def test_who_fails_while_being_timed_takes_no_further_turns():
    calls = []

    def fails():
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("later")

    found = timing.in_turns({"bad": [fails], "good": [lambda: None]}, CPU, 0.001)
    assert isinstance(found["bad"], RuntimeError)
    assert len(calls) == 3
    assert found["good"].low <= found["good"].median <= found["good"].high


def test_times_are_of_one_unit_of_work(monkeypatch):
    times = timing.Times(median=8.0, low=4.0, high=12.0, rounds=5)
    monkeypatch.setattr(contest, "in_turns", lambda calls, *_: dict.fromkeys(calls, times))
    (row,) = contest.run(replace(contest_of(one=1.0), units=4), CPU)
    assert (row.median_s, row.low_s, row.high_s, row.rounds) == (2.0, 1.0, 3.0, 5)


def test_a_longer_chain_needs_no_more_memory_of_the_host():
    (row,) = host_memory(PLAN)
    assert row.message == ""
    assert row.figures["growth_bytes"] < 0.2 * row.figures["states_bytes"]


def test_buffers_are_rotated():
    seen = []
    calls = [lambda i=i: seen.append(i) for i in range(3)]
    list(timing.in_turns({"one": calls}, CPU, 0.0).values())
    assert seen[:7] == [0, 1, 2, 0, 1, 2, 0]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_operation_and_its_rivals_agree_with_the_specification(case):
    rows = list(contest.run(operation_contest(PLAN, case, PLAN.elements[0]), CPU))
    assert {row.contestant: (row.status, row.message) for row in rows} == {
        "ours": ("ok", ""),
        "eager": ("ok", ""),
    }
    assert all(row.figures["bandwidth"] > 0 for row in rows)


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
    rows = list(contest.run(forward_contest(PLAN, TINY, work, 2), CPU))
    assert {row.status for row in rows} == {"ok"}


@pytest.mark.slow
def test_training_steps_agree():
    work = networks.make(TINY, CPU)
    rows = list(contest.run(training_contest(PLAN, "training", TINY, work, 2), CPU))
    assert {(row.status, row.message) for row in rows} == {("ok", "")}


def test_the_flops_are_those_of_the_published_network():
    assert networks.make(Subject("", "cifar10", ()), CPU).cost.flops == pytest.approx(
        19.79e9, rel=1e-3
    )


def test_rows_can_be_read_back(tmp_path):
    rows = [Row("a", "b", "ours", 1, "fp32", median_s=0.5, figures={"x": 1.0})]
    write_rows(tmp_path / "rows.jsonl", rows)
    assert read_rows(tmp_path / "rows.jsonl") == rows


def test_a_line_that_was_cut_off_is_no_row(tmp_path):
    path = tmp_path / "rows.jsonl"
    write_rows(path, [Row("a", "b", "ours", 1, "fp32")] * 2)
    path.write_text(path.read_text()[:-20])
    assert len(read_rows(path)) == 1


def test_another_file_is_refused(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"what": 1}\n')
    with pytest.raises(ValueError, match="holds no rows of a benchmark"):
        read_rows(tmp_path / "rows.jsonl")


@pytest.mark.slow
def test_the_command_writes_all_files_and_keeps_the_rows_of_other_suites(tmp_path, monkeypatch):
    monkeypatch.setitem(PLANS, ("cpu", "short"), replace(PLAN, budget=300.0))
    write_rows(tmp_path / "rows.jsonl", [Row("training", "kept", "ours", 1, "fp32")])
    arguments = ["--device", "cpu", "--out", str(tmp_path)]
    result = CliRunner().invoke(bench, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "tiny, batch 2" in result.output
    results = Results(read_rows(tmp_path / "rows.jsonl"))
    suites = dict.fromkeys(row.suite for row in results)
    assert list(suites) == ["training", "hardware", "operations", "chain"]
    assert results.one(suite="chain", contestant="official").environment["torch"]
    assert results.one(suite="chain", contestant="ours").figures["share_of_peak"] > 0
    assert "| tiny | 2 | official (fp32) |" in (tmp_path / "results.md").read_text()
    assert (tmp_path / "report.html").read_text().count("data:image/png;base64,") == 2
    assert not list(tmp_path.glob(".*"))


def test_a_suite_that_crashes_is_a_row(tmp_path):
    plan = replace(PLAN, device="nonsense")
    (row,) = front.isolated("hardware", plan, tmp_path, tmp_path / "log.txt", 100.0)
    assert row.status == "failed"
    assert "exit code 1" in row.message
    assert "nonsense" in (tmp_path / "log.txt").read_text()


def test_a_suite_whose_time_is_over_is_ended(tmp_path):
    (row,) = front.isolated("hardware", PLAN, tmp_path, tmp_path / "log.txt", 0.01)
    assert (row.status, row.suite) == ("left out", "hardware")


@pytest.mark.parametrize(
    ("status", "contestant", "code"),
    [
        ("ok", "ours", 0),
        ("disagrees", "eager", 1),
        ("failed", "ours, no graph", 1),
        ("failed", "eager", 0),
    ],
)
def test_the_exit_code_says_whether_the_gate_held(
    status, contestant, code, tmp_path, monkeypatch, capsys
):
    row = Row("chain", "tiny", contestant, 1, "fp32", status=status, median_s=1.0)
    monkeypatch.setattr(front, "run", lambda *arguments: Results([row]))
    assert command.main(["--out", str(tmp_path)]) == code
    assert "not yet measured" in capsys.readouterr().out


def test_the_targets_of_a_cpu_have_a_plan_of_their_own(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(front, "run", lambda plan, *rest: asked.append(plan) or Results([]))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert command.main(["--cpu", "--out", str(tmp_path)]) == 0
    (plan,) = asked
    assert plan == PLANS["cpu", "targets"]
    assert [(s.preset, s.batches) for s in plan.sampled] == [("cifar10", (16,))]
    assert {s.name for s in (*plan.sampled, *plan.compiled)} == {CIFAR.name}  # targets look for it


def test_only_the_operations_of_a_plan_are_measured():
    plan = replace(PLAN, operations=("normal numbers",))
    assert {row.case for row in operations(plan)} == {"normal numbers"}


def test_what_torch_compile_made_is_forgotten_after_a_contest(monkeypatch):
    forgotten = []
    monkeypatch.setattr(torch.compiler, "reset", lambda: forgotten.append(True))
    monkeypatch.setitem(sys.modules, "torch._dynamo", torch)
    list(contest.run(contest_of(), CPU))
    assert forgotten == [True]


def test_a_target_is_over_the_faster_precision_of_torch_compile():
    rows = [
        Row("chain-compiled", CIFAR.name, name, 16, precision, median_s=time,
            environment={"kind": "cpu"})
        for name, precision, time in (
            ("compile frozen", "fp32", 8.0), ("compile frozen", "bf16", 3.0), ("ours", "bf16", 2.0)
        )
    ]  # fmt: skip
    assert "1.5×" in [line[3] for line in tables.targets(Results(rows)).lines]


def test_an_unknown_suite_is_refused(tmp_path, capsys):
    assert command.main(["--only", "nothing", "--out", str(tmp_path)]) == 2
    assert "there is no suite ['nothing']" in capsys.readouterr().err


def test_a_folder_that_is_no_checkout_is_refused(tmp_path, capsys):
    assert command.main(["--peer", str(tmp_path)]) == 2
    assert "models/__init__.py is missing there" in capsys.readouterr().err


def test_a_checkout_that_cannot_be_imported_says_why(tmp_path, monkeypatch):
    (tmp_path / "models").mkdir()
    for name in ("__init__", "layers", "ncsnv2"):
        (tmp_path / "models" / f"{name}.py").write_text("import nothing_of_that_name\n")
    with pytest.raises(ValueError, match="nothing_of_that_name"):
        peer.network(str(tmp_path), network("NCSNv2")[0])


def test_targets_are_judged_by_the_rows():
    where = {"kind": "cuda"}
    rows = [
        Row("operations", "sampler_update", name, 1 << 26, "fp16", median_s=time, rounds=5,
            figures={"share_of_copy": 0.95}, environment=where)
        for name, time in (("ours", 1.0), ("eager", 3.9), ("compile", 1.6))
    ]  # fmt: skip
    verdicts = [line[3:] for line in tables.targets(Results(rows)).lines]
    assert verdicts[:3] == [("95 %", "met"), ("3.9×", "not met"), ("1.6×", "met")]
    assert set(verdicts[3:]) == {("–", "not yet measured")}
    assert len(verdicts) == len(TARGETS)


def test_a_cpu_says_nothing_about_the_targets_of_a_gpu():
    row = Row("operations", "sampler_update", "ours", 1, "fp16", median_s=1.0,
              figures={"share_of_copy": 0.95}, environment={"kind": "cpu"})  # fmt: skip
    assert all(line[4] == "not yet measured" for line in tables.targets(Results([row])).lines)


def test_without_git_the_results_go_beside_the_user(monkeypatch, tmp_path):
    monkeypatch.setattr(front, "__file__", str(tmp_path / "benchmarks" / "front.py"))
    assert front.default_folder("cpu") == Path("ncsn_fast_benchmarks")


def test_the_overhead_of_small_problems_is_beside_their_network_calls():
    rows = list(overhead(replace(PLAN, seconds=0.01)))
    assert {row.contestant for row in rows} == {"network calls", "ours"}
    (line,) = [line for line in tables.targets(in_place(rows, "cpu")).lines if "points" in line[0]]
    assert line[4] in ("met", "not met")


def in_place(rows, kind):
    return Results(replace(row, environment={"kind": kind}) for row in rows)


def test_precisions_are_compared_with_their_own():
    def row(contestant, precision, seconds):
        return Row("chain-compiled", CIFAR.name, contestant, 16, precision, median_s=seconds)

    rows = [row("compile frozen", "bf16", 3.0), row("ours", "bf16", 2.0)]
    rows += [row("compile frozen", "fp32", 9.0), row("ours", "fp32", 10.0)]
    lines = {line[0]: line[3:] for line in tables.targets(in_place(rows, "cpu")).lines}
    name = "NCSNv2 CIFAR-10 sampling, batch 16: over torch.compile, frozen weights, "
    assert lines[name + "bf16"] == ("1.5×", "met")
    assert lines[name + "fp32"] == ("0.9×", "not met")
