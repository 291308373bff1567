"""FID, KID, precision and recall, and the Inception score of images against real ones.

Images pass through the network a batch at a time. Of all of them mean and covariance are gathered,
in float64; features and logits of at most 50,000 are kept for the other figures (0.6 GB).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ncsn_fast.data.pixels import eight_bits
from ncsn_fast.evaluation.inception.network import Inception
from ncsn_fast.evaluation.inception.statistics import Statistics
from ncsn_fast.evaluation.moments import Gaussian, Moments, fit, frechet_distance, gaussian
from ncsn_fast.evaluation.precision_recall import Manifold, compare
from ncsn_fast.support.progress import Progress, ProgressWish

BATCH_SIZE = 64
MOST_KEPT = 50_000
SPLITS, SHUFFLED_BY = 10, 2020  # of the Inception score, as torch-fidelity has them
SUBSETS, SUBSET_SIZE = 100, 1000  # of KID, likewise


@dataclass(frozen=True)
class Looks:
    """What the network saw in a set of images.

    Attributes:
        moments: of the features of all.
        features, logits: of at most 50,000 of them, at random but always the same; float32 (M, ...)
            on the CPU.
    """

    moments: Moments
    features: Tensor
    logits: Tensor

    def gaussian(self) -> Gaussian:
        """That of the features of all."""
        if self.moments.count <= self.features.shape[1]:  # all are kept
            return fit(self.features)
        return gaussian(self.moments.mean, self.moments.covariance)


@dataclass(frozen=True)
class InceptionFigures:
    """Figures of a set of images.

    Attributes:
        images: how many.
        fid: Fréchet distance of the features to the reference's.
        inception_score, inception_score_deviation: mean and standard deviation over ``splits``
            parts of the images.
        splits: 10, fewer of fewer images.
        kid, kid_deviation: kernel distance, mean and standard deviation over 100 subsets; None:
            the reference is statistics alone.
        subset_size: of these: 1,000, or as many as ``compared``.
        precision, recall: k = 3; None likewise.
        compared: of how many images of each set KID, precision and recall are; None likewise.
    """

    images: int
    fid: float
    inception_score: float
    inception_score_deviation: float
    splits: int
    kid: float | None = None
    kid_deviation: float | None = None
    subset_size: int | None = None
    precision: float | None = None
    recall: float | None = None
    compared: int | None = None


def look(inception: Inception, images: np.ndarray, progress: ProgressWish = None) -> Looks:
    """Run the network over images.

    Args:
        images: (N, C, H, W), N > 3, C = 1 or 3, uint8 or floating point in [0, 1], memory-mapped
            or not; those that are no bytes are rounded to 8 bits first.

    Raises:
        ValueError: for other channels.
    """
    check_channels(images.shape[1])
    number = len(images)
    kept = np.ones(number, dtype=bool)
    if number > MOST_KEPT:
        kept[:] = False
        kept[np.random.default_rng(0).choice(number, MOST_KEPT, replace=False)] = True
    moments: Moments | None = None
    features, logits = [], []
    with Progress(progress, number, "image") as shown:
        for first in range(0, number, BATCH_SIZE):
            batch = images[first : first + BATCH_SIZE]
            seen = inception(eight_bits(batch))
            some = Moments.of(seen.features)
            moments = some if moments is None else moments + some
            chosen = torch.from_numpy(kept[first : first + BATCH_SIZE])
            features.append(seen.features.cpu()[chosen])
            logits.append(seen.logits.cpu()[chosen])
            shown.advance(len(batch))
    assert moments is not None
    return Looks(moments, torch.cat(features), torch.cat(logits))


def check_channels(number: int) -> None:
    """Refuse images that are neither grey nor RGB."""
    if number not in (1, 3):
        raise ValueError(f"images of {number} channels: Inception sees grey ones and RGB")


class InceptionReference:
    """What images are measured against; what is known of it is computed once.

    Args:
        real: what the network saw in real images, or statistics of these alone.
        device: where neighbours are searched.

    Attributes:
        images: how many; None: the statistics do not say.
    """

    def __init__(self, real: Looks | Statistics, device: torch.device) -> None:
        self._device = device
        self._features: Tensor | None = None
        self._manifold: Manifold | None = None
        if isinstance(real, Statistics):
            self.images, self._gaussian = real.images, real.of
        else:
            self.images = real.moments.count
            self._gaussian = real.gaussian()
            self._features = real.features

    def measure(self, found: Looks) -> InceptionFigures:
        """Compare a set of images with it."""
        mine = Gaussian(*(x.to(self._gaussian.mean.device) for x in found.gaussian()))
        fid = frechet_distance(mine, self._gaussian)
        score = (found.moments.count, fid, *inception_score(found.logits))
        if self._features is None:
            return InceptionFigures(*score)
        number = min(len(found.features), len(self._features))
        real, samples = _some(self._features, number), _some(found.features, number)
        if self._manifold is None or len(self._manifold.points) != number:
            self._manifold = Manifold(real.to(self._device))
        near = compare(self._manifold, Manifold(samples.to(self._device)))
        return InceptionFigures(*score, *kernel_distance(samples, real), *near, number)


def inception_score(logits: Tensor) -> tuple[float, float, int]:
    """Mean and standard deviation over parts of the images, and how many parts: torch-fidelity's
    figures, a part of (N, 1008) at a time."""
    from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric

    number, splits = len(logits), min(SPLITS, len(logits))
    order = torch.from_numpy(np.random.RandomState(SHUFFLED_BY).permutation(number))
    scores = [
        isc_features_to_metric(logits[part], splits=1, shuffle=False)[KEY_METRIC_ISC_MEAN]
        for part in (
            order[i * number // splits : (i + 1) * number // splits] for i in range(splits)
        )
    ]
    return float(np.mean(scores)), float(np.std(scores)), splits


def kernel_distance(samples: Tensor, real: Tensor) -> tuple[float, float, int]:
    """KID of features (N, D) and (M, D), its standard deviation over subsets, and their size."""
    from torch_fidelity import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD
    from torch_fidelity.metric_kid import kid_features_to_metric

    size = min(SUBSET_SIZE, len(samples), len(real))
    found = kid_features_to_metric(
        samples, real, kid_subsets=SUBSETS, kid_subset_size=size, verbose=False
    )
    return found[KEY_METRIC_KID_MEAN], found[KEY_METRIC_KID_STD], size


def _some(features: Tensor, number: int) -> Tensor:
    """So many of them, at random but always the same."""
    if len(features) == number:
        return features
    picked = np.random.default_rng(0).choice(len(features), number, replace=False)
    return features[torch.from_numpy(np.sort(picked))]


__all__ = [
    "MOST_KEPT",
    "InceptionFigures",
    "InceptionReference",
    "Looks",
    "check_channels",
    "inception_score",
    "kernel_distance",
    "look",
]
