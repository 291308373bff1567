"""Every setting of a training run, once: name, default, bounds, meaning, and what may change when
a run goes on. The options of ``ncsn-fast train`` are made from these fields.

The defaults of ``TrainConfig`` are those of NCSNv2 where it has one. In four places the command has
others (``command``), for runs of minutes on small images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ncsn_fast import noise
from ncsn_fast.device.precision import PRECISIONS
from ncsn_fast.methods.levels import OVERLAP, check_step_size, geometric_sigmas
from ncsn_fast.models.by_name import IMAGE_NETWORKS
from ncsn_fast.reference import ACTIVATIONS
from ncsn_fast.support.checks import count, number
from ncsn_fast.support.settings import check_settings, documented, setting, settings_of

_DATA, _NETWORK, _LEVELS = "Data", "Network", "Noise levels and sampling"
_TRAINING, _WRITTEN = "Training", "What is written"


def _positive(name: str, value: Any) -> float:
    value = number(name, value)
    if not 0 < value < math.inf:
        raise ValueError(f"{name} = {value}: it has to be positive and finite")
    return value


def _rate(name: str, value: Any) -> float:
    value = number(name, value)
    if not 0 <= value < 1:
        raise ValueError(f"{name} = {value}: give a rate in [0, 1)")
    return value


def _exponent(name: str, value: Any) -> float:
    value = number(name, value)
    if not math.isfinite(value):
        raise ValueError(f"{name} = {value}: give a finite exponent, such as 2")
    return value


def _seed(name: str, value: Any) -> int:
    return noise.check_seed(value)


def _several(name: str, value: Any) -> int:
    if (value := count(name, value)) < 2:
        raise ValueError(f"{name} = {value}: a distance needs at least 2 of them")
    return value


@documented
@dataclass(frozen=True)
class TrainRun:
    """What is trained, on what: with a ``TrainConfig`` a run as its folder keeps it."""

    preset: str | None = setting(None, "The preset that the settings started from.")
    data: str = setting(
        "digits",
        "digits, a folder of images, a .npy / .npz file, or CIFAR-10's binary version.",
        group=_DATA,
    )
    image_size: int | None = setting(
        None, "Cut and shrink the files of a folder to this.", group=_DATA, least=1
    )
    crop: int | None = setting(
        None,
        "Cut a square of this side from their middle first; 0: do not.",
        group=_DATA,
        least=0,
        none=0,
    )
    damaged: str = setting(
        "refuse",
        "What to do with files that cannot be used.",
        group=_DATA,
        choices=("refuse", "skip"),
    )
    channels: int | None = setting(
        None, "Refuse images of another number.", "None takes any.", group=_DATA, least=1
    )
    network: str = setting("NCSNv2", group=_NETWORK, choices=IMAGE_NETWORKS)
    ngf: int = setting(32, "Width of the network.", group=_NETWORK, least=1)
    activation: str = setting("elu", group=_NETWORK, choices=tuple(ACTIVATIONS))
    rescaled: bool = setting(False, "Train on 2x - 1.", group=_DATA)
    logit_transform: bool = setting(False, "Train on the logit.", group=_DATA)
    sigma_max: float | None = setting(
        None,
        "σ₁, the largest noise level.",
        "None: the largest distance between two images.",
        group=_LEVELS,
    )
    sigma_min: float = setting(0.01, "The smallest noise level.", group=_LEVELS)
    num_levels: int | None = setting(
        None, "L.", "None: as many as ``overlap`` asks for.", group=_LEVELS, least=2
    )
    overlap: float = setting(
        OVERLAP, "Of neighbouring levels, where L follows from it; less gives fewer.", group=_LEVELS
    )
    step_size: float | None = setting(
        None, "ε of the sampler.", "None: the best for these levels.", group=_LEVELS
    )
    steps_per_level: int = setting(5, "T of the sampler.", group=_LEVELS, least=1)
    denoise: bool = setting(True, "End sampling without noise.", group=_LEVELS)

    def __post_init__(self) -> None:
        check_settings(self)
        if self.sigma_max is not None:
            geometric_sigmas(self.sigma_max, self.sigma_min, 2)
        if self.step_size is not None:
            check_step_size(self.step_size, self.sigma_min)


@documented
@dataclass(frozen=True)
class TrainConfig:
    """Settings of a training run; the defaults are those of NCSNv2 where it has one."""

    steps: int = setting(
        10_000, "Optimiser steps.", "In all.", group=_TRAINING, command=5000, least=1, free=True
    )
    batch_size: int = setting(128, "", "Images per step.", group=_TRAINING, command=64, least=1)
    # Free, for without another one a run that diverged could not be saved; the other settings that
    # are free do not change what a step computes.
    learning_rate: float = setting(
        1e-4,
        "Of Adam.",
        "The papers use 1e-3 (v1) and 1e-4 (v2).",
        group=_TRAINING,
        command=1e-3,
        check=_positive,
        free=True,
    )
    beta1: float = setting(0.9, "", "Of Adam.", group=_TRAINING, check=_rate)
    beta2: float = setting(0.999, "", "Of Adam.", group=_TRAINING, check=_rate)
    eps: float = setting(1e-8, "", "Of Adam.", group=_TRAINING, check=_positive)
    warmup: int = setting(
        0,
        "Steps to reach that rate.",
        "It rises linearly from 0; 0 in the papers.",
        group=_TRAINING,
        least=0,
    )
    clip_gradient: float | None = setting(
        None,
        "Its largest norm.",
        "None, as in the papers, leaves it.",
        group=_TRAINING,
        check=_positive,
    )
    accumulate: int = setting(
        1,
        "Parts a batch is cut into, to need less memory.",
        "Changes no result beyond rounding.",
        group=_TRAINING,
        least=1,
        free=True,
    )
    precision: str = setting(
        "fp32",
        "",
        "fp32, tf32, bf16 or fp16 (with a GradScaler); see ``device/precision.py``.",
        group=_TRAINING,
        choices=PRECISIONS,
    )
    ema: float = setting(
        0.999,
        "Rate of the weights' moving average; 0 for none.",
        "0.999 is NCSNv2's.",
        group=_TRAINING,
        check=_rate,
    )
    ema_warmup: bool = setting(
        False,
        "Lower that rate at the beginning, which short runs need.",
        "It is (1 + t)/(10 + t) at step t while that is less, so that a random beginning is not "
        "averaged in. Off in the published settings.",
        group=_TRAINING,
        command=True,
    )
    anneal_power: float = setting(2.0, "p of the loss weight σᵖ.", group=_TRAINING, check=_exponent)
    continuous: bool = setting(
        False,
        "Noise levels between those of the ladder.",
        "σ is drawn log-uniformly between the smallest and the largest; for networks that take "
        "any σ.",
        group=_TRAINING,
    )
    dequantize: str | None = setting(
        None,
        "Noise below the step of 8-bit values.",
        "None, uniform or gaussian; see :func:`ncsn_fast.models.space.Space.enter`.",
        group=_DATA,
        choices=("uniform", "gaussian"),
        none="none",
    )
    flip: bool = setting(False, "Mirror half of the images.", "At random.", group=_DATA)
    seed: int = setting(
        0, "", "Of noise, levels and order.", group="Run", check=_seed, least=0, most=2**64 - 1
    )
    out: str | Path | None = setting(
        None,
        "Folder for log.jsonl, checkpoint.safetensors (to resume) and model.safetensors (to "
        "sample from).",
        "None writes nothing.",
        free=True,
    )
    log_every: int = setting(10, "Steps between two entries of the log.", least=1, free=True)
    checkpoint_every: int = setting(
        500,
        "Steps between two saves: what a power failure can cost.",
        group=_WRITTEN,
        least=1,
        free=True,
    )
    keep_every: int | None = setting(
        None,
        "Also keep the model so often.",
        "A multiple of checkpoint_every.",
        group=_WRITTEN,
        least=1,
        free=True,
    )
    sample_every: int | None = setting(
        None,
        "Draw samples so often.",
        "With held-out images they are judged by their pixel Fréchet distance, and the best model "
        "is kept as best.safetensors.",
        group=_WRITTEN,
        least=1,
        free=True,
    )
    samples: int = setting(
        100, "How many.", "At least 2.", group=_WRITTEN, check=_several, least=2, free=True
    )
    tensorboard: bool = setting(
        False, "Log for TensorBoard too.", "Into ``out``/tensorboard.", group=_WRITTEN, free=True
    )
    max_seconds: float | None = setting(
        None, "Stop after this time, whatever the number of steps.", check=_positive, free=True
    )
    graph: bool | str = setting(
        "auto",
        "The step as a CUDA graph. Default: where that is possible.",
        "It is captured once and replayed: auto (on CUDA devices, where it can be captured), True "
        "(refused where it cannot) or False. The results are the same.",
        group=_TRAINING,
        choices=("auto", True, False),
        free=True,
    )

    def fixed(self) -> dict[str, Any]:
        """The settings that a run keeps when it goes on."""
        table = settings_of(TrainConfig)
        return {name: value for name, value in vars(self).items() if not table[name].free}

    def __post_init__(self) -> None:
        check_settings(self)
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
        if self.tensorboard and self.out is None:
            raise ValueError("tensorboard needs a folder to write into: TrainConfig(out=...)")


__all__ = ["TrainConfig", "TrainRun"]
