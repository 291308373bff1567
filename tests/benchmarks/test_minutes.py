"""A run of minutes: by value, each row kept, each task with its end, killed and gone on with."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers.benchmarks import PLAN

from ncsn_fast.benchmarks import __main__ as command
from ncsn_fast.benchmarks import minutes, processes, runner
from ncsn_fast.benchmarks.contest.plans import PLANS
from ncsn_fast.benchmarks.contest.rows import Row, read_rows, write_rows
from ncsn_fast.benchmarks.minutes import Task
from ncsn_fast.benchmarks.report import tables
from ncsn_fast.benchmarks.suites import device_tests, smoke

# A server that has imported all this forks a process in little time.
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["ncsn_fast.benchmarks.minutes", "torch._dynamo"])


def rows_of(suite, plan):
    """Stands for all suites: a few rows, and what the name of the suite says."""
    (name,) = plan.tests
    for i in range(3):
        time.sleep(0.01)
        yield Row("work", name, f"ours {i}", 1, "fp32", figures={"pid": os.getpid()})
    if suite == "hangs":
        time.sleep(3600)
    if suite == "crashes":
        os._exit(3)
    if suite == "raises":
        raise ValueError("it is wrong")
    if suite == "meets":
        place = Path(plan.peer)
        (place / name).touch()
        while len(list(place.iterdir())) < 2:
            time.sleep(0.01)


@pytest.fixture
def quickly(monkeypatch):
    """Processes begin at once, and do what ``rows_of`` says."""
    monkeypatch.setattr(processes, "START", "fork")
    monkeypatch.setattr(runner, "suite_rows", rows_of)
    monkeypatch.setattr(minutes, "_LEAST", 0.0)
    monkeypatch.setattr(runner.Keeper, "save", lambda keeper, whole=True: None)


def task(name, suite="works", process="main", seconds=3600.0, **more):
    return Task(name, suite, replace(PLAN, tests=(name,), peer=more.pop("peer", None)),
                process, seconds, **more)  # fmt: skip


def ended(out):
    """Task → how it ended, by the last row of each."""
    return {row.case: row.status for row in read_rows(out / "rows.jsonl") if row.suite == "minutes"}


def pids(out, name):
    rows = [row for row in read_rows(out / "rows.jsonl") if (row.suite, row.case) == ("work", name)]
    return {row.figures["pid"] for row in rows}


@pytest.mark.usefixtures("quickly")
def test_what_hangs_or_crashes_costs_its_own_time_alone(tmp_path, monkeypatch):
    said = []

    def clock():  # its time is over when all its rows have come, however long they took
        rows = [line for line in said if line.startswith("  work late")]
        return time.monotonic() + (7200.0 if len(rows) == 3 else 0.0)

    monkeypatch.setattr(processes, "time", SimpleNamespace(monotonic=clock))
    todo = [task("one"), task("late", "hangs"), task("two"), task("bad", "crashes"),
            task("wrong", "raises"), task("three")]  # fmt: skip
    results = minutes.run(PLAN, 600.0, tmp_path, said.append, todo)
    assert ended(tmp_path) == {"one": "ok", "late": "left out", "two": "ok", "bad": "failed",
                               "wrong": "failed", "three": "ok"}  # fmt: skip
    whys = {row.case: row.message for row in results.where(suite="minutes")}
    assert "exit code 3" in whys["bad"]
    assert "its 3600 s were over" in whys["late"]
    assert "exit code 1" in whys["wrong"]
    assert len(results.where(suite="work")) == 18  # theirs are kept too
    assert pids(tmp_path, "one") == pids(tmp_path, "late")
    assert pids(tmp_path, "one") != pids(tmp_path, "two") != pids(tmp_path, "three")
    assert re.fullmatch(r"three: ok in \d+ s", said[-1])
    assert not runner.passed(results)


@pytest.mark.usefixtures("quickly")
def test_the_same_command_does_what_is_left_and_what_failed_last(tmp_path):
    minutes.run(PLAN, 600.0, tmp_path, print, [task("one"), task("bad", "crashes")])
    said = []
    todo = [task("one"), task("bad"), task("two")]
    minutes.run(PLAN, 600.0, tmp_path, said.append, todo)
    told = [line for line in said if not line.startswith(" ")]
    assert [line.split(":")[0] for line in told] == ["two", "bad"]
    assert set(ended(tmp_path).values()) == {"ok"}


@pytest.mark.usefixtures("quickly")
def test_without_time_all_is_left_out_and_done_by_the_next_run(tmp_path, monkeypatch):
    monkeypatch.setattr(minutes, "_LEAST", 1e9)
    minutes.run(PLAN, 600.0, tmp_path, print, [task("one"), task("two")])
    assert ended(tmp_path) == {"one": "left out", "two": "left out"}
    monkeypatch.setattr(minutes, "_LEAST", 0.0)
    minutes.run(PLAN, 600.0, tmp_path, print, [task("one"), task("two")])
    assert ended(tmp_path) == {"one": "ok", "two": "ok"}


@pytest.mark.usefixtures("quickly")
def test_tasks_beside_each_other_run_at_once(tmp_path):
    place = tmp_path / "place"
    place.mkdir()
    here = {"suite": "meets", "beside": True, "peer": str(place)}
    todo = [task("one", process="a", **here), task("two", process="b", **here), task("three")]
    minutes.run(PLAN, 600.0, tmp_path / "out", print, todo)
    assert ended(tmp_path / "out") == {"one": "ok", "two": "ok", "three": "ok"}


@pytest.mark.usefixtures("quickly")
def test_what_another_commit_has_measured_is_not_mixed_with_this(tmp_path):
    minutes.run(PLAN, 600.0, tmp_path, print, [task("one")])
    rows = read_rows(tmp_path / "rows.jsonl")
    write_rows(
        tmp_path / "rows.jsonl",
        [replace(row, environment={**row.environment, "commit": "another"}) for row in rows],
    )
    with pytest.raises(ValueError, match="was begun on commit 'another'"):
        minutes.run(PLAN, 600.0, tmp_path, print, [task("two")])


def go(out):
    """A run, in a process that will be killed."""
    processes.START, runner.suite_rows, minutes._LEAST = "fork", rows_of, 0.0
    todo = [task("a", process="x", beside=True), task("b", process="y", beside=True),
            *(task(name) for name in "cdef")]  # fmt: skip
    minutes.run(PLAN, 600.0, out, lambda line: None, todo)


def there(out):
    path = out / "rows.jsonl"
    return {row.which: row for row in read_rows(path)} if path.exists() else {}


def is_gone(pid):
    """Whether a process ends, of which nobody waits for the end."""
    with contextlib.suppress(OSError):
        for _ in range(60_000):
            if "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text():
                return True
            time.sleep(0.01)
        return False
    return True


def test_a_run_killed_twenty_times_loses_no_row_and_leaves_no_process(tmp_path):
    chance, before, seen = random.Random(16), {}, set()
    for _ in range(20):
        process = _SERVER.Process(target=go, args=(tmp_path,))
        process.start()
        process.join(chance.uniform(0.0, 0.6))
        process.kill()
        process.join()
        with open(tmp_path / "rows.jsonl", "a") as file:
            file.write('{"suite": "work", "ca')  # as if it had been killed in the middle of a line
        after = there(tmp_path)
        assert before.keys() <= after.keys()
        done = [row for row in before.values() if row.suite == "minutes" and row.status == "ok"]
        assert all(after[row.which] == row for row in done)
        seen |= {int(row.figures["pid"]) for row in after.values() if row.suite == "work"}
        before = after
    last = _SERVER.Process(target=go, args=(tmp_path,))
    last.start()
    last.join()
    assert last.exitcode == 0
    assert ended(tmp_path) == dict.fromkeys("abcdef", "ok")
    assert len([which for which in there(tmp_path) if which[0] == "work"]) == 18
    assert all(is_gone(pid) for pid in seen)
    assert (tmp_path / "report.html").exists()


def test_on_a_gpu_what_is_worth_most_comes_first():
    plan = PLANS["cuda", "quick"]
    todo = minutes.tasks(plan)
    names = [one.name for one in todo]
    assert len(set(names)) == len(names)
    first = ["smoke, chain 512", "smoke, chain 1", "smoke, chain 128", "smoke, training",
             "smoke, operations", "gpu_smoke", "tests of graphs", "tests of training",
             "other tests", "hardware", "chain 512", "sampler_update"]  # fmt: skip
    assert names[: len(first)] == first
    rest = ["chain 1", "training", "max-autotune", "compiled training", "chain 128"]
    assert [name for name in names[len(first) :] if name in rest] == rest
    compiling = {
        one.process for one in todo if one.plan.compile_operations and one.name in names[-9:]
    }
    main = [one for one in todo if one.process == "main"]
    assert len(main) > 10
    for one in main:  # nothing is compiled, and nothing profiled, beside what is timed
        assert one.suite not in ("chain-autotuned", "training-compiled", "chain-compiled")
        assert not one.plan.compile_operations
        assert one.plan.parts == ("times",)
    assert compiling
    beside = [one for one in todo if one.beside]
    assert len({one.process for one in beside}) == len(beside) == 8
    assert sum(one.seconds for one in todo if not one.beside) < 1200


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--minutes", "nan"], "give how many minutes"),
        (["--minutes", "0"], "give how many minutes"),
        (["--minutes", "inf"], "give how many minutes"),
        (["--minutes", "1", "--only", "chain"], "tasks and ends of its own"),
        (["--minutes", "1", "--device", "cuda"], "there is no GPU"),
    ],
)
def test_what_cannot_be_meant_is_refused(arguments, told, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert command.main([*arguments, "--out", str(tmp_path / "new")]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_the_command_runs_the_plan_of_its_device(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(minutes, "run", lambda *given: asked.append(given) or [])
    monkeypatch.setattr(tables, "targets", lambda results: tables.Table("", (), []))
    monkeypatch.setattr(tables, "problems", lambda results: tables.Table("", (), []))
    monkeypatch.setattr(runner, "passed", lambda results: True)
    assert command.main(["--minutes", "0.5", "--device", "cpu", "--out", str(tmp_path)]) == 0
    ((plan, given, out, _),) = asked
    assert (plan, given, out) == (PLANS["cpu", "dry"], 0.5, tmp_path)


@pytest.mark.usefixtures("one_thread")
def test_the_first_look_checks_each_row(monkeypatch):
    rows = [row for suite in (smoke.smoke_chain, smoke.smoke_operations) for row in suite(PLAN)]
    assert {(row.suite, row.status, row.message) for row in rows} == {("smoke", "ok", "")}
    assert all(row.median_s and row.error is not None for row in rows)
    ends = iter((torch.zeros(1), torch.ones(1)))
    monkeypatch.setattr(smoke, "_states", lambda run, precision, graph: next(ends))
    (row,) = smoke.smoke_chain(PLAN)
    assert (row.status, row.median_s, row.error) == ("disagrees", None, 1.0)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_the_first_steps_of_training_are_compared(monkeypatch):
    plan = replace(PLAN, trained_in=("fp32",))
    (row,) = smoke.smoke_training(plan)
    assert (row.status, row.message, row.error) == ("ok", "", 0.0)
    monkeypatch.setattr(smoke, "_LOSSES", -1.0)
    (row,) = smoke.smoke_training(plan)
    assert row.status == "disagrees"


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout with three tests and a plugin's list."""
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "gpu_smoke.txt").touch()
    (tmp_path / "tests" / "test_it.py").write_text(
        "import pytest\n"
        "def test_good(): pass\n"
        "def test_bad(): assert 1 == 2, 'it is two'\n"
        "@pytest.mark.skip(reason='no GPU')\n"
        "def test_none(): pass\n"
    )
    monkeypatch.setattr(device_tests, "CHECKOUT", tmp_path)
    return tmp_path


