"""Files that are either complete or not there.

No file is written through a link that lies in its place: what is written beside it and renamed
replaces the link, what is opened refuses it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ncsn_fast.support.locks import NOT_SUPPORTED, NOT_THROUGH_LINKS, check_held, told

# Long names are cut, as most file systems take no name of more than 255 bytes.
_STEM, _SUFFIX = 16, 16
# Those of shards of samples, whose names are numbers, may have further endings.
_TEMPORARY = re.compile(
    r"\.(.+-[0-9a-f]{8}\.(safetensors|jsonl?|npz|png|gif|webp|mp4|md|html|gz)"
    r"|[0-9]{9}[0-9-]*-[0-9a-f]{8}\.(tar|sha256|folder))",
    re.DOTALL,
)


class NoFolderError(FileNotFoundError, ValueError):
    """The folder of a file is not there: a wrong argument, or it was removed meanwhile."""


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path that replaces ``path`` if the block succeeds.

    The temporary file lies in the same folder and has the same suffix (libraries choose a format
    by it). On success it is flushed to the disk and renamed over ``path`` in one step, so that a
    reader sees the old file or the new one, never a part; on an exception it is removed. A link
    in the place of ``path`` is replaced itself, not what it leads to.

    Args:
        path: the file to write; its folder must exist.

    Raises:
        ValueError: if the folder does not exist (also a FileNotFoundError), ``path`` is a folder,
            or its folder was locked here and is another process's by now.
        OSError: if the file cannot be written; the message names it.
    """
    path = Path(path)
    temporary = _new_temporary(path)
    try:
        with told(path):
            mode = temporary.stat().st_mode
            yield temporary
            _set_mode(temporary, mode)
            flush(temporary)
            os.replace(temporary, path)
            _flush_folder(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes ``path`` if the block succeeds, with what was put in it
    on the disk. A folder that is there already is removed first.

    Raises:
        ValueError, OSError: as :func:`atomic_write`.
    """
    temporary = _new_temporary(path.with_name(f"{path.name}.folder"), Path.mkdir)
    try:
        with told(path):
            yield temporary
            for file in temporary.iterdir():
                flush(file)
            _flush_folder(temporary)
            shutil.rmtree(path, ignore_errors=True)
            os.replace(temporary, path)
            _flush_folder(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a file of text by :func:`atomic_write`, in UTF-8; raises what that raises."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def append_text(path: str | os.PathLike[str], text: str) -> None:
    """Append to a file of text, in UTF-8; it is made where it does not exist.

    Raises:
        OSError: if it cannot be written, or is a link, a pipe or another thing than a file; of the
            text nothing is left in it, where the disk allows that.
    """
    check_held(Path(path).parent)
    with told(Path(path)):
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | NOT_THROUGH_LINKS
        with open(os.open(path, flags, 0o666), "ab", buffering=0) as file:
            about = os.fstat(file.fileno())
            if not stat.S_ISREG(about.st_mode):
                raise OSError(errno.EINVAL, "it is not a file")
            left = text.encode()
            try:
                while left:
                    left = left[file.write(left) :]
            except OSError:
                file.truncate(about.st_size)
                raise


def sha256_of(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file, 64 hexadecimal digits; read in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def sha256_of_values(values: Mapping[str, Any]) -> str:
    """SHA-256 of JSON values, the same in whatever order they are; 64 hexadecimal digits."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def flush(path: Path) -> None:
    """Put what was written to a file on the disk, so that it is there after a power failure too."""
    with open(path, "rb+") as file:
        _flush_descriptor(file.fileno())


def check_writable(path: str | os.PathLike[str]) -> None:
    """Refuse now a file that could not be written after hours of work.

    Args:
        path: the file that will be written; nothing of it is touched.

    Raises:
        ValueError: if its folder does not exist, or ``path`` is a folder.
        OSError: if the folder cannot be written to.
    """
    _new_temporary(Path(path)).unlink(missing_ok=True)


def check_space(
    folder: str | os.PathLike[str], needed: int, what: str, *, replaced: int = 0
) -> None:
    """Refuse now what would not fit on the disk of a folder.

    Args:
        needed: bytes that ``what`` takes.
        replaced: bytes of files that make room for it.

    Raises:
        OSError: where there is less.
    """
    free = shutil.disk_usage(folder).free + replaced
    if free < needed:
        raise OSError(
            errno.ENOSPC,
            f"{folder} has {free / 1e6:,.0f} MB of disk left and {what} take up to "
            f"{needed / 1e6:,.0f} MB: make room, or choose another folder",
        )


def refuse_link(path: Path) -> None:
    """Refuse a folder to write into that is a link: nobody knows what it would overwrite.

    Raises:
        ValueError: where it is one.
    """
    if path.is_symlink():
        raise ValueError(f"{path} is a link, and nothing is written through one: remove it")


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files that a killed process left in a folder whose lock is held."""
    for path in leftovers(folder):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def leftovers(folder: Path) -> list[Path]:
    """The temporary files of :func:`atomic_write`, and folders of such, in a folder."""
    found = folder.glob(".*-????????.*")
    ours = [path for path in found if _TEMPORARY.fullmatch(path.name)]
    return [path for path in ours if path.is_file() or path.suffix == ".folder"]


def _touch(path: Path) -> None:
    # Made here rather than by the tempfile module, whose files nobody else may read.
    path.touch(exist_ok=False)


def _new_temporary(path: Path, make: Callable[[Path], None] = _touch) -> Path:
    if not path.parent.is_dir():
        raise NoFolderError(
            f"cannot write {path}: the folder {path.parent} does not exist, make it"
        )
    if path.is_dir():
        raise ValueError(f"cannot write {path}: it is a folder, give the name of a file")
    check_held(path.parent)
    name = f".{path.stem[:_STEM]}-{secrets.token_hex(4)}{path.suffix[:_SUFFIX]}"
    temporary = path.with_name(name)
    with told(path):
        make(temporary)
    return temporary


def _set_mode(path: Path, mode: int) -> None:
    """Let those read a file whom the umask lets; some writers replace it by one of their own."""
    if path.stat().st_mode != mode:
        with contextlib.suppress(PermissionError, NotImplementedError):  # not on every file system
            os.chmod(path, mode)


def _flush_folder(folder: Path) -> None:
    """Put the renaming on the disk too; only POSIX systems let a folder be opened for that."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except PermissionError:  # it may be written to, but not read
        return
    try:
        _flush_descriptor(descriptor)
    finally:
        os.close(descriptor)


def _flush_descriptor(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:  # network and other special file systems do not always have it
        if error.errno not in NOT_SUPPORTED:
            raise


@contextmanager
def utf8_name(path: str | os.PathLike[str]) -> Iterator[str]:
    """A name by which libraries that know only UTF-8 can read a file, whatever it is called."""
    name = os.fspath(path)
    try:
        name.encode()
    except UnicodeEncodeError:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            yield f"/dev/fd/{descriptor}"
        finally:
            os.close(descriptor)
    else:
        yield name


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
    "NoFolderError",
    "append_text",
    "atomic_folder",
    "atomic_write",
    "check_space",
    "check_suffix",
    "check_writable",
    "flush",
    "leftovers",
    "refuse_link",
    "remove_leftovers",
    "sha256_of",
    "sha256_of_values",
    "utf8_name",
    "write_text",
]
