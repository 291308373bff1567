"""All that is measured of a set of images against real ones."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ncsn_fast.data.pixels import unit_interval
from ncsn_fast.evaluation.classifier import Classifier
from ncsn_fast.evaluation.features import Seen, seen
from ncsn_fast.evaluation.pixel_distance import pixel_frechet_distance
from ncsn_fast.evaluation.precision_recall import Manifold, compare
from ncsn_fast.evaluation.proportions import Comparison, compare_counts

# The Fréchet distance takes time and memory as the cube and square of the values of an image.
MOST_VALUES = 4096


@dataclass(frozen=True)
class Quality:
    """What is known of a set of images.

    Attributes:
        images: how many.
        frechet: pixel Fréchet distance to the reference; None where it would take too long.
        precision, recall: of the classifier's features, else of pixels.
        confident: share of images given a class with a probability above 0.9; None: no classifier.
        counts: how many images of each class, most probably; None: no classifier.
        proportions: these against the reference's; None: no classifier.
    """

    images: int
    frechet: float | None
    precision: float
    recall: float
    confident: float | None = None
    counts: list[int] | None = None
    proportions: Comparison | None = None


class Reference:
    """Real images that others are measured against; what is known of them is computed once.

    Args:
        images: uint8 (N, C, H, W) on the CPU, N > 3.
        classifier: of such images; None: precision and recall are of pixels.

    Attributes:
        images: as given, (N, C, H, W).
        seen: what the classifier sees in them, or None.

    Raises:
        ValueError: for too few images, or another shape than the classifier's.
    """

    def __init__(self, images: Tensor, classifier: Classifier | None = None) -> None:
        self.images, self._classifier = images, classifier
        self.seen = self._seen(images)
        self._manifold = Manifold(images if self.seen is None else self.seen.features)

    def quality(self, images: Tensor) -> Quality:
        """Measure uint8 (M, C, H, W), M > 3, of the same shape."""
        found = self._seen(images)
        manifold = Manifold(images if found is None else found.features)
        frechet = None
        if images[0].numel() <= MOST_VALUES:
            frechet = pixel_frechet_distance(unit_interval(images), unit_interval(self.images))
        measured = (len(images), frechet, *compare(self._manifold, manifold))
        if found is None or self.seen is None:
            return Quality(*measured)
        proportions = compare_counts(found.counts, self.seen.counts)
        return Quality(*measured, found.confident, found.counts.tolist(), proportions)

    def _seen(self, images: Tensor) -> Seen | None:
        return None if self._classifier is None else seen(self._classifier, images)


__all__ = ["MOST_VALUES", "Quality", "Reference"]
