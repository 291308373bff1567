"""Evaluations against quality: python -m ncsn_fast.benchmarks.studies.methods [-n 400] [--out DIR].

Every method draws images of digits from the model that comes along, with several numbers of
network evaluations. Measured is the pixel Fréchet distance to the 397 held-out images, for several
seeds, as it differs between them; the full annealed chain, and as many training images, for
comparison. A second table is of the noise-level spacings of the best method at 10 evaluations.
"""

from __future__ import annotations

import datetime
import statistics
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import ncsn_fast as nf
from ncsn_fast.benchmarks.studies.common import add_output, deliver, markdown, parser
from ncsn_fast.data.digits import digits
from ncsn_fast.device.environment import environment
from ncsn_fast.evaluation.pixel_distance import pixel_frechet_distance
from ncsn_fast.methods.spacings import AUTO, SPACINGS
from ncsn_fast.pictures.curves import new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FULL_CHAIN = "annealed_langevin (full chain)"
# Any number of evaluations is possible on these levels; the ladder has 21.
_SPACING = "karras"
_STEPS, _MORE_STEPS, _SPACING_STEPS = (5, 10, 20), 40, 10
_BEST = "dpmpp_2m"
_FEW_STEPS: dict[str, dict[str, Any]] = {
    "ancestral": {"method": "ancestral"},
    "predictor_corrector (ancestral)": {"method": "predictor_corrector", "predictor": "ancestral"},
    "reverse_diffusion": {"method": "reverse_diffusion"},
    "euler": {"method": "euler"},
    "heun": {"method": "heun"},
    "dpmpp_2m": {"method": "dpmpp_2m"},
}
_MARKERS = "os^Dv<>P"


@dataclass(frozen=True)
class Point:
    """What a method reached with so many network evaluations."""

    name: str
    spacing: str
    evaluations: int
    frechet: list[float]  # one a seed

    @property
    def mean(self) -> float:
        return statistics.fmean(self.frechet)

    @property
    def spread(self) -> float:
        """Standard deviation between seeds."""
        return statistics.stdev(self.frechet) if len(self.frechet) > 1 else 0.0

    @property
    def shown(self) -> str:
        return f"{self.mean:.3f} ± {self.spread:.3f}"


@dataclass(frozen=True)
class Report:
    """All that was measured, and with what."""

    facts: dict[str, str]
    images: int
    training: float  # Fréchet distance of as many training images
    points: list[Point]  # the full chain first
    spacings: list[Point]


def measure(number: int, seeds: int, precision: str) -> Report:
    """Run all methods; number images for each of the seeds."""
    net = nf.load_checkpoint("digits")
    facts = {
        "date": datetime.date.today().isoformat(),
        "precision": nf.Sampler(net, precision=precision).precision,
        **environment(net.sigmas.device),
    }

    held_out = digits("test").images

    def point(name: str, **settings: Any) -> Point:
        evaluations = len(nf.Sampler(net, **settings).table)
        distances = []
        for seed in range(seeds):
            images = nf.sample(net, number, seed=seed, precision=precision, **settings)
            distances.append(pixel_frechet_distance(images, held_out))
        return Point(name, settings.get("spacing", AUTO), evaluations, distances)

    points = [point(FULL_CHAIN)]
    step_size = 0.6 * float(net.sigmas[-1]) ** 2
    points.append(point("consistent_annealed", method="consistent_annealed", step_size=step_size))
    for name, settings in _FEW_STEPS.items():
        for steps in (*_STEPS, _MORE_STEPS) if name == _BEST else _STEPS:
            points.append(point(name, steps=steps, spacing=_SPACING, **settings))
    spacings = [
        point(_BEST, spacing=spacing, steps=_SPACING_STEPS, **_FEW_STEPS[_BEST])
        for spacing in SPACINGS
    ]
    training = pixel_frechet_distance(digits("train").images[:number], held_out)
    return Report(facts, number, training, points, spacings)


def as_markdown(report: Report) -> str:
    """The two tables."""
    full = report.points[0]
    facts = ", ".join(f"{name} {value}" for name, value in report.facts.items())
    lines = [
        f"{facts}. Mean ± standard deviation over {len(full.frechet)} seeds of {report.images} "
        f"images; as many training images: {report.training:.3f}.",
        "",
    ]
    head = ["method", "network evaluations", "Fréchet distance", "of the full chain's"]
    rows = [
        [point.name, str(point.evaluations), point.shown, f"{point.mean / full.mean:.2f}"]
        for point in report.points
    ]
    lines += [*markdown(head, rows), ""]
    head = [f"{_BEST}, {_SPACING_STEPS} evaluations", "Fréchet distance"]
    rows = [[point.spacing, point.shown] for point in report.spacings]
    return "\n".join([*lines, *markdown(head, rows)])


def picture(report: Report) -> Figure:
    """Evaluations against Fréchet distance, a line per method."""
    from matplotlib.ticker import FuncFormatter, NullLocator

    figure = new_figure(8.5, 5, dpi=120)
    axes = figure.add_subplot()
    full = report.points[0]
    axes.axhline(full.mean, color="black", linewidth=1, linestyle="--")
    names = list(dict.fromkeys(point.name for point in report.points[1:]))
    for marker, name in zip(_MARKERS, names, strict=False):
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
    axes.axhline(report.training, color="grey", linewidth=1, linestyle=":", label="training images")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks([5, 10, 20, 40, 100, 200])
    axes.set_yticks([0.1, 0.2, 0.5, 1, 2, 5, 10, 20])
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_locator(NullLocator())
    axes.set_xlabel("network evaluations")
    axes.set_ylabel("pixel Fréchet distance to held-out digits")
    axes.grid(True, alpha=0.3)
    figure.legend(frameon=False, fontsize=9, loc="outside right upper")
    return figure


def main() -> None:
    command = parser(__doc__)
    command.add_argument("-n", "--number", type=int, default=400, help="images per seed")
    command.add_argument("--seeds", type=int, default=5)
    command.add_argument("--precision", default="auto")
    add_output(command, "methods.json, .md and .png")
    options = command.parse_args()
    report = measure(options.number, options.seeds, options.precision)
    deliver(options, "methods", asdict(report), as_markdown(report))
    if options.out is not None:
        save_figure(options.out / "methods.png", picture(report))


if __name__ == "__main__":
    main()
