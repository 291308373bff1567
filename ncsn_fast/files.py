"""Files that are either complete or not there."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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


def check_writable(path: str | os.PathLike[str]) -> None:
    """Refuse now a file that could not be written after hours of work.

    Args:
        path: the file that will be written; nothing of it is touched.

    Raises:
        ValueError: if its folder does not exist, or ``path`` is a folder.
        OSError: if the folder cannot be written to.
    """
    _new_temporary(Path(path)).unlink()


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


__all__ = ["atomic_write", "check_writable"]