@pytest.mark.usefixtures("checkout")
@pytest.mark.parametrize("workers", [0, 2])
def test_each_test_is_a_row(workers):
    plan = replace(PLAN, tests=("-p", "no:cacheprovider", "tests"), workers=workers)
    *tests, whole = device_tests.device_tests(plan)
    good, bad = sorted(tests, key=lambda row: row.status, reverse=True)
    assert (good.case, good.status) == ("tests/test_it.py::test_good", "ok")
    assert (bad.case, bad.status) == ("tests/test_it.py::test_bad", "failed")
    assert bad.message.startswith("AssertionError: it is two")
    assert whole.figures == {"failed": 1.0, "passed": 1.0, "skipped": 1.0}
    (only,) = device_tests.device_tests(replace(plan, tests=(*plan.tests, "-k", "none")))
    assert (only.status, only.message) == ("left out", "all 1 tests were skipped here")
    (none,) = device_tests.device_tests(replace(plan, tests=(*plan.tests, "--what")))
    assert none.status == "failed"
    assert "exit code 4" in none.message


def test_without_a_checkout_the_tests_are_left_out(monkeypatch, tmp_path):
    monkeypatch.setattr(device_tests, "CHECKOUT", tmp_path)
    (row,) = device_tests.device_tests(replace(PLAN, tests=("-m", "gpu_smoke")))
    assert (row.status, "git clone" in row.message) == ("left out", True)


