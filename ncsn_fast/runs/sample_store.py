"""The samples of one network and seed in a folder: the finished ones and those under way."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ncsn_fast.checkpoints.tensor_file import read_tensors, write_tensors
from ncsn_fast.device import measured
from ncsn_fast.models.conv_forms import DIRECT, NAMES
from ncsn_fast.support.array_parsers import open_npz
from ncsn_fast.support.files import atomic_write
from ncsn_fast.support.parsers import parse_json, shortened, shown

_log = logging.getLogger("ncsn_fast")
MOST_SAMPLES = 1 << 48  # ids of samples are below
# The forms of the convolutions, in the identity; without them, in older versions, all were direct.
_FORMS, _DIRECT = "convolutions", NAMES[DIRECT]
SAVE_SECONDS = 30.0  # at most this much work is lost when the process is killed


class Part(NamedTuple):
    """Samples to be made together: from the start, or from these states at this noise level."""

    ids: list[int]
    states: Tensor | None = None
    level: int = 0


class SampleStore:
    """samples.npz, the finished samples by id, and partial.safetensors, the chains under way.

    While a run goes on, what is finished since the last save is a file of its own, part_*.npz: a
    save takes as long as what is new, however much there is. At the end, or when the run is
    interrupted, the parts go into samples.npz; those that a killed process left are read.

    Args:
        folder: where the files are.
        identity: JSON values that say what the samples are of; files of others are refused.
        shape: of one sample.
        levels: the noise levels that a chain can begin.

    Raises:
        ValueError: for files that are damaged, of other contents or of another identity.
    """

    def __init__(
        self, folder: Path, identity: dict[str, Any], shape: Sequence[int], levels: Collection[int]
    ) -> None:
        self._shape, self._levels = tuple(shape), levels
        self.path, self._partial = folder / "samples.npz", folder / "partial.safetensors"
        self._identity = identity
        self._done: dict[int, np.ndarray] = {}
        self._new: list[int] = []  # finished, and in no file yet
        self._parts = sorted(folder.glob("part_" + 6 * "[0-9]" + ".npz"))
        # id -> (noise level that the chain is about to begin, states of its batch, row in them);
        # the states stay where they are until they are written.
        self._chains: dict[int, tuple[int, Tensor, int]] = {}
        self._written = time.monotonic()
        for path in ([self.path] if self.path.exists() else []) + self._parts:
            self._read_done(path)
        if self._partial.exists():
            self._read_chains()

    def __len__(self) -> int:
        return len(self._done)

    def missing(self, ids: Iterable[int]) -> list[int]:
        return [i for i in ids if i not in self._done]

    def images(self, ids: Sequence[int]) -> Tensor:
        return torch.from_numpy(np.stack([self._done[i] for i in ids]))

    def parts(self, wanted: Sequence[int], chunk: int) -> list[Part]:
        """The wanted samples in parts of at most ``chunk``, chains under way first."""
        by_level: dict[int, list[int]] = {}
        fresh = []
        for i in wanted:
            if i in self._chains:
                by_level.setdefault(self._chains[i][0], []).append(i)
            else:
                fresh.append(i)
        plan = []
        for level, ids in by_level.items():
            for some in _cut(ids, chunk):
                states = torch.stack([self._state(i) for i in some])
                plan.append(Part(some, states, level))
        return plan + [Part(some) for some in _cut(fresh, chunk)]

    def add(self, ids: Sequence[int], images: Tensor) -> None:
        """Take in finished samples."""
        self._done.update(zip(ids, images.cpu().numpy(), strict=True))
        self._new += ids
        for i in ids:
            self._chains.pop(i, None)

    def keep(self, ids: Sequence[int], states: Tensor, level: int) -> None:
        """Note where chains are; written with the next save."""
        self._chains.update({i: (level, states, row) for row, i in enumerate(ids)})
        self.write_now_and_then()

    def forget_chains(self) -> None:
        """Give up the chains under way."""
        self._chains.clear()

    def write_now_and_then(self) -> None:
        """Save, if the last time is long ago; a disk that takes nothing is a warning."""
        if time.monotonic() - self._written <= SAVE_SECONDS:
            return
        try:
            self.write()
        except (OSError, ValueError) as error:
            self._written = time.monotonic()
            _log.warning(
                "%s. Sampling goes on, and tries again in %.0f seconds", _why(error), SAVE_SECONDS
            )

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
                self.finish()
            except (OSError, ValueError) as error:
                why = "" if end is None else f" ({str(end) or type(end).__name__})"
                raise OSError(
                    f"{_why(error)}. {len(self._new)} finished samples were in no "
                    f"file yet and are lost; the same command makes them again{why}"
                ) from end

    def write(self) -> None:
        """Save what is new, and where the chains are."""
        if self._new:
            number = int(self._parts[-1].stem[5:]) + 1 if self._parts else 0
            part = self.path.with_name(f"part_{number:06d}.npz")
            self._write_done(part, sorted(self._new))
            self._parts.append(part)
            self._new = []
        self._write_chains()
        self._written = time.monotonic()

    def finish(self) -> None:
        """Save everything, the finished samples as one file.

        First as :meth:`write` does, which takes a moment: where the rest fails, on a full disk or
        because the process is killed, nothing is lost.
        """
        self.write()
        if self._parts:
            self._write_done(self.path, sorted(self._done))
        while self._parts:
            self._parts.pop().unlink(missing_ok=True)

    def _write_done(self, path: Path, ids: Sequence[int]) -> None:
        with atomic_write(path) as temporary:
            np.savez(
                temporary,
                images=np.stack([self._done[i] for i in ids]),
                sample_ids=np.array(ids, dtype=np.int64),
                settings=np.array(json.dumps(self._identity)),
            )

    def _write_chains(self) -> None:
        if self._chains:
            states = torch.stack([self._state(i) for i in self._chains])
            levels = [level for level, _, _ in self._chains.values()]
            metadata = {"identity": self._identity, "ids": list(self._chains), "levels": levels}
            write_tensors(self._partial, {"states": states}, metadata)
        elif self._partial.exists():
            self._partial.unlink()

    def _state(self, i: int) -> Tensor:
        _, states, row = self._chains[i]
        return states[row].cpu()

    def _read_done(self, path: Path) -> None:
        with _read(path), open_npz(path) as stored:
            self._check(path, parse_json(str(stored["settings"]), "its entry settings"))
            ids, images = stored["sample_ids"], stored["images"]
            self._check_states(ids, images)
        self._done.update(zip(ids.tolist(), images, strict=True))

    def _read_chains(self) -> None:
        with _read(self._partial):
            tensors, metadata = read_tensors(self._partial)
            self._check(self._partial, metadata["identity"])
            ids, levels = np.array(metadata["ids"]), np.array(metadata["levels"])
            states = tensors["states"]
            self._check_states(ids, states.numpy())
            if levels.dtype != np.int64 or levels.shape != ids.shape:
                raise ValueError("its levels are not one whole number for each id")
            if strange := set(levels.tolist()) - set(self._levels):
                raise ValueError(f"no chain can begin at level {shown(min(strange))}")
        for row, (i, level) in enumerate(zip(ids.tolist(), levels.tolist(), strict=True)):
            if i not in self._done:
                self._chains[i] = (level, states, row)

    def _check_states(self, ids: np.ndarray, states: np.ndarray) -> None:
        """Refuse ids and states, one for each, that no run of these samples has written.

        Raises:
            ValueError: saying what is wrong.
        """
        if ids.dtype != np.int64 or ids.ndim != 1 or len(set(ids.tolist())) != len(ids):
            raise ValueError("its ids are no distinct whole numbers")
        if len(ids) and not (ids.min() >= 0 and ids.max() < MOST_SAMPLES):
            raise ValueError("its ids are out of range")
        if states.dtype != np.float32 or states.shape != (len(ids), *self._shape):
            raise ValueError(
                f"it holds {states.dtype} {states.shape}, which is not one sample of "
                f"{self._shape} for each of {len(ids)} ids"
            )
        if not np.isfinite(states).all():
            raise ValueError("it holds values that are not finite")

    def _check(self, path: Path, identity: Any) -> None:
        if not isinstance(identity, dict):
            raise ValueError("its settings are no table of names and values")
        there, here = (one.get(_FORMS, _DIRECT) for one in (identity, self._identity))
        others = [key for key in self._identity if key != _FORMS]  # which depend on all of these
        differ = [key for key in others if identity.get(key) != self._identity[key]]
        if differ:
            raise _Other(
                f"{path} holds samples of other settings ({', '.join(differ)} differ): choose "
                "another --out"
            )
        if there != here:
            raise _Other(_other_forms(path, there, here))


def _other_forms(path: Path, there: Any, here: Any) -> str:
    told = f"{path} holds samples whose convolutions ran otherwise ({there!s:.80}; here: {here})"
    if there == _DIRECT:
        return f"{told}: go on with NCSN_FAST_CONV=direct, or choose another --out"
    return (
        f"{told}. They are chosen by NCSN_FAST_CONV, or by times measured on the machine, kept in "
        f"{measured.cache_file()}: go on where it was begun, with both as they were, or choose "
        "another --out"
    )


class _Other(ValueError):
    """A file of another run."""


def _why(error: Exception) -> str:
    """What the system says, without the number of its error."""
    return str(getattr(error, "strerror", None) or error)


@contextlib.contextmanager
def _read(path: Path) -> Iterator[None]:
    """What goes wrong in the block is told of this file."""
    try:
        yield
    except _Other:
        raise
    except (KeyError, OSError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged or not of ncsn-fast sample ({type(error).__name__}: "
            f"{shortened(error)}): remove it, or choose another --out"
        ) from error


def _cut(ids: list[int], chunk: int) -> list[list[int]]:
    return [ids[first : first + chunk] for first in range(0, len(ids), chunk)]


__all__ = ["SAVE_SECONDS", "Part", "SampleStore"]
