"""Step 2: Langevin dynamics in one dimension, and what its √(2α) is for."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

import ncsn_fast as nf
from ncsn_fast.tour.figure import Axis, Bars, Figure, Line, Panel, Points
from ncsn_fast.tour.maths import formula, root
from ncsn_fast.tour.step import Number, Step, Told, source

Function = Callable[[Tensor], Tensor]

# The law of step 1, and one of two hills.
MEAN, VARIANCE = 6.0, 2.0
HILLS, SHARES = (3.6, 7.4), (0.35, 0.65)
ALPHA, STEPS, STEPS_ON_HILLS = 0.1, 160, 1500
# How many deviations of an average may lie between it and what theory says.
SIGMAS = 4.0


def chains(score: Function, x: Tensor, alpha: float, steps: int, noise: float) -> Tensor:
    """All states of chains whose noise has this part of its variance: (steps + 1, N, 1)."""
    table = nf.Table.of(np.ones(steps), b=alpha, d=np.sqrt(2 * alpha))  # now with noise
    sampler = nf.Sampler(nf.Score(score, "score", "none"), (1,), method=table)
    return sampler(len(x), initial=x, seed=0, every=1, temperature=noise)[1]


def law(score: Function, x: Tensor, alpha: float, steps: int) -> Tensor:
    """Where the chains are in the end, (N, 1)."""
    return nf.langevin(score, x, alpha, steps, seed=0)


def gaussian(x: Tensor) -> Tensor:
    """log p of N(6, 2)."""
    return torch.distributions.Normal(MEAN, math.sqrt(VARIANCE)).log_prob(x)


def hills(x: Tensor) -> Tensor:
    """log p of two Gaussians of variance 1."""
    log_shares, centres = torch.tensor(SHARES).log(), torch.tensor(HILLS)
    each = torch.distributions.Normal(centres, 1.0).log_prob(x[..., None])
    return torch.logsumexp(each + log_shares, -1)


def langevin(quick: bool, told: Told) -> Step:
    """Chains with all, half and none of their noise, against what theory says of each."""
    n, on_hills, of_one = (4_000, 2_000, 6_000) if quick else (20_000, 8_000, 12_000)
    start = torch.linspace(-3, 14, n)[:, None]
    score = _slope(gaussian)
    runs = {}
    for i, noise in enumerate((0.0, 0.5, 1.0)):
        runs[noise] = chains(score, start, ALPHA, STEPS, noise)
        told(0.2 * (i + 1))
    same = law(score, start, ALPHA, STEPS)
    ends = law(_slope(hills), torch.full((on_hills, 1), HILLS[1]), ALPHA, STEPS_ON_HILLS)
    told(0.8)
    one = chains(_slope(hills), torch.full((1, 1), -1.0), ALPHA, of_one, 1.0)[:, 0, 0]
    return Step(
        name="langevin",
        title="A step uphill and a step at random",
        claim="Gradient ascent with noise of the right size, √(2α), does not stop at the maximum: "
        "it wanders, and where it is found is distributed as the density itself.",
        formula=formula("x ← x + α ∇ log p(x) +", root("2 α"), "z") + formula("z ∼ N(0, I)"),
        code=source(chains, law),
        figures=[_one_point(one), _noise(runs)],
        numbers=[*_variances(runs), *_laws(runs, same, ends)],
        text=[
            "The table of step 1 has got one column more, the noise. One point is enough: count "
            "where it has been, and the counts grow into the density.",
            "Without noise all chains end in the mode. With √α in the place of √(2α) they spread "
            "over half the variance. With √(2α) it is right up to the length of the steps: on a "
            "Gaussian of variance v they settle at v / (1 − α/2v).",
        ],
    )


def _slope(log_density: Function) -> Function:
    return torch.func.grad(lambda x: log_density(x).sum())


def _variances(runs: dict[float, Tensor]) -> list[Number]:
    """Of the chains at the end, against that of the discretised chain in equilibrium."""
    words = {0.0: "variance without noise", 0.5: "variance with √α", 1.0: "variance with √(2α)"}
    numbers = []
    for noise, states in runs.items():
        wanted = noise * VARIANCE / (1 - ALPHA / (2 * VARIANCE))
        slack = SIGMAS * wanted * math.sqrt(2 / states.shape[1]) + 1e-5
        found = _variance(states)
        low = max(wanted - slack, 0.0)
        numbers.append(Number(words[noise], f"{wanted:.3f}", found, low, wanted + slack))
    return numbers


def _variance(states: Tensor) -> float:
    return float(states[-1].double().var())


def _laws(runs: dict[float, Tensor], same: Tensor, ends: Tensor) -> list[Number]:
    """That nf.langevin is the same chain, and that the hills get their shares."""
    middle = sum(HILLS) / 2
    to_middle = torch.distributions.Normal(torch.tensor(HILLS), 1.0).cdf(torch.tensor(middle))
    wanted = float((torch.tensor(SHARES) * to_middle).sum())
    slack = SIGMAS * math.sqrt(wanted * (1 - wanted) / len(ends)) + 0.005
    difference = float((same - runs[1.0][-1]).abs().max())
    share = float((ends < middle).double().mean())
    return [
        Number("nf.langevin against the table, largest difference", "0", difference, 0.0, 1e-5),
        Number(
            "two hills: share left of the middle, all chains having begun right",
            f"{wanted:.3f}",
            share,
            wanted - slack,
            wanted + slack,
        ),
    ]


def _one_point(states: Tensor) -> Figure:
    """One chain on the hills, and how often it was where."""
    steps = np.unique(np.geomspace(1, len(states) - 1, 110).round().astype(int))
    edges = np.linspace(-2, 13, 46)
    counts = np.stack([np.histogram(states[: k + 1], edges)[0] / (k + 1) for k in steps])
    x = torch.linspace(-2, 13, 160)
    at = torch.stack([states[steps], hills(states[steps])], -1)[:, None]
    hill = Panel(
        [Line(x, hills(x), "muted"), Points(at, radius=6, jumps=True)],
        (Axis("x", -2, 13), Axis("log p(x)", -16, 0)),
        "one point, up log p with noise",
    )
    visits = Panel(
        [
            Bars(edges, counts / (edges[1] - edges[0]), label="where it has been"),
            Line(x, hills(x).exp(), "wanted", "p(x)"),
        ],
        (Axis("x", -2, 13), Axis("density", 0, 0.45)),
        "where it has been",
    )
    return Figure(
        "one_point",
        [hill, visits],
        alt="A point climbs the logarithm of a density with two hills, at x = 3.6 and 7.4, then "
        f"wanders over both. The histogram of where it has been in {steps[-1]:,} steps has the "
        "shape of the density.",
        captions=[f"after {k:,} step{'s' if k > 1 else ''}" for k in steps],
        seconds=11.0,
    )


def _noise(runs: dict[float, Tensor]) -> Figure:
    """Histograms of the chains with no, too little and the right noise."""
    edges, frames = np.linspace(-3, 14, 52), range(0, 82, 2)
    x = torch.linspace(-3, 14, 160)
    p = gaussian(x).exp()
    panels = []
    for noise, title in ((0.0, "no noise"), (0.5, "√α: too little"), (1.0, "√(2α)")):
        heights = np.stack([np.histogram(runs[noise][k], edges, density=True)[0] for k in frames])
        bars, curve = Bars(edges, heights, label="chains"), Line(x, p, "wanted", "p(x)")
        axes = Axis("x", -3, 14), Axis("density", 0, 0.5)
        panels.append(Panel([bars, curve], axes, title))
    return Figure(
        "three_noises",
        panels,
        alt="Histograms of chains that begin all over the axis. Without noise they shrink to the "
        f"mode, with √α to a hill that is too narrow, of variance {_variance(runs[0.5]):.2f}, with "
        f"√(2α) they become the density, of variance {_variance(runs[1.0]):.2f}.",
        captions=[f"step {k}" for k in frames],
        seconds=7.0,
    )


__all__ = ["langevin"]
