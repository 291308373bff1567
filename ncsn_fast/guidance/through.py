"""Guidance through the network: what a measurement says of the image that a state will become.

    sampler(n, guidance=nf.guidance.mmps(operator, y, noise_std))

A measurement y = A(x₀) + N(0, s²I) is of the image, not of the state x = x₀ + σz. These guidances
ask the denoised image D(x) = x + σ·n(x) instead, and pull what they find back to the state by the
transpose of its Jacobian J = ∂D/∂x, a backward pass through the evaluation of the network that the
row makes anyway. They are the score of y given x,

    ∇ₓ log N(y; A(D), s²I + A V Aᵀ) ≈ Jᵀ Aᵀ (s²I + A V Aᵀ)⁻¹ (y - A(D)),

and differ in what they take for V, the covariance of the image given the state. A is linear, or
:class:`Nonlinear` and then its derivative at D. What they return is added to the score, so that all
methods take them; the denoised image of the guided score is D + σ²g.

Of a network σ²J is no covariance, only near one: where it is not, A σ²g may be many times as long
as the residual, and chains are thrown off. :meth:`Denoised.bounded` holds the steps of those that
stand for V to it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ncsn_fast.guidance.base import NetworkGuidance
from ncsn_fast.guidance.measured import Measured, measurement
from ncsn_fast.guidance.nonlinear import Nonlinear
from ncsn_fast.guidance.operators.base import Operator
from ncsn_fast.reference import per_sample
from ncsn_fast.support import checks
from ncsn_fast.table import Table

Number = float | Tensor
Measurement = Tensor | np.ndarray


class Denoised:
    """States as the network denoises them, for a rule of guidance.

    Attributes:
        operator, y: of these samples; y (B, *measured).
        mean: D (B, *shape) = x + σn, the expected image.
        residual: y - A(D), (B, *measured).
        sigma: σ, the noise level of the row; a tensor () in a captured chain.
        weight: w, the factor on g in the row's update, likewise.
        forward, adjoint: u ↦ A u and v ↦ Aᵀv; of a nonlinear A its derivative at D.
        pull: v ↦ Jᵀv, J = ∂D/∂x: a backward pass through the network, (B, *shape) both.
    """

    def __init__(
        self,
        operator: Operator | Nonlinear,
        y: Tensor,
        mean: Tensor,
        sigma: Number,
        weight: Number,
        pull: Callable[[Tensor], Tensor],
    ) -> None:
        self.mean, self.sigma, self.weight, self.pull = mean, sigma, weight, pull
        if isinstance(operator, Nonlinear):
            measured, self.forward, self.adjoint = operator.linearized(mean)
        else:
            measured = operator.forward(mean)
            self.forward, self.adjoint = operator.forward, operator.adjoint
        checks.same_shape("operator.forward()", measured, (len(mean), *operator.measured), mean)
        self.residual = y - measured

    def bounded(self, g: Tensor) -> Tensor:
        """g, (B, *shape), shortened where it would move A(D) by more than the residual is long.

        ‖A σ²g‖ ≤ ‖y - A(D)‖ for each sample, as it is where V = σ²J is a covariance and solved for
        to the end: with M = A V Aᵀ, A σ²g is M(s²I + M)⁻¹(y - A(D)) then, whose matrix has its
        eigenvalues in [0, 1]. What A does not see is not bounded; g is shortened as a whole.
        """
        moved = _lengths(self.forward(g)) * self.sigma**2
        share = _lengths(self.residual) / moved.clamp(min=_tiny(g))
        return g * per_sample(share.clamp(max=1.0), g)


Rule = Callable[[Denoised], Tensor]


def dps_rule(at: Denoised, zeta: float) -> Tensor:
    """-ζ/w · ∇ₓ‖y - A(D)‖: a step of the row goes down the distance by ζ."""
    distance = _lengths(at.residual).clamp(min=_tiny(at.mean))
    return at.pull(at.adjoint(at.residual / distance)) * (zeta / at.weight)


def pgdm_rule(at: Denoised, noise_std: float, data_std: float, iterations: int) -> Tensor:
    """V = r²I, r² = σ²v²/(σ² + v²), as if the image's values had the standard deviation v."""
    spread = at.sigma**2 * data_std**2 / (at.sigma**2 + data_std**2)

    def inner(v: Tensor) -> Tensor:  # of images: Aᵀ(s²I + r²AAᵀ)⁻¹ = (s²I + r²AᵀA)⁻¹Aᵀ
        return v * noise_std**2 + at.adjoint(at.forward(v)) * spread

    return at.bounded(at.pull(solve(inner, at.adjoint(at.residual), iterations)))


