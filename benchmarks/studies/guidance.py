"""Guidance against quality: python -m ncsn_fast.benchmarks.studies.guidance fashion --data IMAGES.

A network that knows classes draws as many images of each, without and with its classes, and with
several scales of classifier-free guidance. Measured is, in the eyes of a classifier, how many are
of the class that was asked for and how many of any class for sure; precision and recall in its
features, and the pixel Fréchet distance, against real images.
"""

from __future__ import annotations

import datetime
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

import ncsn_fast as nf
from ncsn_fast.benchmarks.studies.common import (
    add_model,
    add_output,
    deliver,
    held_out,
    markdown,
    parser,
)
from ncsn_fast.device.environment import environment
from ncsn_fast.evaluation.classifier import load_classifier
from ncsn_fast.evaluation.features import seen
from ncsn_fast.evaluation.quality import Quality, Reference

SCALES = (1.0, 1.5, 2.0, 3.0, 4.0)
_DEFAULT = {"method": "ancestral", "steps": 100}


@dataclass(frozen=True)
class Scale:
    """What a scale of guidance gave; None: no class was told."""

    scale: float | None
    right: float | None  # share of images of the class that was asked for
    quality: Quality


@dataclass(frozen=True)
class Report:
    """All that was measured, and with what."""

    facts: dict[str, str]
    model: str
    sampling: dict[str, Any]
    scales: list[Scale]
    real: Quality


def measure(
    model: str, judge_name: str, data: str | None, number: int, seed: int, sampling: dict[str, Any]
) -> Report:
    """Draw and judge ``number`` images for each scale."""
    net = nf.load_checkpoint(model)
    names = getattr(net, "classes", ())
    if not names:
        raise SystemExit(f"{model} knows no classes")
    judge = load_classifier(judge_name)
    real = (held_out(model, data) * 255).round().to(torch.uint8)
    if len(real) < 2 * number:
        raise SystemExit(
            f"{number} samples are compared with as many real images, and those with as many "
            f"others: of {len(real)} images give -n at most {len(real) // 2}"
        )
    order = torch.randperm(len(real), generator=torch.Generator().manual_seed(0))
    reference = Reference(real[order[:number]], judge)
    classes = torch.arange(number) % len(names)
    settings = {"seed": seed, "progress": True, **sampling}

    def judged(images: Tensor, scale: float | None) -> Scale:
        pixels = (images * 255).round().to(torch.uint8)
        found = seen(judge, pixels).probabilities.argmax(1)
        right = None if scale is None else float((found == classes).double().mean())
        return Scale(scale, right, reference.quality(pixels))

    scales = [judged(nf.sample(net, number, **settings), None)]
    for scale in SCALES:
        score = net if scale == 1 else nf.guided(net, scale)
        images = nf.sample(score, number, extra={"classes": classes}, **settings)
        scales.append(judged(images, scale))
    facts = {"date": datetime.date.today().isoformat(), **environment(net.sigmas.device)}
    rest = reference.quality(real[order[number : 2 * number]])
    return Report(facts, model, sampling, scales, rest)


def as_markdown(report: Report) -> str:
    """One table."""
    facts = ", ".join(f"{name} {value}" for name, value in report.facts.items())
    told = ", ".join(f"{name} {value}" for name, value in report.sampling.items())
    lines = [f"{report.model}, {told}; {report.real.images} images a row. {facts}.", ""]
    head = ["scale", "of its class", "sure of a class", "precision", "recall", "Fréchet distance"]

    def row(name: str, right: float | None, found: Quality) -> list[str]:
        shares = (right, found.confident, found.precision, found.recall)
        told = ["" if share is None else f"{100 * share:.1f} %" for share in shares]
        return [name, *told, "" if found.frechet is None else f"{found.frechet:.2f}"]

    rows = [
        row("no class" if one.scale is None else f"{one.scale:g}", one.right, one.quality)
        for one in report.scales
    ]
    return "\n".join([*lines, *markdown(head, [*rows, row("real images", None, report.real)])])


def main() -> None:
    command = parser(__doc__)
    add_model(command)
    command.add_argument("--classifier", help="default: of the model's name")
    command.add_argument("-n", "--number", type=int, default=1000)
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--method", default=_DEFAULT["method"])
    command.add_argument("--steps", type=int, default=_DEFAULT["steps"])
    add_output(command, "guidance.json and .md")
    options = command.parse_args()
    sampling = {"method": options.method, "steps": options.steps}
    judge = options.classifier or options.model
    report = measure(options.model, judge, options.data, options.number, options.seed, sampling)
    deliver(options, "guidance", asdict(report), as_markdown(report))


if __name__ == "__main__":
    main()
