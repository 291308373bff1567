"""Which process of how many this one is, as torchrun says it in the environment."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

_MOST = 1 << 20  # processes; more is no number of them
_NEEDED = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
_FIELDS = {
    "RANK": "rank",
    "WORLD_SIZE": "size",
    "LOCAL_RANK": "local",
    "LOCAL_WORLD_SIZE": "local_size",
}


@dataclass(frozen=True)
class Ranks:
    """The place of this process among those that were started together; of one, without torchrun.

    Attributes:
        rank: its number, from 0.
        size: how many there are.
        local: its number among those of this machine.
        local_size: how many this machine has.
        started: whether torchrun or its like has started it, which starts a lost one anew.
    """

    rank: int = 0
    size: int = 1
    local: int = 0
    local_size: int = 1
    started: bool = False

    @property
    def is_first(self) -> bool:
        """Whether it is the one that speaks and writes."""
        return self.rank == 0

    def share(self, total: int) -> range:
        """Its part of so many things: neighbours, in the order of the processes, as many as the
        other ones have, or one more."""
        start, stop = (total * rank // self.size for rank in (self.rank, self.rank + 1))
        return range(start, stop)

    def __str__(self) -> str:
        return f"process {self.rank} of {self.size}"


ALONE = Ranks()


def from_environment(environment: Mapping[str, str] = os.environ) -> Ranks:
    """What torchrun says of this process: RANK, WORLD_SIZE, LOCAL_RANK and, where it is there,
    LOCAL_WORLD_SIZE. Without the first three it is the only one.

    Raises:
        ValueError: where some of the three are missing, or they are no such numbers.
    """
    given = [name for name in _NEEDED if name in environment]
    if not given or [environment.get(name) for name in _NEEDED] == ["0", "1", None]:
        return Ranks()  # of one process other launchers say no more
    if len(given) < len(_NEEDED):
        missing = ", ".join(name for name in _NEEDED if name not in given)
        raise ValueError(
            f"{', '.join(given)} without {missing} in the environment: start several processes by "
            f"torchrun, and one without {given[0]}"
        )
    found = {
        field: _number(name, environment[name], least="SIZE" in name)
        for name, field in _FIELDS.items()
        if name in environment
    }
    found.setdefault("local_size", min(found["local"] + 1, found["size"]))
    for name, most in (
        ("RANK", found["size"] - 1),
        ("LOCAL_WORLD_SIZE", found["size"]),
        ("LOCAL_RANK", found["local_size"] - 1),
    ):
        if found[_FIELDS[name]] > most:
            raise ValueError(
                f"{name} = {environment[name]} in the environment, where it is at most {most}: "
                "start several processes by torchrun"
            )
    return Ranks(**found, started=True)


def of_slurm(environment: Mapping[str, str] = os.environ) -> Ranks:
    """The place of a task among those of a SLURM job array, or of one srun; of one without SLURM.

    Such tasks share no process group: it only tells them where to begin.

    Raises:
        ValueError: where SLURM's variables are no such numbers.
    """
    first, ids = "SLURM_ARRAY_TASK_MIN", ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT")
    if all(name in environment for name in (first, *ids)):
        start, task, size = (
            _number(name, environment[name], least=False) for name in (first, *ids)
        )
        step = _number(
            "SLURM_ARRAY_TASK_STEP", environment.get("SLURM_ARRAY_TASK_STEP", "1"), least=True
        )
        rank = (task - start) // step
    elif all(name in environment for name in ("SLURM_PROCID", "SLURM_NTASKS")):
        rank, size = (
            _number(name, environment[name], least=False)
            for name in ("SLURM_PROCID", "SLURM_NTASKS")
        )
    else:
        return Ranks()
    return Ranks(rank, size) if 0 <= rank < size else Ranks()


def device_here(wish: str | None, ranks: Ranks) -> str | None:
    """The device that a process is to use where several share a machine: each a GPU of its own.

    Args:
        wish: what was asked for: "cpu", "cuda", "cuda:1", or None for what there is.

    Returns:
        "cuda:LOCAL_RANK" for "cuda", or for None where there are GPUs; else the wish.

    Raises:
        ValueError: for more processes than GPUs, or one GPU for several of them.
    """
    kind, _, index = (wish or ("cuda" if torch.cuda.is_available() else "cpu")).partition(":")
    if ranks.size == 1 or kind != "cuda" or (index and ranks.local_size == 1):
        return wish
    if index:
        raise ValueError(
            f"device {wish} for {ranks.local_size} processes of this machine: each needs a GPU of "
            "its own, say cuda"
        )
    gpus = torch.cuda.device_count()
    if ranks.local_size > gpus:
        raise ValueError(
            f"{ranks.local_size} processes on this machine, which has {gpus} GPU"
            f"{'' if gpus == 1 else 's'}: each needs one of its own, start no more "
            "(--nproc-per-node), or use the cpu"
        )
    return f"cuda:{ranks.local}"


def share_cores(ranks: Ranks) -> None:
    """Let the processes of this machine share its cores where torchrun has left each with one.

    It sets OMP_NUM_THREADS=1 where the user has not: then, and only then, PyTorch is given its
    part of the cores. Who has set it is told by the environment that torchrun was started with,
    where the system shows it (Linux); elsewhere one thread stays one.
    """
    if ranks.local_size == 1 or os.environ.get("OMP_NUM_THREADS") != "1" or _user_set_threads():
        return
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    torch.set_num_threads(max(1, cores // ranks.local_size))


def _user_set_threads() -> bool:
    """Whether OMP_NUM_THREADS was there when this process's parent was started."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return True
    try:
        began_with = Path(f"/proc/{os.getppid()}/environ").read_bytes().split(b"\0")
    except OSError:
        return True
    return any(each.startswith(b"OMP_NUM_THREADS=") for each in began_with)


def _number(name: str, text: str, *, least: int) -> int:
    if not re.fullmatch(r"[0-9]{1,7}", text) or not least <= int(text) <= _MOST:
        raise ValueError(
            f"{name} = {text!r:.80} in the environment: it is a whole number from {int(least)} on; "
            "start several processes by torchrun, or unset it"
        )
    return int(text)


__all__ = ["ALONE", "Ranks", "device_here", "from_environment", "of_slurm", "share_cores"]