def tmpd_rule(at: Denoised, noise_std: float) -> Tensor:
    """A V Aᵀ as the diagonal of its row sums, V = σ²J; those below 0 are no variance, and 0."""
    sums = at.forward(at.pull(at.adjoint(torch.ones_like(at.residual))))
    variance = sums.clamp(min=0) * at.sigma**2 + noise_std**2
    return at.bounded(at.pull(at.adjoint(torch.where(variance > 0, at.residual / variance, 0.0))))


def mmps_rule(at: Denoised, noise_std: float, iterations: int) -> Tensor:
    """V = σ²J, the covariance itself, by conjugate gradients: a backward pass for each."""

    def covariance(v: Tensor) -> Tensor:
        return v * noise_std**2 + at.forward(at.pull(at.adjoint(v))) * at.sigma**2

    return at.bounded(at.pull(at.adjoint(solve(covariance, at.residual, iterations))))


def diffpir_rule(at: Denoised, noise_std: float, weight: float, iterations: int) -> Tensor:
    """(D' - D)/σ² with D' = argmin ‖y - A D'‖²/s² + λ‖D' - D‖²/σ²; no derivative of the network."""

    def inner(v: Tensor) -> Tensor:
        return v * (weight * noise_std**2) + at.adjoint(at.forward(v)) * at.sigma**2

    return solve(inner, at.adjoint(at.residual), iterations)


@dataclass(frozen=True, eq=False)
class Through(Measured, NetworkGuidance):
    """A guidance made of a rule; :func:`dps` and the others make one.

    Attributes:
        operator: A, linear or :class:`Nonlinear`.
        y: a measurement, measured or (1, *measured), for all samples; (n, *measured) for one each.
        rule: from states as the network denoises them to the drift g (B, *shape).
        differentiates: whether the rule pulls anything back through the network.

    Raises:
        ValueError: for an operator of another kind, and a y that it does not measure.
    """

    rule: Rule
    differentiates: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.operator, (Operator, Nonlinear)):
            raise ValueError(
                f"operator is a {type(self.operator).__name__}: give one of nf.operators, one of a "
                "class made from nf.operators.Operator, or nf.guidance.Nonlinear"
            )
        super().__post_init__()

    def drift(
        self,
        x: Tensor,
        n: Tensor,
        sigma: Number,
        weight: Number,
        pull: Callable[[Tensor], Tensor],
        **inputs: Tensor,
    ) -> Tensor:
        operator, y = self.of(x, inputs)
        # Autocast is for the network: 16 bits would lose the residual.
        with torch.autocast(x.device.type, enabled=False):
            at = Denoised(operator, y, x + n * sigma, sigma, weight, lambda v: v + pull(v) * sigma)
            return self.rule(at)


@dataclass(frozen=True, eq=False)
class DPS(Through):
    """See :func:`dps`."""

    def check(self, table: Table, n: int, shape: tuple[int, ...]) -> None:
        """As of :class:`Measured`; refuses rows in which guidance has no weight, too."""
        super().check(table, n, shape)
        if 0 in table.w:
            raise ValueError(
                f"row {table.w.index(0)} of the table gives guidance no weight (w = 0): dps has no "
                "step there"
            )


