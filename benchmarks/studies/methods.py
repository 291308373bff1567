"""Evaluations against quality: python -m ncsn_fast.benchmarks.studies.methods [MODEL] [--out DIR].

    ... mnist --data t10k-images-idx3-ubyte.gz --train train-images-idx3-ubyte.gz

Every method draws images from a model with several numbers of network evaluations. Measured is the
pixel Fréchet distance to real images that it has not been trained on, for several seeds, as it
differs between them; the full annealed chain (with ``--step-size`` and ``--steps-per-level``, where
the checkpoint does not say them), and as many training images, for comparison; with a classifier
also how many of the images are given a class for sure. Of a network that knows classes they are of
each in its turn. Two more tables are of the best method at 10 evaluations: on other spacings of the
noise levels, and begun in noise of the length √D or of a normal draw's, with and without
``hold_noise``.
"""

from __future__ import annotations

import argparse
import datetime
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import cycle
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import ncsn_fast as nf
from ncsn_fast import noise
from ncsn_fast.benchmarks.studies.common import (
    DISTANCES,
    add_chain,
    add_model,
    add_number,
    add_output,
    deliver,
    full_chain,
    held_out,
    markdown,
    parser,
    plain_ticks,
    trained_on,
)
from ncsn_fast.data.pixels import eight_bits
from ncsn_fast.device.environment import environment
from ncsn_fast.evaluation.classifier import Classifier, load_classifier
from ncsn_fast.evaluation.features import CONFIDENT, seen
from ncsn_fast.evaluation.pixel_distance import pixel_frechet_distance
from ncsn_fast.methods.spacings import AUTO, SPACINGS
from ncsn_fast.models.base import ScoreNetwork
from ncsn_fast.models.space import to_images
from ncsn_fast.pictures.curves import new_figure, save_figure
from ncsn_fast.training.samples import in_turn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FULL_CHAIN = "annealed_langevin (full chain)"
# Any number of evaluations is possible on these levels; the digits' ladder has 21.
_SPACING = "karras"
_MOST = 10_000  # real images to compare with
_STEPS, _SPACING_STEPS = (5, 10, 20, 40), 10
_BEST = "dpmpp_2m"
_CONSISTENT = "consistent_annealed"
_FEW_STEPS: dict[str, dict[str, Any]] = {
    "ancestral": {"method": "ancestral", "eta": 1.0},  # whatever the checkpoint says
    "predictor_corrector (ancestral)": {"method": "predictor_corrector", "predictor": "ancestral"},
    "reverse_diffusion": {"method": "reverse_diffusion"},
    "euler": {"method": "euler"},
    "heun": {"method": "heun"},
    "dpmpp_2m": {"method": "dpmpp_2m", "eta": 0.0},
    "dpmpp_2m (eta 1)": {"method": "dpmpp_2m", "eta": 1.0},
}
METHODS = (_CONSISTENT, *_FEW_STEPS)
_MARKERS = "os^Dv<>P"
_EVALUATIONS = (5, 10, 20, 40, 100, 200, 500, 1000)


@dataclass(frozen=True)
class Point:
    """What a method reached with so many network evaluations."""

    name: str
    spacing: str
    evaluations: int
    frechet: list[float]  # one a seed
    confident: float | None = None  # the share that is given a class for sure, of all seeds

    @property
    def mean(self) -> float:
        return statistics.fmean(self.frechet)

    @property
    def spread(self) -> float:
        """Standard deviation between seeds."""
        return statistics.stdev(self.frechet) if len(self.frechet) > 1 else 0.0

    @property
    def shown(self) -> str:
        return (
            f"{self.mean:.3f} ± {self.spread:.3f}" if len(self.frechet) > 1 else f"{self.mean:.3f}"
        )

    @property
    def sure(self) -> list[str]:
        """A cell of its own, where there is a classifier."""
        return [] if self.confident is None else [f"{100 * self.confident:.0f} %"]


