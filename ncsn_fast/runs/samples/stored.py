"""What a folder has of the samples of its manifest, read a shard at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ncsn_fast.runs.samples import shards
from ncsn_fast.runs.samples.manifest import Manifest, OtherSamplesError
from ncsn_fast.runs.samples.ranges import Range, ranges_of, union
from ncsn_fast.support.parsers import shortened

WHOLE = "samples.npz"


class StoredRange(NamedTuple):
    """Neighbouring ids, and what reads their images: (N, *shape) of the layout's dtype."""

    ids: Range
    read: Callable[[], np.ndarray]


class Stored:
    """The samples in the files of a folder: its shards, and samples.npz of a small set.

    Args:
        folder: where they are; other processes may be adding to them.
        manifest: what they are of.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self._folder, self._manifest = folder, manifest
        self.whole = folder / WHOLE
        self._stamp: tuple[int, ...] | None = None  # of samples.npz when it was read
        self._of_whole: list[Range] = []

    def ids(self) -> list[Range]:
        """Which samples are in files.

        Raises:
            ValueError: for a samples.npz that is damaged, or of other contents.
        """
        found = list(self.shards())
        # Read last: what has just become part of it is no shard any more.
        return union([*found, *self._ids_of_whole()])

    def shards(self) -> dict[Range, Path]:
        """The shards by their ids."""
        return shards.present(self._folder, self._manifest.layout.format)

    def ranges(self) -> list[StoredRange]:
        """All that is there, ascending."""
        found = [
            StoredRange(ids, partial(self._read, ids, path)) for ids, path in self.shards().items()
        ]
        found += [StoredRange(ids, partial(self._of, ids)) for ids in self._ids_of_whole()]
        return sorted(found, key=lambda one: one.ids)

    def check(self, path: Path) -> None:
        """Refuse a shard that cannot be read, or is of other settings.

        Raises:
            ValueError: saying why.
        """
        ids = shards.ids_of(path, self._manifest.layout.format)
        if ids is None:
            raise ValueError(f"{path} is no shard")
        self._read(ids, path)

    def images(self, ids: Iterable[int]) -> Tensor:
        """The images of these ids, (N, *shape) as they are stored.

        Raises:
            KeyError: for an id that is in no file.
            ValueError: for damaged files.
        """
        wanted, found = sorted(ids), dict[int, np.ndarray]()
        for (first, stop), read in self.ranges():
            if some := [i for i in wanted if first <= i < stop]:
                images = read()
                found.update({i: images[i - first] for i in some})
        return torch.from_numpy(np.stack([found[i] for i in wanted]))

    def _read(self, ids: Range, path: Path) -> np.ndarray:
        with reading(path):
            return shards.read(path, ids, self._manifest)

    def _of(self, ids: Range) -> np.ndarray:
        """The images of samples.npz of neighbouring ids."""
        with reading(self.whole):
            found, images = shards.read_npz(self.whole, self._manifest)
        order = np.argsort(found)
        start = int(np.searchsorted(found, ids[0], sorter=order))
        return images[order[start : start + ids[1] - ids[0]]]

    def _ids_of_whole(self) -> list[Range]:
        """Those of samples.npz, which is read again where it is another file than before."""
        if not self.whole.exists():
            return []
        about = self.whole.stat()
        stamp = (about.st_ino, about.st_size, about.st_mtime_ns)
        if stamp != self._stamp:
            with reading(self.whole):
                ids, _ = shards.read_npz(self.whole, self._manifest)
            self._stamp, self._of_whole = stamp, ranges_of(ids)
        return self._of_whole


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """What goes wrong in the block is told of this file."""
    try:
        yield
    except (OtherSamplesError, MemoryError):
        raise
    except Exception as error:  # archives and pictures are damaged in many ways
        raise ValueError(
            f"{path} is damaged or not of ncsn-fast sample ({type(error).__name__}: "
            f"{shortened(error)}): remove it, or choose another --out"
        ) from error


__all__ = ["WHOLE", "Stored", "StoredRange", "reading"]
