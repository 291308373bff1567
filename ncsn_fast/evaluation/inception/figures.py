"""FID, KID, precision and recall, and the Inception score of images against real ones.

Images pass through the network a batch at a time. Of all of them mean and covariance are gathered,
in float64; features and logits of at most 50,000 are kept for the other figures (0.6 GB).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ncsn_fast.data.pixels import eight_bits
from ncsn_fast.distributed.group import Group
from ncsn_fast.evaluation.inception.network import Inception
from ncsn_fast.evaluation.inception.statistics import Statistics
from ncsn_fast.evaluation.moments import Gaussian, Moments, fit, frechet_distance, gaussian
from ncsn_fast.evaluation.precision_recall import Manifold, compare
from ncsn_fast.support.progress import Progress, ProgressWish

BATCH_SIZE = 64
MOST_KEPT = 50_000
SPLITS, SHUFFLED_BY = 10, 2020  # of the Inception score, as torch-fidelity has them
SUBSETS, SUBSET_SIZE = 100, 1000  # of KID, likewise
_TOGETHER = 1  # batches, after which processes wait for each other


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


class Images(Protocol):
    """Images (N, C, H, W), uint8 or floating point in [0, 1]: an array, memory-mapped or not, or
    what reads those of a slice when it is asked for them."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, part: slice, /) -> np.ndarray: ...


def look(
    inception: Inception, images: Images, group: Group, progress: ProgressWish = None
) -> Looks:
    """Run the network over images. Of several processes each takes neighbouring ones, and all are
    given what all have seen.

    Args:
        images: more than 3, of 1 or 3 channels; what are no bytes are rounded to 8 bits first.
        group: the processes.
        progress: whom to tell of this one's images.

    Raises:
        ValueError: for other channels, and for more processes than images.
        OtherProcessError: where another process is lost.
    """
    check_channels(images.shape[1])
    number, share = len(images), group.ranks.share(len(images))
    if not share:
        raise ValueError(f"{number} images for {group.ranks.size} processes: start fewer")
    kept = torch.ones(number, dtype=torch.bool)
    if number > MOST_KEPT:
        kept[:] = False
        kept[np.random.default_rng(0).choice(number, MOST_KEPT, replace=False)] = True
    moments: Moments | None = None
    features, logits = [], []
    with Progress(progress, len(share), "image") as shown:
        for turn in range(math.ceil(number / group.ranks.size / BATCH_SIZE)):
            if turn % _TOGETHER == 0:
                group.largest(turn)  # so that nobody has to wait for long in the end
            mine = share[turn * BATCH_SIZE : (turn + 1) * BATCH_SIZE]
            if not mine:
                break  # others have one image more
            part = slice(mine.start, mine.stop)
            seen = inception(eight_bits(images[part]))
            some = Moments.of(seen.features)
            moments = some if moments is None else moments + some
            features.append(seen.features.cpu()[kept[part]])
            logits.append(seen.logits.cpu()[kept[part]])
            shown.advance(len(mine))
    assert moments is not None
    before = int(kept[: share.start].sum())
    rows = (_of_all(torch.cat(own), before, int(kept.sum()), group) for own in (features, logits))
    return Looks(moments if group.is_alone else moments.over(group), *rows)


def _of_all(own: Tensor, before: int, number: int, group: Group) -> Tensor:
    """The rows of all processes (number, D), of which these are some, behind so many others."""
    if group.is_alone:
        return own
    found = own.new_zeros(number, own.shape[1])
    found[before : before + len(own)] = own
    group.add_up(found)
    return found


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

    def fid(self, found: Looks) -> float:
        """The Fréchet distance of a set of images alone."""
        mine = Gaussian(*(x.to(self._gaussian.mean.device) for x in found.gaussian()))
        return frechet_distance(mine, self._gaussian)

    def measure(self, found: Looks) -> InceptionFigures:
        """Compare a set of images with it."""
        score = (found.moments.count, self.fid(found), *inception_score(found.logits))
        if self._features is None:
            return InceptionFigures(*score)
        number = min(len(found.features), len(self._features))
        real, samples = _some(self._features, number), _some(found.features, number)
        if self._manifold is None or len(self._manifold.points) != number:
            self._manifold = Manifold(real.to(self._device))
        near = compare(self._manifold, Manifold(samples.to(self._device)))
        return InceptionFigures(*score, *kernel_distance(samples, real), *near, number)


class Fid:
    """The FID of samples, for who trains a network.

    Args:
        inception: the network that they are seen through.
        real: what it saw in real images, or statistics of these.
    """

    def __init__(self, inception: Inception, real: Looks | Statistics) -> None:
        self._inception = inception
        self._reference = InceptionReference(real, inception.device)

    def __call__(self, images: Tensor) -> float:
        """Of samples (N, C, H, W), N > 3, C = 1 or 3, in [0, 1], on the CPU."""
        return self._reference.fid(look(self._inception, images.numpy(), Group()))


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
    "Fid",
    "Images",
    "InceptionFigures",
    "InceptionReference",
    "Looks",
    "check_channels",
    "inception_score",
    "kernel_distance",
    "look",
]
