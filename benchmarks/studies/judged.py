"""Images in the eyes of a classifier, against real ones: what guidance and progress measure."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ncsn_fast.evaluation.classifier import Classifier
from ncsn_fast.evaluation.features import seen
from ncsn_fast.evaluation.quality import Quality, Reference

HEAD = ("of its class", "sure of a class", "precision", "recall", "Fréchet distance")


@dataclass(frozen=True)
class Judged:
    """What is known of a set of images.

    Attributes:
        right: the share that is of the class that was asked for; None where none was.
        quality: against as many real images.
    """

    right: float | None
    quality: Quality

    def shown(self) -> list[str]:
        """The cells below ``HEAD``."""
        found = self.quality
        shares = (self.right, found.confident, found.precision, found.recall)
        told = ["" if share is None else f"{100 * share:.1f} %" for share in shares]
        return [*told, "" if found.frechet is None else f"{found.frechet:.2f}"]


class Judge:
    """Compares sets of ``number`` images with as many real ones.

    Args:
        classifier: of such images.
        real: (N, C, H, W) in [0, 1], N at least twice ``number``; which are taken is random but
            always the same.
        number: of images in a set.

    Attributes:
        of_real: what other real images are measured to be.
    """

    def __init__(self, classifier: Classifier, real: Tensor, number: int) -> None:
        if len(real) < 2 * number:
            raise SystemExit(
                f"{number} samples are compared with as many real images, and those with as many "
                f"others: of {len(real)} images give -n at most {len(real) // 2}"
            )
        order = torch.randperm(len(real), generator=torch.Generator().manual_seed(0))
        self._classifier = classifier
        self._reference = Reference(_pixels(real[order[:number]]), classifier)
        self.of_real = self(real[order[number : 2 * number]])

    def __call__(self, images: Tensor, classes: Tensor | None = None) -> Judged:
        """Judge images in [0, 1]; ``classes`` (N,) are those that were asked for."""
        pixels = _pixels(images)
        found = seen(self._classifier, pixels).probabilities.argmax(1)
        right = None if classes is None else float((found == classes).double().mean())
        return Judged(right, self._reference.quality(pixels))


def _pixels(images: Tensor) -> Tensor:
    return (images * 255).round().to(torch.uint8)


__all__ = ["HEAD", "Judge", "Judged"]
