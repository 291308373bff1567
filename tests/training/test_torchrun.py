"""``torchrun … -m ncsn_fast train``: processes that are killed, stopped and started anew."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from helpers.kills import contents
from helpers.together import together

from ncsn_fast.runs import train as runs
from ncsn_fast.training import state
from ncsn_fast.training.config import TrainConfig, TrainRun

pytestmark = pytest.mark.slow
# The command, in which processes meet with signals: "rank step signal whom" of each start.
SCRIPT = """
import json, os, signal, sys
from ncsn_fast.cli import main
from ncsn_fast.training.trainer import Trainer

start, step = int(os.environ["TORCHELASTIC_RESTART_COUNT"]), Trainer._train_step
planned = json.loads(os.environ["PLANNED"])

def meddled(trainer):
    if planned[start:] and planned[start][:2] == [int(os.environ["RANK"]), trainer.step]:
        number, whom = planned[start][2:]
        os.kill({"itself": os.getpid(), "torchrun": os.getppid()}[whom], number)
    step(trainer)

Trainer._train_step = meddled
main(sys.argv[1:], prog_name="ncsn-fast")
"""
RUN: dict[str, Any] = {"ngf": 2, "sigma_max": 2.0, "num_levels": 3, "steps_per_level": 1}
OFTEN = {"steps": 14, "batch_size": 4, "checkpoint_every": 3, "sample_every": 6, "samples": 3}
OFTEN |= {"learning_rate": 1e-3, "keep_every": 6}


def torchrun(
    tmp_path: Path, processes: int, restarts: int, planned: list[list[Any]], *command: object
) -> subprocess.CompletedProcess[str]:
    script = tmp_path / "meddled.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "PLANNED": json.dumps(planned), "OMP_NUM_THREADS": "1"}
    environment["NCSN_FAST_CONV"] = "direct"
    options = ("--standalone", f"--nproc-per-node={processes}", f"--max-restarts={restarts}")
    words = [sys.executable, "-m", "torch.distributed.run", *options, script, *command]
    return subprocess.run(
        [str(word) for word in words], env=environment, capture_output=True, text=True, timeout=1200
    )


def command_of(out: Path, **other: Any) -> list[str]:
    settings = {**RUN, **OFTEN, "out": out, **other}
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    return ["train", *flags, "--no-ema-warmup"]


def work(out: Path, resume_to: int | None = None, **other: Any) -> int:
    os.environ["NCSN_FAST_CONV"] = "direct"
    quiet: dict[str, Any] = {"device": "cpu", "say": lambda text: None, "progress": False}
    if resume_to is not None:
        return runs.resume(out, {"steps": resume_to}, **quiet)["steps"]
    return runs.train(TrainRun(**RUN), TrainConfig(**{**OFTEN, **other}, out=out), **quiet)["steps"]


def test_a_run_whose_processes_are_killed_is_the_run_that_was_not(tmp_path: Path) -> None:
    out, whole = tmp_path / "killed", tmp_path / "whole"
    kills = [[1, 2, 9, "itself"], [0, 5, 9, "itself"], [1, 13, 9, "itself"]]
    done = torchrun(tmp_path, 2, 3, kills, *command_of(out))
    assert done.returncode == 0, done.stderr
    assert together(2, partial(work, whole)) == [14, 14]
    found, wanted = contents(out), contents(whole)
    assert [name for name in {*found, *wanted} if found.get(name) != wanted.get(name)] == []
    # One process speaks: of every start, and of each that lost another but the second.
    assert done.stdout.count("\nTraining NCSNv2 ") == 4
    assert "with 2 processes from step 0 to 14" in done.stdout
    assert "with 2 processes from step 3 to 14" in done.stdout
    assert "with 2 processes from step 12 to 14" in done.stdout
    assert f"The run in {out} was stopped before its first checkpoint" in done.stdout
    assert done.stdout.count("Done. Now: ncsn-fast sample") == 1


@pytest.mark.exhaustive
def test_twenty_kills_at_random_cost_nothing_but_time(tmp_path: Path) -> None:
    """Each start goes on from its last save, a multiple of 3, and is killed some steps later."""
    rng, kills, saved, steps = random.Random(0), [], 0, 60
    for _ in range(20):
        step = min(saved + rng.randrange(6), steps - 1)
        kills.append([rng.randrange(2), step, signal.SIGKILL, "itself"])
        saved = step - step % OFTEN["checkpoint_every"]
    out, whole = tmp_path / "killed", tmp_path / "whole"
    done = torchrun(tmp_path, 2, 20, kills, *command_of(out, steps=steps))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\nTraining NCSNv2 ") == 21
    assert together(2, partial(work, whole, steps=steps)) == [steps, steps]
    found, wanted = contents(out), contents(whole)
    assert [name for name in {*found, *wanted} if found.get(name) != wanted.get(name)] == []


def test_a_stop_of_torchrun_is_saved_and_goes_on_with_other_processes(tmp_path: Path) -> None:
    out = tmp_path / "run"
    endless = command_of(out, steps=10_000_000, sample_every=10_000_000)
    done = torchrun(tmp_path, 2, 1, [[1, 4, 15, "torchrun"]], *endless)
    assert done.returncode != 0
    assert done.stderr.count("stopped: SIGTERM at step ") == 1
    assert f"; saved in {out}" in done.stderr
    at = state.read(out).step
    assert at >= 5
    assert together(3, partial(work, out, at + 2)) == [at + 2] * 3
    assert len((out / "log.jsonl").read_text().splitlines()) == (at + 2) // 10


def test_a_run_of_other_settings_is_not_gone_on_with(tmp_path: Path) -> None:
    out = tmp_path / "run"
    together(2, partial(work, out))
    before = contents(out)
    done = torchrun(tmp_path, 2, 0, [], *command_of(out, seed=1))
    assert done.returncode != 0
    (told,) = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert "holds a trained network already (checkpoint.safetensors): go on with" in told
    assert contents(out) == before
