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
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor

from ncsn_fast.data.batches import Batches
from ncsn_fast.data.samples import Data
from ncsn_fast.device import backends, malloc, profiling
from ncsn_fast.device.precision import check_precision, float32_mode
from ncsn_fast.distributed.group import join
from ncsn_fast.distributed.ranks import from_environment
from ncsn_fast.evaluation.inception.figures import Fid
from ncsn_fast.models.base import ScoreNetwork
from ncsn_fast.support.checks import choice
from ncsn_fast.support.files import remove_leftovers
from ncsn_fast.support.progress import Progress, ProgressWish
from ncsn_fast.support.signals import on_stop
from ncsn_fast.training import state as training_state
from ncsn_fast.training.config import TrainConfig
from ncsn_fast.training.forms import forms_of_run, settled, tell_other_forms
from ncsn_fast.training.graph import TrainingGraph
from ncsn_fast.training.log import FID, PIXELS, LossSums, TrainingLog, by_level, warned
from ncsn_fast.training.samples import FOLDER, TrainingSamples
from ncsn_fast.training.state import RunFolder, RunState
from ncsn_fast.training.step import TrainingError, TrainingStep, check_trainable, usual_modes

_log = logging.getLogger("ncsn_fast")
Logged = tuple[int, float]


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C, SIGTERM or SIGHUP while training: the step was finished and, with ``out``, saved.

    Attributes:
        signal: which of them.
    """

    def __init__(self, message: str, signal: signal.Signals) -> None:
        super().__init__(message, signal)  # so that it survives pickling
        self.signal = signal

    def __str__(self) -> str:
        return str(self.args[0])


class Trainer:
    """Trains a network by denoising score matching (Song & Ermon 2019, 2020).

    Several processes that torchrun has started (``distributed/``) train it together, each on its
    share of every batch. The first alone writes, logs and draws samples; the network, its average
    and the ``history`` are the same in all of them, and all call the same methods.

    Args:
        net: the network; it is trained in place, on its device. Networks of images are put into
            channels_last memory format, in which convolutions are fastest.
        dataset: (N, *shape) tensor or array, which may be memory-mapped, of images in [0, 1] or of
            8-bit images, or a torch Dataset of such; see ``Batches``.
        config: the settings.
        classes: (N,) whole numbers, the class of each sample, for a network that knows classes.
        resume: go on from the checkpoint in ``config.out``.
        held_out: (M, *shape) float images in [0, 1] that are not in the data set, to judge by
            them the samples drawn every ``config.sample_every`` steps; or a ``Fid``.
        locked: whether the caller holds the ``folder_lock`` of ``config.out`` and knows that it
            holds no other run, as ncsn-fast train does. Else the trainer takes it while it looks
            at the folder, and again for :meth:`fit` and :meth:`save`.

    Attributes:
        step: optimiser steps done.
        history: (step, loss) pairs as logged; each loss is the mean since the one before.
        log: the whole log; ``log.distances`` are the (step, distance) pairs.
        average: the network with the averaged weights, or the network itself without ema.
        config: the settings, with the precision that "auto" was resolved to.

    Raises:
        ValueError: for data that do not fit the network, a precision the device does not have, an
            ``out`` folder that holds another run or that another process is writing to, a
            checkpoint of other settings, or a batch of fewer samples than there are processes.
        OSError: for an ``out`` that cannot be written, or a disk without room for the run.
    """

    @usual_modes()
    def __init__(
        self,
        net: ScoreNetwork,
        dataset: Data,
        config: TrainConfig | None = None,
        *,
        classes: Tensor | np.ndarray | None = None,
        resume: bool = False,
        held_out: Tensor | Fid | None = None,
        locked: bool = False,
    ) -> None:
        asked = TrainConfig() if config is None else config
        choice("resume", resume, (True, False), "whether to go on with a run")
        check_trainable(net, asked)
        self.group = group = join(from_environment(), net.sigmas.device)
        self.config = config = settled(asked, net, resume, group)
        self.device = net.sigmas.device
        check_precision(config.precision, self.device)
        if self.device.type == "cpu":
            malloc.keep_freed_memory()
        if len(net.shape) == 3:
            net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.net = net
        self.step = 0
        self.average = copy.deepcopy(net).requires_grad_(False) if config.ema else net
        self.sums = LossSums(len(net.sigmas), self.device)
        self._compute = TrainingStep(net, self.average, self.sums, config, group)
        self.optimizer, self.scaler = self._compute.optimizer, self._compute.scaler
        self.batches = Batches(
            dataset,
            net,
            batch_size=config.batch_size,
            seed=config.seed,
            flip=config.flip,
            dequantize=config.dequantize,
            classes=classes,
            class_dropout=config.class_dropout,
            share=self._compute.share,
        )
        _log.info("training data: %s", self.batches.placement)
        self._graph = TrainingGraph(
            self._compute.pieces, self.device, config.graph, self._compute.weights
        )
        self._samples = TrainingSamples.of(net, config, held_out)
        self._asked: signal.Signals | None = None  # this process, to stop
        self._stop: signal.Signals | None = None  # one of the processes, as all of them know
        self._saved: int | None = None  # the step that was saved last
        self._drawn: int | None = None  # the step that samples were drawn of last
        self._convolutions = ""
        self._folder: RunFolder | None = None
        if config.out is not None and group.ranks.is_first:
            self._folder = RunFolder(Path(config.out), locked)
        measure = FID if isinstance(held_out, Fid) else PIXELS
        self.log = TrainingLog(self.out, tensorboard=config.tensorboard, measure=measure)
        self._begin(resume)

    @property
    def out(self) -> Path | None:
        """The folder that this process writes to."""
        return None if self._folder is None else self._folder.path

    @property
    def history(self) -> list[tuple[int, float]]:
        return self.log.losses

    def fit(self, progress: ProgressWish = None) -> ScoreNetwork:
        """Train to ``config.steps`` or ``max_seconds``, with ``progress``; return the averaged net.

        The first Ctrl-C, SIGTERM or SIGHUP lets the step under way be finished and saved, a second
        one ends at once.

        Raises:
            TrainingInterrupted: after such a signal.
            TrainingError: when the loss is no longer finite; the last checkpoint stays.
            ValueError: where another process writes to the folder, or has saved there since this
                trainer looked at it or saved last.
            OSError: where the last step cannot be saved. Before that a failed save is a warning,
                and training goes on towards the next.
        """
        with contextlib.ExitStack() as stack:
            stack.enter_context(usual_modes())
            stack.enter_context(float32_mode(self.config.precision, self.device))
            lock = contextlib.nullcontext() if self._folder is None else self._folder.lock()
            self.group.from_first(lambda: stack.enter_context(lock))
            stack.callback(self._graph.release)
            self._run(progress)
        self.net.eval()
        if self._stop is not None and (self.step < self.config.steps or self._are_samples_due()):
            raise self._interrupted(self._stop)
        return self.average.eval()

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a Trainer is not copied or pickled: save(), make another by resume=True")

    def save(self) -> None:
        """Write checkpoint.safetensors and model.safetensors into ``out``, if there is one.

        Raises:
            TrainingError: where the loss or the weights are not finite; nothing is written.
            ValueError: as for :meth:`fit`.
            OSError: where the disk does not take them; the files of before stay.
        """
        self._save(self._write)

    def _save(self, write: Callable[[], bool]) -> None:
        """Let the first process write this step, which says whether it could."""
        if self.config.out is not None:
            self.sums.gather(self.group)
            self._compute.check_same_weights(self.step)
            if not self.group.from_first(write):
                return
        self._saved = self.step

    def _write(self) -> bool:
        assert self._folder is not None
        self._compute.check_loss(self.step)
        self._compute.check_weights(self.step)
        self.average.sampling = self.net.sampling
        keep = self.step > 0 and self.step % (self.config.keep_every or math.inf) == 0
        self._folder.save(self._state(), self.average, keep=keep)
        return True

    @profiling.mark("train")
    def _run(self, progress: ProgressWish) -> None:
        config = self.config
        # Kernels that have to be built are built before the clock runs.
        self.group.first_alone(lambda: backends.resolve("auto", self.device))
        started, first = time.monotonic(), self.step
        ending = self.step >= config.steps
        self._asked = self._stop = None
        if self.out is not None:
            remove_leftovers(self.out)
            if self._samples is not None:
                remove_leftovers(self.out / FOLDER)
        stops = on_stop(self._asked_to_stop, 5.0 if self.group.ranks.started else 0)
        with stops, Progress(progress, config.steps, done=self.step) as bar:
            self._take_up(ending, bar)
            self.net.train()
            ending = self._is_to_end() or ending
            while not ending:
                self._step_or_save()
                seconds = time.monotonic() - started
                out_of_time = config.max_seconds is not None and seconds > config.max_seconds
                ending = self._is_to_end(out_of_time) or self.step == config.steps
                if self.step % config.log_every == 0:
                    bar.note(self._log_loss(started, first))
                if ending or self._is_save_due():
                    self._save(partial(self._write_or_warn, ending))
                if self._are_samples_due():  # of a step that is saved
                    self._draw_samples(bar)
                # A signal that came in the meantime ends the run here only if the step is saved.
                if self._saved == self.step:
                    ending = self._is_to_end() or ending
                bar.advance()
        self.log.close()

    def _take_up(self, ending: bool, bar: Progress) -> None:
        """Begin to write, and do what the process before may not have come to."""
        # A run that goes on draws the samples of its step once more, so that it does not depend on
        # what was written after the checkpoint; one that has ended only those that are missing.
        if self._are_samples_due() and (not ending or self.step not in dict(self.log.distances)):
            self.log.forget_distance(self.step)
        else:
            self._drawn = self.step
        self.group.from_first(lambda: self.log.open(self.step))
        if ending:
            self.save()  # the process that finished may have been killed before it wrote the model
        if self._are_samples_due():
            self._draw_samples(bar)

    def _is_save_due(self) -> bool:
        drawn = self._samples is not None and self._samples.are_due(self.step)
        return drawn or self.step % self.config.checkpoint_every == 0

    def _are_samples_due(self) -> bool:
        """Whether samples belong to this step, and have not been drawn."""
        due = self._samples is not None and self._samples.are_due(self.step)
        return due and self._drawn != self.step

    def _asked_to_stop(self, number: signal.Signals) -> None:
        """The step under way is finished first, unless this is the second time."""
        if self._asked is not None:
            raise self._interrupted(number)
        self._asked = number

    def _is_to_end(self, out_of_time: bool = False) -> bool:
        """Whether a process was asked to stop, or is out of time: all of them end at one step."""
        asked, late = self.group.largest(self._asked or 0, out_of_time)
        if asked:
            self._stop = signal.Signals(asked)
        return bool(asked or late)

    def _interrupted(self, number: signal.Signals) -> TrainingInterrupted:
        saved = ""
        if self.out is not None and self._saved is not None:
            at = "" if self._saved == self.step else f" at step {self._saved}"
            saved = f"; saved{at} in {self.out}, resume it to go on"
        return TrainingInterrupted(f"{number.name} at step {self.step}{saved}", number)

    def _step_or_save(self) -> None:
        """A step; if it fails, on bad data say, the steps before it are not lost. Of several
        processes the others are then beyond reach, and the last checkpoint stays."""
        try:
            self._train_step()
        except Exception:
            if self.step and self.group.is_alone:
                with contextlib.suppress(TrainingError), warned(f"step {self.step}"):
                    self.save()
            raise

    @profiling.mark("step")
    def _train_step(self) -> None:
        """One optimiser step. Nothing in it waits for the device."""
        with profiling.mark("data"):
            x, _ = self.batches.at(self.step)
            self._compute.load(x, self.step, self.batches.classes_at(self.step))
        self._graph()
        self.step += 1

    def _log_loss(self, started: float, first: int) -> str:
        """An entry of the log; returns what the bar shows."""
        self.sums.gather(self.group)
        loss = self.group.from_first(self._mean_loss)
        # The clock is read after the device has been waited for.
        rate = (self.step - first) * self.config.batch_size / (time.monotonic() - started)
        self.log.loss(self.step, loss, rate)
        return f"loss {loss:.3g}, {rate:.0f} images/s"

    def _mean_loss(self) -> float:
        self._compute.check_loss(self.step)
        return self.sums.mean(self.step)

    def _draw_samples(self, bar: Progress) -> None:
        """Samples of the averaged network, unless the run is to end first."""
        if self._stop is not None:
            return
        drawn, distance = self.group.from_first(partial(self._draw, bar))
        if drawn:
            self._drawn = self.step
        if distance is not None:
            self.log.distance(self.step, distance)  # last: it says that all of this is done

    def _draw(self, bar: Progress) -> tuple[bool, float | None]:
        """Whether they were drawn, and their distance, if there is one."""

        def wanted(done: int, total: int) -> bool:
            bar.note(f"drawing samples: {done:,} of {total:,}", now=True)
            return self._asked is None

        if self._samples is None or self._asked is not None:
            return False, None
        self.average.sampling = self.net.sampling
        return self._samples.draw_or_warn(self.average, self.step, self.out, wanted, self.log.best)

    def _write_or_warn(self, last: bool) -> bool:
        """Write the step and the losses by level; but for the ``last`` step failure is a warning.

        The losses are reported first, and on the disk before a checkpoint counts from there on. At
        an end between two saves they go on being summed: the run may go on.
        """
        levels = self.sums.levels.clone()
        self.log.levels(self.step, self.net.sigmas, by_level(levels))
        self.log.flush()
        if self._is_save_due():
            self.sums.levels.zero_()
        try:
            return self._write()
        except OSError as error:
            if last:
                raise
            self.sums.levels.copy_(levels)
            _log.warning(
                "step %d could not be saved (%s): training goes on and tries again in %d steps",
                self.step,
                error,
                self.config.checkpoint_every,
            )
            return False

    def _begin(self, resume: bool) -> None:
        """Go on with the run in the folder or begin one, all processes with what the first has."""
        if self.config.out is None and resume:
            raise ValueError("resume needs the folder of the run: TrainConfig(out=...)")
        log, first = self.log, self.group.ranks.is_first
        state, log.losses, log.distances = self.group.from_first(lambda: self._found(resume))
        if not first:
            training_state.check_same_run(state, self._state(), "process 0")
        if resume or not first:
            self._take_over(state)
        if resume:
            self._saved = self.step

    def _found(self, resume: bool) -> tuple[RunState, list[Logged], list[Logged]]:
        """The run to begin with, its losses and distances; refuse a folder that is not for it."""
        here, log, folder = self._state(), self.log, self._folder
        if folder is not None:
            if self.net.sampling is None:
                _log.warning(
                    "net.sampling is not set, so the saved network will not know how to sample: "
                    "net.sampling = nf.auto_schedule(images).sampling"
                )
            if resume and not folder.path.is_dir():
                raise ValueError(
                    f"there is no folder {folder.path} to resume from: start without resume"
                )
            self._convolutions = forms_of_run(self.net, self.config, len(self._compute.share))
            with folder.lock():
                kept = math.ceil(self.config.steps / (self.config.keep_every or math.inf))
                here = folder.look(here, resume, kept)
                if resume:
                    tell_other_forms(here.convolutions, self._convolutions)
                    log.read(here.step, here.log)
        return here if self.group.is_alone else here.on_cpu(), log.losses, log.distances

    def _state(self) -> RunState:
        """The run as it is now."""
        return RunState(
            step=self.step,
            network=self.net.config,
            sampling=self.net.sampling,
            settings={**self.config.fixed(), **self.batches.identity},
            sigmas=self.net.sigmas,
            weights=self.net.state_dict(),
            average={} if self.average is self.net else self.average.state_dict(),
            moments=self._compute.moments(),
            loss_sum=self.sums.sum,
            level_sums=self.sums.levels,
            loss_since=self.sums.since,
            scaler=self.scaler.state_dict(),
            convolutions=self._convolutions,
            log=self.log.digest(self.step),
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
        if self.group.ranks.is_first:
            self.sums.sum.copy_(state.loss_sum)
            self.sums.levels.copy_(state.level_sums)
        if state.scaler:
            self.scaler.load_state_dict(dict(state.scaler))


__all__ = ["Trainer", "TrainingInterrupted"]