@dataclass(frozen=True)
class Report:
    """All that was measured, and with what."""

    facts: dict[str, str]
    images: int
    training: Point | None  # as many training images, where they are known
    points: list[Point]  # the full chain first
    spacings: list[Point]
    starts: list[Point]


def measure(options: argparse.Namespace) -> Report:
    """Run the methods; ``options.number`` images for each of ``options.seeds`` seeds."""
    number, precision = options.number, options.precision
    net = nf.load_checkpoint(options.model)
    chain = full_chain(net, options)
    facts = {
        "model": options.model,
        "date": datetime.date.today().isoformat(),
        "precision": nf.Sampler(net, precision=precision).precision,
        **environment(net.sigmas.device),
    }
    real = held_out(options.model, options.data)[:_MOST]
    trained = trained_on(options.model, options.train)
    classifier = None if options.classifier is None else _classifier(options.classifier, net)
    if classifier is not None:
        facts["classifier"] = options.classifier
    if getattr(net, "classes", ()):
        facts["classes"] = "in turn"

    def point(name: str, **settings: Any) -> Point:
        draw = _drawing(net, number, {"precision": precision, **settings})
        images = [draw(seed) for seed in range(options.seeds)]
        evaluations = len(nf.Sampler(net, **_settings(settings)).table)
        spacing = settings.get("spacing", AUTO)
        return Point(name, spacing, evaluations, *_judged(images, real, classifier))

    points = [point(FULL_CHAIN, **chain)]
    for name in options.methods:
        if name == _CONSISTENT:
            points.append(point(name, method=name, step_size=0.6 * float(net.sigmas[-1]) ** 2))
            continue
        for steps in _STEPS:
            points.append(point(name, steps=steps, spacing=_SPACING, **_FEW_STEPS[name]))
    best = {"steps": _SPACING_STEPS, **_FEW_STEPS[_BEST]}
    spacings = [point(_BEST, spacing=spacing, **best) for spacing in SPACINGS]
    starts = [
        point(f"{length}, {word}", spacing=_SPACING, hold_noise=hold, plain=plain, **best)
        for length, plain in (("√D", False), ("as drawn", True))
        for word, hold in (("held", True), ("not held", False))
    ]
    training = None
    if trained is not None:
        found = _judged([trained[:number]], real, classifier)
        training = Point("training images", "", 0, *found)
    return Report(facts, number, training, points, spacings, starts)


def _classifier(name: str, net: ScoreNetwork) -> Classifier:
    """One of images of the network's shape."""
    found = load_classifier(name)
    if found.shape != net.shape:
        raise SystemExit(
            f"--classifier {name} is of images {found.shape}, the network's have {net.shape}"
        )
    return found


def _judged(
    images: list[Tensor], real: Tensor, classifier: Classifier | None
) -> tuple[list[float], float | None]:
    """The distance of the images of each seed, and how many of all are of a class for sure."""
    distances = [pixel_frechet_distance(of_seed, real) for of_seed in images]
    if classifier is None:
        return distances, None
    return distances, seen(classifier, eight_bits(torch.cat(images).cpu().numpy())).confident


def _settings(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name != "plain"}


def _drawing(net: ScoreNetwork, number: int, settings: dict[str, Any]) -> Callable[[int], Tensor]:
    """A function of the seed; with ``plain`` chains begin in noise as long as a draw happens to be,
    which the sampler brings to √D."""
    extra = in_turn(net, number)
    if not settings.get("plain"):
        return lambda seed: nf.sample(net, number, seed=seed, extra=extra, **_settings(settings))
    sampler = nf.Sampler(net, **_settings(settings))

    def draw(seed: int) -> Tensor:
        ids = torch.arange(number)
        z = noise.normal(net.shape, seed=seed, stream=noise.INITIAL, sample_ids=ids, step=1)
        scale = z[0].numel() ** 0.5 / z.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        states = sampler.first_states(seed, ids) + sampler.table.sigma[0] * (z - scale * z)
        return to_images(net, sampler(number, seed=seed, initial=states, extra=extra))

    return draw


