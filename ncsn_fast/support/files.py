"""Files that are either complete or not there, and folders that one process writes to at a time.

No file is written through a link that lies in its place: what is written beside it and renamed
replaces the link, what is opened refuses it.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import logging
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_log = logging.getLogger("ncsn_fast")
# Long names are cut, as most file systems take no name of more than 255 bytes.
_STEM, _SUFFIX = 16, 16
_TEMPORARY = re.compile(r"\..+-[0-9a-f]{8}\.(safetensors|jsonl?|npz|png|gif|md|html|gz)", re.DOTALL)
# Windows has none of these; a pipe or a device would let open() wait.
_NOT_THROUGH_LINKS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
# How systems say that they do not have what was asked for: locks, or putting a folder on the disk.
_NOT_SUPPORTED = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL}
_FULL = {errno.ENOSPC, errno.EDQUOT}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
# The folders that this process has locked, and what it holds their locks by.
_held: dict[Path, int] = {}


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
        with _told(path):
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
    _check_held(Path(path).parent)
    with _told(Path(path)):
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | _NOT_THROUGH_LINKS
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


@contextmanager
def folder_lock(
    folder: str | os.PathLike[str], otherwise: str = "choose another folder"
) -> Iterator[None]:
    """Keep a second process out of a folder that this one writes to, for the length of the block.

    The folder is made where it does not exist. What was made, it and the file ``.lock``, goes again
    in the end, the folder where the block has left it empty: who is refused leaves no trace.
    The lock ends with the process, however that ends. Where the system has no file locks the work
    goes on with a warning. Where the folder is removed meanwhile, and another process has made and
    locked it anew, nothing more is written there.

    Raises:
        ValueError: while another process, or another block of this one, holds the lock; where the
            folder cannot be made; where ``.lock`` is not a file.
        OSError: if the folder cannot be written to.
    """
    folder = Path(folder)
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    make_folder(folder, otherwise)
    try:
        descriptor, goes = _take_lock(folder, otherwise)
        place = folder.absolute()
        _held[place] = descriptor
        try:
            yield
            goes = True  # also one that a killed process left
        finally:
            if goes and not _is_of_another(folder / ".lock", descriptor):
                with contextlib.suppress(OSError):
                    (folder / ".lock").unlink()
            _held.pop(place, None)
            os.close(descriptor)
    finally:
        with contextlib.suppress(OSError):  # one is not empty
            for each in missing:
                each.rmdir()


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files that a killed process left in a folder whose lock is held."""
    for path in leftovers(folder):
        path.unlink(missing_ok=True)


def leftovers(folder: Path) -> list[Path]:
    """The temporary files of :func:`atomic_write` in a folder."""
    found = folder.glob(".*-????????.*")
    return [path for path in found if _TEMPORARY.fullmatch(path.name) and path.is_file()]


def _take_lock(folder: Path, otherwise: str) -> tuple[int, bool]:
    """A descriptor that holds the lock, and whether its file was made here."""
    path = folder / ".lock"
    while True:
        descriptor, is_new = _open_lock(path, otherwise)
        try:
            _lock(descriptor, folder, otherwise)
            # Who held it before may have removed the file that was opened here.
            if os.path.samestat(os.fstat(descriptor), os.stat(path, follow_symlinks=False)):
                return descriptor, is_new
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _open_lock(path: Path, otherwise: str) -> tuple[int, bool]:
    flags = os.O_RDWR | _NOT_THROUGH_LINKS
    while True:
        with _told(path), contextlib.suppress(FileExistsError):
            return os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o666), True
        # There is something: a process that is there or was, or what somebody else has laid there.
        with contextlib.suppress(FileNotFoundError), _told(path):  # it may be gone by now
            if not stat.S_ISREG(path.lstat().st_mode):
                raise ValueError(
                    f"{path} is not a file but a link, folder, pipe or device, and it "
                    f"is to be the lock of {path.parent}: remove it, or {otherwise}"
                )
            return os.open(path, flags), False


def _check_held(folder: Path) -> None:
    """Refuse to write where somebody else writes by now.

    Raises:
        ValueError: for a folder that was locked here, and has another lock by now.
    """
    descriptor = _held.get(folder.absolute())
    if descriptor is not None and _is_of_another(folder / ".lock", descriptor):
        raise ValueError(
            f"{folder} was removed and made anew by another process, which writes there by now: "
            "choose another folder"
        )


def _is_of_another(path: Path, descriptor: int) -> bool:
    """Whether there is a lock, and not the one held by this descriptor."""
    try:
        return not os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


def _lock(descriptor: int, folder: Path, otherwise: str) -> None:
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:  # no such locks on Windows
        pass
    except BlockingIOError:
        raise ValueError(
            f"another process is writing to {folder}: wait for it, or {otherwise}"
        ) from None
    except OSError as error:
        if error.errno not in _NOT_SUPPORTED:
            raise _named(error, folder / ".lock") from error
        _warn_of_no_locks(folder, error.strerror)


@functools.cache  # once, however often a folder is locked
def _warn_of_no_locks(folder: Path, why: str) -> None:
    _log.warning(
        "the file system of %s has no locks (%s): see to it that no second process writes there",
        folder,
        why,
    )


def _new_temporary(path: Path) -> Path:
    if not path.parent.is_dir():
        raise NoFolderError(
            f"cannot write {path}: the folder {path.parent} does not exist, make it"
        )
    if path.is_dir():
        raise ValueError(f"cannot write {path}: it is a folder, give the name of a file")
    _check_held(path.parent)
    name = f".{path.stem[:_STEM]}-{secrets.token_hex(4)}{path.suffix[:_SUFFIX]}"
    temporary = path.with_name(name)
    with _told(path):
        # Made here rather than by the tempfile module, whose files nobody else may read.
        temporary.touch(exist_ok=False)
    return temporary


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """An error of the system names the file that was to be written, and says what to do."""
    try:
        yield
    except OSError as error:
        if str(path) in str(error) and not error.filename:
            raise  # it says so already
        raise _named(error, path) from error


def _named(error: OSError, path: Path) -> OSError:
    remedy = "choose another folder"
    if error.errno in _FULL:
        remedy = "make room, or choose another folder"
    elif error.errno in _FORBIDDEN:
        remedy = "choose another folder, or make this one writable"
    elif error.errno == errno.ENAMETOOLONG:
        remedy = "choose a shorter name"
    elif error.errno == errno.ELOOP:
        remedy = "it is a link, and nothing is written through one: remove it"
    text = f"cannot write {path}: {error.strerror or error}; {remedy}"
    return OSError(text) if error.errno is None else OSError(error.errno, text)


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
        if error.errno not in _NOT_SUPPORTED:
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
    "atomic_write",
    "check_space",
    "check_suffix",
    "check_writable",
    "flush",
    "folder_lock",
    "leftovers",
    "make_folder",
    "refuse_link",
    "remove_leftovers",
    "sha256_of",
    "utf8_name",
    "write_text",
]
