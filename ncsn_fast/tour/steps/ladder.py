"""Step 6: many levels in geometric progression, one network and one loss for all."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import Module

import ncsn_fast as nf
from ncsn_fast.data.digits import digits
from ncsn_fast.tour.figure import Axis, Figure, Line, Panel, Pictures, Points
from ncsn_fast.tour.maths import formula, frac, norm, sub, sup
from ncsn_fast.tour.step import Number, Step, Told, source

SIDE, VALUES = 8, 64  # of a digit
SHOWN = 16


def loss_at(net: nf.Score | Module, x: Tensor, sigmas: Tensor, level: int, power: float) -> float:
    """The mean loss of images at one level, with the weight λ = σ^power."""
    labels = torch.full((len(x),), level)
    return float(nf.dsm_loss(net, x, sigmas, labels, anneal_power=power, seed=1))


def overlap(above: float, below: float) -> float:
    """How much of the noise of one level is as long as that of the level above, to three sigma."""
    z = nf.noise.normal((VALUES,), seed=0, stream=nf.noise.PERTURB, sample_ids=range(10_000))
    off = below * z.norm(dim=1) - above * math.sqrt(VALUES)
    return float((off.abs() <= 3 * above / math.sqrt(2)).float().mean())


@torch.no_grad()
def ladder(quick: bool, told: Told) -> Step:
    """The levels that the digits ask for, the loss at each, and how neighbours overlap."""
    net, images = nf.load_checkpoint("digits"), digits("test").images[: 64 if quick else 256]
    sigmas = nf.auto_schedule(digits("train").images).sigmas
    nothing = nf.Score(lambda x, labels: torch.zeros_like(x), "score", "label", sigmas)
    losses: dict[str, list[float]] = {}
    for name, one, power in (("nothing", nothing, 2), ("nothing, unweighted", nothing, 0),
                             ("weighted", net, 2), ("unweighted", net, 0)):  # fmt: skip
        levels = range(len(sigmas))
        losses[name] = [loss_at(one, images, sigmas, level, power) for level in levels]
        told(len(losses) / 5)
    even = torch.linspace(float(sigmas[0]), float(sigmas[-1]), len(sigmas))
    return Step(
        name="ladder",
        title="The ladder of noise levels",
        claim="Many levels, each a fixed part of the one above, lead from noise to data in steps "
        "of one size, and the weight σ² lets all of them count in one loss.",
        formula=formula(
            frac("1", "L"), "Σ", sup(sub("σ", "i"), "2"), frac("1", "2"), "E",
            norm("s(x̃, ", sub("σ", "i"), ") +", frac("z", sub("σ", "i"))),
        )
        + formula(frac(sub("σ", "i"), sub("σ", "i+1")), "= const"),
        code=source(loss_at, overlap),
        figures=[_noisy(images, sigmas, losses), _shells(sigmas, even)],
        numbers=_numbers(len(net.sigmas), sigmas, even, losses),
        text=[
            "The largest level is the largest distance between two images, so that any can be "
            "left for any other; the smallest is a hundredth of the range from black to white. "
            "The noise of a level has nearly one length, a shell: geometric levels have shells "
            "that overlap alike, evenly spaced ones leave the smallest without a neighbour.",
            "Unweighted, the loss of a network that knows nothing grows as 1/σ², and the smallest "
            "level is all it would learn. With σ² it begins at one value for all levels, half the "
            "number of pixels. What is left of it after training is what no network could know.",
        ],
    )  # fmt: skip


def spread(values: list[float]) -> float:
    """The largest in parts of the smallest."""
    return max(values) / min(values)


def _numbers(
    known: int, sigmas: Tensor, even: Tensor, losses: dict[str, list[float]]
) -> list[Number]:
    slack = 1.001  # every level is given the same noise
    full = float(sigmas[0] / sigmas[-1]) ** 2
    # The loss is ½E‖σs + z‖², and ½E‖z‖² - ½E‖σs‖² of a score that is exact.
    lengths = [math.sqrt(2 * max(0.0, VALUES / 2 - loss)) for loss in losses["weighted"]]
    geometric = [overlap(a, b) for a, b in pairwise(sigmas.tolist())]
    linear = [overlap(a, b) for a, b in pairwise(even.tolist())]
    return [
        Number("levels that the digits ask for (the network that comes along has as many)",
               str(known), len(sigmas), known, known, 0),
        Number("loss that knows nothing, with σ², largest level by smallest", "1",
               spread(losses["nothing"]), 1.0, slack),
        Number("the same unweighted", f"{full:,.0f}", spread(losses["nothing, unweighted"]),
               full / slack, full * slack, 0),
        Number("loss of the trained network, with σ²", "far less than unweighted",
               spread(losses["weighted"]), 1.0, 100.0, 0),
        Number("the same unweighted", "the weights’ own ratio and more",
               spread(losses["unweighted"]), full, math.inf, 0),
        Number("length of σ s at the levels, largest by smallest", "about 1", spread(lengths),
               1.0, 2.0, 2),
        Number("overlap of neighbouring levels, the least", "0.50", min(geometric), 0.47, 0.53, 2),
        Number("the same of as many levels evenly spaced", "0", min(linear), 0.0, 0.001, 2),
    ]  # fmt: skip


def _noisy(images: Tensor, sigmas: Tensor, losses: dict[str, list[float]]) -> Figure:
    x = images[:SHOWN]
    z = nf.noise.normal((1, SIDE, SIDE), seed=3, stream=nf.noise.PERTURB, sample_ids=range(SHOWN))
    frames = [(x + s * z).clamp(0, 1) for s in sigmas.tolist()]
    at = sigmas.tolist()

    def way(name: str) -> Points:
        here = [[[s, y]] for s, y in zip(at, losses[name], strict=True)]
        return Points(torch.tensor(here), "accent", radius=6, jumps=True)

    levels = Axis("noise level σ", at[-1] / 1.3, at[0] * 1.3, log=True)
    powers = ["0.01", "1", "100", "10⁴", "10⁶"]
    loss = Axis("loss", 1e-2, 1e6, log=True, ticks=[1e-2, 1, 1e2, 1e4, 1e6], names=powers)
    curves = Panel(
        [
            Line(at, losses["unweighted"], "muted", "trained, unweighted"),
            Line(at, losses["nothing"], "wanted", "knows nothing, with σ²"),
            Line(at, losses["weighted"], "accent", "trained, with σ²"),
            way("weighted"),
            way("unweighted"),
        ],
        (levels, loss),
        "the loss at each level",
        height=382,
    )
    return Figure(
        "noisy",
        [Panel([Pictures(torch.stack(frames), 4)], title="digits with noise", height=480), curves],
        alt="Sixteen digits emerge from noise as the level falls from 4.8 to 0.01. The unweighted "
        f"loss rises by a factor of {spread(losses['unweighted']):,.0f}, the weighted one by "
        f"{spread(losses['weighted']):,.0f}; of a network that knows nothing it is one number.",
        captions=[f"level {i + 1} of {len(at)}: σ = {s:.3g}" for i, s in enumerate(at)],
        seconds=8.0,
    )


def _shells(sigmas: Tensor, even: Tensor) -> Figure:
    # The length of z is nearly N(√D, ½); that of σz has the same shape on a logarithmic axis.
    length = torch.linspace(5.5, 10.5, 61)
    shell = length * torch.exp(-((length - math.sqrt(VALUES)) ** 2)) / math.sqrt(math.pi)

    def panel(title: str, levels: Tensor) -> Panel:
        at = levels[:, None] * length
        above = torch.cat([at[:1], at[:-1]])
        each = shell.expand_as(at)
        return Panel(
            [
                *(Line(x, shell, "muted") for x in at),
                Line(above, each, "wanted", "the level above"),
                Line(at, each, "accent", "this level"),
            ],
            (Axis("length of the noise", 0.04, 60.0, log=True), Axis("density", 0.0, 5.0)),
            title,
        )

    both = [panel("geometric levels", sigmas), panel("evenly spaced levels", even)]
    shares = zip(
        *([overlap(a, b) for a, b in pairwise(levels.tolist())] for levels in (sigmas, even)),
        strict=True,
    )
    return Figure(
        "shells",
        both,
        alt="Shells of noise, one per level. Geometric levels stand side by side at equal "
        "distances and overlap by a half; evenly spaced ones crowd at large noise, and the "
        "smallest stands alone, far from its neighbour.",
        captions=["level 1, the largest", *(
            f"level {i}: overlap {a:.2f} if geometric, {b:.2f} if evenly spaced"
            for i, (a, b) in enumerate(shares, 2)
        )],
        seconds=8.0,
    )  # fmt: skip


__all__ = ["ladder"]
