"""Step 7 on images: the chain from noise to digit."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

import ncsn_fast as nf
from ncsn_fast.data.digits import digits as data
from ncsn_fast.evaluation.classifier import load_classifier
from ncsn_fast.evaluation.pixel_distance import pixel_frechet_distance
from ncsn_fast.tour.figure import Axis, Figure, Line, Panel, Pictures, Points
from ncsn_fast.tour.maths import formula, root, row, sub, sup
from ncsn_fast.tour.step import Number, Step, Told, source

SHOWN, COLUMNS = 16, 4
SURE = 0.9  # probability that the classifier gives its class


def annealed(n: int) -> Tensor:
    """Annealed Langevin dynamics as the network's checkpoint has it: the images before each of its
    evaluations and at the end, (K, n, 1, 8, 8)."""
    net = nf.load_checkpoint("digits")
    return nf.sample(net, n, seed=0, precision="fp32", every=1)[1]


# Two steps look at it.
full_chain = lru_cache(maxsize=2)(annealed)


def images_of(quick: bool) -> int:
    """How many images are drawn, and judged."""
    return 64 if quick else 400


def sure(images: Tensor) -> float:
    """The share of images of which the classifier of the digits is sure."""
    with torch.no_grad():
        chances = load_classifier("digits")(images).softmax(1)
    return float((chances.max(1).values > SURE).float().mean())


def unlike(images: Tensor) -> float:
    """Which part of the images is of a class that there are too many of."""
    with torch.no_grad():
        found = load_classifier("digits")(images).argmax(1)
    shares = found.bincount(minlength=10) / len(images)
    expected = data("train").labels.bincount(minlength=10) / len(data("train").labels)
    return float((shares - expected).abs().sum() / 2)


def distance(images: Tensor) -> float:
    """Their pixel Fréchet distance to the held-out digits."""
    return pixel_frechet_distance(images, data("test").images)


def digits(quick: bool, told: Told) -> Step:
    """The chain by the network that comes along, and what a classifier says of its states."""
    n = images_of(quick)
    chain = full_chain(n)
    told(1.0)
    real, end = data("test").images[:n], chain[-1]
    return Step(
        name="digits",
        title="From noise to digit",
        claim="The same few lines, with a network of images for the score, lead from noise to "
        "handwritten digits that nobody wrote.",
        formula=formula(
            "x ← x +", sub("α", "i"), sub("s", "θ"), "(x, ", sub("σ", "i"), ") +",
            root(row("2", sub("α", "i"))), "z",
        )
        + formula("x ← x +", sup(sub("σ", "L"), "2"), sub("s", "θ"), "(x, ", sub("σ", "L"), ")"),
        code=source(annealed),
        figures=[_figure(chain)],
        numbers=[
            Number(f"digits that a classifier is sure of (above {SURE:g}), of {n}",
                   f"{sure(real):.2f} as of real ones", sure(end), 0.84 if quick else 0.88, 1.0, 2),
            Number("part that is of a class too many", f"{unlike(real):.2f} as of real ones",
                   unlike(end), 0.0, 0.32 if quick else 0.16, 2),
            Number("squared distance of the noise from the digits (pixel Fréchet)", "large",
                   distance(chain[0]), 3.0, 100.0, 2),
            Number("the same of the images at the end",
                   f"{distance(data('train').images[:n]):.2f} as of real ones", distance(end), 0.0,
                   1.0 if quick else 0.35, 2),
        ],
        text=[
            "The network, 8 × 8 pixels and 21 levels, comes along and was trained on 1,400 digits. "
            "At each level the chain makes ten steps; at large ones it chooses which digit, at "
            "small ones how its edges run.",
            "The classifier never saw noise and takes some of it for a digit with confidence: so "
            "the classes are counted too, and the distance of all pixels from real digits that "
            "neither network was trained on.",
        ],
    )  # fmt: skip


def _figure(chain: Tensor) -> Figure:
    """A frame before every fifth update, of which there are ten at each level."""
    net = nf.load_checkpoint("digits")
    sigmas = nf.Sampler(net, precision="fp32").table.sigma
    rows = [*range(0, len(chain) - 1, 5), len(chain) - 1]
    away, known = [distance(chain[k]) for k in rows], [sure(chain[k]) for k in rows]
    here = torch.tensor([[[k, d]] for k, d in zip(rows, away, strict=True)])
    best = distance(data("train").images[: chain.shape[1]])
    pictures = Panel([Pictures(chain[rows][:, :SHOWN], COLUMNS)], title="states", height=480)
    curve = Panel(
        [
            Line([0, rows[-1]], [best, best], "wanted", "as many real digits"),
            Line(rows, away, "accent", "the states"),
            Points(here, "accent", radius=6, jumps=True),
        ],
        (Axis("update", 0, rows[-1]), Axis("distance", 0.1, 20.0, log=True)),
        "distance from real digits",
        height=382,
    )
    return Figure(
        "from_noise",
        [pictures, curve],
        alt="Sixteen squares of noise turn into handwritten digits. Their distance from real "
        f"digits falls from {away[0]:.1f} to {away[-1]:.2f}, where as many real ones have "
        f"{best:.2f}.",
        captions=[
            *(f"update {k}, σ = {sigmas[k]:.3g}: {s:.0%} sure"
              for k, s in zip(rows[:-1], known, strict=False)),
            f"without its noise: {known[-1]:.0%} sure",
        ],
        seconds=9.0,
    )  # fmt: skip


__all__ = ["digits", "distance", "full_chain", "images_of", "sure"]
