"""The samples of one network and seed in a folder, which one process fills, or many.

They lie in shards, ranges of ids that are written once, when they are whole. Which process makes
which is nowhere agreed: each takes one that is missing and that nobody has, by a lock that ends
with the process. Of the shard under way its finished images and the states of its chains are saved
now and then, for whoever takes it next.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ncsn_fast.device.memory import copied_later
from ncsn_fast.distributed.ranks import Ranks
from ncsn_fast.runs.samples import legacy, shards
from ncsn_fast.runs.samples.manifest import (
    NAME,
    Manifest,
    check_identity,
    check_number,
    layout_of,
    read_manifest,
)
from ncsn_fast.runs.samples.ranges import Range, number, pieces, union, without
from ncsn_fast.runs.samples.stored import Stored
from ncsn_fast.runs.samples.under_way import Shard
from ncsn_fast.support.files import atomic_write, check_space, refuse_link, remove_leftovers
from ncsn_fast.support.locks import taken, told

_log = logging.getLogger("ncsn_fast")
SAVE_SECONDS = 30.0  # at most this much work is lost when the process is killed
_BLOCK = ".manifest.lock"  # what no two processes have at once
# Bytes of an image beside its values: of a PNG, an archive's headers and padding, a disk's block.
_BESIDE = {"npz": 0, "tar": 2048, "png": 4096}
_LOOK_SECONDS = 0.5  # between two looks at the shards that others are making


class SampleStore:
    """A folder of samples, to be filled.

    Args:
        folder: where they are; its lock is held, at least shared.
        identity: JSON values that say what the samples are of; files of others are refused.
        ids: which are wanted.
        shape: of one sample.
        wished: of the layout: format, dtype, shard and chunk, None for as it is there, or as usual.
        chunk_of: how many of so many samples are best computed at once.
        about: what the manifest says of them besides.
        levels: the noise levels at which a chain can be taken up.
        classes: of which class each id is, by number.

    Attributes:
        manifest: what the folder's says now.
        stored: what is in files.

    Raises:
        ValueError: for files that are damaged, of other contents, identity or layout.
        OSError: for a disk without room.
    """

    def __init__(
        self,
        folder: Path,
        identity: dict[str, Any],
        ids: Range,
        shape: tuple[int, ...],
        wished: Mapping[str, Any],
        chunk_of: Callable[[int], int],
        about: dict[str, Any] | None = None,
        levels: Collection[int] = (),
        classes: shards.ClassesOf = lambda ids: None,
    ) -> None:
        self._folder, self._ids, self._levels, self._classes = folder, ids, levels, classes
        self._pool: ThreadPoolExecutor | None = None
        self._writing: Future[None] | None = None
        self._unwritten: list[Shard] = []  # taken and not written: the last one is under way
        self._written = time.monotonic()
        refuse_link(folder / shards.FOLDER)
        with self.alone():
            there = read_manifest(folder)
            if there is None:
                wished = legacy.wish(folder, wished)
            else:
                check_identity(folder / NAME, there.identity, identity)
            layout = layout_of(there, folder / NAME, shape, wished, chunk_of)
            check_number(ids, layout.shard)
            new = there or Manifest(identity, layout, about or {}, [])
            legacy.take_in(folder, new)
            self.stored = Stored(folder, new)
            # What a command before has wanted and not made is wanted no more.
            self.manifest = replace(new, ids=union([ids, *self.stored.ids()]))
            check_space(folder, self._bytes_needed(), "the samples")
            if self.manifest != there:
                self.manifest.write(folder)

    def missing(self) -> list[Range]:
        """The ids that are wanted, and in no file."""
        return without([self._ids], self.stored.ids())

    def unmade(self) -> list[Range]:
        """Those that this process has not made either: it writes while the next are made."""
        made = [shard.ids for shard in [*self._unwritten] if shard.is_done]
        return without(self.missing(), made)

    def is_begun(self) -> bool:
        """Whether some that are in no file are under way, or were when a process ended."""
        return bool(self._partials())

    def _bytes_needed(self) -> int:
        """What the missing samples, and their saves on the way, take on the disk at most."""
        layout, there = self.manifest.layout, number(self.stored.ids())
        missing, values = number(self.missing()), math.prod(layout.shape)
        item = np.dtype(layout.dtype).itemsize
        if layout.format == "npz" and missing + there <= layout.shard:
            return 2 * item * values * (missing + there)  # the shards, and the one file of them
        each = item * values + _BESIDE[layout.format]
        return each * missing + (item + 4) * values * min(missing, layout.shard)

    def shards(self, place: Ranks, *, part_only: bool = False) -> Iterator[Shard]:
        """Take one missing shard after the other, until none is missing.

        Args:
            place: begin with its own, every N-th, so that processes seldom meet.
            part_only: make these alone, and do not wait for the others.
        """
        size, waits = self.manifest.layout.shard, False
        while missing := self._pieces():
            own = [ids for ids in missing if ids[0] // size % place.size == place.rank]
            others = [ids for ids in reversed(missing) if ids[0] // size % place.size != place.rank]
            shard = self._take(own if part_only else [*own, *others])
            if shard is not None:
                self._unwritten.append(shard)
                waits = False
                if shard.is_done:  # by a process that came to save it, and not to write it
                    self._write(shard)
                else:
                    yield shard
            elif self._writing is not None:
                self._wait()
            elif part_only:
                break
            else:
                if not waits:
                    _log.info("other processes are making the last shards")
                waits = True
                time.sleep(_LOOK_SECONDS)
        self._wait()

    def add(self, shard: Shard, images: Tensor) -> None:
        """Take in the next finished images (N, *shape) of a shard, in [0, 1], on any device.

        They are copied, and a shard that is whole is written, while the next are made.
        """
        start, fetch = shard.done, copied_later(images)
        shard.done, shard.chain = start + len(images), None
        self._wait()
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, "ncsn_fast samples")
        self._writing = self._pool.submit(self._take_in, shard, start, fetch)
        self.save_now_and_then()

    def keep(self, shard: Shard, states: Tensor, level: int) -> None:
        """Note where the chains of a shard's next images are; written with the next save."""
        shard.chain = level, states
        self.save_now_and_then()

    def save_now_and_then(self) -> None:
        """Save, if the last time is long ago; a disk that takes nothing is a warning.

        Raises:
            OSError, ValueError: where a shard that is whole could not be written: memory is that
                of two of them, so no others are made.
        """
        if time.monotonic() - self._written <= SAVE_SECONDS:
            return
        self._wait()
        try:
            self._save()
        except (OSError, ValueError) as error:
            _log.warning(
                "%s. Sampling goes on, and tries again in %.0f seconds", _why(error), SAVE_SECONDS
            )
        self._written = time.monotonic()

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Save all there is when the block ends, however it does.

        Raises:
            OSError: where that cannot be saved, with what is lost and what ended the block.
        """
        end: BaseException | None = None
        try:
            yield
        except BaseException as error:
            end = error
            raise
        finally:
            try:
                self._end()
            except (OSError, ValueError) as error:
                why = "" if end is None or _why(end) == _why(error) else f" ({_why(end)})"
                raise OSError(f"{_why(error)}. {self._lost()}{why}") from end
            finally:
                for shard in self._unwritten:
                    shard.lock.close()
                if self._pool is not None:
                    self._pool.shutdown()

    @contextlib.contextmanager
    def finished(self, *, wait: bool = True) -> Iterator[bool]:
        """Whether all that this command wants is there, in a block that only one process is in at
        a time.

        Where all that any command wants is there, new files are checked against their checksums
        and noted in the manifest, and the rest is tidied up. A small set becomes one file,
        samples.npz.

        Args:
            wait: False leaves it to the process that is in the block now, if there is one.

        Raises:
            ValueError: for files that are damaged.
        """
        with taken(self._folder / _BLOCK, wait=wait) as mine:
            there = read_manifest(self._folder) or self.manifest
            if mine and not without(union([*there.ids, self._ids]), self.stored.ids()):
                self._note(there)
                self._tidy_up()
            yield mine and not self.missing()

    def alone(self) -> contextlib.AbstractContextManager[bool]:
        """A block of what no two processes do at once, each for a moment."""
        return taken(self._folder / _BLOCK, wait=True)

    def _note(self, there: Manifest) -> None:
        """Put the checksums of all files into the manifest, which says so far what is there."""
        layout, name = there.layout, self.stored.whole.name
        parts = self.stored.shards()
        if layout.format == "npz" and parts and number(self.stored.ids()) <= layout.shard:
            if name in there.files:  # what is said of it is not true for long
                there = replace(there, files={k: v for k, v in there.files.items() if k != name})
                there.write(self._folder)
            self._into_one_file(list(parts.values()))
        files = [*self.stored.shards().values()]
        files += [self.stored.whole] if self.stored.whole.exists() else []
        names = {path.relative_to(self._folder).as_posix(): path for path in files}
        # What has a checksum beside it was made since, also where it takes another's place.
        old = {
            k: v
            for k, v in there.files.items()
            if k in names and not shards.beside(names[k]).exists()
        }
        sums = {name: old.get(name) or self._new_sum(name) for name in names}
        self.manifest = replace(there, ids=self.stored.ids(), files=sums)
        if self.manifest != there:
            self.manifest.write(self._folder)

    def _into_one_file(self, parts: Iterable[Path]) -> None:
        ranges = self.stored.ranges()
        ids = np.concatenate([np.arange(*ids) for ids, _ in ranges])
        images = np.concatenate([read() for _, read in ranges])
        # Some are in both where a process was killed between the next two steps.
        ids, rows = np.unique(ids, return_index=True)
        with atomic_write(self.stored.whole) as temporary:
            shards.write_npz(temporary, ids, images[rows], self.manifest.identity)
        for path in parts:
            path.unlink()

    def _new_sum(self, name: str) -> str:
        """The SHA-256 of a file that is not in the manifest yet, and is what it should be."""
        path = self._folder / name
        found = shards.sum_of(path)
        if path != self.stored.whole:  # which has been read
            self.stored.check(path)
            beside = shards.stored_sum(path)  # none where a manifest was lost that had it
            if beside not in (None, found):
                raise ValueError(
                    f"{path} is damaged: its SHA-256 is not the one beside it. Remove it, and the "
                    "same command makes it again"
                )
        return found

    def _tidy_up(self) -> None:
        """Remove what killed processes have left, and checksums that are in the manifest. What
        another process has, which makes samples that are not wanted here, stays, and so does what
        is not of ours."""
        remove_leftovers(self._folder)
        folder, there, busy = self._folder / shards.FOLDER, self.stored.ids(), False
        if not folder.exists():
            return
        for path in self.stored.shards().values():
            shards.beside(path).unlink(missing_ok=True)
        for path in self._partials():
            ids = shards.ids_of_name(path.name.removesuffix(shards.PARTIAL))
            if ids is not None and not without([ids], there):
                path.unlink()
        for path in folder.glob(".*.lock"):
            with taken(path) as mine:
                busy = busy or not mine
        if not busy:
            remove_leftovers(folder)
            for path in folder.glob(f"[0-9]*{shards.SUM}"):  # of shards that were not finished
                if shards.ids_of_name(path.name.partition(".")[0]) and path.is_file():
                    path.unlink()
        with contextlib.suppress(OSError):  # it is not empty
            folder.rmdir()

    def _lock(self, ids: Range) -> Path:
        """That of all ranges between the same two multiples of a shard: of commands that want
        other numbers too."""
        first = ids[0] - ids[0] % self.manifest.layout.shard
        return self._folder / shards.FOLDER / f".{first:09d}.lock"

    def _pieces(self) -> list[Range]:
        """The ranges that shards are to be made of: as they are cut, or were when they were begun,
        by a command that may have wanted fewer."""
        missing, begun, size = self.missing(), [], self.manifest.layout.shard
        for path in self._partials():
            ids = shards.ids_of_name(path.name.removesuffix(shards.PARTIAL))
            if ids and ids[0] // size == (ids[1] - 1) // size and not without([ids], missing):
                begun.append(ids)
                missing = without(missing, [ids])
        return sorted([*begun, *pieces(missing, size)])

    def _partials(self) -> list[Path]:
        return sorted((self._folder / shards.FOLDER).glob(f"[0-9]*{shards.PARTIAL}"))

    def _take(self, wanted: Iterable[Range]) -> Shard | None:
        """The first of these that nobody has, with what there is of it."""
        with told(self._folder / shards.FOLDER):
            (self._folder / shards.FOLDER).mkdir(exist_ok=True)  # not where all of it was deleted
        for ids in wanted:
            with contextlib.ExitStack() as stack:
                mine = stack.enter_context(taken(self._lock(ids)))
                # It may have been made between the look and the lock.
                if mine and without([ids], self.stored.ids()) == [ids]:
                    shard = Shard(ids, self.manifest.layout)
                    shard.take_up(self._partial(shard), self.manifest, self._levels)
                    shard.lock = stack.pop_all()
                    return shard
        return None

    def _take_in(self, shard: Shard, start: int, fetch: Callable[[], Tensor]) -> None:
        """Copy finished images to their place; write the shard where that is all of it."""
        if start != shard.copied:
            raise OSError(f"the images before sample {shard.ids[0] + start} could not be copied")
        images = shards.stored_as(fetch().numpy(), self.manifest.layout.dtype)
        shard.images[start : start + len(images)] = images
        shard.copied = start + len(images)
        if shard.copied == len(shard.images):
            self._write(shard)

    def _write(self, shard: Shard) -> None:
        path = shards.path_of(self._folder, shard.ids, self.manifest.layout.format)
        shards.write(path, shard.ids[0], shard.images, self.manifest, self._classes)
        self._partial(shard).unlink(missing_ok=True)
        self._unwritten.remove(shard)
        shard.lock.close()

    def _wait(self) -> None:
        """For what is being written; raises what that raised."""
        if (writing := self._writing) is None:
            return
        try:
            writing.result()
        finally:  # not where Ctrl-C has ended the waiting
            if writing.done():
                self._writing = None

    def _end(self) -> None:
        """Write what is in no file yet; what failed is tried once more."""
        with contextlib.suppress(OSError, ValueError):
            self._wait()
        try:
            for shard in list(self._unwritten):
                if shard.copied == len(shard.images):
                    self._write(shard)
        finally:
            self._save()

    def _lost(self) -> str:
        """What is lost where the process ends now, in words."""
        lost = sum(shard.done - shard.saved for shard in self._unwritten)
        if not lost:
            return "What is finished is saved; the same command goes on"
        return (
            f"{lost} finished samples were in no file yet and are lost; the same command makes "
            "them again"
        )

    def _save(self) -> None:
        """Save what there is of the shard under way, where something is new."""
        self._wait()
        shard = self._unwritten[-1] if self._unwritten else None
        if shard is not None:
            shard.save(self._partial(shard), self.manifest)

    def _partial(self, shard: Shard) -> Path:
        path = shards.path_of(self._folder, shard.ids, self.manifest.layout.format)
        return path.with_name(f"{path.stem}{shards.PARTIAL}")


def _why(error: BaseException) -> str:
    """What the system says, without the number of its error."""
    return str(getattr(error, "strerror", None) or error) or type(error).__name__


__all__ = ["SAVE_SECONDS", "SampleStore"]
