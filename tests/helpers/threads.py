"""Several ranks in one process: threads that add up by a barrier, in the order of the ranks."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from torch import Tensor

from ncsn_fast.distributed.group import Group
from ncsn_fast.distributed.ranks import Ranks


class _Shared:
    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size, timeout=600)
        self.told: list[Any] = [None] * size


class ThreadGroup(Group):
    """A Group whose processes are threads: what they tell each other is what it would be."""

    def __init__(self, rank: int, size: int, shared: _Shared) -> None:
        super().__init__(Ranks(rank, size, rank, size))
        self._shared = shared

    def _exchange(self, value: Any) -> list[Any]:
        self._shared.told[self.ranks.rank] = value
        self._shared.barrier.wait()
        found = list(self._shared.told)
        self._shared.barrier.wait()
        return found

    def add_up(self, tensor: Tensor) -> None:
        tensor.copy_(sum(self._exchange(tensor.clone())))

    def largest(self, *values: int) -> list[int]:
        return [max(column) for column in zip(*self._exchange(values), strict=True)]


def in_threads(size: int, work: Callable[[Group], Any]) -> list[Any]:
    """What work returns in each of so many ranks; what one raises ends all."""
    shared = _Shared(size)

    def run(rank: int) -> Any:
        try:
            return work(ThreadGroup(rank, size, shared))
        except BaseException:
            shared.barrier.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        return [one.result() for one in [pool.submit(run, rank) for rank in range(size)]]
