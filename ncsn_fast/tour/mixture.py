"""Mixtures of Gaussians, whose score is known at every noise level."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import ncsn_fast as nf


@dataclass(frozen=True)
class Mixture:
    """Σ w_k N(μ_k, s²I). Blurred by σ it is the same with the variance s² + σ².

    Attributes:
        weights: K numbers that sum to 1.
        means: K points of D coordinates.
        std: s > 0, of every component.
    """

    weights: Sequence[float]
    means: Sequence[Sequence[float]]
    std: float = 1.0

    def sample(self, n: int, seed: int = 0) -> Tensor:
        """(n, D) float32 points of the law; point i of a seed is always the same."""
        stream, ids = nf.noise.INITIAL, range(n)  # of which chains take step 0
        u = nf.noise.uniform((), seed=seed, stream=stream, sample_ids=ids, step=1)
        below = torch.tensor(self.weights).cumsum(0)[:-1]
        means = torch.tensor(self.means)[torch.searchsorted(below, u)]
        z = nf.noise.normal(
            tuple(means.shape[1:]), seed=seed, stream=stream, sample_ids=ids, step=2
        )
        return means + self.std * z

    def score(self, x: Tensor, sigma: float | Tensor = 0.0) -> Tensor:
        """∇ log p_σ at the points x (N, D), σ being one number or (N,)."""
        variance, towards, share = self._parts(x, sigma)
        return (share.softmax(1)[..., None] * towards).sum(1) / variance

    def density(self, x: Tensor, sigma: float | Tensor = 0.0) -> Tensor:
        """p_σ at the points x (N, D): (N,)."""
        variance, towards, share = self._parts(x, sigma)
        return share.exp().sum(1) / (2 * math.pi * variance[:, 0]) ** (towards.shape[-1] / 2)

    def nearest(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The component whose mean is nearest to each point x (N, D), and how far that is: (N,)."""
        distance, component = torch.cdist(x, torch.tensor(self.means).to(x)).min(1)
        return component, distance

    def _parts(self, x: Tensor, sigma: float | Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Variances (N, 1), ways to the means (N, K, D), ln of w_k·exp(-way²/2·variance) (N, K)."""
        means, weights = torch.tensor(self.means).to(x), torch.tensor(self.weights).to(x)
        variance = self.std**2 + torch.as_tensor(sigma).to(x).reshape(-1, 1) ** 2
        towards = means - x[:, None]
        return variance, towards, weights.log() - 0.5 * towards.square().sum(2) / variance


# That of the paper (Song & Ermon 2019, section 3.2.2): two modes far apart, of unlike weights.
TWO_MODES = Mixture((0.2, 0.8), ((-5.0, -5.0), (5.0, 5.0)))

__all__ = ["TWO_MODES", "Mixture"]
