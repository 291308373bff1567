"""The diffusions of score_sde as tables: VE and VP, its predictors, and its two correctors.

A score s enters as n = scale·s, which is σ·s of the VE diffusion and √(1-ᾱ)·s = -ε of the VP one,
whose rows are of its own state √ᾱ·x₀ + √(1-ᾱ)·z. The times of both are score_sde's, in float32, and
rounded to indices as there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ncsn_fast.methods.levels import nearest_level
from ncsn_fast.models.score import Score
from ncsn_fast.support import checks
from ncsn_fast.table import Table

# score_sde's classes, and the names that they are registered by there.
_PREDICTORS = {
    "EulerMaruyamaPredictor": "euler_maruyama",
    "ReverseDiffusionPredictor": "reverse_diffusion",
    "AncestralSamplingPredictor": "ancestral_sampling",
    "NonePredictor": "none",
}
_CORRECTORS = {
    "LangevinCorrector": "langevin",
    "AnnealedLangevinDynamics": "ald",
    "NoneCorrector": "none",
}
_VE = ("discrete_sigmas", "sigma_min", "sigma_max")
_VP = ("discrete_betas", "sqrt_1m_alphas_cumprod", "beta_0", "beta_1")

# The mean a·x + g·s of a predictor's step, and the noise d that it adds to that.
Step = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True, eq=False)
class Diffusion:
    """A diffusion at N times, (N,) float64 each.

    Attributes:
        sigma: noise levels.
        told: what the model is told.
        scale: n = scale·s.
        std: standard deviation of the noise in the state.
        alpha: factor on the step size of correctors.
        steps: of the predictors, by name.
        kind, condition, ladder: of the model's Score.
        prior_std: of the states at the first time.
        first_time, last_time: T and eps.
        told_at: what the model is told at any time.
        slope: t, x, the model's output → dx/dt of the probability flow.
    """

    sigma: np.ndarray
    told: np.ndarray
    scale: np.ndarray
    std: np.ndarray
    alpha: np.ndarray
    steps: dict[str, Step]
    kind: str
    condition: Any
    ladder: Tensor | None
    prior_std: float
    first_time: float
    last_time: float
    told_at: Callable[[float], float]
    slope: Callable[[float, Tensor, Tensor], Tensor]

    def score(self, model: Callable[..., Tensor]) -> Score:
        """The model as the engine knows networks; its input is the state as it is."""
        return Score(model, self.kind, self.condition, self.ladder)

    @property
    def last(self) -> Table:
        """The predictor's step at the last time, without noise."""
        a, g, _ = (column[-1:] for column in self.steps["reverse_diffusion"])
        return Table.of(self.sigma[-1:], a=a, b=g / self.scale[-1:])


class _Told:
    """What a model is told at a noise level of the table, as a condition."""

    def __init__(self, sigma: Tensor, told: Tensor) -> None:
        self._sigma, self._told = sigma, told

    def __call__(self, sigma: Tensor) -> Tensor:
        return self._told.to(sigma)[nearest_level(sigma, self._sigma.to(sigma))[0]]


def diffusion(sde: Any, continuous: bool, eps: float) -> Diffusion:
    """A VESDE or VPSDE of score_sde at its N times from T to eps.

    Raises:
        ValueError: for another sde, and an eps that is none of its times.
    """
    kinds = [build for names, build in ((_VE, _of_ve), (_VP, _of_vp)) if _has(sde, names)]
    if len(kinds) != 1:
        raise ValueError(
            f"sde is {type(sde).__name__}: score_sde's VESDE and VPSDE are taken, which have "
            f"{', '.join(_VE)} and {', '.join(_VP)} (a subVPSDE adds less noise than its signal "
            "goes down by)"
        )
    number, end = checks.count("sde.N", sde.N, 2), checks.number("sde.T", sde.T)
    last = checks.number("eps", eps)
    if not 0 < last < end:
        raise ValueError(f"eps = {eps}: the last time lies between 0 and T = {end:g}")
    t = torch.linspace(end, last, number, device="cpu")  # float32, as the indices are made of it
    return kinds[0](sde, t, (t * (number - 1) / end).long(), continuous)


def _has(sde: Any, names: Sequence[str]) -> bool:
    return all(hasattr(sde, name) for name in names)


def _values(sde: Any, name: str) -> Tensor:
    """An attribute (N,) of the sde, float32 on the CPU."""
    found = checks.tensor(f"sde.{name}", getattr(sde, name)).to("cpu", torch.float32)
    if found.shape != (sde.N,):
        raise ValueError(f"sde.{name} has shape {tuple(found.shape)}, and sde.N = {sde.N}")
    return found


def _of_ve(sde: Any, t: Tensor, index: Tensor, continuous: bool) -> Diffusion:
    number = len(t)
    least, most = (checks.number(f"sde.{name}", getattr(sde, name)) for name in _VE[1:])
    growth = math.log(most / least)

    def level(t: float) -> float:
        return least * math.exp(growth * t)

    discrete = _values(sde, "discrete_sigmas")
    std = np.array([level(one) for one in t.tolist()])
    at = discrete[index].double().numpy()
    before = torch.where(index == 0, 0.0, discrete[(index - 1).clamp(min=0)]).double().numpy()
    ladder = None if continuous else discrete.flip(0)
    labels = ((float(sde.T) - t) * (number - 1)).round().long()
    sigma = std if ladder is None else ladder[labels].double().numpy()
    removed, ones = at**2 - before**2, np.ones(number)
    spread = 2 * growth * std**2 / number
    return Diffusion(
        sigma=sigma,
        told=std if continuous else labels.double().numpy(),
        scale=sigma,
        std=std,
        alpha=ones,
        steps={
            "reverse_diffusion": (ones, removed, np.sqrt(removed)),
            "ancestral_sampling": (ones, removed, before * np.sqrt(removed) / at),
            "euler_maruyama": (ones, spread, np.sqrt(spread)),
        },
        kind="score",
        condition="sigma" if continuous else "label",
        ladder=ladder,
        prior_std=most,
        first_time=float(sde.T),
        last_time=float(t[-1]),
        told_at=level,
        slope=lambda t, x, output: -growth * level(t) ** 2 * output,
    )


