"""Which process of how many this one is: torchrun's environment, and nonsense in it."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from ncsn_fast.distributed import ranks as module
from ncsn_fast.distributed.ranks import Ranks, device_here, from_environment, share_cores

SECOND = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}


def test_without_torchrun_there_is_one_process() -> None:
    assert from_environment({"PATH": "/bin"}) == Ranks()
    assert Ranks().is_first
    assert from_environment({"RANK": "0", "WORLD_SIZE": "1"}) == Ranks()


def test_torchrun_s_variables_are_read() -> None:
    found = from_environment(SECOND)
    assert found == Ranks(rank=1, size=4, local=1, local_size=2, started=True)
    assert not found.is_first
    assert str(found) == "process 1 of 4"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"RANK": None}, "WORLD_SIZE, LOCAL_RANK without RANK in the environment: start several"),
        ({"LOCAL_RANK": None}, "RANK, WORLD_SIZE without LOCAL_RANK in the environment"),
        ({"RANK": "4"}, "RANK = 4 in the environment, where it is at most 3: start"),
        ({"RANK": "-1"}, "RANK = '-1' in the environment: it is a whole number from 0 on"),
        ({"RANK": "one"}, "RANK = 'one' in the environment"),
        ({"RANK": ""}, "RANK = '' in the environment"),
        ({"RANK": "9" * 200}, "RANK = '9999"),
        ({"RANK": "²"}, "RANK = '²' in the environment"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE = '0' in the environment: it is a whole number from 1"),
        ({"WORLD_SIZE": "1048577"}, "WORLD_SIZE = '1048577' in the environment"),
        ({"LOCAL_RANK": "2"}, "LOCAL_RANK = 2 in the environment, where it is at most 1"),
        (
            {"LOCAL_WORLD_SIZE": "5"},
            "LOCAL_WORLD_SIZE = 5 in the environment, where ",
        ),
    ],
)
def test_nonsense_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    environment = {k: v for k, v in {**SECOND, **change}.items() if v is not None}
    with pytest.raises(ValueError, match=message) as error:
        from_environment(environment)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize(("total", "size"), [(64, 1), (64, 2), (64, 3), (5, 3), (2, 3), (0, 2)])
def test_shares_are_neighbours_of_nearly_equal_length(total: int, size: int) -> None:
    shares = [Ranks(rank, size).share(total) for rank in range(size)]
    assert [i for share in shares for i in share] == list(range(total))
    lengths = [len(share) for share in shares]
    assert max(lengths) - min(lengths) <= 1


def _gpus(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: number > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: number)


@pytest.mark.parametrize(
    ("wish", "gpus", "device"),
    [
        (None, 0, None),
        (None, 2, "cuda:1"),
        ("cuda", 2, "cuda:1"),
        ("cpu", 2, "cpu"),
        ("meta", 2, "meta"),
    ],
)
def test_each_process_has_a_gpu_of_its_own(
    monkeypatch: pytest.MonkeyPatch, wish: str | None, gpus: int, device: str | None
) -> None:
    _gpus(monkeypatch, gpus)
    assert device_here(wish, from_environment(SECOND)) == device


def test_a_gpu_by_number_is_for_one_process_of_a_machine() -> None:
    assert device_here("cuda:1", Ranks()) == "cuda:1"
    assert device_here("cuda:1", Ranks(rank=1, size=2)) == "cuda:1"


def test_one_gpu_for_several_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    _gpus(monkeypatch, 1)
    here = from_environment(SECOND)
    with pytest.raises(ValueError, match="2 processes on this machine, which has 1 GPU: each"):
        device_here(None, here)
    with pytest.raises(ValueError, match="device cuda:0 for 2 processes of this machine"):
        device_here("cuda:0", here)


# As torchrun starts a process: with a thread where its user has not said how many.
PARENT = """
import os, subprocess, sys
child = {"OMP_NUM_THREADS": "1", "TORCHELASTIC_RUN_ID": "none", **os.environ}
child |= {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
sys.exit(subprocess.run([sys.executable, "-c", sys.argv[1]], env=child).returncode)
"""
CHILD = """
import os
from ncsn_fast.distributed.ranks import from_environment, share_cores
import torch
os.sched_getaffinity = lambda pid: range(13)
share_cores(from_environment())
print(torch.get_num_threads())
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/environ"), reason="only Linux tells who set it")
@pytest.mark.parametrize(("users", "threads"), [(None, "6"), ("1", "1")])
def test_cores_are_shared_where_torchrun_has_set_one_thread(
    users: str | None, threads: str
) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    environment |= {} if users is None else {"OMP_NUM_THREADS": users}
    found = subprocess.run(
        [sys.executable, "-c", PARENT, CHILD], env=environment, check=True, capture_output=True
    )
    assert found.stdout.decode().strip() == threads


def test_threads_of_one_process_stay_the_user_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(module, "_user_set_threads", lambda: False)
    monkeypatch.setattr(torch, "set_num_threads", lambda number: pytest.fail("changed"))
    share_cores(Ranks())
