"""Samples by several processes, under torchrun: the files of one, also where some are killed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.command import succeed
from helpers.samples import contents

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
_WORDS = ("--steps-per-level", 10, "--shard-size", 2)  # chains of 61 rows, two at a time


def children(pid: int) -> list[int]:
    try:
        return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:  # it has ended
        return []


def torchrun(out: Path, checkpoint: Path, *words: object, kills: int) -> tuple[int, int]:
    """Start two processes, kill one after the other; the exit code, and how many were killed."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "--max-restarts", str(kills), "-m", "ncsn_fast"]
    command += ["sample", str(checkpoint), "--out", str(out), *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    rng, killed = random.Random(0), 0
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        for _ in range(kills):
            before = len(list(out.glob("shards/[0-9]*.npz")))
            more = rng.randrange(1, 4)
            while process.poll() is None:
                if len(list(out.glob("shards/[0-9]*.npz"))) >= before + more:
                    if found := children(process.pid):
                        os.kill(rng.choice(found), signal.SIGKILL)
                        killed += 1
                    break
                time.sleep(0.02)
        process.communicate()
        return process.returncode, killed


@pytest.mark.parametrize(
    "kills", [pytest.param(1, id="some"), pytest.param(20, id="all", marks=pytest.mark.exhaustive)]
)
def test_processes_of_torchrun_make_the_files_of_one_also_where_some_are_killed(
    tmp_path: Path, checkpoint: Path, kills: int
) -> None:
    words = (*_WORDS, "-n", 2 * (8 + 4 * kills))
    command = [sys.executable, "-m", "ncsn_fast", "sample", str(checkpoint), *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, "--quiet", "--out", tmp_path / "one"], env=environment, check=True)
    assert torchrun(tmp_path / "two", checkpoint, *words, kills=kills) == (0, kills)
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    succeed("verify", tmp_path / "two")


def test_a_folder_that_is_deleted_under_two_processes_ends_them(
    tmp_path: Path, checkpoint: Path
) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "ncsn_fast", "sample", str(checkpoint), "--out", str(out)]
    command += [*map(str, _WORDS), "-n", "200"]
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    while not list(out.glob("shards/[0-9]*.npz")):
        assert None in [process.poll() for process in both]
        time.sleep(0.02)
    out.rename(tmp_path / "gone")
    for process in both:
        _, told = process.communicate(timeout=600)
        assert process.returncode == 1
        assert str(out) in told
        assert "Traceback" not in told
