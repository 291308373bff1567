"""Posterior sampling for linear inverse problems y = A x + noise: the likelihood as guidance.

    sampler(n, guidance=gaussian_likelihood(operator, y, noise_std))

What a guidance returns is added to the score, so that x ← x + α_i(s + g) + √(2α_i)·z in annealed
Langevin dynamics. The measurement is an input of such a guidance, cut into chunks together
with the samples; what does not fit is refused before any work.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ncsn_fast.guidance.measured import Measured, measurement
from ncsn_fast.guidance.operators.base import Operator
from ncsn_fast.reference import per_sample
from ncsn_fast.support import checks
from ncsn_fast.table import Table

Number = float | Tensor


@dataclass(frozen=True, eq=False)
class LinearGuidance(Measured):
    """A drift made of the residual of a measurement.

    Attributes:
        operator: A.
        y: a measurement, measured or (1, *measured), for all samples; (n, *measured) for one each.

    Raises:
        ValueError: for an operator of another kind, and a y that it does not measure.
    """

    operator: Operator

    def __post_init__(self) -> None:
        if not isinstance(self.operator, Operator):
            raise ValueError(
                f"operator is a {type(self.operator).__name__}: give one of nf.operators, or of a "
                "class made from nf.operators.Operator"
            )
        super().__post_init__()

    def __call__(self, x: Tensor, n: Tensor, sigma: Any, row: Any, **inputs: Tensor) -> Tensor:
        """g (B, *shape); without an input ``y`` for the guidance's own, which has to fit x."""
        operator, y = self.of(x, inputs)
        # Autocast is for the network: 16 bits would lose the residual.
        with torch.autocast(x.device.type, enabled=False):
            measured = operator.forward(x)
            # A measurement of another shape would be broadcast.
            checks.same_shape("operator.forward()", measured, (len(x), *operator.measured), x)
            return self.drift(operator.adjoint(measured - y), n.to(x.dtype), sigma)

    def drift(self, gradient: Tensor, n: Tensor, sigma: Number) -> Tensor:
        """g at σ of A*(A x - y), the ``gradient`` of ½‖A x - y‖², and of n; (B, *shape) all.

        Args:
            gradient, n: (B, *shape).
            sigma: σ, a number or a tensor ().
        """
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class GaussianLikelihood(LinearGuidance):
    """What :func:`gaussian_likelihood` makes, whose arguments and ValueError it has."""

    noise_std: float
    annealed: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "noise_std", checks.number("noise_std", self.noise_std))
        checks.choice("annealed", self.annealed, (True, False), "whether σ² widens the likelihood")
        least = "at least 0" if self.annealed else "positive"
        if not (math.isfinite(self.noise_std) and self.noise_std >= 0) or (
            self.noise_std == 0 and not self.annealed
        ):
            raise ValueError(f"noise_std = {self.noise_std}: give a finite number, {least}")

    def drift(self, gradient: Tensor, n: Tensor, sigma: Number) -> Tensor:
        return gradient * (-1 / self._variance(sigma))

    def check(self, table: Table, n: int, shape: tuple[int, ...]) -> None:
        """Refuse what does not fit, and steps in which the likelihood alone diverges.

        Raises:
            ValueError: where w·‖A‖²/(s² + σ²) ≥ 2 in a row of the table (w is α_i in annealed
                Langevin dynamics): there a step multiplies the residual by more than 1.
        """
        super().check(table, n, shape)
        squared = self.operator.norm(self.y.device) ** 2
        factors = [
            w * squared / float(self._variance(sigma))
            for w, sigma in zip(table.w, table.sigma, strict=True)
        ]
        worst = max(range(len(factors)), key=factors.__getitem__)
        if factors[worst] < 2:
            return
        cures = f"a step size below {2 / factors[worst]:.3g} times this one"
        cures += "" if self.annealed else ", annealed=True"
        raise ValueError(
            f"the likelihood diverges at σ = {table.sigma[worst]:g}: its step "
            f"w·‖A‖²/variance is {factors[worst]:.4g} with ‖A‖ = {math.sqrt(squared):.4g}, and has "
            f"to be below 2. Take {cures}, a larger noise_std, or divide the operator and y by ‖A‖"
        )

    def _variance(self, sigma: Number) -> Number:
        return self.noise_std**2 + sigma**2 if self.annealed else self.noise_std**2


