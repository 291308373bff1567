"""What a training run tells: the loss over time, the loss of each level, the samples' quality."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ncsn_fast.distributed.group import Group
from ncsn_fast.support.files import append_text, flush, refuse_link, write_text
from ncsn_fast.support.parsers import parse_json

# By what the distance of samples is told.
PIXELS, FID = MEASURES = ("pixel_frechet_distance", "fid")
_log = logging.getLogger("ncsn_fast")
_BOARD = "tensorboard"
_LONGEST_LINE = 10_000  # characters; ours have about seventy


class LossSums:
    """Losses summed on the device, and read when they are logged: no step waits for the host.

    The tensors stay the same: a captured step adds to them.

    Attributes:
        sum: () float32, of the batch means since ``since``.
        since: the step from which on.
        levels: (2, L) float32, sums and numbers of the losses of each level since the last report.
    """

    def __init__(self, num_levels: int, device: torch.device) -> None:
        self.sum = torch.zeros((), dtype=torch.float32, device=device)
        self.since = 0
        self.levels = torch.zeros(2, num_levels, dtype=torch.float32, device=device)

    def add(self, losses: Tensor, labels: Tensor, batch_size: int) -> None:
        """Take in (n,) losses of a step and the levels they belong to, of a batch of so many."""
        whole = len(losses) == batch_size
        self.sum += losses.mean() if whole else losses.sum() / batch_size
        self.levels[0].index_add_(0, labels, losses.float())
        self.levels[1].index_add_(0, labels, torch.ones_like(losses, dtype=torch.float32))

    def mean(self, step: int) -> float:
        """The mean loss up to a step; a new mean begins."""
        mean = float(self.sum) / (step - self.since)
        self.sum.zero_()
        self.since = step
        return mean

    def gather(self, group: Group) -> None:
        """Bring what all processes have summed to the first; the others begin anew."""
        for tensor in (self.sum, self.levels):
            group.add_up(tensor)
            if not group.ranks.is_first:
                tensor.zero_()


def by_level(sums: Tensor) -> list[float | None]:
    """The mean loss of each level, None where a level was not drawn."""
    return [a / n if n else None for a, n in zip(*sums.tolist(), strict=True)]


class TrainingLog:
    """The history of a run, in memory and in its folder.

    The folder is touched from :meth:`open` on, which its trainer calls when nobody else may write
    there. A disk that takes no more is a warning: entries are kept, and written when it does again.

    Attributes:
        losses: (step, loss) pairs; each loss is the mean since the one before.
        distances: (step, distance) pairs of the samples drawn on the way.
        measure: by which of ``MEASURES`` they are.
        on_entry: called after each entry.
    """

    def __init__(
        self, out: Path | None, *, tensorboard: bool = False, measure: str = PIXELS
    ) -> None:
        self.measure = measure
        self.on_entry: Callable[[], object] = lambda: None
        self.losses: list[tuple[int, float]] = []
        self.distances: list[tuple[int, float]] = []
        self._entries: list[dict[str, Any]] = []
        self._out = out
        self._whole = True  # whether the file has to be written anew
        if tensorboard and out is not None:
            refuse_link(out / _BOARD)
        self._writer = _tensorboard_writer() if tensorboard and out else None
        self._board: Any = None

    @property
    def best(self) -> float | None:
        """The smallest distance so far."""
        return min((distance for _, distance in self.distances), default=None)

    def loss(self, step: int, loss: float, images_per_second: float) -> None:
        """Append an entry."""
        self.losses.append((step, loss))
        self._write(step, {"loss": loss, "images_per_second": round(images_per_second, 1)})

    def distance(self, step: int, distance: float) -> None:
        """Append an entry."""
        self.distances.append((step, distance))
        self._write(step, {self.measure: distance})

    def levels(self, step: int, sigmas: Tensor, losses: list[float | None]) -> None:
        """Write levels.json: the mean loss of each level since the last report."""
        if self._out is None or all(loss is None for loss in losses):
            return
        report = {"step": step, "sigma": sigmas.tolist(), "loss": losses}
        with warned(f"the losses of step {step} by level"):
            write_text(self._out / "levels.json", json.dumps(report) + "\n")

    def digest(self, step: int) -> str:
        """SHA-256 of what the log tells when a step is saved.

        That is all up to this step but the distance of its own samples, which are drawn later, and
        measured times, which no two runs have in common.
        """
        told = [("loss", at, value) for at, value in self.losses if at <= step]
        told += [("distance", at, value) for at, value in self.distances if at < step]
        return hashlib.sha256(repr(told).encode()).hexdigest()

    def read(self, step: int, digest: str | None) -> None:
        """Take over the log of a run up to a step, without what it logged after its checkpoint.

        Args:
            digest: what :meth:`digest` was when the step was saved; None where that is not known.

        Raises:
            ValueError: where samples were judged by another measure.
        """
        if self._out is None:
            return
        path, seen = self._out / "log.jsonl", set()
        text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        for entry, kind, at, value in sorted(_entries(text), key=lambda found: found[2]):
            if at <= step and kind not in ("loss", self.measure):
                raise ValueError(
                    f"the samples of this run are judged by {kind} ({path}), which "
                    f"{self.measure} cannot be compared with: go on with what it was begun with"
                )
            if at <= step and (kind, at) not in seen:
                seen.add((kind, at))
                self._entries.append(entry)
                (self.losses if kind == "loss" else self.distances).append((at, value))
        if digest not in (None, self.digest(step)):
            _log.warning(
                "%s is not as it was when step %d was saved: it was altered, damaged or removed. "
                "The run goes on with those of its lines that can be read",
                path,
                step,
            )

    def forget_distance(self, step: int) -> None:
        """Samples of this step are drawn anew."""
        self.distances = [found for found in self.distances if found[0] != step]
        self._entries = [e for e in self._entries if e["step"] != step or "loss" in e]

    def open(self, step: int) -> None:
        """Begin to write: the file holds what this log holds, whatever was there."""
        if self._out is None:
            return
        self._write_whole()
        if self._writer is not None:
            self._board = self._writer(str(self._out / _BOARD), purge_step=step)

    def flush(self) -> None:
        """Put all entries on the disk, before a checkpoint says that they are there."""
        if self._out is None:
            return
        with warned("the log"):
            if self._whole:
                self._write_whole()
            else:
                flush(self._out / "log.jsonl")

    def close(self) -> None:
        """The end of a run, or of a part of it."""
        if self._board is not None:
            self._board.close()
            self._board = None

    def _write_whole(self) -> None:
        assert self._out is not None
        text = "".join(json.dumps(entry) + "\n" for entry in self._entries)
        write_text(self._out / "log.jsonl", text)
        self._whole = False

    def _write(self, step: int, values: dict[str, Any]) -> None:
        self._entries.append({"step": step, **values})
        if self._out is not None:
            with warned(f"the log of step {step}"):
                self._append(self._out / "log.jsonl")
                if self._board is not None:
                    for name, value in values.items():
                        self._board.add_scalar(name, value, step)
                    self._board.flush()
        self.on_entry()

    def _append(self, path: Path) -> None:
        if self._whole:  # an entry before may have been cut
            self._write_whole()
        else:
            self._whole = True
            append_text(path, json.dumps(self._entries[-1]) + "\n")
            self._whole = False


@contextlib.contextmanager
def warned(what: str, errors: type[Exception] = OSError) -> Iterator[None]:
    """Turn an error, of the disk if nothing else is said, into a warning: what is lost can be had
    again, the run cannot."""
    try:
        yield
    except errors as error:
        _log.warning("%s could not be written (%s): training goes on", what, error)


def _entries(text: str) -> Iterator[tuple[dict[str, Any], str, int, float]]:
    """The lines that are entries: themselves, of what kind, at which step, with which value.

    The last line of a killed run may be cut, and others may be damaged.
    """
    for line in text.splitlines():
        with contextlib.suppress(ValueError, KeyError, TypeError, OverflowError):
            entry = parse_json(line, "a line of the log", _LONGEST_LINE)
            kind = next((name for name in ("loss", *MEASURES) if name in entry), PIXELS)
            at, value = int(entry["step"]), float(entry[kind])
            if at >= 0 and math.isfinite(value):
                yield entry, kind, at, value


def _tensorboard_writer() -> Any:
    """The class that writes for TensorBoard; refused now where it is missing."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError(
            f"the log for TensorBoard cannot be written ({error}): pip install tensorboard, or "
            "leave tensorboard out"
        ) from error
    return SummaryWriter


__all__ = ["FID", "PIXELS", "LossSums", "TrainingLog", "by_level", "warned"]
