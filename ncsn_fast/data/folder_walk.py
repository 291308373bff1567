"""The files of a folder: links are followed, nothing is met twice, and what is left out is told."""

from __future__ import annotations

import os
import stat
from collections import Counter, deque
from collections.abc import Collection
from pathlib import Path

from ncsn_fast.support.checks import printable

_MOST_ENDINGS, _LONGEST_ENDING = 8, 12


class FolderWalk:
    """All files with some endings in a folder and its subfolders, those behind links too.

    Of several names of one file or folder one that is no link is taken, so loops end; a link to a
    folder around this one is not followed. Order and choice depend on names alone. Hidden files
    and folders, whose names begin with a dot, are passed over.

    Args:
        folder: where to begin.
        endings: in lower case, with their dots.

    Attributes:
        files: by path, in order.
        unusable: what cannot be looked at and may be or hold such a file, by path, with the reason.
    """

    def __init__(self, folder: Path, endings: Collection[str]) -> None:
        self.files: list[Path] = []
        self.unusable: dict[Path, str] = {}
        self._endings = endings
        self._passed: Counter[str] = Counter()
        self._hidden = self._again = 0
        self._seen = {_identity(around.stat()) for around in folder.resolve().parents}
        self._folders, links = deque([folder]), deque[Path]()
        while self._folders or links:
            if self._folders:
                links += self._enter(self._folders.popleft())
            else:
                self._follow(links.popleft())
        self.files.sort()

    def passed_over(self) -> str:
        """How many files of which kinds, in a line; "" if there are none."""
        kinds = self._passed.most_common(_MOST_ENDINGS)
        told = [
            f"{number:,} {printable(ending) or 'without an ending'}" for ending, number in kinds
        ]
        rest = self._passed.total() - sum(number for _, number in kinds)
        for number, what in (
            (rest, "of other kinds"),
            (self._hidden, "hidden"),
            (self._again, "that are or lead to what is met elsewhere"),
        ):
            if number:
                told.append(f"{number:,} {what}")
        return ", ".join(told)

    def _enter(self, folder: Path) -> list[Path]:
        """Take the files of a folder; return its links."""
        try:
            status = folder.stat()
            if not self._new(_identity(status)):
                return []
            with os.scandir(folder) as inside:
                entries = sorted(inside, key=lambda entry: entry.name)
        except OSError as error:
            self.unusable[folder] = f"cannot be entered ({error.strerror})"
            return []
        links = []
        for entry in entries:
            path = Path(entry.path)
            if entry.name.startswith("."):
                wanted = _ending(path) in self._endings
                self._hidden += wanted or entry.is_dir(follow_symlinks=False)
            elif entry.is_symlink():
                links.append(path)
            elif entry.is_dir():
                self._folders.append(path)
            else:
                self._take(path, (status.st_dev, entry.inode()), entry.is_file())
        return links

    def _follow(self, link: Path) -> None:
        try:
            status = link.stat()
        except OSError as error:
            if _ending(link) in self._endings or not link.suffix:  # of none: a folder, perhaps
                self.unusable[link] = f"is a link that leads nowhere ({error.strerror})"
            else:
                self._passed[_ending(link)] += 1
            return
        if stat.S_ISDIR(status.st_mode):
            self._folders.append(link)
        else:
            self._take(link, _identity(status), stat.S_ISREG(status.st_mode))

    def _take(self, path: Path, identity: tuple[int, int], regular: bool) -> None:
        if _ending(path) not in self._endings:
            self._passed[_ending(path)] += 1
        elif not regular:
            self.unusable[path] = "is a pipe, socket or device, not a file"
        elif self._new(identity):
            self.files.append(path)

    def _new(self, identity: tuple[int, int]) -> bool:
        new = identity not in self._seen
        self._seen.add(identity)
        self._again += not new
        return new


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _ending(path: Path) -> str:
    ending = path.suffix.lower()
    return ending if len(ending) <= _LONGEST_ENDING else ""


__all__ = ["FolderWalk"]
