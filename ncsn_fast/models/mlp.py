"""A small score network for points, in the plane or in a few more dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ncsn_fast import ops
from ncsn_fast.models.base import ScoreNetwork, activation_name

_MOST = 1 << 16  # neurons of a layer, layers


class MLPScore(ScoreNetwork):
    """A multilayer perceptron n(x, σ) for points of data whose coordinates are of order one to ten.

    n(x, σ) = -σx / (1 + σ²) + F(x / √(1 + σ²), ln σ). The first term is the normalised score of a
    standard normal law blurred by σ, which is right where σ is large; F learns what the data add.
    Unlike NCSNv2 the body reads σ: a few hundred neurons cannot infer it from one noisy point.

    Args:
        dim: coordinates of a point, ≥ 1.
        hidden: neurons of a hidden layer, ≥ 1.
        layers: hidden layers, ≥ 1.
        sigmas: (L,) noise levels, finite, positive, descending.
        activation: "elu", "relu", "lrelu" or "swish".

    Raises:
        ValueError: for a value that the network cannot have.
    """

    sees_sigma = True

    def __init__(
        self,
        dim: int = 2,
        hidden: int = 128,
        layers: int = 3,
        *,
        sigmas: Tensor | np.ndarray | Sequence[float],
        activation: str = "swish",
    ) -> None:
        super().__init__(sigmas)
        for name, value in (("dim", dim), ("hidden", hidden), ("layers", layers)):
            if type(value) is not int or not 1 <= value <= _MOST:
                raise ValueError(
                    f"{name} must be a whole number from 1 to {_MOST}, got {value!r:.80}"
                )
        self.dim, self.hidden, self.layers = dim, hidden, layers
        self.activation = activation_name(activation)
        widths = [dim + 1] + [hidden] * layers
        self.linears = nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(widths))
        self.head = nn.Linear(hidden, dim)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def normalized(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """The normalised score σ·s (N, dim) of the points x (N, dim) at the levels ``labels`` (N,).

        Raises:
            ValueError: for points of another dimension, and without labels.
        """
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise ValueError(f"MLPScore takes points (N, {self.dim}), got {tuple(x.shape)}")
        if labels is None:
            raise ValueError("MLPScore sees the noise level: give labels (N,), integers")
        sigma = self.level(labels, x)
        variance = 1 + sigma * sigma
        h = torch.cat([x * variance.rsqrt(), self._scaled_log(sigma)], dim=1)
        h = h.to(self.head.weight.dtype)
        for linear in self.linears:
            h = ops.activate(linear(h), self.activation)
        return self.head(h) - x * (sigma / variance)

    def _scaled_log(self, sigma: Tensor) -> Tensor:
        """ln σ, mapped linearly so that the network's levels fill [-1, 1]."""
        top, bottom = self.sigmas[0].log(), self.sigmas[-1].log()
        half = ((top - bottom) / 2).clamp_min(1e-3)
        return (sigma.log() - (top + bottom) / 2) / half

    @property
    def config(self) -> dict[str, Any]:
        """Plain JSON values that rebuild the network."""
        return {
            "network": "MLPScore",
            "dim": self.dim,
            "hidden": self.hidden,
            "layers": self.layers,
            "activation": self.activation,
        }

    @property
    def shape(self) -> tuple[int, ...]:
        """(dim,)."""
        return (self.dim,)


__all__ = ["MLPScore"]
