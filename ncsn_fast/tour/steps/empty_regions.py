"""Step 4: where there are no data the score is learned badly, and chains go astray."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import Module

import ncsn_fast as nf
from ncsn_fast.tour.figure import Arrows, Field, Figure, Layer, Panel, Points
from ncsn_fast.tour.maths import formula, norm, sub
from ncsn_fast.tour.mixture import TWO_MODES
from ncsn_fast.tour.step import Number, Step, Told, source
from ncsn_fast.tour.steps.common import anywhere, grid, left, plane, trained

# So little noise that the noisy points lie where the data lie.
SIGMA = 0.1
NEAR = 2.0  # from a mean: 86 of 100 points of its component
BAND = 4.0  # |x + y| below it: between the modes, where there is no point in ten thousand
CHAIN_STEPS, STEP_SIZE = 300, 0.05

Score = Callable[[Tensor], Tensor]


def exact(x: Tensor) -> Tensor:
    """The score of the noisy points."""
    return TWO_MODES.score(x, SIGMA)


def learned(net: Module) -> Score:
    """What a network of one level says of it."""
    return lambda x: net(x, torch.zeros(len(x), dtype=torch.long)).detach()


def chains(score: Score, n: int, steps: int = CHAIN_STEPS) -> Tensor:
    """Langevin dynamics from anywhere in the plane: (n, 2)."""
    return nf.langevin(score, anywhere(n), STEP_SIZE, steps, seed=1)


class Errors:
    """How wrong a network's score is on a grid over the plane: (points², ) lengths."""

    def __init__(self, points: int) -> None:
        self.points, self.at = points, grid(points)
        self.score = exact(self.at)
        self.near = TWO_MODES.nearest(self.at)[1] < NEAR
        across, along = self.at.sum(1).abs(), self.at.diff(dim=1)[:, 0].abs()
        self.between = (across < BAND) & (along < BAND)

    def __call__(self, net: Module) -> Tensor:
        return (learned(net)(self.at) - self.score).norm(dim=1)


def mean(errors: Tensor, where: Tensor) -> float:
    """Their root mean square in a part of the plane."""
    return math.sqrt(float(errors[where].square().mean()))


def empty_regions(quick: bool, told: Told) -> Step:
    """The error of a network's score as it learns, and chains by it beside exact ones."""
    steps, n = (500, 1000) if quick else (2000, 4000)
    errors, seen = Errors(49), []

    def watch(done: int, net: Module) -> None:
        if done % (steps // 25) == 0:
            seen.append((done, errors(net), learned(net)(grid(13))))
            told(0.8 * done / steps)

    data = TWO_MODES.sample(10_000)
    net = trained(data, [SIGMA], steps, watch)
    right, wrong = chains(exact, n), chains(learned(net), n)
    told(0.9)
    near, between = (mean(seen[-1][1], where) for where in (errors.near, errors.between))
    lost = TWO_MODES.nearest(right)[0] != TWO_MODES.nearest(wrong)[0]
    band = anywhere(n).sum(1).abs() < BAND
    begin = left(anywhere(n))
    slack = 4 * math.sqrt(0.25 / n)  # four standard errors of a share
    return Step(
        name="empty-regions",
        title="Where there are no data",
        claim="A network learns the score where data lie and nowhere else; chains that start in "
        "between are sent the wrong way.",
        formula=formula(
            "E", norm(sub("s", "θ"), "(x̃) − ∇ log", sub("p", "σ"), "(x̃)"), "= ∫",
            sub("p", "σ"), "(x̃)", norm(sub("s", "θ"), "(x̃) − ∇ log", sub("p", "σ"), "(x̃)"), "d x̃",
        ),
        code=source(trained),
        figures=[_learning(data, errors, seen), _chains(net, lost & band)],
        numbers=[
            Number(f"error of the score within {NEAR:g} of a mode, root mean square", "0",
                   near, 0.0, 0.4, 2),
            Number("error between the modes, in parts of that", "1", between / near, 10.0,
                   math.inf, 0),
            Number("chains from between the modes that end in another mode than by the exact score",
                   "0", float(lost[band].float().mean()), 0.1, 1.0),
            Number("weight of the left mode after chains by the exact score from anywhere: a half "
                   "begins on its side", "0.20", left(right), begin - slack, begin + slack),
            Number("the same by the network's score", "0.20", left(wrong), 0.28, 0.6),
        ],
        text=[
            "The law is ⅕ N((−5, −5), I) + ⅘ N((5, 5), I), as in the paper, and the network has "
            f"seen 10,000 points of it with noise of σ = {SIGMA:g}. The loss is an average over "
            "these points: what a network says elsewhere costs nothing.",
            "A chain has no choice where it starts, and most of the plane is elsewhere. And even "
            "by the exact score a chain that begins on one side stays there: the shares of the "
            "two modes are those of the start, a half, and not 0.20.",
        ],
    )  # fmt: skip


def _panel(title: str, layers: Sequence[Layer]) -> Panel:
    return Panel(layers, plane(), title, height=400)


def _learning(data: Tensor, errors: Errors, seen: list[tuple[int, Tensor, Tensor]]) -> Figure:
    worst = mean(errors.score.norm(dim=1), errors.between)
    field = torch.stack([(e / worst).clamp(max=1).view(errors.points, -1) for _, e, _ in seen])
    tail = grid(13)
    true, told = (tail + 0.12 * s for s in (exact(tail), torch.stack([s for *_, s in seen])))
    where = [
        f"step {done}: error {mean(e, errors.near):.2f} near the modes, "
        f"{mean(e, errors.between):.2f} between"
        for done, e, _ in seen
    ]
    return Figure(
        "learning",
        [
            _panel("error of the score, and the data",
                   [Field(field, "accent", "error"), Points(data[:300], "muted", "data", 1.5)]),
            _panel("the score, learned and exact",
                   [Arrows(tail, true, "muted", "exact"), Arrows(tail, told, "accent", "learned")]),
        ],
        alt="A map of the plane. The network's error fades around the two clouds of data and stays "
        f"between them and in the other corners. {where[-1]}.",
        captions=where,
        seconds=7.0,
    )  # fmt: skip


def _chains(net: Module, lost: Tensor, shown: int = 500) -> Figure:
    """The same chains by both scores; those that begin in between and get lost stand out."""
    lost = lost[:shown]
    moments = [round(40 * (k / 30) ** 2) for k in range(31)]
    panels = []
    for title, score in (("by the exact score", exact), ("by the learned score", learned(net))):
        states = torch.stack([_after(score, shown, step) for step in moments])
        layers = [
            Points(states[:, ~lost], "muted", "chains"),
            Points(states[:, lost], "accent", "those that the network sends astray", 3.5),
        ]
        panels.append(_panel(title, layers))  # fmt: skip
    return Figure(
        "astray",
        panels,
        alt="The same points start all over the plane and gather in two clouds, by the exact score "
        f"on the left and by the network's on the right. {int(lost.sum())} of {shown}, which began "
        "between the modes, end in the other cloud on the right.",
        captions=[f"Langevin step {k}" for k in moments],
        seconds=6.0,
    )


def _after(score: Score, n: int, steps: int) -> Tensor:
    return chains(score, n, steps) if steps else anywhere(n)


__all__ = ["empty_regions"]
