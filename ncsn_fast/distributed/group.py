"""What the processes of a run tell each other: sums, agreements, what the first one did alone.

Underneath is PyTorch's own engine: gloo between CPUs, and NCCL for what lies on GPUs.
"""

from __future__ import annotations

import atexit
import functools
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ncsn_fast.distributed.ranks import Ranks, share_cores

ANSWER = timedelta(minutes=1)  # without one, a process is taken for lost
_BEAT = ANSWER.total_seconds() / 6
_MEETING = timedelta(minutes=10)  # Python may be slow to start on a busy machine
_MET_BY = ("MASTER_ADDR", "MASTER_PORT")
_DONE, _AT_WORK, _FAILED = range(3)  # of what each process says of itself, the largest counts
T = TypeVar("T")


class OtherProcessError(RuntimeError):
    """Another process of the run could not go on, or is lost."""


class Group:
    """The processes of a run. Each calls the same methods in the same order, and waits in them for
    the others; where there is one process, they do nothing.

    Attributes:
        ranks: which of them this one is.

    Raises:
        OtherProcessError: in all methods, where another process has ended, does not answer for a
            minute, or could not do what it was waited for.
    """

    def __init__(self, ranks: Ranks | None = None, group: Any = None, on_gpus: Any = None) -> None:
        self.ranks = Ranks() if ranks is None else ranks
        self._group, self._on_gpus = group, on_gpus

    @property
    def is_alone(self) -> bool:
        return self.ranks.size == 1

    def add_up(self, tensor: Tensor) -> None:
        """Replace a tensor, on any device, by its sum over all processes, the same bits on each."""
        if not self.is_alone:
            with _answered():
                dist.all_reduce(tensor, group=self._on_gpus if tensor.is_cuda else self._group)

    def largest(self, *values: int) -> list[int]:
        """The largest of each value over all processes."""
        if self.is_alone:
            return list(values)
        found = torch.tensor(values, dtype=torch.int64, device="cpu")
        with _answered():
            dist.all_reduce(found, dist.ReduceOp.MAX, group=self._group)
        return found.tolist()

    def are_same(self, values: Iterable[int]) -> list[bool]:
        """Of each value (-2⁶³ < v < 2⁶³), whether all processes have the same one."""
        mine = list(values)
        found = self.largest(*mine, *(-value for value in mine))
        return [a == -b for a, b in zip(found[: len(mine)], found[len(mine) :], strict=True)]

    def from_first(self, work: Callable[[], T]) -> T:
        """What the first process makes by ``work``, for all of them; the others wait as long as it
        takes, and are told if it fails.

        Raises:
            Exception: in the first process what ``work`` raises; OtherProcessError in the others.
        """
        if self.is_alone:
            return work()
        if not self.ranks.is_first:
            while (outcome := self._of_first(None)) is None:
                pass  # it is at work
            value, failure = outcome
            if failure is not None:
                raise OtherProcessError(f"process 0 of {self.ranks.size} failed: {failure}")
            return value
        try:
            with self._beating():
                value = work()
        except BaseException as error:
            with suppress(OtherProcessError):
                self._of_first((None, f"{type(error).__name__}: {error}"))
            raise
        self._of_first((value, None))
        return value

    def first_alone(self, work: Callable[[], T]) -> T:
        """What each process makes by ``work``, the first before the others: it says for all what
        cannot be done, and others find what it has built or measured."""
        found: list[T] = []
        self.from_first(lambda: found.append(work()))
        return self.patiently(found.pop if self.ranks.is_first else work)

    def patiently(self, work: Callable[[], T]) -> T:
        """What this process makes by ``work``, which does not use the group and takes as long as it
        takes; all go on when each of them has it.

        Raises:
            Exception: what ``work`` raises here; OtherProcessError where it fails in another one.
        """
        if self.is_alone:
            return work()
        state, ended = [_AT_WORK], threading.Event()
        failures: list[BaseException] = []

        def meet() -> None:
            try:
                # Who has ended waits here for those who look every few seconds whether they have.
                while (worst := self.largest(state[0] if ended.wait(_BEAT) else _AT_WORK)[0]) == 1:
                    pass
                if worst == _FAILED != state[0]:
                    raise OtherProcessError(
                        "another process of the run failed: what it said tells why, and what was "
                        "saved stays"
                    )
            except OtherProcessError as error:
                failures.append(error)

        thread = threading.Thread(target=meet, daemon=True)
        thread.start()
        try:
            value = work()
            state[0] = _DONE
        except BaseException:
            state[0] = _FAILED
            raise
        finally:
            ended.set()
            thread.join()
        if failures:
            raise failures[0]
        return value

    def _of_first(self, value: Any) -> Any:
        told = [value]
        with _answered():
            dist.broadcast_object_list(told, 0, self._group, torch.device("cpu"))
        return told[0]

    @contextmanager
    def _beating(self) -> Iterator[None]:
        """Tell those who wait, every few seconds, that this process is at work."""
        over = threading.Event()

        def beat() -> None:
            with suppress(OtherProcessError):  # who ends the block will meet it
                while not over.wait(_BEAT):
                    self._of_first(None)

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def join(ranks: Ranks, device: torch.device | str) -> Group:
    """Meet the other processes, once; later calls find the same group. Of one process: no work.

    The processes of a machine share its cores (:func:`share_cores`), and a GPU becomes the current
    one. A process group that the caller has made is used; else one is made, which ends with the
    process.

    Args:
        device: where this process computes, a GPU by its number.

    Raises:
        ValueError: where torchrun's MASTER_ADDR or MASTER_PORT is missing, PyTorch has no
            distribution, or there is a process group of other processes.
        OtherProcessError: where another one does not come.
    """
    return Group(ranks) if ranks.size == 1 else _joined(ranks, torch.device(device))


