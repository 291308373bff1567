"""What a network's score is like on samples of the data that are noised to its own levels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ncsn_fast import noise
from ncsn_fast.models.base import evaluating
from ncsn_fast.models.score import Score

_MOST_LEVELS = 12
_POWER_ITERATIONS = 5
# How far a score may be from its length, in parts of it, and anything from its mean, in standard
# errors.
_OFF, _ERRORS = 0.1, 4.0


@dataclass(frozen=True)
class Seen:
    """The normalised score n at one level, beside the noise z that was added.

    Attributes:
        sigma: the level.
        error: the mean of (n + z)², 1 for a network that returns 0, less for one that knows more.
        worse: by how many standard errors that is more than of a network that returns 0.
        length: c by which n has to be multiplied to be -z at best; 1 of an exact score, infinite of
            one that is 0.
        doubt: by how many standard errors n is not as long as it should be.
    """

    sigma: float
    error: float
    worse: float
    length: float
    doubt: float


def look(score: Score, x: Tensor, sigmas: Tensor, seed: int = 0) -> list[Seen]:
    """The score of x + σz at some of the levels, from the largest down.

    Args:
        x: (B, *shape) float32 samples in model space, on the network's device.
        sigmas: (L,) levels, which the network can be told.
        seed: of the noise.
    """
    chosen = torch.linspace(0, len(sigmas) - 1, min(len(sigmas), _MOST_LEVELS)).round().long()
    return [_at(score, x, sigmas, int(i), seed) for i in chosen.unique()]


def _at(score: Score, x: Tensor, sigmas: Tensor, level: int, seed: int) -> Seen:
    z = _noise(x, seed, level)
    n = _normalized(score, x + float(sigmas[level]) * z, sigmas, level)
    both, own = (n * z).flatten(1).sum(1).double(), n.flatten(1).square().sum(1).double()
    # Of an exact score the mean of ⟨n, z⟩ is that of -‖n‖².
    return Seen(
        float(sigmas[level]),
        float((n + z).square().mean()),
        _standard_errors(own + 2 * both),
        -float(both.sum() / own.sum()) if bool(own.sum() != 0) else math.inf,
        abs(_standard_errors(both + own)),
    )


def _standard_errors(values: Tensor) -> float:
    """The mean of (B,) values over its standard error."""
    return float(values.mean() / (values.std() / len(values) ** 0.5).clamp(min=1e-30))


def steepness(score: Score, x: Tensor, sigmas: Tensor, seed: int = 0) -> float:
    """λ·σ_L², with λ the steepest slope of the score found around x + σ_L·z; at most 1 of an exact
    score. Langevin steps need ε·λ < 2.

    By power iteration of differences of σ_L/10 for each sample.
    """
    level, sigma = len(sigmas) - 1, float(sigmas[-1])
    at = x + sigma * _noise(x, seed, level)
    v, size = _noise(x, seed, level + 1), torch.zeros(len(x))
    for _ in range(_POWER_ITERATIONS):
        lengths = v.flatten(1).norm(dim=1).clamp(min=1e-30)
        v = v / lengths.view(-1, *(1,) * (v.ndim - 1))
        ends = [_normalized(score, at + sign * 0.1 * sigma * v, sigmas, level) for sign in (1, -1)]
        v = (ends[0] - ends[1]) / 0.2
        size = v.flatten(1).norm(dim=1)
    return float(size.max())


def remarks(seen: list[Seen]) -> list[str]:
    """What a user should know of it."""
    found = []
    if broken := [one for one in seen if not one.error < float("inf")]:
        found.append(f"at σ = {broken[0].sigma:g} the score is not finite")
    if silent := [one for one in seen if one.length == math.inf]:
        found.append(
            f"at σ = {silent[0].sigma:g} the score is 0 everywhere: have the weights been loaded? "
            "Some networks begin with a last layer of zeros"
        )
    useless = [one for one in seen if one.worse > _ERRORS]
    if useless:
        found.append(
            f"from σ = {useless[0].sigma:.4g} to {useless[-1].sigma:.4g} the score is no nearer to "
            f"the noise than 0 would be (error {max(one.error for one in useless):.3g}, of at most "
            "1): were its kind, its condition and the range of the data said rightly? At levels "
            "that it was not trained on, leave these out"
        )
    seen = [one for one in seen if one.length != math.inf]
    off = [s for s in seen if abs(s.length - 1) > _OFF and s.doubt > _ERRORS and s.worse < 0]
    if off:
        worst = max(off, key=lambda one: abs(one.length - 1))
        found.append(
            f"at σ = {worst.sigma:.4g} the score would have to be {worst.length:.3g} times as long "
            "to be that of this data: was its kind said rightly?"
        )
    return found


def _normalized(score: Score, x: Tensor, sigmas: Tensor, level: int) -> Tensor:
    told = torch.full((len(x),), float(sigmas[level]), device=x.device)
    labels = torch.full((len(x),), level, device=x.device)
    with torch.no_grad(), evaluating(score.module):
        return score.normalized(x, told, labels).float()


def _noise(x: Tensor, seed: int, step: int) -> Tensor:
    ids = torch.arange(len(x), device=x.device)
    stream = noise.SAMPLER
    return noise.normal(tuple(x.shape[1:]), seed=seed, stream=stream, sample_ids=ids, step=step)


__all__ = ["Seen", "look", "remarks", "steepness"]
