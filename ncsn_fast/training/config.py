"""The settings of a training run."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ncsn_fast import noise
from ncsn_fast.device.precision import PRECISIONS
from ncsn_fast.support.checks import count

# A run may be resumed with other values of these: they do not change what a step computes, but for
# the learning rate, without which a run that diverged could not be saved.
FREE_ON_RESUME = {
    "steps",
    "learning_rate",
    "accumulate",
    "out",
    "log_every",
    "checkpoint_every",
    "keep_every",
    "sample_every",
    "samples",
    "tensorboard",
    "max_seconds",
    "graph",
}


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a training run; the defaults are those of NCSNv2 where it has one.

    Attributes:
        steps: optimiser steps in all.
        batch_size: images per step.
        learning_rate, beta1, beta2, eps: Adam. The papers use 1e-4 (v2), 0.9, 0.999, 1e-8.
        warmup: steps over which the learning rate rises linearly from 0; 0 in the papers.
        clip_gradient: largest norm of the gradient; None, as in the papers, leaves it.
        accumulate: parts into which a batch is cut, to need less memory; changes no result beyond
            rounding.
        precision: "fp32", "tf32", "bf16" or "fp16" (with a GradScaler); see
            ``device/precision.py``.
        ema: rate of the moving average of the weights; 0.999 is NCSNv2's, 0 keeps none.
        ema_warmup: lower the rate to (1 + t)/(10 + t) at step t while that is less, so that short
            runs do not average in their random beginning. Off in the published settings.
        anneal_power: exponent p of the loss weight σ^p.
        continuous: draw σ log-uniformly between the smallest and the largest level, not from the
            ladder; for networks that take any σ.
        dequantize: None, "uniform" or "gaussian"; see :meth:`ncsn_fast.models.space.Space.enter`.
        flip: mirror every image with probability ½.
        seed: of noise, levels and order.
        out: folder for log.jsonl, checkpoint.safetensors (to resume) and model.safetensors (to
            sample from); None writes nothing.
        log_every, checkpoint_every: in steps.
        keep_every: also keep the model of every so many steps (a multiple of checkpoint_every).
        sample_every: draw samples every so many steps; with held-out images they are judged by
            their pixel Fréchet distance and the best model is kept as best.safetensors.
        samples: how many.
        tensorboard: also write the log for TensorBoard, into ``out``/tensorboard.
        max_seconds: stop after this time, whatever the number of steps.
        graph: capture the step as a CUDA graph and replay it: "auto" (on CUDA devices, where it
            can be captured), True (refused where it cannot) or False. The results are the same.
    """

    steps: int = 10_000
    batch_size: int = 128
    learning_rate: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    warmup: int = 0
    clip_gradient: float | None = None
    accumulate: int = 1
    precision: str = "fp32"
    ema: float = 0.999
    ema_warmup: bool = False
    anneal_power: float = 2.0
    continuous: bool = False
    dequantize: str | None = None
    flip: bool = False
    seed: int = 0
    out: str | Path | None = None
    log_every: int = 10
    checkpoint_every: int = 500
    keep_every: int | None = None
    sample_every: int | None = None
    samples: int = 100
    tensorboard: bool = False
    max_seconds: float | None = None
    graph: bool | str = "auto"

    def fixed(self) -> dict[str, Any]:
        """The settings that a run keeps when it is resumed."""
        return {k: v for k, v in asdict(self).items() if k not in FREE_ON_RESUME}

    def __post_init__(self) -> None:
        self._check_counts()
        for name in ("learning_rate", "eps", "clip_gradient", "max_seconds"):
            if getattr(self, name) is not None and not 0 < self._as_float(name) < math.inf:
                value = getattr(self, name)
                raise ValueError(f"{name} = {value}: it has to be positive and finite")
        if not math.isfinite(self._as_float("anneal_power")):
            raise ValueError(
                f"anneal_power = {self.anneal_power}: give a finite exponent, such as 2"
            )
        for name in ("beta1", "beta2", "ema"):
            if not 0 <= self._as_float(name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: give a rate in [0, 1)")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision = {self.precision!r}: choose one of {PRECISIONS}")
        if self.graph not in ("auto", True, False):
            raise ValueError(f"graph = {self.graph!r}: choose 'auto', True or False")
        if self.tensorboard and self.out is None:
            raise ValueError("tensorboard needs a folder to write into: TrainConfig(out=...)")
        object.__setattr__(self, "seed", noise.check_seed(self.seed))

    def _check_counts(self) -> None:
        for name in ("steps", "batch_size", "log_every", "checkpoint_every", "accumulate"):
            self._as_count(name)
        for name in ("keep_every", "sample_every"):
            if getattr(self, name) is not None:
                self._as_count(name)
        if self.warmup != 0:
            self._as_count("warmup")
        if self._as_count("samples") < 2:
            raise ValueError(f"samples = {self.samples}: a distance needs at least 2 of them")
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"accumulate = {self.accumulate} does not divide batch_size = {self.batch_size}: "
                "the parts of a batch are equal"
            )
        if self.keep_every is not None and self.keep_every % self.checkpoint_every:
            raise ValueError(
                f"keep_every = {self.keep_every} is no multiple of checkpoint_every = "
                f"{self.checkpoint_every}: models are kept when they are saved"
            )

    # Numbers of NumPy's are taken for what they are, but a checkpoint's JSON knows only Python's.
    def _as_count(self, name: str) -> int:
        value = count(name, getattr(self, name))
        object.__setattr__(self, name, value)
        return value

    def _as_float(self, name: str) -> float:
        given = getattr(self, name)
        try:
            value = float(given)
        except (TypeError, ValueError):
            raise ValueError(f"{name} = {given!r}: it has to be a number") from None
        object.__setattr__(self, name, value)
        return value


__all__ = ["TrainConfig"]
