"""Targets are judged by the rows."""

from dataclasses import replace

from ncsn_fast.benchmarks.contest.plans import CIFAR
from ncsn_fast.benchmarks.contest.rows import Results, Row
from ncsn_fast.benchmarks.report import tables
from ncsn_fast.benchmarks.report.targets import TARGETS


def in_place(rows, kind):
    return Results(replace(row, environment={"kind": kind}) for row in rows)


def test_a_target_is_over_the_faster_precision_of_torch_compile():
    rows = [
        Row("chain-compiled", CIFAR.name, name, 16, precision, median_s=time,
            environment={"kind": "cpu"})
        for name, precision, time in (
            ("compile frozen", "fp32", 8.0), ("compile frozen", "bf16", 3.0), ("ours", "bf16", 2.0)
        )
    ]  # fmt: skip
    assert "1.5×" in [line[3] for line in tables.targets(Results(rows)).lines]


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


def test_precisions_are_compared_with_their_own():
    def row(contestant, precision, seconds):
        return Row("chain-compiled", CIFAR.name, contestant, 16, precision, median_s=seconds)

    rows = [row("compile frozen", "bf16", 3.0), row("ours", "bf16", 2.0)]
    rows += [row("compile frozen", "fp32", 9.0), row("ours", "fp32", 10.0)]
    lines = {line[0]: line[3:] for line in tables.targets(in_place(rows, "cpu")).lines}
    name = "NCSNv2 CIFAR-10 sampling, batch 16: over torch.compile, frozen weights, "
    assert lines[name + "bf16"] == ("1.5×", "met")
    assert lines[name + "fp32"] == ("0.9×", "not met")
