"""Places that nobody else can change: where code is kept that will be run, and what it goes by.

A file is as safe as every folder on the way to it. Looked at from the root on, each step belongs to
this user or to root and is writable by nobody else, so that what has been looked at stays what it
was: nobody else can put another folder, link or file in its place, now or later.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_MOST_LINKS = 40
# What flock says where there are no locks: some network, FUSE and container file systems.
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)


def why_not_private(path: Path) -> str | None:
    """What another user could do about a path, or None where that is nothing.

    Folders on the way that all may write to are allowed where each may remove only what is his own
    (the sticky bit, as of /tmp), and so is the group that only this user is in. What is not there
    yet is not looked at.

    Raises:
        OSError: for links in a circle, or a folder that may not be looked into.
    """
    if not hasattr(os, "getuid"):
        return "whose folders are whose cannot be told on this system"
    path = path.absolute()
    here, todo, links = Path(path.anchor), list(reversed(path.parts[1:])), 0
    while True:
        if reason := _why_not(os.lstat(here), here, last=not todo):
            return reason
        if not todo:
            return None
        part = todo.pop()
        if part == "..":
            here = here.parent
            continue
        step = here / part
        try:
            state = os.lstat(step)
        except FileNotFoundError:
            return None
        if not stat.S_ISLNK(state.st_mode):
            here = step
            continue
        if not _is_ours(state):
            return f"the link {step} belongs to another user"
        links += 1
        if links > _MOST_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
        target = Path(os.readlink(step))
        todo += reversed(target.parts[1:] if target.is_absolute() else target.parts)
        here = Path(target.anchor) if target.is_absolute() else here


def make_private_folder(path: Path) -> None:
    """Make a folder, and those it lies in that are missing, for this user alone.

    Raises:
        OSError: where that is not possible.
    """
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    for folder in reversed(missing):
        try:
            folder.mkdir(0o700)
        except FileExistsError:  # another process was quicker
            if not folder.is_dir():
                raise


@contextmanager
def turn(folder: Path) -> Iterator[str | None]:
    """Wait until no other process has its turn in a private folder; a turn ends with its process.

    Yields why there are no locks, where there are none: the block then runs beside others.

    Raises:
        OSError: where the folder cannot be written to.
    """
    import fcntl

    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
    with os.fdopen(os.open(folder / ".lock", flags, 0o600)) as file:
        missing = None
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            missing = error.strerror or str(error)
        yield missing


def _why_not(state: os.stat_result, path: Path, last: bool) -> str | None:
    if not _is_ours(state):
        return f"{path} belongs to another user"
    mode = state.st_mode
    if stat.S_ISDIR(mode) and mode & stat.S_ISVTX and not last:
        return None
    if mode & stat.S_IWOTH:
        return f"{path} may be written to by everybody"
    if mode & stat.S_IWGRP and not _is_own_group(state.st_gid):
        return f"{path} may be written to by a group"
    return None


def _is_ours(state: os.stat_result) -> bool:
    return state.st_uid in (0, os.getuid())


def _is_own_group(group: int) -> bool:
    """Whether a group is the one that many systems make for each user."""
    import grp
    import pwd

    try:
        user, entry = pwd.getpwuid(os.getuid()), grp.getgrgid(group)
    except KeyError:
        return False
    return entry.gr_name == user.pw_name and set(entry.gr_mem) <= {user.pw_name}


__all__ = ["make_private_folder", "turn", "why_not_private"]
