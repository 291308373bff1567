"""Decisions made by measurement: made once on a machine, and the same in all its processes.

Times are never twice the same, and what is decided by them should be: results depend on it. So the
first decision stays, in the process and in the user's cache ("measured" beside the native kernels,
see ``device/native.py``), for the CPU, versions and build that it was measured with. To have all
measured anew, delete that file.

It is read and written only where nobody else could change it (``device/private.py``). Elsewhere,
and where the cache cannot be written, a decision lasts for its process.
"""

from __future__ import annotations

import functools
import json
import logging
import math
import threading
import time
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import TypeVar

import torch

from ncsn_fast.device import native
from ncsn_fast.device.environment import processor
from ncsn_fast.device.private import make_private_folder, turn, why_not_private
from ncsn_fast.support.files import write_text
from ncsn_fast.support.parsers import FileError, read_json

Value = str | int
_T = TypeVar("_T", str, int)
_K = TypeVar("_K", bound=Hashable)
# At least so many, for so long; of long ones, which vary less, fewer will do.
_ROUNDS, _SECONDS = 10, 0.04
_FEWEST_ROUNDS, _MOST_SECONDS = 3, 0.4
_LARGEST = 1 << 20  # bytes of the file; beyond it the oldest decisions go
# By machine, as _machine() tells it, and "kind key".
_Decisions = dict[str, dict[str, Value]]
_known: _Decisions = {}  # to this process
# Recursive: what is measured may itself depend on something that is.
_turn = threading.RLock()
_log = logging.getLogger("ncsn_fast")


def decided(
    kind: str,
    key: str,
    decide: Callable[[], _T],
    valid: Callable[[Value], bool] = lambda value: True,
) -> _T:
    """What was decided before, here or in another process, else what ``decide`` says.

    Args:
        kind: what is decided, a word.
        key: for what, with all that the decision depends on, the number of threads say, but for the
            machine, PyTorch's version and the native kernels.
        decide: measures. One thread at a time does; another process may, and the first answer to
            be written is everybody's.
        valid: whether a value that another version of this package may have left can be used; one
            that cannot is decided anew.

    Raises:
        Exception: what ``decide`` raises; nothing is kept then.
    """
    name = f"{kind} {key}"
    with _turn:
        machine = _machine()
        known = _known.setdefault(machine, {})
        if name not in known or not valid(known[name]):
            found = _read().get(machine, {}).get(name)
            if found is None or not valid(found):
                found = _keep(machine, name, decide(), valid)
            known[name] = found
        return known[name]  # type: ignore[return-value]  # valid() has seen it


def times(contestants: Mapping[_K, Callable[[], object]]) -> dict[_K, float]:
    """The least seconds that one thread spends in each, in turns, whatever else is running.

    So what is decided by it does not depend on how many threads there are, nor on how busy. Few
    and small runs do: they are over before anything else wants the CPU.
    """
    precise = time.get_clock_info("thread_time").resolution < 1e-6
    clock = time.thread_time if precise else time.perf_counter
    best = dict.fromkeys(contestants, math.inf)
    threads, begun, rounds = torch.get_num_threads(), clock(), 0
    torch.set_num_threads(1)
    try:
        while (
            clock() < begun + _SECONDS
            or rounds < _FEWEST_ROUNDS
            or (rounds < _ROUNDS and clock() < begun + _MOST_SECONDS)
        ):
            for name, run in contestants.items():
                start = clock()
                run()
                best[name] = min(best[name], clock() - start)
            rounds += 1
    finally:
        torch.set_num_threads(threads)
    return best


def decisions(kind: str) -> dict[str, Value]:
    """The decisions of a kind that hold on this machine, by their keys."""
    with _turn:
        machine = _machine()
        found = {**_read().get(machine, {}), **_known.get(machine, {})}
    return {
        name.removeprefix(f"{kind} "): value
        for name, value in found.items()
        if name.startswith(f"{kind} ")
    }


def forget() -> None:
    """As in a new process."""
    with _turn:
        _known.clear()
        _warn.cache_clear()


def cache_file() -> Path:
    """The file that decisions are kept in; it need not exist."""
    return native.cache_folder().parent / "measured" / "decisions.json"


def read_file(path: Path) -> _Decisions:
    """The decisions in a file, by machine and by "kind key".

    Raises:
        OSError: where there is none, or it cannot be opened.
        FileError: for anything else than such a file.
    """
    found = read_json(path, _LARGEST)
    if not isinstance(found, dict) or not all(map(_are_decisions, found.values())):
        raise FileError(f"{path} holds something else than decisions")
    return found


def _are_decisions(found: object) -> bool:
    return isinstance(found, dict) and all(type(value) in (str, int) for value in found.values())


def _machine() -> str:
    native.ready()  # loads what has been built, so that all processes name the same
    library = native.loaded()
    build = library.parent.name if library else "none"
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{processor()}, {capability}, torch {torch.__version__}, kernels {build}"


def _keep(machine: str, name: str, value: _T, valid: Callable[[Value], bool]) -> Value:
    """Write a decision, and return it; or the one that another process has written meanwhile."""
    path = cache_file()
    try:
        make_private_folder(path.parent)
        if reason := why_not_private(path):
            raise PermissionError(reason)
        with turn(path.parent):
            kept = _read()
            own = kept.pop(machine, {})
            if name in own and valid(own[name]):
                return own[name]
            own[name] = value
            kept[machine] = own  # the newest last
            write_text(path, _shortened(kept))
            path.chmod(path.stat().st_mode & 0o755)  # whatever the umask is
    except (OSError, ValueError) as error:
        _log.debug("%s %s is decided for this process alone: %s", name, value, error)
    return value


def _read() -> _Decisions:
    """What is kept; nothing where that is missing, damaged or not to be trusted."""
    path = cache_file()
    try:
        if reason := why_not_private(path):
            raise PermissionError(reason)
        return read_file(path)
    except FileError as error:
        _warn(f"what was measured before is measured again: {error}")
    except FileNotFoundError:
        pass
    except OSError as error:
        _log.debug("decisions are not read: %s", error)
    return {}


def _shortened(kept: _Decisions) -> str:
    """The text of the file, without the oldest decisions where it would be too long."""
    while len(text := json.dumps(kept, indent=1)) > _LARGEST:
        oldest = next(iter(kept))
        some = kept.pop(oldest)
        if not kept:  # of this machine half stays
            kept[oldest] = dict(list(some.items())[(len(some) + 1) // 2 :])
    return text + "\n"


@functools.cache  # once
def _warn(message: str) -> None:
    _log.warning("%s", message)


__all__ = ["Value", "cache_file", "decided", "decisions", "forget", "read_file", "times"]