def _of_vp(sde: Any, t: Tensor, index: Tensor, continuous: bool) -> Diffusion:
    number = len(t)
    least, most = (checks.number(f"sde.{name}", getattr(sde, name)) for name in _VP[2:])

    def spread(t: Any) -> Any:
        return least + t * (most - least)  # β(t)

    def std(t: Any) -> Any:
        return np.sqrt(-np.expm1(-(t**2) * (most - least) / 2 - t * least))

    betas = _values(sde, "discrete_betas")
    if not bool(((betas > 0) & (betas < 1)).all()):
        raise ValueError(
            f"sde.discrete_betas reach from {float(betas.min()):g} to {float(betas.max()):g}, and "
            f"they lie between 0 and 1: to β = {most:g} sde.N = {number} steps are too few"
        )
    beta = betas[index].double().numpy()
    times = t.double().numpy()
    told = (t * (999 if continuous else number - 1)).double()
    scale = std(times)
    if not continuous:
        scale = _values(sde, "sqrt_1m_alphas_cumprod")[told.long()].double().numpy()
    sigma = std(times) / np.sqrt(1 - std(times) ** 2)
    kept = np.sqrt(1 - beta)
    rate = spread(times) / number
    return Diffusion(
        sigma=sigma,
        told=told.numpy(),
        scale=scale,
        std=std(times),
        alpha=1 - beta,
        steps={
            "reverse_diffusion": (2 - kept, beta, np.sqrt(beta)),
            "ancestral_sampling": (1 / kept, beta / kept, np.sqrt(beta)),
            "euler_maruyama": (1 + rate / 2, rate, np.sqrt(rate)),
        },
        kind="epsilon",
        condition=_Told(torch.from_numpy(sigma), told),
        ladder=None,
        prior_std=1.0,
        first_time=float(sde.T),
        last_time=float(t[-1]),
        told_at=lambda t: 999 * t,
        slope=lambda t, x, output: -spread(t) / 2 * (x - output / float(std(t))),
    )


def predictor_corrector(
    at: Diffusion,
    predictor: Any,
    corrector: Any,
    snr: float,
    n_steps: int,
    *,
    probability_flow: bool,
    denoise: bool,
) -> tuple[Table, list[bool]]:
    """The rows of a sampler: at each time the corrector's, then the predictor's.

    A corrector is x ← x + 2k²·scale·n + 2k·scale·z, with k = √α·r·std/scale of "ald", and √α·r of
    "langevin", whose step goes by norms: its rows are for :class:`NormAdaptive`.

    Returns:
        The table, and whether each row is one of "langevin".
    """
    predicts = _named("predictor", predictor, _PREDICTORS)
    corrects = _named("corrector", corrector, _CORRECTORS)
    if predicts == corrects == "none":
        raise ValueError("predictor and corrector are both none: nothing would be done")
    ratio = 1.0 if corrects == "none" else checks.number("snr", snr)
    if not 0 < ratio < math.inf:
        raise ValueError(f"snr = {snr}: the signal-to-noise ratio is finite and positive")
    if predicts == "ancestral_sampling" and probability_flow:
        raise ValueError("probability_flow=True: ancestral_sampling has no ODE; leave it out")
    before = 0 if corrects == "none" else checks.count("n_steps", n_steps)
    after = int(predicts != "none")
    rows = (len(at.sigma), before + after)
    a, b, d, adapts = np.ones(rows), np.zeros(rows), np.zeros(rows), np.zeros(rows, dtype=bool)
    k = np.sqrt(at.alpha) * ratio
    if corrects == "ald":
        k = k * at.std / at.scale
    b[:, :before], d[:, :before] = (2 * k**2 * at.scale)[:, None], (2 * k * at.scale)[:, None]
    adapts[:, :before] = corrects == "langevin"
    if after:
        mean, gain, spread = at.steps[predicts]
        a[:, -1], b[:, -1] = mean, gain / at.scale / (2 if probability_flow else 1)
        d[:, -1] = 0.0 if probability_flow else spread
        if denoise:
            d[-1, -1] = 0.0
    columns = {"a": a.flatten(), "b": b.flatten(), "d": d.flatten()}
    return Table.of(np.repeat(at.sigma, rows[1]), **columns), adapts.flatten().tolist()


def _named(what: str, given: Any, known: dict[str, str]) -> str:
    """The name of a predictor or corrector that is given by its class or name."""
    name = "none" if given is None else known.get(getattr(given, "__name__", ""), given)
    checks.choice(
        what, name, tuple(known.values()), "score_sde's by class or name, none of your own"
    )
    return str(name)


__all__ = ["Diffusion", "diffusion", "predictor_corrector"]
