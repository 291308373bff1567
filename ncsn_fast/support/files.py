"""Files that are either complete or not there."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_TEMPORARY = re.compile(r"\..+-[0-9a-f]{8}\.\w+")


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path that replaces ``path`` if the block succeeds.

    The temporary file lies in the same folder and has the same suffix (libraries choose a format
    by it). On success it is flushed to the disk and renamed over ``path`` in one step, so that a
    reader sees the old file or the new one, never a part; on an exception it is removed.

    Args:
        path: the file to write; its folder must exist.

    Raises:
        ValueError: if the folder does not exist, or ``path`` is a folder.
        OSError: if the folder cannot be written to.
    """
    path = Path(path)
    temporary = _new_temporary(path)
    mode = temporary.stat().st_mode
    try:
        yield temporary
        os.chmod(temporary, mode)  # some writers replace the file by one that nobody else may read
        _flush(temporary)
        os.replace(temporary, path)
        _flush_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a file of text by :func:`atomic_write`, in UTF-8; raises what that raises."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def check_writable(path: str | os.PathLike[str]) -> None:
    """Refuse now a file that could not be written after hours of work.

    Args:
        path: the file that will be written; nothing of it is touched.

    Raises:
        ValueError: if its folder does not exist, or ``path`` is a folder.
        OSError: if the folder cannot be written to.
    """
    _new_temporary(Path(path)).unlink()


def make_folder(path: str | os.PathLike[str], otherwise: str = "choose another") -> None:
    """Make a folder, and those it lies in, where it does not exist.

    Raises:
        ValueError: where it cannot be made, with why and what to do ``otherwise``.
    """
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot make the folder {path}: {error}; {otherwise}") from error


@contextmanager
def folder_lock(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Keep a second process out of a folder that this one writes to, for the length of the block.

    The lock ends with the process, however that ends. Where the system has no file locks it does
    nothing. Temporary files that a killed process left behind are removed.

    Raises:
        ValueError: while another process holds the lock.
        OSError: if the folder cannot be written to.
    """
    path = Path(folder) / ".lock"
    with open(path, "w", encoding="utf-8") as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:  # no such locks on Windows
            yield
            return
        except BlockingIOError:
            raise ValueError(
                f"another process is writing to {folder}: wait for it, or choose another folder"
            ) from None
        _remove_leftovers(Path(folder))
        yield


def _remove_leftovers(folder: Path) -> None:
    for path in folder.glob(".*-????????.*"):
        if _TEMPORARY.fullmatch(path.name):
            path.unlink(missing_ok=True)


def _new_temporary(path: Path) -> Path:
    if not path.parent.is_dir():
        raise ValueError(f"cannot write {path}: the folder {path.parent} does not exist, make it")
    if path.is_dir():
        raise ValueError(f"cannot write {path}: it is a folder, give the name of a file")
    temporary = path.with_name(f".{path.stem}-{secrets.token_hex(4)}{path.suffix}")
    try:
        # Made here rather than by the tempfile module, whose files nobody else may read.
        temporary.touch(exist_ok=False)
    except OSError as error:
        raise OSError(
            error.errno,
            f"cannot write {path}: {error.strerror}. Choose another folder, or make this one "
            "writable",
        ) from error
    return temporary


def _flush(path: Path) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    """Put the renaming on the disk too; only POSIX systems let a folder be opened for that."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_suffix(path: str | os.PathLike[str], allowed: tuple[str, ...]) -> None:
    """Refuse now a file of a type that could not be written later.

    Args:
        path: the file; capital letters in its ending are as good as small ones.
        allowed: endings, such as ``(".png",)``.

    Raises:
        ValueError: for another ending.
    """
    if Path(path).suffix.lower() not in allowed:
        raise ValueError(f"cannot write {path}: its name must end in {' or '.join(allowed)}")


__all__ = [
    "atomic_write",
    "check_suffix",
    "check_writable",
    "folder_lock",
    "make_folder",
    "write_text",
]
