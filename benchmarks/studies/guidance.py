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

import ncsn_fast as nf
from ncsn_fast.benchmarks.studies.common import (
    HEAD,
    Judge,
    Judged,
    add_model,
    add_number,
    add_output,
    deliver,
    held_out,
    markdown,
    parser,
)
from ncsn_fast.device.environment import environment
from ncsn_fast.evaluation.classifier import load_classifier
from ncsn_fast.methods.by_name import ANNEALED_LANGEVIN, used_settings

SCALES = (1.0, 1.5, 2.0, 3.0, 4.0)


@dataclass(frozen=True)
class Report:
    """All that was measured, and with what."""

    facts: dict[str, str]
    model: str
    sampling: dict[str, Any]
    scales: dict[str, Judged]
    real: Judged


def measure(
    model: str, classifier: str, data: str | None, number: int, seed: int, sampling: dict[str, Any]
) -> Report:
    """Draw and judge ``number`` images for each scale."""
    net = nf.load_checkpoint(model)
    names = getattr(net, "classes", ())
    if not names:
        raise SystemExit(f"{model} knows no classes")
    judge = Judge(load_classifier(classifier), held_out(model, data), number)
    classes = torch.arange(number) % len(names)
    settings = {"seed": seed, "progress": True, **sampling}
    scales = {"no class": judge(nf.sample(net, number, **settings))}
    for scale in SCALES:
        score = net if scale == 1 else nf.guided(net, scale)
        images = nf.sample(score, number, extra={"classes": classes}, **settings)
        scales[f"{scale:g}"] = judge(images, classes)
    facts = {"date": datetime.date.today().isoformat(), **environment(net.sigmas.device)}
    stored = net.sampling or {}
    method = sampling.get("method") or stored.get("method", ANNEALED_LANGEVIN)
    given = {name: value for name, value in sampling.items() if name != "method"}
    used = used_settings(method, given, stored)
    told = {"method": method, **used["checkpoint"], **used["given"]}
    told["evaluations"] = len(nf.Sampler(net, **sampling).table)
    return Report(facts, model, told, scales, judge.of_real)


def as_markdown(report: Report) -> str:
    """One table."""
    facts = ", ".join(f"{name} {value}" for name, value in report.facts.items())
    told = ", ".join(f"{name} {value}" for name, value in report.sampling.items())
    images = report.real.quality.images
    lines = [f"{report.model}, {told}; {images} images a row. {facts}.", ""]
    rows = [[name, *found.shown()] for name, found in report.scales.items()]
    rows.append(["real images", *report.real.shown()])
    return "\n".join([*lines, *markdown(["scale", *HEAD], rows)])


def main() -> None:
    command = parser(__doc__)
    add_model(command)
    command.add_argument("--classifier", help="default: of the model's name")
    add_number(command, 1000, 5, "images of each scale")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--method", help="default: the network's own")
    command.add_argument("--steps", type=int, help="network evaluations of such a method")
    command.add_argument("--eta", type=float, help="its fresh noise")
    add_output(command, "guidance.json and .md")
    options = command.parse_args()
    told = {name: getattr(options, name) for name in ("method", "steps", "eta")}
    sampling = {name: value for name, value in told.items() if value is not None}
    judge = options.classifier or options.model
    report = measure(options.model, judge, options.data, options.number, options.seed, sampling)
    deliver(options, "guidance", asdict(report), as_markdown(report))


if __name__ == "__main__":
    main()
