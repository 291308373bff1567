"""The last step: few evaluations of the network against many."""

from __future__ import annotations

import torch
from torch import Tensor

import ncsn_fast as nf
from ncsn_fast.data.digits import digits as data
from ncsn_fast.tour.figure import Axis, Figure, Layer, Line, Panel, Pictures, Points
from ncsn_fast.tour.maths import formula, frac, sub
from ncsn_fast.tour.step import Number, Step, Told, source
from ncsn_fast.tour.steps.digits import COLUMNS, SHOWN, distance, full_chain, images_of, sure

STEPS = 10


def few(n: int) -> Tensor:
    """DPM-Solver++(2M) with ten evaluations: the images before each and at the end."""
    net = nf.load_checkpoint("digits")
    return nf.sample(net, n, seed=0, method="dpmpp_2m", steps=STEPS, precision="fp32", every=1)[1]


def few_steps(quick: bool, told: Told) -> Step:
    """Both ends, and both ways by the number of evaluations."""
    n = images_of(quick)
    short = few(n)
    told(0.1)
    chain = full_chain(n)
    told(1.0)
    here, there = distance(short[-1]), distance(chain[-1])
    real = distance(data("train").images[:n])
    most = 1.8 if quick else 1.5
    return Step(
        name="few-steps",
        title="Few steps against many",
        claim="The same network with another method draws digits about as near to real ones in ten "
        "evaluations as annealed Langevin dynamics in 211.",
        formula=formula("d x = − n(x, σ) d σ")
        + formula("D = x + σ n")
        + formula(
            "x ← q x + (1 − q)((1 + k)", sub("D", "i"), "− k", sub("D", "i−1"), ")"
        )
        + formula("q =", frac(sub("σ", "i+1"), sub("σ", "i"))),
        code=source(few),
        figures=[_figure(short, chain)],
        numbers=[
            Number("evaluations of the network for an image, annealed Langevin dynamics", "211",
                   len(chain) - 1, 211, 211, 0),
            Number("the same of DPM-Solver++(2M)", str(STEPS), len(short) - 1, STEPS, STEPS, 0),
            Number(f"distance from real digits of {n} images of the 211",
                   f"{real:.2f} as of real ones", there, 0.0, 1.0 if quick else 0.35, 2),
            Number("distance of those of the ten, in parts of that", "1", here / there, 1 / most,
                   most, 2),
            Number("digits of the ten that the classifier is sure of",
                   f"{sure(chain[-1]):.2f} as of the 211", sure(short[-1]), 0.7, 1.0, 2),
        ],
        text=[
            "Without its noise the chain becomes a differential equation, the probability flow, "
            "that carries noise to images along smooth ways. A solver of second order needs few "
            "steps on those.",
            "It is no gift: the classifier is in doubt about more of these images. Which method "
            "when, and what few steps cost, is in docs/methods.md.",
        ],
    )  # fmt: skip


def _figure(short: Tensor, chain: Tensor) -> Figure:
    """By evaluations, each one at first and more at a time later: where the few have long ended."""
    many = len(chain) - 1
    spent = [*range(STEPS + 1), *(round(STEPS * (many / STEPS) ** (k / 20)) for k in range(1, 21))]
    both = {
        "annealed Langevin dynamics": [chain[k] for k in spent],
        "DPM-Solver++(2M)": [short[min(k, STEPS)] for k in spent],
    }
    away = {name: [distance(x) for x in states] for name, states in both.items()}
    panels = [
        Panel([Pictures(torch.stack([x[:SHOWN] for x in states]), COLUMNS)], title=name, height=480)
        for name, states in both.items()
    ]
    shown = [max(k, 0.7) for k in spent]  # there is no 0 on a logarithmic axis
    curves: list[Layer] = []
    for (name, path), style in zip(away.items(), ("muted", "accent"), strict=True):
        dots = torch.tensor([[[k, d]] for k, d in zip(shown, path, strict=True)])
        curves += [Line(shown, path, style, name), Points(dots, style, radius=6, jumps=True)]
    axes = (
        Axis("evaluations of the network", 0.7, 250.0, log=True, ticks=[1, 10, 100]),
        Axis("distance", 0.1, 30.0, log=True, ticks=[0.1, 1, 10]),
    )
    panels.append(Panel(curves, axes, "distance from real digits", height=382))
    ends = [path[-1] for path in away.values()]
    return Figure(
        "race",
        panels,
        alt="Two grids of sixteen images that start as noise. On the right all are digits after "
        f"ten evaluations, at a distance of {ends[1]:.2f} from real ones; on the left they are "
        f"noise then, and after {many} evaluations digits at a distance of {ends[0]:.2f}.",
        captions=[f"{k} evaluations" if k != 1 else "1 evaluation" for k in spent],
        seconds=9.0,
    )


__all__ = ["few_steps"]
