"""Signals that ask a process to end: Ctrl-C, SIGTERM, and SIGHUP where there is one."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # SIGHUP: the terminal or the connection has gone


@contextmanager
def on_stop(handle: Callable[[signal.Signals], None], once_in: float = 0) -> Iterator[None]:
    """Call a function when a signal asks this process to end, for the length of the block.

    A signal that is ignored stays so: a background job of a script, or one below nohup, is ended by
    whoever started it. Outside the main thread, where Python allows no handlers, nothing is done.

    Args:
        handle: takes the signal; what it raises comes out where the process is just then.
        once_in: seconds in which a signal but Ctrl-C that comes again is the same one: SLURM tells
            all processes to end, and torchrun tells them again.
    """
    came = -math.inf

    def called(number: int, frame: FrameType | None) -> None:
        nonlocal came
        if number != signal.SIGINT and time.monotonic() - came < once_in:
            return
        came = time.monotonic()
        handle(signal.Signals(number))

    previous: dict[signal.Signals, Any] = {}
    try:
        if threading.current_thread() is threading.main_thread():
            for name in _NAMES:
                number = getattr(signal, name, None)
                # None: a handler that Python did not set, and could not put back.
                if number is None or signal.getsignal(number) in (signal.SIG_IGN, None):
                    continue
                previous[number] = signal.signal(number, called)
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


__all__ = ["on_stop"]
