"""What a training run tells: the loss over time, the loss of each level, the samples' quality."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ncsn_fast import plots
from ncsn_fast.files import atomic_write


class LossSums:
    """Losses summed on the device, and read when they are logged: no step waits for the host.

    Attributes:
        sum: () float32, of the batch means since ``since``.
        since: the step from which on.
        levels: (2, L) float32, sums and numbers of the losses of each level since the last report.
    """

    def __init__(self, num_levels: int, device: torch.device) -> None:
        self.sum = torch.zeros((), device=device)
        self.since = 0
        self.levels = torch.zeros(2, num_levels, device=device)

    def add(self, losses: Tensor, labels: Tensor) -> None:
        """Take in the (B,) losses of a step and the levels they belong to."""
        self.sum += losses.mean()
        self.levels[0].index_add_(0, labels, losses.float())
        self.levels[1].index_add_(0, labels, torch.ones_like(losses, dtype=torch.float32))

    def mean(self, step: int) -> float:
        """The mean loss up to a step; a new mean begins."""
        mean = float(self.sum) / (step - self.since)
        self.sum, self.since = torch.zeros_like(self.sum), step
        return mean

    def by_level(self) -> list[float | None]:
        """The mean loss of each level, None where a level was not drawn; new means begin."""
        sums, counts = self.levels.tolist()
        self.levels.zero_()
        return [a / n if n else None for a, n in zip(sums, counts, strict=True)]


class TrainingLog:
    """The history of a run, in memory and in its folder.

    Attributes:
        losses: (step, loss) pairs; each loss is the mean since the one before.
        distances: (step, pixel Fréchet distance) pairs of the samples drawn on the way.
    """

    def __init__(self, out: Path | None, *, tensorboard: bool = False) -> None:
        self.losses: list[tuple[int, float]] = []
        self.distances: list[tuple[int, float]] = []
        self._out = out
        self._board = _tensorboard(out / "tensorboard") if tensorboard and out else None

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
        self._write(step, {"pixel_frechet_distance": distance})

    def levels(self, step: int, sigmas: Tensor, losses: list[float | None]) -> None:
        """Write levels.json: the mean loss of each level since the last report."""
        if self._out is None or all(loss is None for loss in losses):
            return
        report = {"step": step, "sigma": sigmas.tolist(), "loss": losses}
        with atomic_write(self._out / "levels.json") as temporary:
            temporary.write_text(json.dumps(report) + "\n", encoding="utf-8")

    def plot(self) -> Path | None:
        """Draw loss.png; return its path."""
        if self._out is None or not self.losses:
            return None
        steps, losses = zip(*self.losses, strict=True)
        plots.save_loss_plot(self._out / "loss.png", steps, losses)
        return self._out / "loss.png"

    def begin(self) -> None:
        """Forget what a run before left in the folder."""
        if self._out is not None:
            (self._out / "log.jsonl").unlink(missing_ok=True)

    def read(self, step: int) -> None:
        """Take over the log of a run up to a step, without what it logged after its checkpoint."""
        if self._out is None:
            return
        path, kept, seen = self._out / "log.jsonl", [], set()
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
            try:
                entry = json.loads(line)
                kind = "loss" if "loss" in entry else "pixel_frechet_distance"
                at, value = int(entry["step"]), float(entry[kind])
            except (ValueError, KeyError, TypeError):
                continue  # the last line of a killed run may be cut
            if at <= step and (kind, at) not in seen:
                seen.add((kind, at))
                kept.append(entry)
                (self.losses if kind == "loss" else self.distances).append((at, value))
        with atomic_write(path) as temporary:
            text = "".join(json.dumps(entry) + "\n" for entry in kept)
            temporary.write_text(text, encoding="utf-8")

    def _write(self, step: int, values: dict[str, Any]) -> None:
        if self._out is not None:
            with open(self._out / "log.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)
            self._board.flush()


def _tensorboard(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError(
            f"the log for TensorBoard cannot be written ({error}): pip install tensorboard, or "
            "leave tensorboard out"
        ) from error
    return SummaryWriter(str(folder))


__all__ = ["LossSums", "TrainingLog"]
