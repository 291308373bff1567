"""Of what k-diffusion's samplers are made beside tables: noise on the way, multistep weights."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ncsn_fast.methods.tables import noise_factor
from ncsn_fast.support import checks
from ncsn_fast.table import Table


@dataclass(frozen=True, eq=False)
class Churn:
    """Noise on the way (Karras et al. 2022, algorithm 2): (L,) float64 each, one entry a step.

    Attributes:
        sigma: (1 + γ)·σ, where the model is evaluated.
        following: the next noise level, 0 in the last step.
        factor: 1 + γ.
        noise: the standard deviation of what a step adds to the state first.
        rows_per_step: of a table, the last step has one.
    """

    sigma: np.ndarray
    following: np.ndarray
    factor: np.ndarray
    noise: np.ndarray
    rows_per_step: int

    @classmethod
    def of(
        cls,
        levels: Tensor,
        rows_per_step: int,
        s_churn: float,
        s_tmin: float,
        s_tmax: float,
        s_noise: float,
    ) -> Churn:
        """That of noise levels (L,) float32.

        Raises:
            ValueError: for settings out of range, by their names.
        """
        for name, value in (("s_churn", s_churn), ("s_tmin", s_tmin), ("s_tmax", s_tmax)):
            if math.isnan(checks.number(name, value)):
                raise ValueError(f"{name} = {value}: it has to be a number")
        if s_churn < 0:
            raise ValueError(f"s_churn = {s_churn}: how much noise is added is at least 0")
        gamma = min(s_churn / len(levels), math.sqrt(2) - 1)
        inside = ((levels >= s_tmin) & (levels <= s_tmax)).numpy()
        sigma = levels.double().numpy()
        factor = np.where(inside, 1 + gamma, 1.0)
        noise = noise_factor("s_noise", s_noise) * sigma * np.sqrt(factor**2 - 1)
        return cls(factor * sigma, np.append(sigma[1:], 0.0), factor, noise, rows_per_step)

    @property
    def middle(self) -> np.ndarray:
        """Midway between both ends of each step in ln σ; of the last, which goes to 0, σ."""
        return np.append(np.sqrt(self.sigma * self.following)[:-1], self.sigma[-1])

    def added_to(self, table: Table) -> Table:
        """A table of these steps with their noise: the last row of a step adds that of the next.

        That of the first step belongs to the initial state.
        """
        d = np.zeros(len(table))
        d[self.rows_per_step - 1 : -1 : self.rows_per_step] = self.noise[1:]
        level = tuple(row // self.rows_per_step for row in range(len(table)))
        return replace(table, d=tuple(d.tolist()), level=level)


def multistep(levels: np.ndarray, order: int) -> np.ndarray:
    """The weights of the linear multistep method (Adams–Bashforth) on dx = -n dσ.

    Args:
        levels: (L,) float64, descending; the last step goes to 0.
        order: how many scores a step is made of; the first steps have fewer.

    Returns:
        (L, min(order, L)): x ← x + Σ_j w_ij·n_{i-j}, w_ij being ∫ from σ_{i+1} to σ_i of the
        polynomial that is 1 at σ_{i-j} and 0 at the other levels.
    """
    order = min(order, len(levels))
    weights = np.zeros((len(levels), order))
    # Gauss's rule is exact for polynomials of twice as many terms as it has places.
    places, shares = np.polynomial.legendre.leggauss((order + 1) // 2)
    for i, (high, low) in enumerate(zip(levels, np.append(levels[1:], 0.0), strict=True)):
        known = levels[max(0, i - order + 1) : i + 1][::-1]
        at = (high + low + (high - low) * places) / 2
        for j, own in enumerate(known):
            others = np.delete(known, j)
            values = np.prod((at[:, None] - others) / (own - others), axis=1)
            weights[i, j] = (high - low) / 2 * (shares @ values)
    return weights


class Remembered:
    """What the normalised scores of the steps before a row add to it, as a guidance of weight 1.

    Args:
        weights: (L, K), of the last K, the latest first.
    """

    def __init__(self, weights: np.ndarray) -> None:
        self._weights: list[list[float]] = weights.tolist()
        self._before: list[Tensor] = []

    def __call__(self, x: Tensor, n: Tensor, sigma: float, row: int) -> Tensor:
        before = self._before if row else []  # each chunk of a batch begins at the first row
        drift = torch.zeros_like(n)
        for weight, old in zip(self._weights[row], before, strict=False):
            drift += weight * old
        self._before = [n, *before][: len(self._weights[row])]
        return drift


__all__ = ["Churn", "Remembered", "multistep"]