def test_tests_that_have_passed_are_not_run_again(monkeypatch, tmp_path):
    rows = [Row("tests", f"t.py::test[{i}]", "ours", 0, "") for i in range(3)]
    rows += [rows[0].failed("it broke"), Row("tests", "t.py::test", "ours", 0, "")]
    keeper = runner.Keeper(None, [])
    for row in rows:
        keeper.keep(row)
    crew = minutes._Crew(PLAN, keeper, {}, print)
    made = crew._ready(Task("gpu_smoke", "tests", replace(PLAN, tests=("-m", "x")), "p", 1.0))
    assert made.tests == ("-m", "x", "--deselect=t.py::test[1]", "--deselect=t.py::test[2]")


# The command, but for the ends of its tasks: a machine may be slow, or busy with other things.
PATIENT = """
from dataclasses import replace
from ncsn_fast.benchmarks import __main__, minutes

tasks = minutes.tasks
minutes.tasks = lambda plan: [replace(task, seconds=36e3) for task in tasks(plan)]
raise SystemExit(__main__.main())
"""


def written(out):
    path = out / "rows.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.exhaustive
def test_the_dry_run_killed_twenty_times_goes_on_to_its_end(tmp_path):
    """Killed a moment after so many more rows, so that it gets somewhere on any machine."""
    chance, before = random.Random(16), {}
    call = [sys.executable, "-c", PATIENT, "--device", "cpu", "--out", str(tmp_path)]
    call += ["--minutes", "6000"]
    for _ in range(20):
        process = subprocess.Popen(call, stdout=subprocess.DEVNULL)
        rows = written(tmp_path) + chance.choice((0, 1, 2, 4, 8))
        while process.poll() is None and written(tmp_path) < rows:
            time.sleep(0.02)
        time.sleep(chance.uniform(0.0, 1.0))
        process.kill()
        process.wait()
        after = there(tmp_path)
        assert before.keys() <= after.keys()
        done = [row for row in before.values() if row.suite == "minutes" and row.status == "ok"]
        assert all(after[row.which] == row for row in done)
        before = after
    assert subprocess.run(call, stdout=subprocess.DEVNULL).returncode == 0
    assert set(ended(tmp_path).values()) == {"ok"}
