"""Every setting of a training run, once: name, default, bounds, meaning, and what may change when
a run goes on. The options of ``ncsn-fast train`` are made from these fields.

The defaults of ``TrainConfig`` are those of NCSNv2 where it has one. In four places the command has
others (``command``), for runs of minutes on small images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ncsn_fast import noise
from ncsn_fast.data.array_files import LAYOUTS, VALUES
from ncsn_fast.device.precision import PRECISIONS
from ncsn_fast.methods.levels import OVERLAP, check_step_size, geometric_sigmas
from ncsn_fast.models.by_name import IMAGE_NETWORKS
from ncsn_fast.reference import ACTIVATIONS
from ncsn_fast.support.checks import count, number
from ncsn_fast.support.settings import check_settings, documented, setting, settings_of

# A setting under each of the command's headings.
_data, _network = partial(setting, group="Data"), partial(setting, group="Network")
_levels = partial(setting, group="Noise levels and sampling")
_training, _written = partial(setting, group="Training"), partial(setting, group="What is written")


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


def _path(name: str, value: Any) -> str | Path:
    if not isinstance(value, (str, Path)):
        raise ValueError(f"{name} = {value!r:.80}: give a folder, a str or a Path")
    return value


@documented
@dataclass(frozen=True)
class TrainRun:
    """What is trained, on what: with a ``TrainConfig`` a run as its folder keeps it."""

    preset: str | None = setting(None, "The preset that the settings started from.")
    data: str = _data(
        "digits",
        "digits, a folder of images, a .npy / .npz file, MNIST's IDX files, or CIFAR-10's binary "
        "version.",
        free=True,  # another place of the same images: their fingerprint has to agree
    )
    image_size: int | None = _data(None, "Cut and shrink the files of a folder to this.", least=1)
    crop: int | None = _data(
        None, "Cut a square of this side from their middle first; 0: do not.", least=0, none=0
    )
    damaged: str = _data(
        "refuse", "What to do with files that cannot be used.", choices=("refuse", "skip")
    )
    key: str | None = _data(None, "The array of an .npz that holds more than one.")
    layout: str | None = _data(
        None, "Axes of an array, where its shape does not tell.", choices=tuple(LAYOUTS)
    )
    values: str = _data(
        "unit",
        "Of an array: unit for [0, 1]; signed for [-1, 1] and complex ones, with --rescaled.",
        choices=VALUES,
    )
    labels: str | None = _data(
        None,
        "The classes of the images, where they are not found with them: a file, or a key of .npz.",
        free=True,
    )
    class_names: str | None = _data(
        None, "Names of the classes, in the order of their numbers.", "With commas between them."
    )
    held_out: str | None = _data(
        None,
        "Images that are not trained on, to judge samples by.",
        "What ``data`` may be; the digits have theirs.",
        free=True,
    )
    inception: str | None = _data(
        None,
        "Judge samples by FID: its weights, a local file, as of ncsn-fast evaluate.",
        "``held_out`` may then be statistics of images, an .npz of mu and sigma. It takes "
        "torch-fidelity.",
        free=True,
    )
    inception_sha256: str | None = _data(
        None, "What that file has to be, where other weights are meant.", free=True
    )
    channels: int | None = _data(
        None, "Refuse images of another number.", "None takes any.", least=1
    )
    network: str = _network("NCSNv2", choices=tuple(IMAGE_NETWORKS))
    conditional: bool = _network(False, "Tell it the class of an image; NCSNv2 only.")
    ngf: int = _network(32, "Width of the network.", least=1)
    activation: str = _network("elu", choices=tuple(ACTIVATIONS))
    pretrained: str | None = _network(
        None,
        "Begin with the weights of this network: a checkpoint, or digits, mnist or fashion.",
        "Of the same network, ngf, activation and range of values; noise levels are the run's own.",
    )
    rescaled: bool = _data(False, "Train on 2x - 1.")
    logit_transform: bool = _data(False, "Train on the logit.")
    sigma_max: float | None = _levels(
        None, "σ₁, the largest noise level.", "None: the largest distance between two images."
    )
    sigma_min: float = _levels(0.01, "The smallest noise level.")
    num_levels: int | None = _levels(None, "L.", "None: as many as ``overlap`` asks for.", least=2)
    overlap: float = _levels(
        OVERLAP, "Of neighbouring levels, where L follows from it; less gives fewer."
    )
    step_size: float | None = _levels(None, "ε of the sampler.", "None: the best for these levels.")
    steps_per_level: int = _levels(5, "T of the sampler.", least=1)
    denoise: bool = _levels(True, "End sampling without noise.")

    def __post_init__(self) -> None:
        check_settings(self)
        if self.values == "signed" and not self.rescaled:
            raise ValueError(
                "values='signed' is for a network that sees them as they are: add rescaled=True"
            )
        if self.conditional and self.network == "NCSN":
            raise ValueError("conditional = True, but NCSN knows no classes: NCSNv2 does")
        if not self.conditional and (self.labels, self.class_names) != (None, None):
            raise ValueError("labels and class_names are for conditional=True: add it")
        if self.inception is None and self.inception_sha256 is not None:
            raise ValueError(
                f"inception_sha256={self.inception_sha256} is of a file of weights: give it too, "
                "by inception"
            )
        if self.sigma_max is not None:
            geometric_sigmas(self.sigma_max, self.sigma_min, 2)
        if self.step_size is not None:
            check_step_size(self.step_size, self.sigma_min)


@documented
@dataclass(frozen=True)
class TrainConfig:
    """Settings of a training run; the defaults are those of NCSNv2 (2020) where it has one.

    Values out of range, and those that exclude each other, are refused by a ValueError.
    """

    steps: int = _training(10_000, "Optimiser steps.", "In all.", command=5000, least=1, free=True)
    batch_size: int = _training(128, "", "Images per step.", command=64, least=1, most=1 << 31)
    # Free, for without another one a run that diverged could not be saved; the other settings that
    # are free do not change what a step computes.
    learning_rate: float = _training(
        1e-4,
        "Of Adam.",
        "The papers use 1e-3 (v1) and 1e-4 (v2).",
        command=1e-3,
        check=_positive,
        free=True,
    )
    beta1: float = _training(0.9, "", "Of Adam.", check=_rate)
    beta2: float = _training(0.999, "", "Of Adam.", check=_rate)
    eps: float = _training(1e-8, "", "Of Adam.", check=_positive)
    warmup: int = _training(
        0, "Steps to reach that rate.", "It rises linearly from 0; 0 in the papers.", least=0
    )
    cooldown: int = _training(
        0,
        "Steps at the end in which that rate falls.",
        "It falls linearly to 0, which takes the noise of the last steps out of the weights; 0 in "
        "the papers.",
        least=0,
        free=True,  # as steps, by which it is counted
    )
    clip_gradient: float | None = _training(
        None, "Its largest norm.", "None, as in the papers, leaves it.", check=_positive
    )
    accumulate: int = _training(
        1,
        "Parts a batch is cut into, to need less memory.",
        "Changes no result beyond rounding.",
        least=1,
        free=True,
    )
    precision: str = _training(
        "fp32",
        "auto: what is fast here, without a GradScaler.",
        "fp32, tf32, bf16 or fp16 (with a GradScaler), see ``device/precision.py``. A Trainer "
        "replaces auto in its ``config`` by one of them (``inference/automatic.py``): where a run "
        "goes on by the one that it began in.",
        choices=("auto", *PRECISIONS),
    )
    ema: float = _training(
        0.999, "Rate of the weights' moving average; 0 for none.", "0.999 is NCSNv2's.", check=_rate
    )
    ema_warmup: bool = _training(
        False,
        "Lower that rate at the beginning, which short runs need.",
        "It is (1 + t)/(10 + t) at step t while that is less, so that a random beginning is not "
        "averaged in. Off in the published settings.",
        command=True,
    )
    anneal_power: float = _training(2.0, "p of the loss weight σᵖ.", check=_exponent)
    continuous: bool = _training(
        False,
        "Noise levels between those of the ladder.",
        "σ is drawn log-uniformly between the smallest and the largest; for networks that take "
        "any σ.",
    )
    dequantize: str | None = _data(
        None,
        "Noise below the step of 8-bit values.",
        "None, uniform (x·255/256 + u/256, u from U[0, 1)) or gaussian (x + 0.01·z).",
        choices=("uniform", "gaussian"),
        none="none",
    )
    flip: bool = _data(False, "Mirror half of the images.", "At random.")
    class_dropout: float = _data(
        0.1,
        "Share of images whose class is left out.",
        "What is learned without classes is what guidance steers away from (Ho & Salimans 2022); "
        "for networks that know classes.",
        check=_rate,
    )
    seed: int = setting(
        0, "", "Of noise, levels and order.", group="Run", check=_seed, least=0, most=2**64 - 1
    )
    out: str | Path | None = setting(
        None,
        "Folder for log.jsonl, checkpoint.safetensors (to resume) and model.safetensors (to "
        "sample from).",
        "None writes nothing.",
        check=_path,
        free=True,
    )
    log_every: int = setting(10, "Steps between two entries of the log.", least=1, free=True)
    checkpoint_every: int = _written(
        500, "Steps between two saves: what a power failure can cost.", least=1, free=True
    )
    keep_every: int | None = _written(
        None, "Also keep the model so often.", "A multiple of checkpoint_every.", least=1, free=True
    )
    sample_every: int | None = _written(
        None,
        "Draw samples so often.",
        "With held-out images they are judged by their pixel Fréchet distance, or by FID, and the "
        "best model is kept as best.safetensors.",
        least=1,
        free=True,
    )
    samples: int = _written(100, "How many.", "At least 2.", check=_several, least=2, free=True)
    tensorboard: bool = _written(
        False, "Log for TensorBoard too.", "Into ``out``/tensorboard.", free=True
    )
    max_seconds: float | None = setting(
        None, "Stop after this time, whatever the number of steps.", check=_positive, free=True
    )
    graph: bool | str = _training(
        "auto",
        "The step as a CUDA graph. Default: where that is possible.",
        "It is captured once and replayed: auto (on CUDA devices, where it can be captured), True "
        "(refused where it cannot) or False. The results are the same.",
        choices=("auto", True, False),
        free=True,
    )

    def fixed(self) -> dict[str, Any]:
        """The settings that a run keeps when it goes on, but for those of the classes, which
        ``Batches.identity`` has where there are any."""
        table = settings_of(TrainConfig)
        kept = {name: value for name, value in vars(self).items() if not table[name].free}
        del kept["class_dropout"]
        return kept

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
