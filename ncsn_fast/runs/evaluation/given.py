"""Samples that are there already; of a folder of ``ncsn-fast sample`` a shard at a time."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from ncsn_fast.data.load import load_pixels
from ncsn_fast.evaluation.inception.figures import Images
from ncsn_fast.runs.samples.manifest import read_manifest
from ncsn_fast.runs.samples.ranges import Range, without
from ncsn_fast.runs.samples.ranges import number as count
from ncsn_fast.runs.samples.stored import WHOLE, Stored
from ncsn_fast.support.array_parsers import open_npz
from ncsn_fast.support.parsers import parse_json

_log = logging.getLogger("ncsn_fast")

_LEAST = 8


class InPieces:
    """Images that lie in several places, as one array; the piece that was read last is kept.

    Args:
        pieces: the ids of the images of each, first and behind the last, and what reads them:
            (n, *shape).
        shape: of an image.
        most: the first so many of all are meant.
    """

    def __init__(
        self,
        pieces: Sequence[tuple[Range, Callable[[], np.ndarray]]],
        shape: tuple[int, ...],
        most: int,
    ) -> None:
        self._read = [read for _, read in pieces]
        self._ranges = [ids for ids, _ in pieces]
        self._edges = np.cumsum([0, *(stop - first for first, stop in self._ranges)])
        self.shape = (min(most, int(self._edges[-1])), *shape)
        self._last: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, part: slice) -> np.ndarray:
        start, stop, _ = part.indices(len(self))
        found = []
        while start < stop:
            piece = int(np.searchsorted(self._edges, start, side="right")) - 1
            first, end = self._edges[piece : piece + 2]
            found.append(self._piece(piece)[start - first : min(stop, end) - first])
            start = min(stop, int(end))
        return found[0] if len(found) == 1 else np.concatenate(found)

    def ids(self) -> list[int]:
        """Those of the samples."""
        all_of_them = chain.from_iterable(range(*ids) for ids in self._ranges)
        return list(islice(all_of_them, len(self)))

    def _piece(self, number: int) -> np.ndarray:
        if self._last is None or self._last[0] != number:
            self._last = None  # two of them are never there
            self._last = number, self._read[number]()
        return self._last[1]


def given(samples: str, number: int) -> Images:
    """The first so many images of a folder of ``ncsn-fast sample``, or of what else holds some.

    Raises:
        ValueError, OSError: for what cannot be read, or holds too few.
    """
    manifest = read_manifest(Path(samples))
    if manifest is None:
        inside = Path(samples) / WHOLE  # of an earlier version
        ours = inside.is_file()
        found = load_pixels(inside, key="images") if ours else load_pixels(samples)
        return enough(found, samples)[:number]
    stored = Stored(Path(samples), manifest)
    if missing := count(without(manifest.ids, stored.ids())):
        _log.warning(
            "%s lacks %s of its %s samples: the figures are of the others. What to run says "
            "ncsn-fast verify",
            samples,
            f"{missing:,}",
            f"{count(manifest.ids):,}",
        )
    in_pieces = InPieces(stored.ranges(), manifest.layout.shape, number)
    enough(in_pieces, samples)
    return in_pieces


def enough(images: Any, data: str) -> Any:
    """The images, if they are not too few to be compared.

    Raises:
        ValueError: where they are.
    """
    if len(images) < _LEAST:
        raise ValueError(f"{data} holds {len(images)} images: needed are at least {_LEAST}")
    return images


def identity(samples: str) -> dict[str, Any] | None:
    """What a folder of ``ncsn-fast sample`` says of its samples."""
    path = Path(samples, WHOLE)
    if (manifest := read_manifest(Path(samples))) is not None:
        return manifest.identity
    if not path.is_file():
        return None
    with open_npz(path) as stored:
        if "settings" not in stored.names:
            return None
        told = parse_json(str(stored["settings"]), f"{path}: its entry settings")
    return told if isinstance(told, dict) else None


__all__ = ["InPieces", "enough", "given", "identity"]
