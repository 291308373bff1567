"""Settings by name: the published ones of NCSN and NCSNv2, and those of the bundled networks.

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
        conditional, class_names, class_dropout: as in TrainRun and TrainConfig.
        learning_rate, eps: of Adam.
        batch_size, steps, cooldown, ema, ema_warmup, dequantize, flip, checkpoint_every: as in
            TrainConfig.
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
    conditional: bool | None = None
    class_names: str | None = None
    class_dropout: float | None = None
    learning_rate: float = TrainConfig.learning_rate
    eps: float = TrainConfig.eps
    cooldown: int | None = None
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


_DIGITS = Preset(
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
)
# Networks of a few megabytes for two cores, which are told classes. A fifth of the images without
# one: what the network knows without classes is used as often. The rate falls in most of the run:
# at its height the noise of the steps limits what is learned (docs/models.md).
_MNIST = replace(
    _DIGITS,
    about="MNIST 28×28, the network that comes along, in hours",
    image_size=28,
    steps_per_level=5,
    steps=13_200,
    cooldown=10_000,
    conditional=True,
    class_dropout=0.2,
)
_FASHION = replace(
    _MNIST,
    about="Fashion-MNIST 28×28, the network that comes along, in hours",
    class_names="T-shirt,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Boot",
)
# Data, network, image size, σ₁, L, T, ε, steps; of F = 128 and three channels, but for MNIST.
_PUBLISHED: dict[str, tuple[Any, ...]] = {
    "mnist-v1": ("MNIST 28×28", "NCSN", 28, 1.0, 10, 100, 2e-5, 200_000),
    "cifar10-v1": ("CIFAR-10 32×32", "NCSN", 32, 1.0, 10, 100, 2e-5, 200_000),
    "celeba-v1": ("CelebA 32×32", "NCSN", 32, 1.0, 10, 100, 2e-5, 200_000),
    "cifar10": ("CIFAR-10 32×32", "NCSNv2", 32, 50.0, 232, 5, 6.2e-6, 300_000),
    "celeba": ("CelebA 64×64", "NCSNv2", 64, 90.0, 500, 5, 3.3e-6, 210_000),
    "church": ("LSUN church 96×96", "NCSNv2Deeper", 96, 140.0, 788, 4, 4.9e-6, 200_000),
    "bedroom": ("LSUN bedroom 128×128", "NCSNv2Deeper", 128, 190.0, 1086, 3, 1.8e-6, 150_000),
    "tower": ("LSUN tower 128×128", "NCSNv2Deeper", 128, 190.0, 1086, 3, 1.8e-6, 150_000),
    "ffhq": ("FFHQ 256×256", "NCSNv2Deepest", 256, 348.0, 2311, 3, 9e-7, 80_000),
}
_OF_2019 = {"denoise": False, "learning_rate": 1e-3, "ema": 0.0, "dequantize": "uniform"}
_UNUSUAL: dict[str, dict[str, Any]] = {
    "mnist-v1": {"ngf": 64, "channels": 1, "flip": False},
    "celeba-v1": {"crop": 140},
    "celeba": {"crop": 140},
    "ffhq": {"eps": 1e-3, "batch_size": 32},
}


def _published(name: str, about: str, network: str, *numbers: Any) -> Preset:
    other = _UNUSUAL.get(name, {})
    if network == "NCSN":
        about, other = f"{about} as in the paper of 2019", {**_OF_2019, **other}
    return replace(Preset(about, network, 128, 3, *numbers), **other)


PRESETS = {"digits": _DIGITS, "mnist": _MNIST, "fashion": _FASHION} | {
    name: _published(name, *row) for name, row in _PUBLISHED.items()
}

__all__ = ["PRESETS", "Preset"]
