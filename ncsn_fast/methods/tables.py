"""A sampler is a table: every method on score models is two lines, run once per row.

    x ← a·x + b·n + c·h + d·z + w·g        z ~ N(0, I);  g = optional guidance drift
    h ← e·x_old + f·n                      one history buffer, for multistep methods

where n = σ·s(x, σ) is the normalised score at the row's noise level and the network is shown
c_in·x. A method is a pure function that returns such a table, computed in float64 on the host; the
engine runs any of them.

Where a method takes ``steps``, that is the number of network evaluations, one a row, at most: it
visits as many noise levels as they pay for, and ends at σ = 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor

from ncsn_fast.methods.levels import MOST_ROWS, check_sigmas, check_step_size
from ncsn_fast.methods.spacings import AUTO, evenly_spaced, level_indices, noise_levels
from ncsn_fast.support import checks
from ncsn_fast.table import Table

Sigmas = Sequence[float] | np.ndarray | Tensor


def langevin(step_size: float, steps: int) -> Table:
    """Plain Langevin dynamics x ← x + α·s + √(2α)·z; σ is 1, so the score is the normalised one.

    (Song & Ermon 2019, equation 4, write α/2 and √α for what is called α and √(2α) here, as in the
    published code.)

    Args:
        step_size: α > 0.
        steps: how many.

    Returns:
        A table of ``steps`` rows.

    Raises:
        ValueError: for settings out of range.
    """
    step_size = checks.number("step_size", step_size)
    if not (math.isfinite(step_size) and step_size > 0):
        raise ValueError(f"step_size = {step_size}: Langevin dynamics needs a finite α > 0")
    return Table.of(
        np.ones(checks.count("steps", steps, 1, MOST_ROWS)), b=step_size, d=math.sqrt(2 * step_size)
    )


def annealed_langevin(
    sigmas: Sigmas,
    step_size: float,
    steps_per_level: int,
    denoise: bool | str = True,
    noise_first: bool = False,
) -> Table:
    """Annealed Langevin dynamics (Song & Ermon 2019, algorithm 1, as in the published code).

    At level i, T times, with α_i = ε(σ_i/σ_L)²:  x ← x + (α_i/σ_i)·n + √(2α_i)·z.
    At the end, where ``denoise`` is True (2020), one more row:  x ← x + σ_L·n.

    Args:
        sigmas: (L,) noise levels, descending.
        step_size: ε, with 0 < ε < 2σ_L².
        steps_per_level: T.
        denoise: whether one more row removes the noise of the smallest level; "last": that row in
            the place of the last step, as in the code of consistent annealed sampling.
        noise_first: whether the noise of a step comes before its score, as there: one row before
            the first step, of whose score no use is made, adds it; every other adds the next one's.

    Returns:
        A table of L·T rows, one more with ``denoise`` True, and one with ``noise_first``.

    Raises:
        ValueError: for settings out of range.
    """
    ladder = check_sigmas(sigmas).double().numpy()
    steps_per_level = checks.count("steps_per_level", steps_per_level, 1, MOST_ROWS // len(ladder))
    step_size = check_step_size(step_size, float(ladder[-1]))
    checks.choice("denoise", denoise, (True, False, "last"), "whether, and when, noise is removed")
    checks.choice("noise_first", noise_first, (True, False), "whether noise comes before the score")
    levels = np.repeat(np.arange(len(ladder)), steps_per_level)
    sigma = ladder[levels]
    alpha = step_size * (sigma / ladder[-1]) ** 2
    b, noise = alpha / sigma, np.sqrt(2 * alpha)
    if noise_first:
        sigma, levels = np.insert(sigma, 0, ladder[0]), np.insert(levels, 0, 0)
        b, noise = np.insert(b, 0, 0.0), np.append(noise, 0.0)
    if denoise == "last":
        b[-1], noise[-1] = ladder[-1], 0.0
    elif denoise:
        sigma, levels = np.append(sigma, ladder[-1]), np.append(levels, len(ladder) - 1)
        b, noise = np.append(b, ladder[-1]), np.append(noise, 0.0)
    return Table.of(sigma, b=b, d=noise, level=levels)


def consistent_annealed(
    sigmas: Sigmas,
    step_size: float,
    steps_per_level: int = 1,
    denoise: bool = True,
    spacing: str = AUTO,
) -> Table:
    """Consistent annealed sampling (Jolicoeur-Martineau et al. 2020, algorithm 2).

    On (L-1)·k + 1 levels with γ_i = σ_{i+1}/σ_i, η = ε/σ_L²:
    x ← x + ησ_i·n + σ_{i+1}·√(1 - ((1-η)/γ_i)²)·z, the last without noise: after every step a chain
    of noise σ_i has noise σ_{i+1}. Where ``denoise`` is set the last is  x ← x + σ_L·n  in place of
    that, so that the chain is as long: the published denoised image.

    Args:
        sigmas: (L,) noise levels, descending, L ≥ 2; the first and the last are used.
        step_size: ε, with σ_L²(1-γ) < ε < σ_L²(1+γ), γ being the smallest γ_i.
        steps_per_level: k.
        denoise: whether the last row removes the noise of the smallest level.
        spacing: of the levels, "geometric" or "linear"; "auto": that of ``sigmas``.

    Returns:
        A table of (L-1)·k + 1 rows.

    Raises:
        ValueError: for ε out of that range, which the message names, and for levels that are
            neither geometric nor evenly spaced, where ``spacing`` does not say.
    """
    own = check_sigmas(sigmas)
    if len(own) < 2:
        raise ValueError("consistent annealed sampling needs at least 2 noise levels, got 1")
    checks.choice("denoise", denoise, (True, False), "whether the last row removes noise")
    number = (len(own) - 1) * checks.count(
        "steps_per_level", steps_per_level, 1, MOST_ROWS // len(own)
    ) + 1
    sigma = noise_levels(own, number, consistent_spacing(own, spacing))
    ratio = sigma[1:] / sigma[:-1]
    step_size = checks.number("step_size", step_size)
    eta, least = step_size / sigma[-1] ** 2, ratio.min()
    if not 1 - least < eta < 1 + least:
        low, high = (sigma[-1] ** 2 * (1 + sign * least) for sign in (-1, 1))
        raise ValueError(
            f"step_size = {step_size:g}: consistent annealed sampling on {number} levels of ratio "
            f"γ = {least:.4g} needs σ_L²(1-γ) = {low:.4g} < ε < σ_L²(1+γ) = {high:.4g}; more steps "
            "per level lower the lower bound"
        )
    noise = sigma[1:] * np.sqrt(1 - ((1 - eta) / ratio) ** 2)
    b = eta * sigma
    if denoise:
        b[-1] = sigma[-1]
    return Table.of(sigma, b=b, d=np.append(noise, 0.0), level=level_indices(sigma, own))


def consistent_spacing(sigmas: Sigmas, spacing: str = AUTO) -> str:
    """The spacing of consistent annealed sampling: "geometric" or "linear"; "auto" is the levels'.

    Raises:
        ValueError: for another, and where levels (L,) are neither.
    """
    known = ("geometric", "linear")
    checks.choice(
        "spacing", spacing, (AUTO, *known), "consistent annealed sampling makes its own levels"
    )
    if spacing != AUTO:
        return spacing
    levels = check_sigmas(sigmas).double().numpy()
    for name, values in zip(known, (np.log(levels), levels), strict=True):
        if evenly_spaced(values):
            return name
    raise ValueError(
        f"the {len(levels)} noise levels are neither geometric nor evenly spaced, and consistent "
        'annealed sampling makes levels of its own between their ends: give spacing="geometric" or '
        '"linear", or such levels'
    )


def reverse_diffusion(
    sigmas: Sigmas, steps: int | None = None, spacing: str = AUTO, rho: float = 7.0
) -> Table:
    """Reverse diffusion of the variance-exploding SDE (Song et al. 2021, appendix E).

    x ← x + (σ_i² - σ_{i+1}²)/σ_i·n + √(σ_i² - σ_{i+1}²)·z; the last step, to σ = 0, adds no noise.

    Args:
        sigmas: (L,) the model's noise levels, descending.
        steps: network evaluations; default: one per level.
        spacing, rho: which levels, see :func:`ncsn_fast.methods.spacings.noise_levels`.

    Returns:
        A table of ``steps`` rows.
    """
    sigma, following = _intervals(sigmas, steps, spacing, rho)
    removed = sigma**2 - following**2
    noise = np.where(following > 0, np.sqrt(removed), 0.0)
    return Table.of(sigma, b=removed / sigma, d=noise, level=level_indices(sigma, sigmas))


def ancestral(
    sigmas: Sigmas,
    steps: int | None = None,
    spacing: str = AUTO,
    rho: float = 7.0,
    eta: float = 1.0,
) -> Table:
    """Ancestral sampling of the variance-exploding SDE (Song et al. 2021, appendix F).

    From σ_i down to √(σ_{i+1}² - u²) by the ODE, and up to σ_{i+1} by noise, u·z, to σ = 0, with
    u = min(σ_{i+1}, η·√(σ_{i+1}²(σ_i² - σ_{i+1}²)/σ_i²)). The paper's, η = 1, is
    x ← x + (σ_i² - σ_{i+1}²)/σ_i·n + u·z.

    Args:
        sigmas, steps, spacing, rho: as for :func:`reverse_diffusion`.
        eta: η ≥ 0, how much noise a step adds; 0 is Euler's method.

    Returns:
        A table of ``steps`` rows.
    """
    sigma, following = _intervals(sigmas, steps, spacing, rho)
    full = following * np.sqrt(sigma**2 - following**2) / sigma
    up = np.minimum(following, noise_factor("eta", eta) * full)
    down = np.sqrt(following**2 - up**2)
    return Table.of(sigma, b=sigma - down, d=up, level=level_indices(sigma, sigmas))


PREDICTORS = {"reverse_diffusion": reverse_diffusion, "ancestral": ancestral}


def predictor_corrector(
    sigmas: Sigmas,
    snr: float | None = None,
    step_size: float | None = None,
    corrector_steps: int = 1,
    predictor: str = "reverse_diffusion",
    steps: int | None = None,
    spacing: str = AUTO,
    rho: float = 7.0,
) -> Table:
    """Predictor-corrector sampling (Song et al. 2021, algorithm 2) with a fixed corrector step.

    At every level Langevin steps with α_i = 2(r·σ_i)², x ← x + (α_i/σ_i)·n + √(2α_i)·z, then one
    step of the predictor. (The original scales α by the norms of z and s; where n is a standard
    normal both agree. ``nf.guidance.NormAdaptive`` does so, by the norms of each sample.)

    Args:
        sigmas: (L,) the model's noise levels, descending.
        snr: r, the signal-to-noise ratio of the corrector, 0 < r < 1.
        step_size: ε of annealed Langevin dynamics in its place: r = √(ε/(2σ_L²)).
        corrector_steps: Langevin steps per level.
        predictor: "reverse_diffusion" or "ancestral".
        steps: network evaluations, of which a level takes corrector_steps + 1; default: all levels.
        spacing, rho: which levels, see :func:`ncsn_fast.methods.spacings.noise_levels`.

    Returns:
        A table of at most ``steps`` rows, corrector_steps + 1 for each level.

    Raises:
        ValueError: unless one of snr and step_size is given, in its range.
    """
    ratio = _corrector_ratio(check_sigmas(sigmas), snr, step_size)
    per_level = checks.count("corrector_steps", corrector_steps, 1, MOST_ROWS) + 1
    checks.choice("predictor", predictor, tuple(PREDICTORS), "the method of the predictor rows")
    predict = PREDICTORS[predictor](sigmas, _levels_for(steps, per_level), spacing, rho)
    sigma = np.repeat(predict.sigma, per_level)
    b, d = 2 * ratio**2 * sigma, 2 * ratio * sigma
    b[corrector_steps::per_level] = predict.b
    d[corrector_steps::per_level] = predict.d
    return Table.of(sigma, b=b, d=d, level=np.repeat(predict.level, per_level))


def euler(sigmas: Sigmas, steps: int | None = None, spacing: str = AUTO, rho: float = 7.0) -> Table:
    """Euler's method on the probability flow ODE dx = -n dσ (Song et al. 2021, equation 13).

    x ← x + (σ_i - σ_{i+1})·n, to σ = 0. First order.

    Args:
        sigmas, steps, spacing, rho: as for :func:`reverse_diffusion`.

    Returns:
        A table of ``steps`` rows.
    """
    sigma, following = _intervals(sigmas, steps, spacing, rho)
    return Table.of(sigma, b=sigma - following, level=level_indices(sigma, sigmas))


def heun(sigmas: Sigmas, steps: int | None = None, spacing: str = AUTO, rho: float = 7.0) -> Table:
    """Heun's method on the probability flow ODE (Karras et al. 2022, algorithm 1). Second order.

    Two rows a step, see :func:`two_stage`, of which the second is at σ_{i+1}; the step to σ = 0 is
    Euler's.

    Args:
        sigmas, spacing, rho: as for :func:`reverse_diffusion`.
        steps: network evaluations: N levels take 2N - 1; default: all levels.

    Returns:
        A table of at most ``steps`` rows, 2N - 1 for N levels.
    """
    number = None if steps is None else (checks.count("steps", steps, 1, MOST_ROWS) + 1) // 2
    sigma, following = _intervals(sigmas, number, spacing, rho)
    table = two_stage(sigma, following, following, 0.5)
    return replace(table, level=level_indices(np.array(table.sigma), sigmas))


def two_stage(sigma: np.ndarray, following: np.ndarray, middle: np.ndarray, share: float) -> Table:
    """Steps of the ODE with two evaluations each (Karras et al. 2022), the last, Euler's, with one.

    A step of length h = σ - σ_next: x' = x + (σ - σ_mid)·n, with x for history, then, with n' of x'
    at σ_mid, x + h·((1 - θ)·n + θ·n') = (1 - k)·x + k·x' + hθ·n', k = (1 - θ)·h/(σ - σ_mid).

    Args:
        sigma, following: (N,) where each step begins and ends.
        middle: (N,) σ_mid of each, that of the last without a meaning.
        share: θ in (0, 1]: ½ of Heun's method with σ_mid = σ_next, 1 of the midpoint method.

    Returns:
        2N - 1 rows, all off the ladder.
    """
    length, first = (sigma - following)[:-1], (sigma - middle)[:-1]
    # A history of the state, not of n, has what guidance added to n in it.
    a, b, c, e = np.ones((4, 2 * len(sigma) - 1))
    b[:-1:2], a[1::2], b[1::2] = first, (1 - share) * length / first, share * length
    b[-1] = sigma[-1] - following[-1]
    c[::2], c[1::2] = 0.0, 1 - a[1::2]
    e[1::2], e[-1] = 0.0, 0.0
    visited = np.stack([sigma, middle], 1).flatten()[:-1]
    return Table.of(visited, a=a, b=b, c=c, e=e)


def dpmpp_2m(
    sigmas: Sigmas,
    steps: int | None = None,
    spacing: str = AUTO,
    rho: float = 7.0,
    eta: float = 0.0,
    solver_type: str = "midpoint",
) -> Table:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2), two steps in λ = -ln σ. Second order.

    With D = x + σ·n, the history, l = λ_{i+1} - λ_i, q = exp(-(1+η)·l) and k = l/(λ_i - λ_{i-1})·m:
    x ← q·x + (1-q)·((1+k)·D_i - k·D_{i-1}) + σ_{i+1}·√(1 - exp(-2ηl))·z; k = 0 in the first step
    and in that to σ = 0. m is ½, or 1/(1-q) - 1/((1+η)·l) for "heun".

    Args:
        sigmas, steps, spacing, rho: as for :func:`reverse_diffusion`.
        eta: η ≥ 0, how much noise a step adds: 0 solves the ODE, 1 the reverse SDE.
        solver_type: "midpoint" or "heun", how D goes on between two levels.

    Returns:
        A table of ``steps`` rows.
    """
    sigma, following = _intervals(sigmas, steps, spacing, rho)
    eta = noise_factor("eta", eta)
    checks.choice("solver_type", solver_type, ("midpoint", "heun"), "how the clean image goes on")
    length = np.diff(-np.log(sigma))
    q = (following / sigma) ** (1 + eta)
    k = np.zeros(len(sigma))
    k[1:-1] = length[1:] / length[:-1]
    if solver_type == "midpoint":
        k /= 2
    else:
        k[:-1] *= 1 / (1 - q[:-1]) - 1 / ((1 + eta) * length)
    towards = (1 - q) * (1 + k)
    return Table.of(
        sigma,
        a=q + towards,
        b=towards * sigma,
        c=-(1 - q) * k,
        d=following * np.sqrt(1 - (following / sigma) ** (2 * eta)),
        e=1.0,
        f=sigma,
        level=level_indices(sigma, sigmas),
    )


def noise_factor(name: str, value: float) -> float:
    """A factor on noise, finite and at least 0; anything else is refused by its name."""
    factor = checks.number(name, value)
    if not 0 <= factor < math.inf:
        raise ValueError(f"{name} = {factor}: a factor on the noise is finite and at least 0")
    return factor


def _intervals(
    sigmas: Sigmas, number: int | None, spacing: str, rho: float
) -> tuple[np.ndarray, np.ndarray]:
    """The noise levels and what follows each of them; after the last comes 0."""
    number = None if number is None else checks.count("steps", number, 1, MOST_ROWS)
    sigma = noise_levels(sigmas, number, spacing, rho)
    return sigma, np.append(sigma[1:], 0.0)


def _levels_for(steps: int | None, per_level: int) -> int | None:
    """How many levels of so many evaluations each the steps pay for."""
    if steps is None:
        return None
    if checks.count("steps", steps, 1, MOST_ROWS) < per_level:
        raise ValueError(
            f"steps = {steps}: one noise level takes {per_level} network evaluations here"
        )
    return steps // per_level


def _corrector_ratio(own: Tensor, snr: float | None, step_size: float | None) -> float:
    if (snr is None) == (step_size is None):
        raise ValueError(
            f"snr = {snr}, step_size = {step_size}: predictor-corrector takes one of both, the "
            "signal-to-noise ratio r of the corrector (0.1 to 0.3), or ε of annealed Langevin "
            "dynamics for r = √(ε/(2σ_L²))"
        )
    if snr is None:
        assert step_size is not None
        return math.sqrt(check_step_size(step_size, float(own[-1])) / 2) / float(own[-1])
    snr = checks.number("snr", snr)
    if not 0 < snr < 1:
        raise ValueError(
            f"snr = {snr}: the corrector's steps need 0 < r < 1, beyond which every chain diverges"
        )
    return snr


__all__ = [
    "ancestral",
    "annealed_langevin",
    "consistent_annealed",
    "dpmpp_2m",
    "euler",
    "heun",
    "langevin",
    "noise_factor",
    "predictor_corrector",
    "reverse_diffusion",
    "two_stage",
]
