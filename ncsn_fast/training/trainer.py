"""The trainer: Adam, mixed precision, a moving average of the weights, a log, exact resume.

Noise, levels and the order of the data are functions of (seed, step), so a run that was stopped
and resumed gives the same weights as one that was not, and there is no generator state to save.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from ncsn_fast.checkpoints.load_save import save_checkpoint
from ncsn_fast.data.batches import Batches
from ncsn_fast.data.samples import Data
from ncsn_fast.device import backends, profiling
from ncsn_fast.device.precision import check_precision, float32_mode
from ncsn_fast.models.base import ScoreNetwork
from ncsn_fast.support.files import folder_lock
from ncsn_fast.support.progress import Progress, ProgressWish
from ncsn_fast.training import state as training_state
from ncsn_fast.training.config import TrainConfig
from ncsn_fast.training.graph import TrainingGraph
from ncsn_fast.training.log import LossSums, TrainingLog, by_level, warned
from ncsn_fast.training.samples import TrainingSamples
from ncsn_fast.training.state import RunState
from ncsn_fast.training.step import TrainingStep

_log = logging.getLogger("ncsn_fast")


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM while training: the step was finished and, with ``out``, saved."""


class TrainingError(RuntimeError):
    """The loss is no longer finite."""


class Trainer:
    """Trains a network by denoising score matching.

    Args:
        net: the network; it is trained in place, on its device. Networks of images are put into
            channels_last memory format, in which convolutions are fastest.
        dataset: (N, *shape) tensor or array, which may be memory-mapped, of images in [0, 1] or of
            8-bit images, or a torch Dataset of such samples (or of (sample, label) pairs, whose
            labels are ignored); see ``Batches``.
        config: the settings.
        resume: go on from the checkpoint in ``config.out``.
        held_out: (M, *shape) float images in [0, 1] that are not in the data set, to judge by
            them the samples drawn every ``config.sample_every`` steps.

    Attributes:
        step: optimiser steps done.
        history: (step, loss) pairs as logged; each loss is the mean since the one before.
        log: the whole log; ``log.distances`` are the (step, pixel Fréchet distance) pairs.
        average: the network with the averaged weights, or the network itself without ema.

    Raises:
        ValueError: for data that do not fit the network, a precision the device does not have, an
            ``out`` folder that holds another run, or a checkpoint of other settings.
        OSError: for an ``out`` that cannot be written, or a disk without room for the run.
    """

    def __init__(
        self,
        net: ScoreNetwork,
        dataset: Data,
        config: TrainConfig | None = None,
        *,
        resume: bool = False,
        held_out: Tensor | None = None,
    ) -> None:
        if not isinstance(net, ScoreNetwork):
            raise ValueError(f"a Trainer takes a network of ncsn_fast, got {type(net).__name__}")
        self.config = config = config or TrainConfig()
        self.device = net.sigmas.device
        check_precision(config.precision, self.device)
        _check_weights_are_wide(net, config.precision)
        if len(net.shape) == 3:
            layout: dict[str, Any] = {"memory_format": torch.channels_last}
            net.to(**layout)  # a keyword unknown to torch's type hints
        self.net = net
        self.batches = Batches(
            dataset,
            net,
            batch_size=config.batch_size,
            seed=config.seed,
            flip=config.flip,
            dequantize=config.dequantize,
        )
        _log.info("training data: %s", self.batches.placement)
        self.step = 0
        self.average = copy.deepcopy(net).requires_grad_(False) if config.ema else net
        self.out = None if config.out is None else Path(config.out)
        self.sums = LossSums(len(net.sigmas), self.device)
        _check_continuous(net, config)
        self._compute = TrainingStep(net, self.average, self.sums, config)
        self.optimizer, self.scaler = self._compute.optimizer, self._compute.scaler
        self._graph = TrainingGraph(self._compute, self.device, config.graph, self._compute.weights)
        self._samples = TrainingSamples.of(net, config, held_out)
        self._stop: signal.Signals | None = None
        self._saved: int | None = None  # the step that was saved last
        self._open_folder(resume)

    @property
    def history(self) -> list[tuple[int, float]]:
        return self.log.losses

    def fit(self, progress: ProgressWish = None) -> ScoreNetwork:
        """Train until ``config.steps`` or ``config.max_seconds``; return the averaged network.

        Raises:
            TrainingInterrupted: on Ctrl-C or SIGTERM, after finishing the step and saving.
            TrainingError: when the loss is no longer finite; the last checkpoint stays.
            OSError: where the last step cannot be saved. Before that a failed save is a warning,
                and training goes on towards the next.
        """
        with contextlib.ExitStack() as stack:
            stack.enter_context(float32_mode(self.config.precision, self.device))
            if self.out is not None:
                stack.enter_context(folder_lock(self.out))
            stack.callback(self._graph.release)
            self._run(progress)
        self.net.eval()
        if self._stop is not None and self.step < self.config.steps:
            saved = f"; saved in {self.out}, resume it to go on" if self.out else ""
            raise TrainingInterrupted(f"{self._stop.name} at step {self.step}{saved}")
        return self.average.eval()

    def save(self) -> None:
        """Write checkpoint.safetensors and model.safetensors into ``out``, if there is one.

        Raises:
            TrainingError: where the loss or the weights are not finite; nothing is written.
            OSError: where the disk does not take them; the files of before stay.
        """
        if self.out is None:
            self._saved = self.step  # there is nothing to lose
            return
        self._check_loss()
        self._check_weights()  # the update after a finite loss may have broken them
        self.average.sampling = self.net.sampling
        every = self.config.keep_every
        keep = every is not None and self.step > 0 and self.step % every == 0
        training_state.save(self._state(), self.out, self.average, keep=keep)
        self._saved = self.step

    @profiling.mark("train")
    def _run(self, progress: ProgressWish) -> None:
        config = self.config
        # Kernels that have to be built are built before the clock runs.
        backends.resolve("auto", self.device)
        started, first = time.monotonic(), self.step
        ending = self.step >= config.steps
        self._stop = None
        self.log.open(self.step)
        if ending:
            self.save()  # the process that finished may have been killed before it wrote the model
        self.net.train()
        with _SignalWatch(self), Progress(progress, config.steps, done=self.step) as bar:
            duties = self._duties(lambda _: bar.note(self._log_loss(started, first)))
            while not ending:
                self._step_or_save()
                seconds = time.monotonic() - started
                out_of_time = config.max_seconds is not None and seconds > config.max_seconds
                ending = out_of_time or self.step == config.steps or self._stop is not None
                for duty in duties:
                    if duty.is_due(self.step, ending):
                        duty.do(ending)
                # A signal that came in the meantime ends the run here only if the step is saved.
                ending = ending or (self._stop is not None and self._saved == self.step)
                bar.advance()
        self.log.close()

    def _duties(self, log: Callable[[bool], None]) -> list[_Duty]:
        """What is done every so many steps, in this order: a step is saved before it is drawn."""
        drawn = () if self._samples is None else (self._samples.every,)
        return [
            _Duty((self.config.log_every,), log),
            _Duty((self.config.checkpoint_every, *drawn), self._save_or_warn, at_end=True),
            _Duty(drawn, self._draw_samples),
        ]

    def _step_or_save(self) -> None:
        """A step; if it fails, on bad data say, the steps before it are not lost."""
        try:
            self._train_step()
        except Exception:
            if self.step:
                with contextlib.suppress(TrainingError), warned(f"step {self.step}"):
                    self.save()
            raise

    @profiling.mark("step")
    def _train_step(self) -> None:
        """One optimiser step. Nothing in it waits for the device."""
        with profiling.mark("data"):
            x, _ = self.batches.at(self.step)
            self._compute.load(x, self.step)
        self._graph()
        self.step += 1

    def _log_loss(self, started: float, first: int) -> str:
        """An entry of the log; returns what the bar shows."""
        self._check_loss()
        # The clock is read after the device has been waited for.
        rate = (self.step - first) * self.config.batch_size / (time.monotonic() - started)
        self.log.loss(self.step, self.sums.mean(self.step), rate)
        return f"loss {self.history[-1][1]:.3g}, {rate:.0f} images/s"

    def _draw_samples(self, last: bool) -> None:
        """Pictures of what the averaged network makes, their distance, and the best model yet.

        The step has been saved. What goes wrong here is told, and does not end the run.
        """
        samples, best = self._samples, self.log.best
        if samples is None or self._stop is not None:
            return
        try:
            distance = samples.draw(self.average, self.step, self.out, lambda: self._stop is None)
        except (RuntimeError, ValueError, OSError) as error:
            _log.warning("no samples at step %d (%s): training goes on", self.step, error)
            return
        if distance is None:
            return
        self.log.distance(self.step, distance)
        if self.out is not None and (best is None or distance < best):
            self.average.sampling = self.net.sampling
            with warned("the best model"):
                save_checkpoint(self.average, self.out / training_state.BEST)

    def _save_or_warn(self, last: bool) -> None:
        """Save the step and the losses by level; but for the ``last`` step failure is a warning."""
        levels = self.sums.take_levels()
        try:
            self.save()
        except OSError as error:
            if last:
                raise
            self.sums.levels += levels
            _log.warning(
                "step %d could not be saved (%s): training goes on and tries again in %d steps",
                self.step,
                error,
                self.config.checkpoint_every,
            )
        else:
            self.log.levels(self.step, self.net.sigmas, by_level(levels))

    def _check_loss(self) -> None:
        if not bool(torch.isfinite(self.sums.sum)):
            between = f"between steps {self.sums.since} and {self.step}"
            raise self._diverged(f"the loss is {float(self.sums.sum)} {between}")
        if self.scaler.is_enabled() and self.scaler.get_scale() < 1:
            # Every step overflowed, was skipped and halved it: nothing is being learned.
            raise self._diverged(
                f"fp16 overflows: its scale is down to {self.scaler.get_scale():g}"
            )

    def _check_weights(self) -> None:
        weights: list[Tensor] = [*self.net.parameters(), *self.average.parameters()]
        if not bool(torch.isfinite(torch.stack(torch._foreach_norm(weights))).all()):
            raise self._diverged(f"the weights are no longer finite at step {self.step}")

    def _diverged(self, what: str) -> TrainingError:
        kept = ""
        if self.out is not None and (self.out / training_state.CHECKPOINT).exists():
            kept = f". The checkpoint in {self.out} is from before: resume it with a lower rate"
        return TrainingError(
            f"{what}: lower learning_rate (now {self.config.learning_rate:g}), or look for NaN in "
            f"the network{kept}"
        )

    def _open_folder(self, resume: bool) -> None:
        if self.out is None and resume:
            raise ValueError("resume needs the folder of the run: TrainConfig(out=...)")
        if self.out is not None and self.net.sampling is None:
            _log.warning(
                "net.sampling is not set, so the saved network will not know how to sample: "
                "net.sampling = nf.auto_schedule(images).sampling"
            )
        self.log = TrainingLog(self.out, tensorboard=self.config.tensorboard)
        if self.out is None:
            return
        if resume:
            state = training_state.read(self.out)
            training_state.check_same_run(
                state, self._state(), self.out / training_state.CHECKPOINT
            )
        else:
            training_state.make_new_folder(self.out)
        every = self.config.keep_every
        kept = 0 if every is None else math.ceil(self.config.steps / every)
        training_state.check_can_be_saved(self._state(), self.out, kept)
        if resume:
            self._take_over(state)
            self.log.read(self.step)

    def _state(self) -> RunState:
        """The run as it is now."""
        return RunState(
            step=self.step,
            network=self.net.config,
            sampling=self.net.sampling,
            settings={**self.config.fixed(), "data": self.batches.sha256},
            sigmas=self.net.sigmas,
            weights=self.net.state_dict(),
            average={} if self.average is self.net else self.average.state_dict(),
            moments=self._compute.moments(),
            loss_sum=self.sums.sum,
            level_sums=self.sums.levels,
            loss_since=self.sums.since,
            scaler=self.scaler.state_dict(),
        )

    def _take_over(self, state: RunState) -> None:
        """Go on from a state of this run."""
        self.step = state.step
        self.net.load_state_dict(state.weights)
        if self.average is not self.net:
            self.average.load_state_dict(state.average)
        for net in (self.net, self.average):
            net.sigmas.copy_(state.sigmas)
        self._compute.take_moments(state.moments)
        self.sums.since = state.loss_since
        self.sums.sum.copy_(state.loss_sum)
        self.sums.levels.copy_(state.level_sums)
        if state.scaler:
            self.scaler.load_state_dict(dict(state.scaler))


