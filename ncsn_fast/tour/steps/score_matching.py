"""Step 3: explicit and denoising score matching have the same minimiser."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

import ncsn_fast as nf
from ncsn_fast.tour.figure import Axis, Figure, Line, Panel, Points
from ncsn_fast.tour.maths import formula, frac, norm, sub
from ncsn_fast.tour.mixture import Mixture
from ncsn_fast.tour.step import Number, Step, Told, source

LAW, SIGMA = Mixture((0.3, 0.7), ((-2.0,), (1.5,)), 0.5), 1.0
# Too few for the score itself: what both ways find is then the best of a family, not the truth.
CENTRES = torch.linspace(-5.0, 4.5, 6, dtype=torch.float64)
WIDTH = float(CENTRES[1] - CENTRES[0])
GRID = torch.linspace(-4.5, 4.0, 120, dtype=torch.float64)[:, None]

Function = Callable[..., Tensor]
Loss = Callable[[Function, Tensor, Tensor], Tensor]


def explicit(s: Function, x: Tensor, z: Tensor) -> Tensor:
    """The loss that has to know the score of the noisy points."""
    noisy = x + SIGMA * z
    return 0.5 * (s(noisy) - LAW.score(noisy, SIGMA)).square().sum(1).mean()


def denoising(s: Function, x: Tensor, z: Tensor) -> Tensor:
    """The loss that has to know the noise."""
    return nf.dsm_loss(s, x, [SIGMA], anneal_power=0, noise=z)


def bumps(weights: Tensor) -> Function:
    """The family: x (N, 1) ↦ s(x) (N, 1), the sum of six bumps with these weights (6,)."""
    return lambda x, labels=None: torch.exp(-0.5 * ((x - CENTRES) / WIDTH) ** 2) @ weights[:, None]


def minimiser(loss: Loss, x: Tensor, z: Tensor) -> Function:
    """The bumps with the least loss, which is a square of their weights: one step of Newton's."""

    def slope(weights: Tensor) -> Tensor:
        weights = weights.clone().requires_grad_()
        return torch.autograd.grad(loss(bumps(weights), x, z), weights)[0]

    none, identity = torch.zeros_like(CENTRES), torch.eye(len(CENTRES), dtype=CENTRES.dtype)
    first = slope(none)
    second = torch.stack([slope(row) - first for row in identity])
    return bumps(-torch.linalg.solve(second, first))


def score_matching(quick: bool, told: Told) -> Step:
    """Both minimisers at growing numbers of points, and the constant between both losses."""
    most = 20_000 if quick else 200_000
    x = LAW.sample(most).double()
    z = nf.noise.normal(
        (1,), seed=0, stream=nf.noise.PERTURB, sample_ids=range(most), dtype=torch.float64
    )
    numbers_of_points = [round(100 * (most / 100) ** (k / 24)) for k in range(25)]
    pairs = []
    for n in numbers_of_points:
        pairs.append([minimiser(loss, x[:n], z[:n]) for loss in (explicit, denoising)])
        told(len(pairs) / 25)
    return Step(
        name="score-matching",
        title="The score without the score",
        claim="Asked for the noise that was added to each point, a function learns the score of "
        "the noisy points, which no data give: both losses have the same minimiser.",
        formula=formula(
            frac("1", "2"), "E", norm("s(x̃) +", frac("z", "σ")), "=", frac("1", "2"), "E",
            norm("s(x̃) − ∇ log", sub("p", "σ"), "(x̃)"), "+ C",
        )
        + formula("x̃ = x + σ z"),
        code=source(explicit, denoising),
        figures=[_figure(numbers_of_points, pairs)],
        numbers=_numbers(x, z, *pairs[-1]),
        text=[
            "The target of denoising score matching, −z/σ, is right for no single point: it knows "
            "nothing of where other points could have come from. On average over all noise that "
            "leads to the same place it is the score there, and a square is least at the average.",
            "The family here is six bumps, too few for the score itself. Both losses choose the "
            "same member of it, nearer to each other than to the truth; and it is the score of "
            "the noisy points, not of the clean ones.",
        ],
    )  # fmt: skip


