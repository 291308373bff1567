"""Step 5: one noise level is too small to fill the gaps, or so large that it changes the data."""

from __future__ import annotations

import math

import torch
from torch import Tensor

import ncsn_fast as nf
from ncsn_fast.tour.figure import Axis, Bars, Figure, Layer, Line, Panel, Points
from ncsn_fast.tour.maths import formula, root, sub, sup
from ncsn_fast.tour.mixture import TWO_MODES
from ncsn_fast.tour.step import Number, Step, Told, source
from ncsn_fast.tour.steps.common import REACH, anywhere, left, plane

SMALL, LARGE = 0.05, 20.0
NEAR = 3.0  # from a mean: 989 of 1,000 points of the law
SHOWN = 400


def at_one_level(sigma: float, n: int) -> Tensor:
    """n chains of 400 Langevin steps at one noise level, from anywhere in the plane: (n, 2)."""
    step_size = 0.05 * (1 + sigma**2)  # as much of the law's variance at every level
    return nf.langevin(lambda x: TWO_MODES.score(x, sigma), anywhere(n), step_size, 400, seed=1)


def parts(x: Tensor) -> Tensor:
    """The shares of points (N, 2) near the left mode, near the right one, and elsewhere: (3,)."""
    component, distance = TWO_MODES.nearest(x)
    where = torch.where(distance < NEAR, component, 2)
    return where.bincount(minlength=3) / len(x)


def wanted() -> Tensor:
    """Those shares of the law itself."""
    inside = 1 - math.exp(-(NEAR**2) / 2)
    return torch.tensor([0.2 * inside, 0.8 * inside, 1 - inside])


def wrong(x: Tensor) -> float:
    """How large a share of the points is not where the law has it."""
    return float((parts(x) - wanted()).abs().sum() / 2)


def one_level(quick: bool, told: Told) -> Step:
    """The same chains at ever larger noise."""
    n, number = (1000, 13) if quick else (4000, 25)
    sigmas = torch.logspace(math.log10(SMALL), math.log10(LARGE), number).tolist()
    ends = []
    for sigma in sigmas:
        ends.append(at_one_level(sigma, n))
        told(len(ends) / number)
    small, large = parts(ends[0]), parts(ends[-1])
    begin = left(anywhere(n)) * float(1 - wanted()[2])  # of whom a few end farther from it
    slack = 4 * math.sqrt(0.25 / n)  # four standard errors of a share
    return Step(
        name="one-level",
        title="One noise level: too small, too large",
        claim="Little noise leaves the chains where they started, much noise changes the data, and "
        "no level between is right.",
        formula=formula("x ← x + α ∇ log", sub("p", "σ"), "(x) +", root("2 α"), "z")
        + formula(
            sub("p", "σ"), "= Σ", sub("w", "k"), "N(", sub("μ", "k"), ", (1 +", sup("σ", "2"),
            ") I)",
        ),
        code=source(at_one_level),
        figures=[_figure(sigmas, ends)],
        numbers=[
            Number(f"points at the left mode with σ = {SMALL:g}: as many as begin there", "0.20",
                   float(small[0]), begin - slack, begin + slack),
            Number(f"points at any mode with σ = {LARGE:g}", f"{1 - float(wanted()[2]):.2f}",
                   float(1 - large[2]), 0.0, 0.05),
            Number("points in the wrong place at the best level of all", "0",
                   min(map(wrong, ends)), 0.27 - slack, 0.27 + slack),
        ],
        text=[
            "The score is exact here, so that nothing but the noise level is to blame. Every chain "
            "begins at the same point at every level, and the same random numbers drive it.",
            "Below σ = 1 the gap between the modes is not filled: the shares are those of the "
            "start. Where it is filled, from about 3 on, hardly a point lies where data lie.",
        ],
    )  # fmt: skip


def _figure(sigmas: list[float], ends: list[Tensor]) -> Figure:
    clouds = [
        Points(TWO_MODES.sample(SHOWN, seed=2), "muted", "data"),
        Points(torch.stack([x[:SHOWN] for x in ends]), "accent", "chains"),
    ]
    shares = torch.stack([parts(x) for x in ends])
    names = Axis("", 0, 3, ticks=[0.5, 1.5, 2.5], names=["left mode", "right mode", "elsewhere"])
    bars = [
        Bars([0, 1, 2, 3], shares, "accent", "chains"),
        Bars([0, 1, 2, 3], wanted(), "wanted", "wanted"),
    ]
    bad = [wrong(x) for x in ends]
    here = torch.tensor([[[s, y]] for s, y in zip(sigmas, bad, strict=True)])
    curve: list[Layer] = [Line(sigmas, bad, "accent"), Points(here, "accent", radius=6, jumps=True)]
    level = Axis("noise level σ", SMALL, LARGE, log=True)
    share = Axis("share of points", 0.0, 1.0)
    return Figure(
        "levels",
        [
            Panel(clouds, plane(2 * REACH), "where the chains end", height=400),
            Panel(bars, (names, share), "how many are where", height=400),
            Panel(curve, (level, share), "how many are in the wrong place", height=400),
        ],
        alt="As the noise level grows from 0.05 to 20 two equal clouds, where a fifth and four "
        f"fifths were wanted, spread until they fill the plane. From {min(bad):.2f} to "
        f"{max(bad):.2f} of the points are in the wrong place, at every level.",
        captions=[
            f"σ = {s:.2f}: {y:.0%} in the wrong place" for s, y in zip(sigmas, bad, strict=True)
        ],
        seconds=7.0,
    )


__all__ = ["one_level"]
