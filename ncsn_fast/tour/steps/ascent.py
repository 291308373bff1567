"""Step 1: gradient descent and ascent, and why on the logarithm."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

import ncsn_fast as nf
from ncsn_fast.tour.figure import Axis, Figure, Line, Panel, Points
from ncsn_fast.tour.maths import formula, frac, sup
from ncsn_fast.tour.step import Number, Step, Told, source

# (0.5x - 3)² is, up to a constant, -log of this law's density.
MEAN, VARIANCE = 6.0, 2.0
STARTS = (-2.0, 1.0, 3.5, 5.0, 8.0, 10.0, 12.5)
STEPS, RATE = 60, 0.2
# The slope of a density is small even where it is largest: it is given a larger rate, for fairness.
RATE_ON_DENSITY = 4.0


def climb(height: Callable[[Tensor], Tensor], x: Tensor, rate: float, steps: int) -> Tensor:
    """All states of gradient ascent from x (N, 1): (steps + 1, N, 1)."""
    slope = torch.func.grad(lambda x: height(x).sum())
    table = nf.Table.of(np.ones(steps), b=rate)  # x ← x + rate · slope, without noise
    sampler = nf.Sampler(nf.Score(slope, "score", "none"), (1,), method=table)
    return sampler(len(x), initial=x, every=1)[1]


def minus_f(x: Tensor) -> Tensor:
    """What is climbed by who goes down f(x) = (0.5x - 3)²."""
    return -((0.5 * x - 3) ** 2)


def log_density(x: Tensor) -> Tensor:
    """log p of N(6, 2)."""
    return torch.distributions.Normal(MEAN, math.sqrt(VARIANCE)).log_prob(x)


def density(x: Tensor) -> Tensor:
    """p of N(6, 2)."""
    return log_density(x).exp()


def ascent(quick: bool, told: Told) -> Step:
    """Descent on f, ascent on p and on log p from the same starts."""
    start = torch.tensor(STARTS)[:, None]
    down = climb(minus_f, start, RATE, STEPS)
    on_log = climb(log_density, start, RATE, STEPS)
    on_density = climb(density, start, RATE_ON_DENSITY, STEPS)
    told(1.0)
    same = float((down - on_log).abs().max())
    numbers = [
        Number("end of the descent on f, the worst of seven starts", "6", _worst(down), 5.98, 6.02),
        Number("descent on f and ascent on log p, largest difference", "0", same, 0.0, 1e-4),
        Number("share of its way made by the farthest start, up log p", "1", _way(on_log), 0.99, 1),
        Number("the same up p, at 20 times the rate", "0", _way(on_density), 0.0, 0.01),
    ]
    return Step(
        name="ascent",
        title="Uphill on the logarithm",
        claim="Gradient descent walks to a minimum and ascent to a maximum; climbing the logarithm "
        "of a density leads to the same place as climbing the density, and gets there.",
        formula=formula("x ← x − η f′(x)")
        + formula("f(x) =", sup("(0.5 x − 3)", "2"))
        + formula("x ← x + η", frac("d", "d x"), "log p(x)"),
        code=source(climb),
        figures=[_figure(down, on_density, on_log)],
        numbers=numbers,
        text=[
            "f is, up to a constant, the negative logarithm of a Gaussian density with mean 6 and "
            "variance 2. So going down f and going up log p are the same steps, and both end at 6.",
            "The density itself has its maximum there too, for the logarithm is monotone. But far "
            "from the mean it is flat: who starts there does not move.",
        ],
    )


def _worst(states: Tensor) -> float:
    """Of the last states the one farthest from the mean."""
    last = states[-1, :, 0]
    return float(last[(last - MEAN).abs().argmax()])


def _way(states: Tensor) -> float:
    """Which part of the way to the mean the start farthest from it has made."""
    far = (states[0] - MEAN).abs().argmax()
    return 1 - float((states[-1, far] - MEAN) / (states[0, far] - MEAN))


def _figure(down: Tensor, on_density: Tensor, on_log: Tensor) -> Figure:
    def panel(title: str, height: Callable[[Tensor], Tensor], states: Tensor, y: Axis) -> Panel:
        x = torch.linspace(-3, 14, 120)
        at = torch.cat([states, height(states)], dim=2)
        curve, points = Line(x, height(x), "muted"), Points(at, radius=5)
        return Panel([curve, points], (Axis("x", -3, 14), y), title)

    panels = [
        panel("down f(x)", lambda x: -minus_f(x), down, Axis("f(x)", 0, 20)),
        panel("up the density p(x)", density, on_density, Axis("p(x)", 0, 0.3)),
        panel("up its logarithm", log_density, on_log, Axis("log p(x)", -20, 0)),
    ]
    return Figure(
        "three_hills",
        panels,
        alt="Seven points go down a parabola and all end in its minimum at x = 6. Up a Gaussian "
        "density only those near its mean arrive, those far from it stay; up its logarithm all "
        "arrive.",
        captions=[f"step {k} of {STEPS}" for k in range(STEPS + 1)],
        seconds=6.0,
    )


__all__ = ["ascent"]
