"""What a classifier sees in images: features, and the probability of each class."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ncsn_fast.evaluation.classifier import Classifier
from ncsn_fast.support.checks import count

BATCH_SIZE = 500
CONFIDENT = 0.9


class Seen(NamedTuple):
    """``features`` float32 (N, F) and class ``probabilities`` float32 (N, K), on the CPU."""

    features: Tensor
    probabilities: Tensor

    @property
    def counts(self) -> Tensor:
        """How many images are most probably of each class, int64 (K,)."""
        return self.probabilities.argmax(1).bincount(minlength=self.probabilities.shape[1])

    @property
    def confident(self) -> float:
        """The share of images that are given a class with a probability above 0.9."""
        return float((self.probabilities.amax(1) > CONFIDENT).double().mean())


def seen(net: Classifier, images: Tensor, batch_size: int = BATCH_SIZE) -> Seen:
    """Run a classifier on images, a batch at a time.

    Args:
        net: in eval mode, on any device.
        images: uint8 (N, C, H, W), or floating point in [0, 1].
        batch_size: how many at once; changes results by rounding only.

    Raises:
        ValueError: for images of another shape than the classifier's, or none.
    """
    count("batch_size", batch_size)
    if tuple(images.shape[1:]) != net.shape or not len(images):
        raise ValueError(
            f"the classifier is of images {net.shape}, given are {tuple(images.shape)}: choose "
            "another, or none"
        )
    device = net.head.weight.device
    features, probabilities = [], []
    with torch.no_grad():
        for batch in images.split(batch_size):
            x = batch.to(device).float()
            found = net.features(x / 255 if batch.dtype == torch.uint8 else x)
            features.append(found.cpu())
            probabilities.append(net.head(found).softmax(1).cpu())
    return Seen(torch.cat(features), torch.cat(probabilities))


__all__ = ["BATCH_SIZE", "CONFIDENT", "Seen", "seen"]
