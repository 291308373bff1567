"""Precision and recall of generated images (Kynkäänniemi et al. 2019, arXiv:1904.06991)."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ncsn_fast.evaluation.neighbours import nearest, within
from ncsn_fast.support.checks import count


class PrecisionRecall(NamedTuple):
    """``precision``: share of generated points that lie among the real ones, ``recall``: share of
    real points that lie among the generated ones; both from 0 to 1."""

    precision: float
    recall: float


class Manifold:
    """What a set of points covers: around each a ball that reaches its k-th nearest other point.

    Args:
        points: (N, ...), finite, N > k: features of images. Any real dtype; computed in float64.
        k: 3 as published.

    Raises:
        ValueError: for too few points.
    """

    def __init__(self, points: Tensor, k: int = 3) -> None:
        count("k", k)
        if points.ndim < 2 or len(points) <= k:
            raise ValueError(
                f"the points have shape {tuple(points.shape)}: needed are more than k = {k}, (N, D)"
            )
        self.points = points
        self.radii = nearest(points, points, k, others=True).distances[:, -1]

    def share(self, points: Tensor) -> float:
        """The share of these points (M, ...) that it covers."""
        if points.shape[1:] != self.points.shape[1:]:
            raise ValueError(
                f"points of shape {tuple(points.shape[1:])} are compared with points of "
                f"{tuple(self.points.shape[1:])}: take the same features of both"
            )
        return float(within(points, self.points, self.radii).double().mean())


def precision_recall(real: Tensor, generated: Tensor, k: int = 3) -> PrecisionRecall:
    """Precision and recall from features: equations 1 and 2 of the paper.

    Both depend on the number of points, so compare sets of equal sizes, and with what as many other
    real images reach. Time grows as N·M·D; memory holds a block of distances at a time.

    Args:
        real, generated: (N, ...) and (M, ...), finite, on one device, more than k points each.
        k: how far a point reaches: to its k-th nearest neighbour in its set, 3 as published.

    Raises:
        ValueError: for too few points, or different numbers of features.
    """
    return compare(Manifold(real, k), Manifold(generated, k))


def compare(real: Manifold, generated: Manifold) -> PrecisionRecall:
    """As :func:`precision_recall`, of manifolds that are there already."""
    return PrecisionRecall(real.share(generated.points), generated.share(real.points))


__all__ = ["Manifold", "PrecisionRecall", "compare", "precision_recall"]
