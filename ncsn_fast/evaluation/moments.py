"""Mean and covariance of many points, gathered in pieces; how far two Gaussians are apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ncsn_fast.distributed.group import Group
from ncsn_fast.evaluation.neighbours import float64_device


@dataclass(frozen=True)
class Moments:
    """What is known of the points seen so far; the sum of two is that of all their points.

    Sums of squares are taken around the mean of each piece, never around 0, so that points far
    from it cost no digits.

    Attributes:
        count: how many points.
        mean: float64 (D,).
        scatter: float64 (D, D), Σ (x - mean)(x - mean)ᵀ.
    """

    count: int
    mean: Tensor
    scatter: Tensor

    @classmethod
    def of(cls, points: Tensor) -> Moments:
        """Of points (N, ...), at least one, of any real dtype; on their GPU, else on the CPU."""
        flat = points.detach().to(float64_device(points), torch.float64).flatten(1)
        mean = flat.mean(dim=0)
        centred = flat - mean
        return cls(len(flat), mean, centred.T @ centred)

    def __add__(self, other: Moments) -> Moments:
        count = self.count + other.count
        apart = other.mean - self.mean
        between = torch.outer(apart, apart) * (self.count * other.count / count)
        mean = self.mean + apart * (other.count / count)
        return Moments(count, mean, self.scatter + other.scatter + between)

    def over(self, group: Group) -> Moments:
        """Those of the points of all processes, in each of them; one of them may have none."""
        count = torch.full_like(self.mean[:1], self.count)
        group.add_up(count)
        mean = self.mean * (self.count / count)
        group.add_up(mean)
        apart = self.mean - mean
        scatter = self.scatter + self.count * torch.outer(apart, apart)
        group.add_up(scatter)
        return Moments(int(count), mean, scatter)

    @property
    def covariance(self) -> Tensor:
        """The unbiased one, float64 (D, D); of at least two points."""
        return self.scatter / (self.count - 1)


class Gaussian(NamedTuple):
    """Its ``mean``, float64 (D,), and a ``factor`` F, float64 (K, D), of the covariance C = FᵀF."""

    mean: Tensor
    factor: Tensor


def gaussian(mean: Tensor, covariance: Tensor) -> Gaussian:
    """The Gaussian of this mean (D,) and covariance (D, D), float64, singular or not."""
    eigenvalues, eigenvectors = torch.linalg.eigh(covariance)
    return Gaussian(mean, eigenvalues.clamp(min=0).sqrt()[:, None] * eigenvectors.T)


def fit(points: Tensor) -> Gaussian:
    """The Gaussian of the mean and the unbiased covariance of points (N, ...), at least two."""
    flat = points.detach().to(float64_device(points), torch.float64).flatten(1)
    if len(flat) <= flat.shape[1]:  # few points of many values: no D×D matrix is formed
        mean = flat.mean(dim=0)
        return Gaussian(mean, (flat - mean) / (len(flat) - 1) ** 0.5)
    moments = Moments.of(flat)
    return gaussian(moments.mean, moments.covariance)


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """d² = ‖μ_a - μ_b‖² + tr(C_a + C_b - 2(C_a C_b)^½), at least 0: FID, Heusel et al. 2017, eq. 6.

    tr (C_a C_b)^½ is the sum of the singular values of F_a F_bᵀ. No product of covariances is
    formed, whose square root would lose half of the digits where it is singular.
    """
    cross = torch.linalg.svdvals(a.factor @ b.factor.T).sum()
    spread = a.factor.square().sum() + b.factor.square().sum()
    distance = (a.mean - b.mean).square().sum() + spread - 2 * cross
    return max(float(distance), 0.0)  # rounding can leave -1e-14 for equal sets


__all__ = ["Gaussian", "Moments", "fit", "frechet_distance", "gaussian"]
