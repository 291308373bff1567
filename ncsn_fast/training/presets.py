"""Settings by name: the published ones of NCSN and NCSNv2, and one for the bundled digits.

Song & Ermon 2019 and 2020 with the configuration files of their code. Every published preset has
σ_L = 0.01, a geometric ladder, Adam with β₁ = 0.9, λ = σ², no clipping and a constant rate.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from ncsn_fast.training.config import TrainConfig


@dataclass(frozen=True)
class Preset:
    """What a training run starts from; the fields are named as the options of ncsn-fast train.

    Attributes:
        about: the data it is for, in words.
        network, ngf: the network and its width F.
        channels, image_size: of the images; files are resized.
        crop: side of the square cut from the middle of each image before that, or None.
        sigma_max, num_levels, step_size: σ₁, L and ε; None: from the data.
        sigma_min, steps_per_level, denoise: σ_L, T, and whether sampling ends without noise.
        learning_rate, eps: of Adam.
        batch_size, steps, ema, ema_warmup, dequantize, flip, checkpoint_every: as in TrainConfig.
    """

    about: str
    network: str
    ngf: int
    channels: int
    image_size: int
    sigma_max: float | None
    num_levels: int | None
    steps_per_level: int
    step_size: float | None
    steps: int
    crop: int | None = None
    sigma_min: float = 0.01
    denoise: bool = True
    learning_rate: float = TrainConfig.learning_rate
    eps: float = TrainConfig.eps
    batch_size: int = TrainConfig.batch_size
    ema: float = TrainConfig.ema
    ema_warmup: bool = TrainConfig.ema_warmup
    dequantize: str | None = None
    flip: bool = True
    checkpoint_every: int = 5000

    def settings(self) -> dict[str, Any]:
        """The options of ncsn-fast train that this preset sets; what is None it leaves alone."""
        values = asdict(self)
        del values["about"]
        return {name: value for name, value in values.items() if value is not None}


_MNIST_V1 = Preset(
    about="MNIST 28×28 as in the paper of 2019",
    network="NCSN",
    ngf=64,
    channels=1,
    image_size=28,
    sigma_max=1.0,
    num_levels=10,
    steps_per_level=100,
    step_size=2e-5,
    denoise=False,
    learning_rate=1e-3,
    steps=200_000,
    ema=0.0,
    dequantize="uniform",
    flip=False,
)
_CIFAR10_V1 = replace(
    _MNIST_V1,
    about="CIFAR-10 32×32 as in the paper of 2019",
    ngf=128,
    channels=3,
    image_size=32,
    flip=True,
)
_CIFAR10 = Preset(
    about="CIFAR-10 32×32",
    network="NCSNv2",
    ngf=128,
    channels=3,
    image_size=32,
    sigma_max=50.0,
    num_levels=232,
    steps_per_level=5,
    step_size=6.2e-6,
    steps=300_000,
)
_BEDROOM = replace(
    _CIFAR10,
    about="LSUN bedroom 128×128",
    network="NCSNv2Deeper",
    image_size=128,
    sigma_max=190.0,
    num_levels=1086,
    steps_per_level=3,
    step_size=1.8e-6,
    steps=150_000,
)

PRESETS: dict[str, Preset] = {
    "digits": Preset(
        about="the bundled digits 8×8, in minutes",
        network="NCSNv2",
        ngf=32,
        channels=1,
        image_size=8,
        sigma_max=None,
        num_levels=None,
        steps_per_level=10,
        step_size=None,
        steps=10_000,
        learning_rate=1e-3,
        batch_size=64,
        ema_warmup=True,
        flip=False,
        checkpoint_every=500,
    ),
    "mnist-v1": _MNIST_V1,
    "cifar10-v1": _CIFAR10_V1,
    "celeba-v1": replace(_CIFAR10_V1, about="CelebA 32×32 as in the paper of 2019", crop=140),
    "cifar10": _CIFAR10,
    "celeba": replace(
        _CIFAR10,
        about="CelebA 64×64",
        image_size=64,
        crop=140,
        sigma_max=90.0,
        num_levels=500,
        step_size=3.3e-6,
        steps=210_000,
    ),
    "church": replace(
        _BEDROOM,
        about="LSUN church 96×96",
        image_size=96,
        sigma_max=140.0,
        num_levels=788,
        steps_per_level=4,
        step_size=4.9e-6,
        steps=200_000,
    ),
    "bedroom": _BEDROOM,
    "tower": replace(_BEDROOM, about="LSUN tower 128×128"),
    "ffhq": replace(
        _BEDROOM,
        about="FFHQ 256×256",
        network="NCSNv2Deepest",
        image_size=256,
        sigma_max=348.0,
        num_levels=2311,
        step_size=9e-7,
        eps=1e-3,
        batch_size=32,
        steps=80_000,
    ),
}

__all__ = ["PRESETS", "Preset"]