def rms(f: Function) -> float:
    """The root mean square of f over the law of the noisy points, by quadrature."""
    at = torch.linspace(-9.0, 9.0, 3001, dtype=torch.float64)[:, None]
    density = LAW.density(at, SIGMA)
    return math.sqrt(float((density * f(at)[:, 0].square()).sum() / density.sum()))


def _numbers(x: Tensor, z: Tensor, one: Function, other: Function) -> list[Number]:
    n, constant = len(x), 0.5 * (1 / SIGMA**2 - rms(lambda at: LAW.score(at, SIGMA)) ** 2)
    # The targets' variance 2C leaves 2C/n to each weight. The mean of the squares of six normals is
    # above four but once in two thousand draws.
    expected = math.sqrt(2 * constant * len(CENTRES) / n)
    apart = rms(lambda at: one(at) - other(at))
    missed = rms(lambda at: other(at) - LAW.score(at, SIGMA))
    clean = rms(lambda at: other(at) - LAW.score(at))
    by_name = {"their minimiser": other, "the function 0": lambda at, _=None: 0 * at}
    return [
        Number(f"between both minimisers, root mean square, {n:,} points",
               f"about {expected:.4f}", apart, 0.0, 2 * expected, 4),
        Number("from there to the score of the noisy points, which six bumps cannot be",
               "larger", missed, 2 * expected, 1.0),
        Number("from there to the score of the clean points", "much larger", clean, 1.0, math.inf),
        *(_difference(name, s, x, z, constant) for name, s in by_name.items()),
    ]  # fmt: skip


def _difference(name: str, s: Function, x: Tensor, z: Tensor, constant: float) -> Number:
    """Denoising loss less explicit loss, which theory says is C for every function."""
    noisy = x + SIGMA * z
    score = LAW.score(noisy, SIGMA)
    each = 0.5 * ((s(noisy) + z / SIGMA).square() - (s(noisy) - score).square())
    slack = 4 * float(each.std()) / math.sqrt(len(x))
    found = float(denoising(s, x, z) - explicit(s, x, z))
    return Number(f"denoising loss less explicit loss, of {name}", f"C = {constant:.4f}",
                  found, constant - slack, constant + slack, 4)  # fmt: skip


def _figure(numbers_of_points: list[int], pairs: list[list[Function]]) -> Figure:
    curves = [torch.stack([pair[i](GRID)[:, 0] for pair in pairs]) for i in (0, 1)]
    apart = [rms(lambda at, p=pair: p[0](at) - p[1](at)) for pair in pairs]
    way = torch.tensor([[[n, d]] for n, d in zip(numbers_of_points, apart, strict=True)])
    x, clean = GRID[:, 0], LAW.score(GRID)[:, 0]
    functions = Panel(
        [
            Line(x, clean, "muted", "score of the clean points"),
            Line(x, curves[0], "wanted", "minimiser of explicit score matching"),
            Line(x, curves[1], "accent", "minimiser of denoising score matching"),
        ],
        (Axis("x", -4.5, 4.0), Axis("s(x)", -5.0, 5.0)),
        "two minimisers",
    )
    ends = [float(numbers_of_points[0]), float(numbers_of_points[-1])]
    slope = [apart[0], apart[0] * math.sqrt(ends[0] / ends[1])]
    distance = Panel(
        [
            Line(ends, slope, "wanted", "falling as 1 / √n"),
            Line(numbers_of_points, apart, "muted"),
            Points(way, "accent", "here", radius=6, jumps=True),
        ],
        (
            Axis("points n", ends[0] / 1.3, ends[1] * 1.3, log=True),
            Axis("distance", min(apart) / 2, max(apart) * 2, log=True),
        ),
        "how far they are from each other",
    )
    return Figure(
        "two_minimisers",
        [functions, distance],
        alt="Two curves, the minimisers of both losses, wobble apart at a hundred points and lie "
        f"on each other at {numbers_of_points[-1]:,}, where they are {apart[-1]:.4f} apart; their "
        "distance falls as one over the root of the number of points. Both are far from the "
        "score of the clean points, which is much steeper.",
        captions=[f"{n:,} points" for n in numbers_of_points],
        seconds=7.0,
    )


__all__ = ["score_matching"]