@dataclass(frozen=True)
class _Duty:
    """What is done every so many steps: at the multiples of each of these numbers.

    Attributes:
        do: told whether this is the last step.
        at_end: whether it is done there too.
    """

    every: tuple[int, ...]
    do: Callable[[bool], None]
    at_end: bool = False

    def is_due(self, step: int, ending: bool) -> bool:
        return (ending and self.at_end) or any(step % every == 0 for every in self.every)


def _check_weights_are_wide(net: ScoreNetwork, precision: str) -> None:
    for name, parameter in net.named_parameters():
        narrow = parameter.dtype not in (torch.float32, torch.float64)
        if narrow or (parameter.dtype == torch.float64 and precision != "fp32"):
            raise ValueError(
                f"the weights are {parameter.dtype} ({name}): training keeps them in float32, "
                "whatever the precision; call net.float()"
            )


def _check_continuous(net: ScoreNetwork, config: TrainConfig) -> None:
    if config.continuous and net.sees_sigma:
        raise ValueError(
            f"continuous = True, but {type(net).__name__} is told the noise level as a "
            "label of its ladder: train it on the ladder, or take NCSNv2, which takes any σ"
        )


class _SignalWatch:
    """Ctrl-C and SIGTERM ask the trainer to stop after the step under way; a second one of them
    interrupts that step too."""

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


__all__ = ["TrainConfig", "Trainer", "TrainingError", "TrainingInterrupted"]