def as_markdown(report: Report) -> str:
    """The three tables."""
    full = report.points[0]
    facts = ", ".join(f"{name} {value}" for name, value in report.facts.items())
    trained = ""
    if report.training is not None:
        told = [f"{report.training.mean:.3f}", *(f"{n} sure" for n in report.training.sure)]
        trained = f"; of training images: {', '.join(told)}"
    seeds = len(full.frechet)
    over = f"Mean ± standard deviation over {seeds} seeds" if seeds > 1 else "One seed"
    lines = [
        f"{facts}. {over} of {report.images} images{trained}.",
        "",
    ]
    sure = [f"sure of a class (> {CONFIDENT})"] if full.sure else []
    head = ["method", "network evaluations", "Fréchet distance", "of the full chain's", *sure]
    rows = [
        [p.name, str(p.evaluations), p.shown, f"{p.mean / full.mean:.2f}", *p.sure]
        for p in report.points
    ]
    lines += [*markdown(head, rows), ""]
    head = [f"{_BEST}, {_SPACING_STEPS} evaluations", "Fréchet distance", *sure]
    rows = [[point.spacing, point.shown, *point.sure] for point in report.spacings]
    lines += [*markdown(head, rows), ""]
    head = ["length of the first noise, and whether it is held", "Fréchet distance", *sure]
    rows = [[point.name, point.shown, *point.sure] for point in report.starts]
    return "\n".join([*lines, *markdown(head, rows)])


def picture(report: Report) -> Figure:
    """Evaluations against Fréchet distance, a line per method."""
    figure = new_figure(8.5, 5, dpi=120)
    axes = figure.add_subplot()
    full = report.points[0]
    axes.axhline(full.mean, color="black", linewidth=1, linestyle="--")
    names = list(dict.fromkeys(point.name for point in report.points[1:]))
    for marker, name in zip(cycle(_MARKERS), names, strict=False):
        points = [point for point in report.points if point.name == name]
        axes.errorbar(
            [point.evaluations for point in points],
            [point.mean for point in points],
            yerr=[point.spread for point in points],
            marker=marker,
            markersize=5,
            capsize=2,
            label=name,
        )
    axes.plot(full.evaluations, full.mean, "k*", markersize=10, label=full.name)
    if report.training is not None:
        axes.axhline(
            report.training.mean, color="grey", linewidth=1, linestyle=":", label="training images"
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    plain_ticks(axes.xaxis, _EVALUATIONS)
    plain_ticks(axes.yaxis, DISTANCES)
    axes.set_xlabel("network evaluations")
    axes.set_ylabel("pixel Fréchet distance to held-out images")
    axes.grid(True, alpha=0.3)
    figure.legend(frameon=False, fontsize=9, loc="outside right upper")
    return figure


def options_of() -> argparse.ArgumentParser:
    """The command's options."""
    command = parser(__doc__)
    add_model(command)
    command.add_argument("--train", help="images that it has been trained on, to compare with")
    command.add_argument("--classifier", help="digits, mnist, fashion or a file; default: none")
    names = "of " + ", ".join(f'"{name}"' for name in METHODS)
    told: dict[str, Any] = {"default": METHODS, "metavar": "NAME", "help": names}
    command.add_argument("--methods", nargs="+", choices=METHODS, **told)
    add_number(command, 400, 5, "images per seed")
    command.add_argument("--seeds", type=int, default=5)
    command.add_argument("--precision", default="auto")
    add_chain(command)
    add_output(command, "methods.json, .md and .png")
    return command


def main() -> None:
    options = options_of().parse_args()
    report = measure(options)
    deliver(options, "methods", asdict(report), as_markdown(report))
    if options.out is not None:
        save_figure(options.out / "methods.png", picture(report))


if __name__ == "__main__":
    main()
