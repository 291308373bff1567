"""A small classifier to judge images by: python -m ncsn_fast.benchmarks.studies.classifier
--data train-images-idx3-ubyte.gz --test t10k-images-idx3-ubyte.gz --out mnist.safetensors.

Cross-entropy, AdamW, a rate that rises and falls once, shifts by at most two pixels; one thread, so
that the same command gives the same weights. How long is said beforehand and the last weights are
kept: nothing is chosen by the test images, on which the weights are judged as they are stored.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ncsn_fast.benchmarks.studies.common import parser
from ncsn_fast.data.labels import Classes
from ncsn_fast.data.load import labelled_pixels_of
from ncsn_fast.data.pixels import eight_bits
from ncsn_fast.evaluation.classifier import Classifier, load_classifier, save_classifier
from ncsn_fast.evaluation.features import CONFIDENT, seen
from ncsn_fast.support.files import check_writable
from ncsn_fast.support.progress import Progress

_BATCH, _RATE, _DECAY, _SHIFT = 128, 3e-3, 1e-2, 2


def train(
    net: Classifier, images: Tensor, labels: Tensor, *, epochs: int, seed: int, progress: bool
) -> None:
    """Train a classifier in place.

    Args:
        images: uint8 (N, C, H, W).
        labels: int64 (N,), from 0.
        seed: of the order and the shifts.
    """
    random = torch.Generator().manual_seed(seed)
    steps = epochs * math.ceil(len(images) / _BATCH)
    optimizer = torch.optim.AdamW(net.parameters(), lr=_RATE, weight_decay=_DECAY)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=steps)
    layout: dict[str, Any] = {"memory_format": torch.channels_last}  # unknown to torch's type hints
    net.train().to(**layout)
    with Progress(progress, steps) as shown:
        for _ in range(epochs):
            for part in torch.randperm(len(images), generator=random).split(_BATCH):
                batch = shifted(images[part], random).float() / 255
                loss = F.cross_entropy(net(batch), labels[part])
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                rate.step()
                shown.advance()
    net.eval()


def shifted(images: Tensor, random: torch.Generator) -> Tensor:
    """Each image moved by up to two pixels in both directions, black where it came from."""
    height, width = images.shape[2:]
    padded = F.pad(images, [_SHIFT] * 4).permute(0, 2, 3, 1)
    by = torch.randint(0, 2 * _SHIFT + 1, (2, len(images), 1), generator=random)
    rows, columns = by[0] + torch.arange(height), by[1] + torch.arange(width)
    which = torch.arange(len(images))[:, None, None]
    return padded[which, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def judged(net: Classifier, images: Tensor, labels: Tensor) -> dict[str, float | None]:
    """How good a classifier is on images uint8 (N, C, H, W) that it did not see.

    Returns:
        ``accuracy``; ``confident``, the share given a class with a probability above 0.9, and
        ``confident_accuracy`` of these, None of none; ``mean_probability`` of the class given,
        which is the accuracy of a classifier that knows how sure it may be.
    """
    probability, found = seen(net, images).probabilities.max(1)
    right, sure = (found == labels).double(), probability > CONFIDENT
    return {
        "accuracy": float(right.mean()),
        "confident": float(sure.double().mean()),
        "confident_accuracy": float(right[sure].mean()) if bool(sure.any()) else None,
        "mean_probability": float(probability.double().mean()),
    }


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Train, store, and judge what is stored; returns the facts."""
    check_writable(options.out)
    pixels, classes = _labelled(options.data, "train")
    test_pixels, test_classes = _labelled(options.test, "test")
    names = options.classes.split(",") if options.classes else list(classes.names)
    if len(names) != len(classes.names) or len(test_classes.names) > len(names):
        raise ValueError(
            f"{options.data} has {len(classes.names)} classes, {options.test} "
            f"{len(test_classes.names)}, and --classes names {len(names)}: they have to agree"
        )
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    net = Classifier(pixels.shape[1:], names)
    started = time.process_time()
    settings = {"epochs": options.epochs, "seed": options.seed}
    labels = torch.from_numpy(classes.indices)
    train(net, pixels, labels, **settings, progress=not options.quiet)
    facts = {"images": len(pixels), **settings}
    save_classifier(options.out, net, facts)
    seconds = round(time.process_time() - started)
    found = judged(
        load_classifier(options.out), test_pixels, torch.from_numpy(test_classes.indices)
    )
    return {**facts, "processor_seconds": seconds, "test_images": len(test_pixels), **found}


def _labelled(data: str, split: str) -> tuple[Tensor, Classes]:
    """Images of 8 bits and their classes; of the bundled digits a part, rounded to 8 bits."""
    bundled = data == "digits"
    pixels, classes = labelled_pixels_of(data, **({"split": split} if bundled else {}))
    if classes is None:
        raise ValueError(f"{data} comes without labels: put the file of labels beside it")
    if pixels.dtype != np.uint8 and not bundled:
        raise ValueError(f"{data} holds {pixels.dtype}: give 8-bit images")
    return eight_bits(pixels), classes


def main() -> None:
    command = parser(__doc__)
    command.add_argument("--data", required=True, help="images to train on, with labels")
    command.add_argument("--test", required=True, help="images to judge it by, with labels")
    command.add_argument("--out", required=True, type=Path, help="the .safetensors file")
    command.add_argument("--classes", help="their names, by commas, in the order of the labels")
    command.add_argument("--epochs", type=int, default=8)
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--quiet", action="store_true", help="no progress bar")
    print(json.dumps(run(command.parse_args()), indent=1))


if __name__ == "__main__":
    main()
