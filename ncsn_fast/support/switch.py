"""A setting of the whole process, as blocks of several threads need it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")
S = TypeVar("S")


@dataclass(frozen=True)  # a NamedTuple can be generic from Python 3.11 on
class _Level(Generic[T, S]):
    wanted: T
    before: S
    threads: list[int]  # one entry for each block


class Switch(Generic[T, S]):
    """A setting that blocks change: the first sets it, the last puts back what was there before.

    Args:
        name: what messages call it.
        read: what it is now, for ``restore``.
        write: makes it what a block wants.
        restore: makes it what it was.
    """

    def __init__(
        self,
        name: str,
        read: Callable[[], S],
        write: Callable[[T], None],
        restore: Callable[[S], None],
    ) -> None:
        self._name = name
        self._read, self._write, self._restore = read, write, restore
        self._lock = threading.Lock()
        self._levels: list[_Level[T, S]] = []

    @contextmanager
    def set(self, wanted: T) -> Iterator[None]:
        """Inside it is as wanted. Blocks in blocks of one thread may want another each.

        Raises:
            RuntimeError: where another thread is in a block that wants something else.
        """
        me = threading.get_ident()
        with self._lock:
            level = self._enter(wanted, me)
        try:
            yield
        finally:
            with self._lock:
                level.threads.remove(me)
                while self._levels and not self._levels[-1].threads:
                    self._restore(self._levels.pop().before)

    def _enter(self, wanted: T, me: int) -> _Level[T, S]:
        others = any(thread != me for level in self._levels for thread in level.threads)
        differs = not self._levels or self._levels[-1].wanted != wanted
        if others and (differs or len(self._levels) > 1):
            raise RuntimeError(
                f"{self._name} = {wanted!r}: another thread computes with "
                f"{self._levels[-1].wanted!r}, and this is one setting for all threads of a "
                "process: use the same there, or wait until it has finished"
            )
        if differs:
            self._levels.append(_Level(wanted, self._read(), []))
            self._write(wanted)
        self._levels[-1].threads.append(me)
        return self._levels[-1]


__all__ = ["Switch"]
