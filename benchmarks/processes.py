"""Processes that measure: what they find comes here row by row, and each piece of work has its end.

One that crashes, hangs or leaves the device in a bad state ends alone, with all that it has
started. All of them end with this one, however that ends: nobody keeps a device busy whom nobody
waits for.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import connection
from pathlib import Path
from typing import Any, NamedTuple

from ncsn_fast.benchmarks.contest.plans import Plan
from ncsn_fast.benchmarks.contest.rows import FAILED, LEFT_OUT, OK, Row

RowsOf = Callable[[str, Plan], Iterator[Row]]
START = "spawn"  # as CUDA wants it


class Outcome(NamedTuple):
    """How a piece of work ended: the status of a row, why where it is not "ok", and its seconds."""

    status: str
    message: str
    seconds: float


class Measurer:
    """A process that measures one suite after the other.

    Args:
        rows_of: (suite, plan) → rows, run there.
        log: what libraries write there is for whoever looks for the cause of a failure.
    """

    def __init__(self, rows_of: RowsOf, log: Path) -> None:
        context: Any = multiprocessing.get_context(START)
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, rows_of, log))
        self.process.start()
        theirs.close()

    def begin(self, suite: str, plan: Plan) -> None:
        with contextlib.suppress(OSError):  # it has ended already: whoever listens hears that
            self.connection.send((suite, plan))

    def end(self) -> None:
        """End it, and what it has started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if hasattr(os, "killpg") and self.process.pid is not None:
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()
        self.process.join()
        self.connection.close()


class Piece(NamedTuple):
    """Work for a measurer: a suite of a plan, for so many seconds at most."""

    measurer: Measurer
    suite: str
    plan: Plan
    seconds: float


def measured(pieces: Sequence[Piece], keep: Callable[[Row], None]) -> list[Outcome]:
    """Have pieces of work done at the same time, by a measurer each.

    Who does not end in time, or crashes, is ended; so are all others where this is interrupted.

    Args:
        keep: called with each row as it comes.
    """
    started = time.monotonic()
    found: dict[int, Outcome] = {}
    waiting = {piece.measurer.connection: i for i, piece in enumerate(pieces)}
    for piece in pieces:
        piece.measurer.begin(piece.suite, piece.plan)
    try:
        while waiting:
            left = min(pieces[i].seconds for i in waiting.values()) + started - time.monotonic()
            for one in connection.wait(list(waiting), max(0.0, left)):
                i = waiting[one]
                ended = _heard(pieces[i].measurer, keep)
                if ended is not None:
                    found[i] = Outcome(*ended, time.monotonic() - started)
                    del waiting[one]
            for one, i in list(waiting.items()):
                seconds = time.monotonic() - started
                if seconds > pieces[i].seconds:
                    pieces[i].measurer.end()
                    told = f"what was left of it: its {pieces[i].seconds:.0f} s were over"
                    found[i] = Outcome(LEFT_OUT, told, seconds)
                    del waiting[one]
    finally:
        for i in waiting.values():
            pieces[i].measurer.end()
    return [found[i] for i in range(len(pieces))]


def _heard(measurer: Measurer, keep: Callable[[Row], None]) -> tuple[str, str] | None:
    """Keep a row; how the work has ended, where it has."""
    try:
        row = measurer.connection.recv()
    except (EOFError, OSError):
        measurer.process.join()
        code = measurer.process.exitcode
        measurer.end()
        return FAILED, f"its process ended with exit code {code}: see the log"
    if row is None:
        return OK, ""
    keep(row)
    return None


def _serve(asked: connection.Connection, rows_of: RowsOf, log: Path) -> None:
    """What the process does."""
    if hasattr(os, "setsid"):
        os.setsid()  # so that it ends together with the compilers that it starts
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    with open(log, "a", encoding="utf-8") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    with contextlib.suppress(EOFError):  # nobody asks any more
        while True:
            suite, plan = asked.recv()
            try:
                for row in rows_of(suite, plan):
                    asked.send(row)
            except BaseException:
                traceback.print_exc()
                raise SystemExit(1) from None
            asked.send(None)


def _end_with_the_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        if hasattr(os, "killpg"):
            os.killpg(0, signal.SIGKILL)
        os._exit(1)


__all__ = ["START", "Measurer", "Outcome", "Piece", "measured"]
