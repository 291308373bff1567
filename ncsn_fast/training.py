"""The trainer: Adam, a moving average of the weights, a log, checkpoints, exact resume.

Noise, levels and the order of the data are functions of (seed, step), so a run that was stopped
and resumed gives the same weights as one that was not, and there is no generator state to save.
"""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import math
import signal
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ncsn_fast import noise
from ncsn_fast.batches import Batches
from ncsn_fast.checkpoint import CheckpointError, read_tensors, save_checkpoint, write_tensors
from ncsn_fast.checks import count
from ncsn_fast.files import atomic_write, check_writable, folder_lock
from ncsn_fast.losses import dsm_loss
from ncsn_fast.models.base import ScoreNetwork
from ncsn_fast.progress import Progress, ProgressWish
from ncsn_fast.score import as_score

_log = logging.getLogger("ncsn_fast")


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM while training: the step was finished and, with ``out``, saved."""


class TrainingError(RuntimeError):
    """The loss is no longer finite."""


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a training run.

    Attributes:
        steps: optimiser steps in all.
        batch_size: images per step.
        learning_rate, beta1, beta2, eps: Adam. The papers use 1e-4 (v2), 0.9, 0.999, 1e-8.
        ema: rate of the moving average of the weights; 0.999 is NCSNv2's, 0 keeps none.
        ema_warmup: lower the rate to (1 + t)/(10 + t) at step t while that is less, so that short
            runs do not average in their random beginning. Off in the published settings.
        anneal_power: exponent p of the loss weight σ^p.
        dequantize: None, "uniform" or "gaussian"; see :func:`ncsn_fast.data.data_transform`.
        flip: mirror every image with probability ½.
        seed: of noise, levels and order.
        out: folder for log.jsonl, checkpoint.safetensors (to resume) and model.safetensors (to
            sample from); None writes nothing.
        log_every, checkpoint_every: in steps.
        max_seconds: stop after this time, whatever the number of steps.
        precision: "fp32".
    """

    steps: int = 10_000
    batch_size: int = 128
    learning_rate: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    ema: float = 0.999
    ema_warmup: bool = False
    anneal_power: float = 2.0
    dequantize: str | None = None
    flip: bool = False
    seed: int = 0
    out: str | Path | None = None
    log_every: int = 10
    checkpoint_every: int = 500
    max_seconds: float | None = None
    precision: str = "fp32"

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "log_every", "checkpoint_every"):
            count(name, getattr(self, name))
        for name in ("learning_rate", "eps"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(
                    f"{name} = {getattr(self, name)}: it has to be positive and finite"
                )
        if not math.isfinite(self.anneal_power):
            raise ValueError(
                f"anneal_power = {self.anneal_power}: give a finite exponent, such as 2"
            )
        for name in ("beta1", "beta2", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: give a rate in [0, 1)")
        if self.max_seconds is not None and not self.max_seconds > 0:
            raise ValueError(f"max_seconds = {self.max_seconds}: give a positive time, or None")
        if self.precision != "fp32":
            raise ValueError(f"precision = {self.precision!r}: this version trains in 'fp32'")
        noise.check_seed(self.seed)


# A run may be resumed with other values of these: they do not change what a step computes, but for
# the learning rate, without which a run that diverged could not be saved.
_FREE_ON_RESUME = {"steps", "learning_rate", "out", "log_every", "checkpoint_every", "max_seconds"}


class Trainer:
    """Trains a network by denoising score matching.

    Args:
        net: the network; it is trained in place, on its device.
        dataset: (N, *shape) float tensor of images in [0, 1], or a torch Dataset of such samples
            (or of (sample, label) pairs, whose labels are ignored).
        config: the settings.
        resume: go on from the checkpoint in ``config.out``.

    Attributes:
        step: optimiser steps done.
        history: (step, loss) pairs as logged; each loss is the mean since the one before.
        average: the network with the averaged weights, or the network itself without ema.

    Raises:
        ValueError: for data that do not fit the network, an ``out`` folder that holds another run,
            or a checkpoint of other settings.
    """

    def __init__(
        self,
        net: ScoreNetwork,
        dataset: Tensor | Dataset[Any],
        config: TrainConfig | None = None,
        *,
        resume: bool = False,
    ) -> None:
        if not isinstance(net, ScoreNetwork):
            raise ValueError(f"a Trainer takes a network of ncsn_fast, got {type(net).__name__}")
        self.net = net
        self.config = config or TrainConfig()
        self.device = net.sigmas.device
        self.batches = Batches(
            dataset,
            net,
            batch_size=self.config.batch_size,
            seed=self.config.seed,
            flip=self.config.flip,
            dequantize=self.config.dequantize,
        )
        self.step = 0
        self.history: list[tuple[int, float]] = []
        self.average = copy.deepcopy(net).requires_grad_(False) if self.config.ema else net
        self.optimizer = torch.optim.Adam(
            [parameter for parameter in net.parameters() if parameter.requires_grad],
            lr=self.config.learning_rate,
            betas=(self.config.beta1, self.config.beta2),
            eps=self.config.eps,
        )
        self.out = None if self.config.out is None else Path(self.config.out)
        self._score = as_score(net)
        # Summed on the device and read at each log entry; part of the checkpoint.
        self._loss_sum, self._loss_since = torch.zeros((), device=self.device), 0
        self._stop: signal.Signals | None = None
        if self.out is not None:
            if net.sampling is None:
                _log.warning(
                    "net.sampling is not set, so the saved network will not know how to sample: "
                    "net.sampling = nf.auto_schedule(images).sampling"
                )
            self._open_folder(self.out, resume)
        elif resume:
            raise ValueError("resume needs the folder of the run: TrainConfig(out=...)")

    def fit(self, progress: ProgressWish = None) -> ScoreNetwork:
        """Train until ``config.steps`` or ``config.max_seconds``; return the averaged network.

        Raises:
            TrainingInterrupted: on Ctrl-C or SIGTERM, after finishing the step and saving.
            TrainingError: when the loss is no longer finite; the last checkpoint stays.
        """
        with contextlib.ExitStack() as stack:
            if self.out is not None:
                stack.enter_context(folder_lock(self.out))
            self._run(progress)
        self.net.eval()
        if self._stop is not None and self.step < self.config.steps:
            saved = f"; saved in {self.out}, resume it to go on" if self.out else ""
            raise TrainingInterrupted(f"{self._stop.name} at step {self.step}{saved}")
        return self.average.eval()

    def _run(self, progress: ProgressWish) -> None:
        config = self.config
        started, first = time.monotonic(), self.step
        ending = self.step >= config.steps
        self._stop = None
        if ending:
            self.save()  # the process that finished may have been killed before it wrote the model
        self.net.train()
        with _SignalWatch(self), Progress(progress, config.steps, done=self.step) as bar:
            while not ending:
                self._loss_sum += self._train_step()
                seconds = time.monotonic() - started
                out_of_time = config.max_seconds is not None and seconds > config.max_seconds
                ending = out_of_time or self.step == config.steps or self._stop is not None
                if self.step % config.log_every == 0:
                    self._log((self.step - first) / seconds)
                    bar.note(f"loss {self.history[-1][1]:.3g}")
                if self.step % config.checkpoint_every == 0 or ending:
                    self.save()
                bar.advance()

    def save(self) -> None:
        """Write checkpoint.safetensors and model.safetensors into ``out``, if there is one."""
        if self.out is None:
            return
        self._check_loss()
        self._check_weights()  # the update after a finite loss may have broken them
        self.average.sampling = self.net.sampling
        tensors = {f"model.{k}": v for k, v in self.net.state_dict().items()}
        if self.average is not self.net:
            tensors |= {f"ema.{k}": v for k, v in self.average.state_dict().items()}
        for name, parameter in self.net.named_parameters():
            state = self.optimizer.state.get(parameter, {})
            tensors |= {f"optimizer.{key}.{name}": value for key, value in state.items()}
        tensors |= {"sigmas": self.net.sigmas, "loss_sum": self._loss_sum}
        metadata = {
            "kind": "training",
            "config": self.net.config,
            "sampling": self.net.sampling,
            "step": self.step,
            "loss_since": self._loss_since,
            "training": self._identity(),
        }
        # The checkpoint first: of a process killed in between it can make the model anew, while a
        # model alone could be neither resumed nor begun again.
        write_tensors(self.out / "checkpoint.safetensors", tensors, metadata)
        save_checkpoint(self.average, self.out / "model.safetensors")

    def _train_step(self) -> Tensor:
        """One optimiser step; returns the loss, still on the device."""
        x, ids = self.batches.at(self.step)
        loss = dsm_loss(
            self._score,
            x,
            self.net.sigmas,
            anneal_power=self.config.anneal_power,
            seed=self.config.seed,
            step=self.step,
            sample_ids=ids,
        )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        if self.average is not self.net:
            self._update_average()
        self.step += 1
        return loss.detach()

    @torch.no_grad()
    def _update_average(self) -> None:
        rate = self.config.ema
        if self.config.ema_warmup:
            rate = min(rate, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(list(self.average.parameters()), list(self.net.parameters()), 1 - rate)

    def _log(self, steps_per_second: float) -> None:
        """Append the mean loss since the last entry to the history and the log file."""
        self._check_loss()
        loss = float(self._loss_sum) / (self.step - self._loss_since)
        self._loss_sum, self._loss_since = torch.zeros_like(self._loss_sum), self.step
        self.history.append((self.step, loss))
        if self.out is not None:
            rate = round(steps_per_second * self.config.batch_size, 1)
            entry = {"step": self.step, "loss": loss, "images_per_second": rate}
            with open(self.out / "log.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")

    def _check_loss(self) -> None:
        if not bool(torch.isfinite(self._loss_sum)):
            between = f"between steps {self._loss_since} and {self.step}"
            raise self._diverged(f"the loss is {float(self._loss_sum)} {between}")

    def _check_weights(self) -> None:
        weights: list[Tensor] = [*self.net.parameters(), *self.average.parameters()]
        if not bool(torch.isfinite(torch.stack(torch._foreach_norm(weights))).all()):
            raise self._diverged(f"the weights are no longer finite at step {self.step}")

    def _diverged(self, what: str) -> TrainingError:
        kept = ""
        if self.out is not None and (self.out / "checkpoint.safetensors").exists():
            kept = f". The checkpoint in {self.out} is from before: resume it with a lower rate"
        return TrainingError(
            f"{what}: lower learning_rate (now {self.config.learning_rate:g}), or look for NaN in "
            f"the network{kept}"
        )

    def _identity(self) -> dict[str, Any]:
        """What has to agree for a resumed run to continue this one."""
        settings = {k: v for k, v in asdict(self.config).items() if k not in _FREE_ON_RESUME}
        return {**settings, "data": self.batches.sha256}

    def _open_folder(self, out: Path, resume: bool) -> None:
        checkpoint = out / "checkpoint.safetensors"
        if resume:
            self._load(checkpoint)
            return
        for path in (checkpoint, out / "model.safetensors"):
            if path.exists():
                raise ValueError(
                    f"{out} holds a trained network already ({path.name}): resume the run "
                    "(resume=True, --resume), or choose another folder"
                )
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"cannot make the folder {out}: {error}; choose another") from error
        check_writable(checkpoint)
        (out / "log.jsonl").unlink(missing_ok=True)

    def _load(self, path: Path) -> None:
        """Take over weights, optimiser state, step and log of a checkpoint of this run."""
        if not path.exists():
            raise ValueError(
                f"there is no {path} to resume from: start anew without resume (--resume)"
            )
        tensors, metadata = read_tensors(path)
        if metadata.get("kind") != "training":
            raise CheckpointError(f"{path} is not a training checkpoint: it cannot be resumed")
        there, here = metadata["training"], self._identity()
        differ = {k: (there.get(k), here[k]) for k in here if there.get(k) != here[k]}
        if metadata["config"] != self.net.config:
            differ["network"] = (metadata["config"], self.net.config)
        if not torch.equal(tensors["sigmas"], self.net.sigmas.cpu()):
            differ["noise levels"] = (tensors["sigmas"].tolist(), self.net.sigmas.tolist())
        if differ:
            told = "; ".join(f"{k}: {a} there, {b} here" for k, (a, b) in differ.items())
            raise ValueError(f"{path} belongs to another run ({told}): use the same settings")
        self.net.load_state_dict(_with_prefix(tensors, "model."))
        if self.average is not self.net:
            self.average.load_state_dict(_with_prefix(tensors, "ema."))
        for name, parameter in self.net.named_parameters():
            keys = [
                k for k in ("step", "exp_avg", "exp_avg_sq") if f"optimizer.{k}.{name}" in tensors
            ]
            state = {key: tensors[f"optimizer.{key}.{name}"] for key in keys}
            if state:
                self.optimizer.state[parameter] = {
                    key: value if key == "step" else value.to(self.device)
                    for key, value in state.items()
                }
        self.step, self._loss_since = metadata["step"], metadata["loss_since"]
        self._loss_sum = tensors["loss_sum"].to(self.device)
        self._reload_log(path.parent / "log.jsonl")

    def _reload_log(self, path: Path) -> None:
        """Read the history back, without what a killed run logged after its last checkpoint."""
        entries: list[dict[str, Any]] = []
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
            try:
                entry = json.loads(line)
                step, loss = int(entry["step"]), float(entry["loss"])
            except (ValueError, KeyError, TypeError):
                continue  # the last line of a killed run may be cut
            if step <= self.step and (not self.history or step > self.history[-1][0]):
                entries.append(entry)
                self.history.append((step, loss))
        with atomic_write(path) as temporary:
            text = "".join(json.dumps(entry) + "\n" for entry in entries)
            temporary.write_text(text, encoding="utf-8")


class _SignalWatch:
    """Turns Ctrl-C and SIGTERM into a wish to stop after the step; a second Ctrl-C is at once."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is signal.SIG_IGN:
                    continue  # a background job of a script: its parent decides
                self._previous[number] = signal.signal(number, self._handle)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._trainer._stop is not None:
            raise KeyboardInterrupt
        self._trainer._stop = signal.Signals(number)


def _with_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


__all__ = ["TrainConfig", "Trainer", "TrainingError", "TrainingInterrupted"]