@functools.cache
def _joined(ranks: Ranks, device: torch.device) -> Group:
    if not dist.is_available():
        raise ValueError(f"{ranks}, but this build of PyTorch has no torch.distributed")
    share_cores(ranks)
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
    with _answered(_MEETING):
        if not dist.is_initialized():
            if missing := [name for name in _MET_BY if name not in os.environ]:
                raise ValueError(
                    f"{ranks} has no {' and no '.join(missing)} in its environment: start several "
                    "processes by torchrun"
                )
            store, _, _ = next(dist.rendezvous("env://", ranks.rank, ranks.size, timeout=_MEETING))
            dist.init_process_group(
                backend,
                store=dist.PrefixStore(_meet(ranks, store), store),
                rank=ranks.rank,
                world_size=ranks.size,
                timeout=_MEETING,
            )
            atexit.register(_leave)
        there = (dist.get_rank(), dist.get_world_size())
        if there != (ranks.rank, ranks.size):
            raise ValueError(
                f"the environment says {ranks}, the process group {there[0]} of {there[1]}"
            )
        # NCCL's time runs from when a sum is asked for, and the host may be far ahead of its GPU;
        # who is lost is found by what CPUs tell each other at every step.
        on_gpus = dist.new_group(timeout=_MEETING, backend="nccl") if on_gpu else None
        return Group(ranks, dist.new_group(timeout=ANSWER, backend="gloo"), on_gpus)


def _meet(ranks: Ranks, store: dist.Store) -> str:
    """A name that only the processes of this start have, from the first of them.

    torchrun keeps one store for all its starts, in which gloo would find addresses of processes
    that are gone, and wait for them. So who comes leaves a token and waits for the answer to that.
    """
    token = secrets.token_hex(8)
    if not ranks.is_first:
        store.set(f"came/{ranks.rank}", token)
        name = store.get(f"answer/{token}").decode()
        store.set(f"{name}/{ranks.rank}", "")
        return name
    missing, last = set(range(1, ranks.size)), time.monotonic() + _MEETING.total_seconds()
    while missing:
        for rank in sorted(missing):
            if store.check([f"{token}/{rank}"]):
                missing.remove(rank)
            elif store.check([f"came/{rank}"]):
                store.set(f"answer/{store.get(f'came/{rank}').decode()}", token)
        if time.monotonic() > last:
            raise RuntimeError(f"process {min(missing)} has not come")
        time.sleep(0.02)
    return token


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def _answered(patience: timedelta = ANSWER) -> Iterator[None]:
    """Say in a sentence what PyTorch says of others that do not answer."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or "CUDA error" in str(error):
            raise  # of this process
        said = str(error).strip().splitlines() or [type(error).__name__]
        # Without the line of gloo's that says so, and what it takes for the cause.
        reason = re.sub(r"^\[[^]]*\] *", "", said[0]).split(". ")[0]
        raise OtherProcessError(
            "another process of the run has ended, or has not answered for "
            f"{patience.total_seconds():.0f} seconds ({reason:.200}): what it said tells why, "
            "and what was saved stays"
        ) from error


__all__ = ["ANSWER", "Group", "OtherProcessError", "join"]
