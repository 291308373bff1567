"""The probability flow ODE with its divergence, integrated from the smallest level upwards."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ncsn_fast import noise as noise_source
from ncsn_fast.methods.levels import SAME_LEVEL, check_sigmas, nearest_level
from ncsn_fast.models.score import Score
from ncsn_fast.support import checks
from ncsn_fast.support.progress import Progress

# Explicit Runge-Kutta methods: at which part of a step, from which slopes; and their weights.
METHODS: dict[str, tuple[tuple[tuple[float, ...], ...], tuple[float, ...]]] = {
    "heun": (((), (1.0,)), (1 / 2, 1 / 2)),
    "rk4": (((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6)),
}
_STEPS = 50
_MOST = 10**6  # steps, and probes


class Flow(NamedTuple):
    """The ODE and how it is integrated."""

    score: Score
    grid: Tensor  # (K + 1,) float64, ln σ, ascending
    method: str
    probes: int | None  # None: exact


def make_flow(
    score: Score,
    sigmas: Sequence[float] | Tensor | None,
    steps: int | None,
    method: str | None,
    probes: int | None,
) -> Flow:
    """Settings as of ``log_likelihood``, with what is left out filled in; None probes: exact.

    Raises:
        ValueError: for settings out of range, or that ask for other levels of a network that knows
            its levels by label.
    """
    levels = score.sigmas if sigmas is None else sigmas
    if levels is None:
        raise ValueError("the noise levels are not known: give sigmas=, such as the training's")
    ladder = check_sigmas(levels).double().log().flip(0)
    if len(ladder) < 2:
        raise ValueError("sigmas has one level: the integral runs from the smallest to the largest")
    if probes is not None:
        probes = checks.count("probes", probes, 1, _MOST)
    only_levels = score.condition == "label" and not score.quantize
    default = "heun" if only_levels else "rk4"
    method = default if method is None else method
    checks.choice("method", method, tuple(METHODS), "not a known solver")
    if not only_levels:
        steps = checks.count("steps", _STEPS if steps is None else steps, 1, _MOST)
        ends = float(ladder[0]), float(ladder[-1])
        grid = torch.linspace(*ends, steps + 1, dtype=torch.float64, device="cpu")
        return Flow(score, grid, method, probes)
    if steps is not None or method != "heun":
        raise ValueError(
            f"steps = {steps}, method = {method!r}: this network knows only its levels, by label, "
            "so Heun's steps from level to level are all there is: leave both out, or give a "
            "network that takes any σ (nf.NCSNv2 does)"
        )
    _labels(score, ladder.exp())  # refuses other levels now
    return Flow(score, ladder, method, probes)


def _labels(score: Score, sigma: Tensor) -> Tensor:
    """The nearest levels' indices; refused where a network knows only its levels."""
    if score.condition != "label" or score.sigmas is None:
        return torch.zeros(len(sigma), dtype=torch.int64, device="cpu")
    labels, gap = nearest_level(sigma.cpu().double(), score.sigmas.cpu().double())
    if not score.quantize and float(gap.max()) > SAME_LEVEL:
        raise ValueError(
            f"σ = {float(sigma[gap.argmax()]):g} is none of the {len(score.sigmas)} levels that "
            "this network knows by label: leave sigmas out, or give levels of its ladder"
        )
    return labels


def integrate(
    flow: Flow, x: Tensor, seed: int, ids: Tensor, extra: dict[str, Any], shown: Progress
) -> tuple[Tensor, Tensor]:
    """The states at the largest level, and minus the integral of the divergence by probe.

    Args:
        x: (B, *shape), the states at the smallest level.
        seed, ids: of the probes.
        extra: further keyword inputs of the network, cut to these samples.
        shown: is advanced by B for every step.

    Returns:
        (B, *shape) in the dtype of x, and (probes or 1, B) float64 (where the device has it).

    Raises:
        ValueError: for a network whose output has another shape, or no gradient.
        RuntimeError: where it returns values that are not finite.
    """
    directions = _directions(flow.probes, x, seed, ids)
    stages, weights = METHODS[flow.method]
    state = x.detach()
    rows = 1 if flow.probes is None else flow.probes
    change = torch.zeros(rows, len(x), dtype=wide(x.device), device=x.device)
    for low, high in zip(flow.grid[:-1].tolist(), flow.grid[1:].tolist(), strict=True):
        h = high - low
        slopes: list[Tensor] = []
        for parts, weight in zip(stages, weights, strict=True):
            at = state
            for part, slope in zip(parts, slopes, strict=True):
                at = at + h * part * slope if part else at
            sigma = math.exp(low + h * sum(parts))
            n, divergence = _evaluate(flow, at, sigma, directions, extra)
            slopes.append(-sigma * n)  # dx/d ln σ
            change = change - h * weight * sigma * divergence.to(change.dtype)
        for weight, slope in zip(weights, slopes, strict=True):
            state = state + h * weight * slope
        if not bool(torch.isfinite(change).all() and torch.isfinite(state).all()):
            raise RuntimeError(
                f"the network returned values that are not finite between σ = {math.exp(low):g} "
                f"and {math.exp(high):g}: check its weights and the range of x"
            )
        shown.advance(len(x))
    return state, change


def _evaluate(
    flow: Flow, x: Tensor, sigma: float, directions: Tensor | None, extra: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """n(x, σ), and its divergence by probe, (K, B)."""
    levels = torch.full((len(x),), sigma, dtype=x.dtype, device=x.device)
    labels = _labels(flow.score, levels[:1]).to(x.device).expand(len(x))
    with torch.inference_mode(False), torch.enable_grad():
        x = x.clone().requires_grad_()
        n = flow.score.normalized(x, levels, labels, **extra).to(x.dtype)
        checks.same_shape("the network", n, x.shape, x)
        if not n.requires_grad:
            raise ValueError(
                "the network's output does not depend on x as far as autograd can see: it must not "
                "detach it, nor compute under torch.no_grad"
            )
        if directions is None:
            return n.detach(), _exact_divergence(n, x)
        found = []
        for k, v in enumerate(directions):
            (product,) = torch.autograd.grad(n, x, v, retain_graph=k + 1 < len(directions))
            found.append((product * v).flatten(1).sum(1, dtype=wide(x.device)))
        return n.detach(), torch.stack(found)


def _exact_divergence(n: Tensor, x: Tensor) -> Tensor:
    """Σ ∂n_i/∂x_i by a backward pass for each i: samples do not see each other."""
    flat = n.flatten(1)
    total = torch.zeros(len(x), dtype=wide(x.device), device=x.device)
    for i in range(flat.shape[1]):
        (row,) = torch.autograd.grad(flat[:, i].sum(), x, retain_graph=True)
        total += row.flatten(1)[:, i]
    return total[None]


def _directions(probes: int | None, x: Tensor, seed: int, ids: Tensor) -> Tensor | None:
    """Random signs (K, B, *shape), those of a sample its own; None for the exact divergence."""
    if probes is None:
        return None
    shape = tuple(x.shape[1:])
    signs = [
        noise_source.integers(
            2, shape, seed=seed, stream=noise_source.PROBES, sample_ids=ids, step=probe
        )
        for probe in range(probes)
    ]
    return (2 * torch.stack(signs) - 1).to(x.dtype)


def wide(device: torch.device) -> torch.dtype:
    """The type that sums are made in; some devices have no float64."""
    return torch.float64 if device.type in ("cpu", "cuda") else torch.float32


__all__ = ["METHODS", "Flow", "integrate", "make_flow", "wide"]