@dataclass(frozen=True, eq=False)
class ScoreScaled(LinearGuidance):
    """What :func:`score_scaled` makes, whose arguments it has."""

    weight: float

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "weight", checks.positive("weight", self.weight))

    def drift(self, gradient: Tensor, n: Tensor, sigma: Number) -> Tensor:
        # Where the measurement is met exactly there is no direction: 0, not 0/0.
        length = _norms(gradient).clamp(min=torch.finfo(gradient.dtype).tiny)
        return gradient / length * (_norms(n) * (-self.weight / sigma))


def _norms(values: Tensor) -> Tensor:
    """(B, 1, …) per sample."""
    return per_sample(values.flatten(1).norm(dim=1), values)


def gaussian_likelihood(
    operator: Operator, y: Tensor | np.ndarray, noise_std: float, annealed: bool = True
) -> GaussianLikelihood:
    """The likelihood of y = A x + N(0, s²) as guidance: g = -A*(A x - y)/(s² + σ²).

    It is the score of N(y; A x, (s² + σ²)·I): σ² stands for what the noise in x makes of A x, as
    in Jalal et al. 2021 and, for channels, Arvinte & Tamir 2022, -Aᴴ(A x - y)/(N₀/2 + σ²). The
    law at level σ is then p_σ(x)·N(y; A x, s² + σ²) up to a constant: the posterior as σ goes to 0.

    Every step has to satisfy w·‖A‖²/(s² + σ²) < 2, or the call is refused; w is α_i = ε(σ_i/σ_L)²
    in annealed Langevin dynamics. A chain surely does not diverge where
    ε·(1/σ_L² + ‖A‖²/(s² + σ_L²)) < 2 (the first term is the sharpest prior at that level).

    Args:
        operator: A.
        y: a tensor or array, measured, or (1, *measured), for all samples; (n, *measured) for one
            each.
        noise_std: s ≥ 0 of each real number: √(N₀/2) for complex noise of power N₀.
        annealed: False leaves σ² out (s > 0), which needs steps below 2s²/‖A‖² at every level.

    Returns:
        The guidance: ``nf.sample(net, n, guidance=…)``.

    Raises:
        ValueError: for a y that A does not measure, or a noise_std out of range.
    """
    return GaussianLikelihood(operator, measurement(y), noise_std, annealed)


def score_scaled(operator: Operator, y: Tensor | np.ndarray, weight: float = 1.0) -> ScoreScaled:
    """A step towards the measurement as long as the score: g = -w·‖s‖/‖∇‖·∇, ∇ = A*A x - A*y.

    The drift of csgm-mri-langevin (Jalal et al. 2021). Its norms span the whole batch; here they
    are per sample, so that a sample does not depend on those computed beside it. At batch size 1
    both are the same. It weighs the measurement by hand, so that no posterior is sampled exactly.

    Args:
        operator: A.
        y: a tensor or array, measured, or (1, *measured), for all samples; (n, *measured) for one
            each.
        weight: w > 0, the length of the drift in lengths of the score.

    Returns:
        The guidance: ``nf.sample(net, n, guidance=…)``.

    Raises:
        ValueError: for a y that A does not measure, or a weight out of range.
    """
    return ScoreScaled(operator, measurement(y), weight)


__all__ = [
    "GaussianLikelihood",
    "LinearGuidance",
    "ScoreScaled",
    "gaussian_likelihood",
    "score_scaled",
]
