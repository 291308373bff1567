"""Step 7: annealed Langevin dynamics, from the largest level to the smallest, in the plane."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor
from torch.nn import Module

import ncsn_fast as nf
from ncsn_fast.tour.figure import Axis, Figure, Layer, Line, Panel, Points
from ncsn_fast.tour.maths import formula, frac, root, row, sub, sup
from ncsn_fast.tour.mixture import TWO_MODES
from ncsn_fast.tour.step import Number, Step, Told, source
from ncsn_fast.tour.steps.common import REACH, anywhere, left, plane, trained

SIGMAS, STEPS_PER_LEVEL = nf.geometric_sigmas(20.0, 0.1, 30), 20
STEP_SIZE = 0.3 * 0.1**2  # ε
PLAIN_STEP = 0.05
SHOWN = 400


def annealed(score: nf.Score | Module, n: int) -> Tensor:
    """n chains from anywhere in the plane, their states before every level and in the end."""
    sampler = nf.Sampler(
        score, (2,), SIGMAS, step_size=STEP_SIZE, steps_per_level=STEPS_PER_LEVEL, precision="fp32"
    )
    return sampler(n, seed=1, initial=anywhere(n), every=STEPS_PER_LEVEL)[1]


def unannealed(n: int) -> Tensor:
    """As many updates of plain Langevin dynamics by the exact score."""
    states, steps = [anywhere(n)], STEPS_PER_LEVEL
    for done in range(0, len(SIGMAS) * steps, steps):
        states += [
            nf.langevin(TWO_MODES.score, states[-1], PLAIN_STEP, steps, seed=1, first_step=done)
        ]
    return torch.stack([*states, states[-1]])  # which has no noise to be removed


def annealing(quick: bool, told: Told) -> Step:
    """Plain Langevin dynamics beside annealed, by the exact score and by a trained network's."""
    steps, n = (600, 2000) if quick else (3000, 4000)
    data = TWO_MODES.sample(10_000)
    net = trained(data, SIGMAS, steps, lambda done, _: told(0.7 * done / steps))
    exact = nf.Score(TWO_MODES.score, "score", "sigma")
    states = {"plain, exact score": unannealed(n), "annealed, exact score": annealed(exact, n)}
    told(0.85)
    states["annealed, trained network"] = annealed(net, n)
    return Step(
        name="annealing",
        title="Down the ladder",
        claim="Langevin dynamics at every level, from the largest down, gives each mode its "
        "weight, which plain Langevin dynamics cannot.",
        formula=formula(
            "x ← x +", sub("α", "i"), "s(x, ", sub("σ", "i"), ") +",
            root(row("2", sub("α", "i"))), "z",
        )
        + formula(sub("α", "i"), "= ε", frac(sup(sub("σ", "i"), "2"), sup(sub("σ", "L"), "2"))),
        code=source(annealed),
        figures=[_figure(states)],
        numbers=_numbers(states, n, quick),
        text=[
            "At the largest level both modes are one hill, and a chain forgets where it began. As "
            "the noise falls the hill parts, and each chain falls to a side while it can still "
            "change it: as many as belong there.",
            "All chains begin at the same points and make 600 updates. The network has seen "
            "10,000 points and no score, and it is right where step 4's was wrong, as at large "
            "levels there are noisy points everywhere.",
        ],
    )  # fmt: skip


def _numbers(states: dict[str, Tensor], n: int, quick: bool) -> list[Number]:
    one, exact, net = (x[-1] for x in states.values())
    error = math.sqrt(0.2 * 0.8 / n)  # of a share
    slack = max(0.03, 4 * error)
    # By which network it is, too: of four 0.22 to 0.23, and 0.15 to 0.18 of less training.
    of_network = 0.08 if quick else 0.05
    right = exact[TWO_MODES.nearest(exact)[0] == 1]
    own = net[TWO_MODES.nearest(net)[0] == 1]
    lost = float((TWO_MODES.nearest(net)[1] > 4).float().mean())
    return [
        Number("weight of the left mode, plain Langevin dynamics: that of the start", "0.20",
               left(one), 0.44, 0.55),
        Number("annealed, by the exact score", "0.20", left(exact), 0.2 - slack, 0.2 + slack),
        Number("annealed, by the trained network", "0.20", left(net), 0.2 - of_network,
               0.2 + of_network),
        Number("standard deviation in the right mode, by the exact score", "1.00",
               float(right.std(0).mean()), 0.95, 1.08),
        Number("by the trained network", "1.00", float(own.std(0).mean()), 0.93, 1.12),
        Number("chains of the network that end more than 4 from both modes", "0",
               lost, 0.0, 0.01 if quick else 0.005),
    ]  # fmt: skip


def _figure(states: dict[str, Tensor]) -> Figure:
    """The clouds of the two that anybody could have made from data alone, and all three weights."""
    one, _, net = states.values()
    clouds = [
        Panel([Points(way[:, :SHOWN], style)], plane(2 * REACH), title, height=400)
        for way, style, title in (
            (one, "muted", "plain, exact score"),
            (net, "accent", "annealed, trained network"),
        )
    ]
    updates = torch.arange(len(one)) * STEPS_PER_LEVEL
    updates = updates.clamp(max=len(SIGMAS) * STEPS_PER_LEVEL)  # none removes the noise
    weights = [torch.tensor([left(x) for x in way]) for way in states.values()]
    names = ("plain, by the exact score", "annealed, by the exact score", "and by the network")
    styles = ("muted", "accent", "accent")
    curves: list[Layer] = [
        Line([0, updates[-1]], [0.2, 0.2], "wanted", "wanted: 0.20"),
        *map(partial(Line, updates), weights, styles, names),
        *(
            Points(torch.stack([updates, w], 1)[:, None], style, radius=6, jumps=True)
            for w, style in zip(weights, styles, strict=True)
        ),
    ]
    axes = Axis("update", 0, int(updates[-1])), Axis("weight of the left mode", 0.0, 0.6)
    levels = enumerate(SIGMAS.tolist(), 1)
    return Figure(
        "down",
        [*clouds, Panel(curves, axes, "how many are on the left", height=400)],
        alt="Clouds of points from the same uniform start. Plain Langevin dynamics gathers half of "
        "them in each mode; annealed chains spread first, then gather a fifth on the left and "
        "four fifths on the right. Weights of the left mode, of which 0.20 is wanted: "
        + ", ".join(f"{n} {w[-1]:.2f}" for n, w in zip(names, weights, strict=True)) + ".",
        captions=[
            *(f"level {i} of {len(SIGMAS)}, σ = {s:.2g}" for i, s in levels),
            "the last state",
            "without its noise",
        ],
        seconds=9.0,
    )  # fmt: skip


__all__ = ["annealing"]
