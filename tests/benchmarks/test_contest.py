"""A contest: who disagrees or fails gets no figure, times are taken in turns, rows are kept."""

import sys
from dataclasses import replace

import pytest
import torch
from helpers.benchmarks import CPU, PLAN

from ncsn_fast.benchmarks.contest import contest, timing
from ncsn_fast.benchmarks.contest.contest import Contest, Contestant, Ready
from ncsn_fast.benchmarks.contest.rows import Results, Row, kept, read_rows, write_rows
from ncsn_fast.benchmarks.report import tables
from ncsn_fast.benchmarks.suites.common import with_share


def contest_of(**results):
    """A contest of contestants that return these values; the reference is 1."""

    def contestant(name, value):
        def prepare(precision):
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


def test_who_does_more_in_a_call_is_timed_by_his_own_units(monkeypatch):
    times = timing.Times(median=8.0, low=4.0, high=12.0, rounds=5)
    monkeypatch.setattr(contest, "in_turns", lambda calls, *_: dict.fromkeys(calls, times))
    made = replace(contest_of(one=1.0, more=1.0), units=4)
    more = made.contestants[1]
    prepare = lambda precision: replace(more.prepare(precision), units=16)  # noqa: E731
    made = replace(made, contestants=[made.contestants[0], replace(more, prepare=prepare)])
    assert [row.median_s for row in contest.run(made, CPU)] == [2.0, 0.5]


def test_profiles_join_the_rows_that_have_the_times():
    made = contest_of(good=1.0, gone=1.0)
    rows = list(contest.run(made, CPU))
    gone = replace(made.contestants[1], prepare=lambda precision: 1 / 0)
    later = list(contest.profiles(replace(made, contestants=[made.contestants[0], gone]), CPU))
    assert [row.median_s for row in later] == [None, None]
    for row in later:
        rows = kept(rows, row)
    assert [row.which[2] for row in rows] == ["good", "gone"]
    assert all(row.median_s for row in rows)
    assert "busy_s" in rows[0].figures
    assert rows[1].message == "not profiled: ZeroDivisionError: division by zero"


def test_on_a_gpu_the_time_without_a_profiler_is_compared_with_that_of_the_kernels():
    row = Row("a", "b", "ours", 1, "fp16", median_s=4.0)
    found = {"kernels": 9.0, "launches": 1.0, "busy_s": 3.0, "convolutions_s": 2.0}
    assert row.with_profile(found).figures == {**found, "idle": 0.25, "over_convolutions": 2.0}
    on_cpu = {name: value for name, value in found.items() if name != "launches"}
    assert row.with_profile(on_cpu).figures == {**on_cpu, "over_convolutions": 1.5}


def test_a_row_takes_the_place_of_the_one_before():
    one, other = (Row("a", "b", name, 1, "fp16", median_s=1.0) for name in ("one", "other"))
    again = replace(one, median_s=2.0)
    assert kept([one, other], again) == [again, other]
    assert kept([one], other) == [one, other]
    assert kept([one, other, one], again.failed("it broke")) == [again.failed("it broke"), other]


def test_buffers_are_rotated():
    seen = []
    calls = [lambda i=i: seen.append(i) for i in range(3)]
    list(timing.in_turns({"one": calls}, CPU, 0.0).values())
    assert seen[:7] == [0, 1, 2, 0, 1, 2, 0]


def test_what_torch_compile_made_is_forgotten_after_a_contest(monkeypatch):
    forgotten = []
    monkeypatch.setattr(torch.compiler, "reset", lambda: forgotten.append(True))
    monkeypatch.setitem(sys.modules, "torch._dynamo", torch)
    list(contest.run(contest_of(), CPU))
    assert forgotten == [True]


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


@pytest.mark.parametrize(("flop", "share"), [(50.0, 0.5), (100.0, 1.0), (101.0, None)])
def test_nobody_reaches_more_than_the_peak_that_was_measured(monkeypatch, flop, share):
    times = timing.Times(median=1.0, low=1.0, high=1.0, rounds=5)
    monkeypatch.setattr(contest, "in_turns", lambda calls, *_: dict.fromkeys(calls, times))
    plan = replace(PLAN, facts={"peak_fp32": 100.0})
    made = contest_of(one=1.0)
    prepare = made.contestants[0].prepare
    one = Contestant("one", "fp32", lambda precision: replace(prepare(precision), flop=flop))
    made = replace(
        made, contestants=[one], figures=lambda row: with_share({"flops": 1e9}, row, plan)
    )
    (row,) = contest.run(made, CPU)
    assert row.figures.get("share_of_peak") == share
    assert row.figures["done_flops"] == flop
    assert ("no roof here" in row.message) == (share is None)
    assert bool(tables.problems(Results([row])).lines) == (share is None)


def test_who_cannot_say_what_was_done_has_no_share_of_the_peak(monkeypatch):
    times = timing.Times(median=1.0, low=1.0, high=1.0, rounds=5)
    monkeypatch.setattr(contest, "in_turns", lambda calls, *_: dict.fromkeys(calls, times))
    plan = replace(PLAN, facts={"peak_fp32": 100.0})
    made = replace(contest_of(one=1.0), figures=lambda row: with_share({"flops": 1e9}, row, plan))
    (row,) = contest.run(made, CPU)
    assert set(row.figures) == {"flops"}