def dps(operator: Operator | Nonlinear, y: Measurement, zeta: float = 1.0) -> Through:
    """Diffusion posterior sampling (Chung et al. 2023, algorithm 1): x ← x' - ζ·∇ₓ‖y - A(D(x))‖.

    Each row goes ζ times the gradient of the distance, whatever the noise of the measurement: ζ is
    chosen by hand, and no posterior is sampled exactly. The steps are of states x₀ + σz; those of
    the paper are of states of DDPM, √ᾱ as large, so that its ζ are other ones. In methods with a
    history ("dpmpp_2m") the gradient enters the score of the row, and so the history.

    Args:
        operator: A, linear or :class:`Nonlinear`.
        y: a tensor or array, measured, or (1, *measured), for all samples; (n, *measured) for one
            each.
        zeta: ζ > 0.

    Returns:
        The guidance: ``nf.sample(net, n, guidance=…)``.

    Raises:
        ValueError: for a y that A does not measure, or a ζ out of range; for a table with a row in
            which guidance has no weight (w = 0), when it is sampled.
    """
    return DPS(operator, measurement(y), partial(dps_rule, zeta=checks.positive("zeta", zeta)))


def pgdm(
    operator: Operator | Nonlinear,
    y: Measurement,
    noise_std: float,
    data_std: float = 1.0,
    iterations: int = 10,
) -> Through:
    """Pseudo-inverse guidance (Song et al. 2023, ΠGDM): V = r²I, r² = σ²v²/(σ² + v²).

    Exact for images of independent values of one variance v². One backward pass a row; the inverse
    of s²I + r²AAᵀ by conjugate gradients, which take A and Aᵀ but not the network.

    Args:
        operator, y: as of :func:`dps`.
        noise_std: s ≥ 0 of each real number of the measurement.
        data_std: v > 0, in the units of the network's space; the paper has 1, for [-1, 1].
        iterations: of conjugate gradients, at least 1; as many as AAᵀ has different eigenvalues
            are enough, one for masks.

    Returns:
        The guidance: ``nf.sample(net, n, guidance=…)``.

    Raises:
        ValueError: for a y that A does not measure, or numbers out of range.
    """
    rule = partial(
        pgdm_rule,
        noise_std=_at_least_0("noise_std", noise_std),
        data_std=checks.positive("data_std", data_std),
        iterations=checks.count("iterations", iterations),
    )
    return Through(operator, measurement(y), rule)


def tmpd(operator: Operator | Nonlinear, y: Measurement, noise_std: float) -> Through:
    """Tweedie moment projected diffusion (Boys et al. 2023): σ²AJAᵀ as a diagonal, its row sums.

    Exact where that matrix is diagonal: independent values, of any variances, behind a mask. Two
    backward passes a row.

    Args:
        operator, y: as of :func:`dps`.
        noise_std: s ≥ 0 of each real number of the measurement.

    Returns:
        The guidance: ``nf.sample(net, n, guidance=…)``.

    Raises:
        ValueError: for a y that A does not measure, or a noise_std out of range.
    """
    rule = partial(tmpd_rule, noise_std=_at_least_0("noise_std", noise_std))
    return Through(operator, measurement(y), rule)


def mmps(
    operator: Operator | Nonlinear, y: Measurement, noise_std: float, iterations: int = 3
) -> Through:
    """Moment matching posterior sampling (Rozet et al. 2024): V = σ²J, the network's covariance.

    Exact for every Gaussian law of images and linear A, if ``iterations`` are enough; few are
    enough for images, as in the paper. 1 + ``iterations`` backward passes a row.

    Args:
        operator, y: as of :func:`dps`.
        noise_std: s ≥ 0 of each real number of the measurement.
        iterations: of conjugate gradients, at least 1. They end for a sample whose matrix, of a
            network that is no exact score, turns out not to be positive.

    Returns:
        The guidance: ``nf.sample(net, n, guidance=…)``.

    Raises:
        ValueError: for a y that A does not measure, or numbers out of range.
    """
    rule = partial(
        mmps_rule,
        noise_std=_at_least_0("noise_std", noise_std),
        iterations=checks.count("iterations", iterations),
    )
    return Through(operator, measurement(y), rule)


