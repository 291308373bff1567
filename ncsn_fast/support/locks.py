"""Locks of folders, and of pieces of work in them, that end with the process that holds them; and
what is told where the system does not let one write."""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_log = logging.getLogger("ncsn_fast")
# Windows has none of these; a pipe or a device would let open() wait.
NOT_THROUGH_LINKS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
# How systems say that they do not have what was asked for: locks, or putting a folder on the disk.
NOT_SUPPORTED = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL}
_FULL = {errno.ENOSPC, errno.EDQUOT}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
_MOMENT, _TRIES = 0.05, 20  # seconds between two looks at a lock, and how often for a moment
# The folders that this process has locked, and what it holds their locks by.
_held: dict[Path, int] = {}


@contextmanager
def folder_lock(
    folder: str | os.PathLike[str],
    otherwise: str = "choose another folder",
    *,
    shared: bool = False,
) -> Iterator[None]:
    """Keep other processes out of a folder that this one writes to, for the length of the block.

    The folder is made where it does not exist. What was made, it and the file ``.lock``, goes again
    in the end, the folder where the block has left it empty: who is refused leaves no trace.
    The lock ends with the process, however that ends. Where the system has no file locks the work
    goes on with a warning. Where the folder is removed meanwhile, and another process has made and
    locked it anew, nothing more is written there.

    Args:
        shared: let those in who want it shared too: they take their pieces by :func:`taken`.

    Raises:
        ValueError: while another process, or another block of this one, holds the lock; where the
            folder cannot be made; where ``.lock`` is not a file.
        OSError: if the folder cannot be written to.
    """
    folder = Path(folder)
    path, place = folder / ".lock", folder.absolute()
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    make_folder(folder, otherwise)
    try:
        found = _take(path, otherwise, shared)
        for _ in range(_TRIES if shared else 0):  # one that leaves has it alone for a moment
            if found is None:
                time.sleep(_MOMENT)
                found = _take(path, otherwise, shared)
        if found is None:
            raise ValueError(f"another process is writing to {folder}: wait for it, or {otherwise}")
        descriptor, goes = found
        before = _held.get(place)  # of another block that shares it
        _held[place] = descriptor
        try:
            yield
            goes = True  # also one that a killed process left
        finally:
            if goes and not _is_of_another(path, descriptor) and _is_last(descriptor, shared):
                with contextlib.suppress(OSError):
                    path.unlink()
            _held.pop(place, None)
            if before is not None:
                _held[place] = before
            os.close(descriptor)
    finally:
        with contextlib.suppress(OSError):  # one is not empty
            for each in missing:
                each.rmdir()


@contextmanager
def taken(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Whether this process has a piece of work, whose lock is this file, for the length of the
    block: not where another one has it. Without locks of files everybody has it.

    Args:
        wait: until the others are done with it, or have ended.

    Raises:
        ValueError: where the path is not that of a file.
        OSError: where the file cannot be made.
    """
    while (found := _take(path, "take another folder", shared=False)) is None and wait:
        time.sleep(_MOMENT)
    try:
        yield found is not None
    finally:
        if found is not None:
            with contextlib.suppress(OSError):
                path.unlink()
            os.close(found[0])


def make_folder(path: str | os.PathLike[str], otherwise: str = "choose another") -> None:
    """Make a folder, and those it lies in, where it does not exist.

    Raises:
        ValueError: where it cannot be made, with why and what to do ``otherwise``.
    """
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "it is a file" if Path(path).is_file() else str(error)
        raise ValueError(f"cannot make the folder {path}: {reason}; {otherwise}") from error


def check_held(folder: Path) -> None:
    """Refuse to write where somebody else writes by now.

    Raises:
        ValueError: for a folder that was locked here, it or one it is in, and has another lock by
            now.
    """
    place = folder.absolute()
    for each in (place, *place.parents):
        descriptor = _held.get(each)
        if descriptor is not None and _is_of_another(each / ".lock", descriptor):
            raise ValueError(
                f"{each} was removed and made anew by another process, which writes there by now: "
                "choose another folder"
            )


def _take(path: Path, otherwise: str, shared: bool) -> tuple[int, bool] | None:
    """A descriptor that holds the lock, and whether its file was made here; None while it is
    another's."""
    while True:
        descriptor, is_new = _open(path, otherwise)
        try:
            if not _lock(descriptor, path, shared):
                os.close(descriptor)
                return None
            # Who held it before may have removed the file that was opened here.
            if os.path.samestat(os.fstat(descriptor), os.stat(path, follow_symlinks=False)):
                return descriptor, is_new
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _open(path: Path, otherwise: str) -> tuple[int, bool]:
    flags = os.O_RDWR | NOT_THROUGH_LINKS
    while True:
        with told(path), contextlib.suppress(FileExistsError):
            return os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o666), True
        # There is something: a process that is there or was, or what somebody else has laid there.
        with contextlib.suppress(FileNotFoundError), told(path):  # it may be gone by now
            if not stat.S_ISREG(path.lstat().st_mode):
                raise ValueError(
                    f"{path} is not a file but a link, folder, pipe or device, and it "
                    f"is to be the lock of {path.parent}: remove it, or {otherwise}"
                )
            return os.open(path, flags), False


def _is_of_another(path: Path, descriptor: int) -> bool:
    """Whether there is a lock, and not the one held by this descriptor."""
    try:
        return not os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


def _is_last(descriptor: int, shared: bool) -> bool:
    """Whether nobody shares a lock any more."""
    if not shared:
        return True
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:
        return True
    except OSError:
        return False
    return True


def _lock(descriptor: int, path: Path, shared: bool) -> bool:
    """Whether the lock is had now; not while it is another's."""
    try:
        import fcntl

        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except ImportError:  # no such locks on Windows
        pass
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NOT_SUPPORTED:
            raise _named(error, path) from error
        _warn_of_no_locks(path.parent, error.strerror)
    return True


@contextmanager
def told(path: Path) -> Iterator[None]:
    """An error of the system names the file that was to be written, and says what to do."""
    try:
        yield
    except OSError as error:
        if str(path) in str(error) and not error.filename:
            raise  # it says so already
        raise _named(error, path) from error


def _named(error: OSError, path: Path) -> OSError:
    """Such an error, of its number."""
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


@functools.cache  # once, however often a folder is locked
def _warn_of_no_locks(folder: Path, why: str) -> None:
    _log.warning(
        "the file system of %s has no locks (%s): see to it that no second process writes there",
        folder,
        why,
    )


__all__ = [
    "NOT_SUPPORTED",
    "NOT_THROUGH_LINKS",
    "check_held",
    "folder_lock",
    "make_folder",
    "taken",
    "told",
]
