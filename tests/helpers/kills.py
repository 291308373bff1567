"""A process that is killed at its k-th operation on the files of a folder, for every k.

What a killed process leaves on the disk is the same anywhere between two operations, but for bytes
that were being written; so it is killed just before each of them. Of temporary files nobody reads
those; where a line is about to be appended, half of one is written first.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

Work = Callable[[Path], None]
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["ncsn_fast.cli", "safetensors.torch", "torch._dynamo", "pytest"])
_EVENTS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.truncate", "os.link"}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND


class _Killer:
    """Counts the operations on files below a folder; ends the process before a chosen one."""

    def __init__(self, folder: Path, at: int | None) -> None:
        self.folder, self.at, self.done = str(folder), at, 0
        fsync = os.fsync

        def counted(descriptor: int) -> None:  # it raises no event of its own
            self._count(f"/proc/self/fd/{descriptor}", None)
            fsync(descriptor)

        os.fsync = counted
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if flags & _WRITING and isinstance(path, str | os.PathLike):
                self._count(os.fspath(path), flags)
        elif event in _EVENTS:
            self._count(os.fspath(arguments[0]), None)

    def _count(self, path: str, flags: int | None) -> None:
        if path.startswith("/proc/self/fd/"):
            path = os.readlink(path)
        if not path.startswith(self.folder):
            return
        self.done += 1
        if self.done - 1 == self.at:
            if flags is not None and flags & os.O_APPEND and not flags & os.O_EXCL:
                self.at = None
                with open(path, "a") as file:
                    file.write('{"step": 1, "lo')
            os.kill(os.getpid(), signal.SIGKILL)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder; of a log without what it measured."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            data = path.read_bytes()
            if path.name == "log.jsonl":
                entries = [json.loads(line) for line in data.decode().splitlines()]
                for entry in entries:
                    entry.pop("images_per_second", None)
                data = json.dumps(entries).encode()
            found[str(path.relative_to(folder))] = data
    return found


def report(
    work: Work, scratch: Path, stride: int = 1, first: int = 0, prepare: Work | None = None
) -> dict[str, Any]:
    """Kill ``work`` at each operation (or each ``stride``-th), let it go on, and compare.

    Args:
        work: does all of its work in a folder, from wherever a killed one has left it.
        scratch: where the folders are made.
        prepare: fills the folder beforehand.

    Returns:
        "operations", how many there are; "kills", how many were tried; "differ", by operation what
        was different from the work that was not killed; "files", the names it left.
    """
    answer = scratch / "report.json"
    process = _SERVER.Process(
        target=_drive, args=(work, scratch, stride, first, prepare, answer), daemon=False
    )
    process.start()
    process.join(3600)
    assert process.exitcode == 0, answer.read_text() if answer.exists() else "no report"
    return json.loads(answer.read_text())


def _drive(
    work: Work, scratch: Path, stride: int, first: int, prepare: Work | None, answer: Path
) -> None:
    import torch

    torch.set_num_threads(1)  # no thread is lost in a fork
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        answer.write_text(json.dumps(_compare(work, scratch, stride, first, prepare)))
    except BaseException:
        answer.write_text(traceback.format_exc())
        raise SystemExit(1) from None


def _compare(
    work: Work, scratch: Path, stride: int, first: int, prepare: Work | None
) -> dict[str, Any]:
    def folder_of(name: str) -> Path:
        folder = scratch / name
        folder.mkdir()
        if prepare is not None:
            prepare(folder)
        return folder

    work(folder_of("warm"))  # what is loaded, found out and compiled once is so in every child
    whole, counted = folder_of("whole"), scratch / "count"
    assert _child(lambda: _counted(work, whole, counted)) == 0
    wanted, operations = contents(whole), int(counted.read_text())
    differ: dict[int, list[str]] = {}
    kills = range(first, operations, stride)
    for k in kills:
        folder = folder_of("killed")
        status = _child(lambda k=k, folder=folder: _killed(work, folder, k))
        assert status == -signal.SIGKILL, (k, status)
        assert _child(lambda folder=folder: work(folder)) == 0, k
        found = contents(folder)
        wrong = [name for name in {*found, *wanted} if found.get(name) != wanted.get(name)]
        if wrong:
            differ[k] = sorted(wrong)
        shutil.rmtree(folder)
    return {
        "operations": operations,
        "kills": len(kills),
        "differ": differ,
        "files": sorted(wanted),
    }


def _counted(work: Work, folder: Path, answer: Path) -> None:
    killer = _Killer(folder, None)
    work(folder)
    answer.write_text(str(killer.done))


def _killed(work: Work, folder: Path, k: int) -> None:
    _Killer(folder, k)
    work(folder)


def _child(work: Callable[[], None]) -> int:
    """The exit status of a process that does this; a negative signal where one ended it."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
