"""What a call costs, in a process of its own that may not have much memory."""

from __future__ import annotations

import multiprocessing
import resource
import time
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

# A server that has imported all this forks a process in little time.
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["hostile.targets", "yaml", "PIL.Image", "safetensors.torch"])
_MORE = 1 << 30  # bytes of address space beyond what the process has: a bomb harms nobody


class Cost(NamedTuple):
    seconds: float  # of the processor
    mib: float  # by which the largest resident size grew
    told: str  # what the call returned, or its exception


def cost_of_reading(target: str, data: bytes) -> Cost:
    """Of an input of a target, by its name; a right file is read first, so that all is imported."""
    here, there = _SERVER.Pipe(duplex=False)
    process = _SERVER.Process(target=_measure, args=(there, target, data), daemon=True)
    process.start()
    there.close()
    try:
        assert here.poll(120), "it takes minutes"
        return Cost(*here.recv())
    except EOFError:
        process.join()
        return Cost(0, 0, f"the process died of {process.exitcode}")
    finally:
        process.kill()


def _measure(answer: Connection, name: str, data: bytes) -> None:
    from hostile.targets import TARGETS, placed, value

    (target,) = [one for one in TARGETS if one.name == name]
    value(target, target.valid()[0])
    used: Any = resource.getrusage(resource.RUSAGE_SELF)
    with open("/proc/self/statm", encoding="ascii") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + _MORE, size + _MORE))
    seconds = float("inf")  # the least of some: a busy machine, or an import, is no bomb
    with placed(target, data) as path:
        for _ in range(3):
            begin = time.process_time()
            try:
                target.read(path)
                told = "read"
            except BaseException as error:
                told = f"{type(error).__name__}: {error}"
            seconds = min(seconds, time.process_time() - begin)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - used.ru_maxrss
    answer.send((seconds, grown / 1024, told))
