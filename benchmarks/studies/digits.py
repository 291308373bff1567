"""How good a model of the digits is: python -m ncsn_fast.benchmarks.studies.digits [CHECKPOINT].

Samples of the full chain are compared with the 397 held-out images: the pixel Fréchet distance,
the proportions of the ten digits, by the label of the nearest training image, and the distance to
that image, which is small where a model has learned its training images by heart.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

import ncsn_fast as nf
from ncsn_fast.benchmarks.studies.common import parser
from ncsn_fast.data.digits import digits
from ncsn_fast.evaluation.pixel_distance import (
    digit_proportions,
    nearest_distance,
    pixel_frechet_distance,
)


@dataclass(frozen=True)
class Quality:
    """What is known of a set of images of digits."""

    images: int
    frechet: float  # to the held-out images
    proportions: list[float]  # of the digits 0 to 9
    chi_square: float  # of the proportions against those of the training images; 9 degrees
    nearest: float  # mean distance to the nearest training image
    nearest_error: float  # its standard error


def quality(images: Tensor) -> Quality:
    """The quality of (N, 1, 8, 8) images in [0, 1]."""
    train, held_out = digits("train"), digits("test")
    nearest = nearest_distance(images, train.images)
    found = digit_proportions(images, train.images, train.labels)
    expected = torch.bincount(train.labels, minlength=10).double() / len(train.labels)
    return Quality(
        len(images),
        pixel_frechet_distance(images, held_out.images),
        found.tolist(),
        len(images) * float(((found - expected).square() / expected).sum()),
        float(nearest.mean()),
        float(nearest.std() / len(images) ** 0.5),
    )


def main() -> None:
    command = parser(__doc__)
    command.add_argument("checkpoint", nargs="?", default="digits")
    command.add_argument("-n", "--number", type=int, default=1000)
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--json", action="store_true")
    options = command.parse_args()
    net = nf.load_checkpoint(options.checkpoint)
    sets = {
        "generated": nf.sample(net, options.number, seed=options.seed, progress=True),
        "training": digits("train").images,
        "held out": digits("test").images,
    }
    found = {name: quality(images) for name, images in sets.items()}
    if options.json:
        print(json.dumps({name: asdict(value) for name, value in found.items()}, indent=1))
        return
    print("images     number  Fréchet  χ² of digits   nearest training image")
    for name, value in found.items():
        print(
            f"{name:10} {value.images:6} {value.frechet:8.4f} {value.chi_square:13.1f} "
            f"{value.nearest:17.3f} ± {value.nearest_error:.3f}"
        )


if __name__ == "__main__":
    main()