def diffpir(
    operator: Operator | Nonlinear,
    y: Measurement,
    noise_std: float,
    weight: float = 8.0,
    iterations: int = 10,
) -> Through:
    """DiffPIR (Zhu et al. 2023): the denoised image is moved to the measurement, by least squares.

    D' = argmin ‖y - A D'‖²/s² + λ‖D' - D‖²/σ². Nothing goes back through the network: the fastest,
    and no posterior is sampled exactly.

    Args:
        operator, y: as of :func:`dps`.
        noise_std: s ≥ 0 of each real number of the measurement.
        weight: λ > 0, how much the network is believed; 6 to 25 in the paper.
        iterations: of conjugate gradients, as of :func:`pgdm`.

    Returns:
        The guidance: ``nf.sample(net, n, guidance=…)``.

    Raises:
        ValueError: for a y that A does not measure, or numbers out of range.
    """
    rule = partial(
        diffpir_rule,
        noise_std=_at_least_0("noise_std", noise_std),
        weight=checks.positive("weight", weight),
        iterations=checks.count("iterations", iterations),
    )
    return Through(operator, measurement(y), rule, differentiates=False)


def exact(operator: Operator | Nonlinear, y: Measurement, iterations: int = 10) -> Through:
    """A x = y exactly: the denoised image becomes D + A⁺(y - A D) in every row (DDNM, Wang et al.
    2023).

    A⁺ = Aᵀ(AAᵀ)⁻¹ by conjugate gradients. The last row leaves the denoised image, so that samples
    of methods that end with one meet y to rounding, if ``iterations`` are enough; a nonlinear A,
    which each row linearises, nearly. For measurements without noise: with noise it is met too.

    Args:
        operator, y: as of :func:`dps`; y in the range of A.
        iterations: of conjugate gradients, as of :func:`pgdm`.

    Returns:
        The guidance: ``nf.sample(net, n, guidance=…)``.

    Raises:
        ValueError: for a y that A does not measure, or a number out of range.
    """
    return diffpir(operator, y, 0.0, iterations=iterations)


def solve(matrix: Callable[[Tensor], Tensor], b: Tensor, iterations: int) -> Tensor:
    """u with matrix(u) = b, by conjugate gradients for each sample, from 0; (B, …) all.

    The number of iterations is fixed, so that nothing waits for a device. A sample goes no further
    in directions in which its matrix is not positive, to rounding: it is solved, or cannot be.
    """
    u, r, p = torch.zeros_like(b), b, b
    squared = _dots(r, r)
    largest = torch.zeros_like(squared)
    for _ in range(iterations):
        q = matrix(p)
        curvature, length = _dots(p, q), _dots(p, p)
        largest = torch.maximum(largest, torch.where(length > 0, curvature / length, 0.0))
        goes = curvature > 8 * torch.finfo(b.dtype).eps * largest * length
        step = torch.where(goes, squared / curvature, 0.0)
        u, r = u + step * p, r - step * q
        before, squared = squared, _dots(r, r)
        p = r + p * torch.where(before > 0, squared / before, 0.0)
    return u


def _dots(x: Tensor, y: Tensor) -> Tensor:
    return per_sample((x * y).flatten(1).sum(1), x)


def _lengths(x: Tensor) -> Tensor:
    return per_sample(x.flatten(1).norm(dim=1), x)


def _tiny(like: Tensor) -> float:
    return torch.finfo(like.dtype).tiny


def _at_least_0(name: str, value: float) -> float:
    if not (math.isfinite(checks.number(name, value)) and value >= 0):
        raise ValueError(f"{name} = {value}: give a finite number, at least 0")
    return float(value)


__all__ = ["Denoised", "Through", "diffpir", "dps", "exact", "mmps", "pgdm", "solve", "tmpd"]
