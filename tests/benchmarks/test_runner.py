"""A run as a whole and its command: suites apart, files, exit codes, refusals."""

import multiprocessing
import multiprocessing.connection
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from helpers.benchmarks import PLAN

from ncsn_fast.benchmarks import __main__ as command
from ncsn_fast.benchmarks import runner as front
from ncsn_fast.benchmarks.contest.plans import CIFAR, PLANS
from ncsn_fast.benchmarks.contest.rows import Results, Row, read_rows, write_rows
from ncsn_fast.cli.bench import bench
from ncsn_fast.support.locks import folder_lock


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
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
    assert "Roofline" in (tmp_path / "report.html").read_text()
    assert not list(tmp_path.glob(".*"))


def test_a_suite_that_crashes_is_a_row(tmp_path):
    plan = replace(PLAN, device="nonsense")
    rows = []
    front.isolated("hardware", plan, tmp_path / "log.txt", 100.0, rows.append)
    (row,) = rows
    assert row.status == "failed"
    assert "exit code 1" in row.message
    assert "nonsense" in (tmp_path / "log.txt").read_text()


def test_a_suite_whose_time_is_over_is_ended(tmp_path):
    rows = []
    front.isolated("hardware", PLAN, tmp_path / "log.txt", 0.01, rows.append)
    (row,) = rows
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
    assert [(s.preset, s.batches) for s in plan.sampled] == [
        ("cifar10", (16,)),
        ("digits", (1, 16)),
    ]
    names = {s.name for s in (*plan.sampled[:1], *plan.compiled)}
    assert names == {CIFAR.name}  # targets look for it
    assert plan.sampled[1].name == "digits"  # likewise


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_signal_ends_the_suite_that_runs_too(monkeypatch, tmp_path, capsys, name, code):
    started = []

    def signalled(connections, limit):
        started.extend(multiprocessing.active_children())
        os.kill(os.getpid(), getattr(signal, name))
        return []

    monkeypatch.setattr(multiprocessing.connection, "wait", signalled)
    before = signal.getsignal(signal.SIGTERM)
    assert command.main(["--only", "hardware", "--out", str(tmp_path)]) == code
    assert "stopped" in capsys.readouterr().err
    (process,) = started
    assert process.exitcode == -signal.SIGKILL
    assert signal.getsignal(signal.SIGTERM) == before


def test_an_empty_name_is_no_folder(capsys):
    with pytest.raises(SystemExit, match="2"):
        command.main(["--out", ""])
    assert "give the name of a folder" in capsys.readouterr().err


def test_an_unknown_suite_is_refused(tmp_path, capsys):
    assert command.main(["--only", "nothing", "--out", str(tmp_path)]) == 2
    assert "there is no suite ['nothing']" in capsys.readouterr().err


def test_a_folder_that_is_no_checkout_is_refused(tmp_path, capsys):
    assert command.main(["--peer", str(tmp_path)]) == 2
    assert "models/__init__.py is missing there" in capsys.readouterr().err


def test_without_git_the_results_go_beside_the_user(monkeypatch, tmp_path):
    monkeypatch.setattr(front, "__file__", str(tmp_path / "benchmarks" / "front.py"))
    assert front.default_folder("cpu") == Path("ncsn_fast_benchmarks")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [("rows.jsonl", "mine\n", "holds no rows"), ("report.html", "mine", "not of a benchmark")],
)
def test_a_folder_of_something_else_is_left_as_it_was(tmp_path, capsys, name, text, message):
    (tmp_path / name).write_text(text)
    (tmp_path / "log.txt").write_text("mine too")
    assert command.main(["--only", "hardware", "--out", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        name: text,
        "log.txt": "mine too",
    }


@pytest.mark.parametrize("budget", ["nan", "-1"])
def test_no_time_is_refused_and_leaves_no_folder(tmp_path, capsys, budget):
    assert command.main(["--budget", budget, "--out", str(tmp_path / "new")]) == 2
    assert "budget" in capsys.readouterr().err
    with folder_lock(tmp_path / "taken"):
        assert command.main(["--only", "hardware", "--out", str(tmp_path / "taken")]) == 2
    assert "another process is writing" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
