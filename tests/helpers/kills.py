"""A process that is killed, or finds no room, at its k-th operation on the files of a folder.

What a killed process leaves on the disk is the same anywhere between two operations, but for bytes
that were being written; so it is killed just before each of them. Of temporary files nobody reads
those; where a line is about to be appended, half of one is written first.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
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


class _Meddler:
    """Counts the operations on files below a folder, and does something before a chosen one.

    Args:
        at: which one; None: none.
        how: "kill" ends the process; an error number lets this operation fail with it.
        on: whether all operations from that one on fail, but for those that make room.
    """

    def __init__(self, folder: Path, at: int | None, how: str | int = "kill", on: bool = False):
        self.folder, self.at, self.how, self.on, self.done = str(folder), at, how, on, 0
        fsync = os.fsync

        def counted(descriptor: int) -> None:  # it raises no event of its own
            self._count(f"/proc/self/fd/{descriptor}", None, room=False)
            fsync(descriptor)

        os.fsync = counted
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if flags & _WRITING and isinstance(path, str | os.PathLike):
                self._count(os.fspath(path), flags)
        elif event in _EVENTS:
            room = event in ("os.remove", "os.rmdir", "os.chmod")
            self._count(os.fspath(arguments[0]), None, room)

    def _count(self, path: str, flags: int | None, room: bool = False) -> None:
        if path.startswith("/proc/self/fd/"):
            path = os.readlink(path)
        if not path.startswith(self.folder) or self.at == -1:
            return
        self.done += 1
        if self.at is None or not (self.done - 1 == self.at or (self.on and self.done > self.at)):
            return
        if isinstance(self.how, int):
            if not room:
                raise OSError(self.how, os.strerror(self.how))
        else:
            if flags is not None and flags & os.O_APPEND:
                self.at = -1  # what follows is not counted
                with open(path, "a") as file:
                    file.write('{"step": 1, "lo')
            os.kill(os.getpid(), signal.SIGKILL)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder; of a log and a page without what they measured."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            data = path.read_bytes()
            if path.name == "log.jsonl":
                entries = [json.loads(line) for line in data.decode().splitlines()]
                for entry in entries:
                    entry.pop("images_per_second", None)
                data = json.dumps(entries).encode()
            elif path.suffix == ".html":
                data = re.sub(rb'<(\w+) class="measured">.*?</\1>', b"", data)
                data = data.replace(bytes(folder), b"folder")
            found[str(path.relative_to(folder))] = data
    return found


def report(work: Work, scratch: Path, stride: int = 1, **keywords: Any) -> dict[str, Any]:
    """Disturb ``work`` at each operation (or each ``stride``-th), let it go on, and compare.

    Args:
        work: does all of its work in a folder, from wherever a disturbed one has left it.
        scratch: where the folders are made.
        how, on: as for ``_Meddler``.
        prepare: fills the folder beforehand.

    Returns:
        "operations", how many there are; "tried", how many were disturbed; "differ", by operation
        what was different in the end from the work that was not disturbed; "told", by operation
        what was said; "files", the names of what is there in the end.
    """
    answer = scratch / "report.json"
    process = _SERVER.Process(target=_drive, args=(work, scratch, stride, keywords, answer))
    process.start()
    process.join(3600)
    assert process.exitcode == 0, answer.read_text() if answer.exists() else "no report"
    return json.loads(answer.read_text())


def _drive(work: Work, scratch: Path, stride: int, keywords: dict[str, Any], answer: Path) -> None:
    import torch

    torch.set_num_threads(1)  # no thread is lost in a fork
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        answer.write_text(json.dumps(_compare(work, scratch, stride, **keywords)))
    except BaseException:
        answer.write_text(traceback.format_exc())
        raise SystemExit(1) from None


def _compare(
    work: Work,
    scratch: Path,
    stride: int,
    how: str | int = "kill",
    on: bool = False,
    prepare: Work | None = None,
) -> dict[str, Any]:
    def folder_of(name: str) -> Path:
        folder = scratch / name
        folder.mkdir()
        if prepare is not None:
            prepare(folder)
        return folder

    said = scratch / "said.txt"
    work(folder_of("warm"))  # what is loaded, found out and compiled once is so in every child
    whole, counted = folder_of("whole"), scratch / "count"
    assert _child(lambda: _counted(work, whole, counted), said) == 0, said.read_text()
    wanted, operations = contents(whole), int(counted.read_text())
    differ: dict[int, list[str]] = {}
    told: dict[int, str] = {}
    for k in range(0, operations, stride):
        folder = folder_of("disturbed")
        status = _child(lambda k=k, folder=folder: _disturbed(work, folder, k, how, on), said)
        assert status in ((-signal.SIGKILL,) if how == "kill" else (0, 1)), (k, status)
        told[k] = f"{status}: {said.read_text()}"
        assert _child(lambda folder=folder: work(folder), said) == 0, (k, said.read_text())
        found = contents(folder)
        wrong = [name for name in {*found, *wanted} if found.get(name) != wanted.get(name)]
        if wrong:
            differ[k] = sorted(wrong)
        shutil.rmtree(folder)
    files = sorted(wanted)
    return {
        "operations": operations,
        "tried": len(told),
        "differ": differ,
        "told": told,
        "files": files,
    }


def _counted(work: Work, folder: Path, answer: Path) -> None:
    meddler = _Meddler(folder, None)
    work(folder)
    answer.write_text(str(meddler.done))


def _disturbed(work: Work, folder: Path, k: int, how: str | int, on: bool) -> None:
    _Meddler(folder, k, how, on)
    work(folder)


def _child(work: Callable[[], None], said: Path) -> int:
    """The exit status of a process that does this; a negative signal where one ended it.

    What it says goes to a file, the error that ends it as the last line.
    """
    child = os.fork()
    if child == 0:
        try:
            with open(said, "w") as output:
                for descriptor in (1, 2):
                    os.dup2(output.fileno(), descriptor)
            work()
            sys.stderr.flush()
            os._exit(0)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
