"""Noise held or not: python -m ncsn_fast.benchmarks.studies.few_steps [MODEL] [--data IMAGES].

For a network that does not see σ, methods of the ODE and of the reverse SDE with several numbers of
evaluations, with and without ``hold_noise``: how many samples end noisy (their mean squared
distance from [0, 1] is above 0.005), and the pixel Fréchet distance to images of the data; and so
for chains of one method that begin in noise whose mean is the data's. A second table follows the
noise that the states of one of these chains have, a third is of images with noise of a known level:
what they say that it is, and how much of the noise's mean, an image's brightness, the network takes
away.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

import ncsn_fast as nf
from ncsn_fast import noise
from ncsn_fast.benchmarks.studies.common import (
    add_chain,
    add_model,
    add_number,
    add_output,
    deliver,
    full_chain,
    held_out,
    markdown,
    parser,
)
from ncsn_fast.device.environment import environment
from ncsn_fast.evaluation.pixel_distance import pixel_frechet_distance
from ncsn_fast.guidance.noise_level import excess, measured
from ncsn_fast.models.base import ScoreNetwork
from ncsn_fast.models.space import NOISY, Space
from ncsn_fast.pictures.images import save_panels

METHODS: dict[str, dict[str, Any]] = {
    "euler": {"method": "euler"},
    "heun": {"method": "heun"},
    "dpmpp_2m": {"method": "dpmpp_2m", "eta": 0.0},  # whatever the checkpoint says
    "ancestral": {"method": "ancestral", "eta": 1.0},
    "dpmpp_2m (eta 1)": {"method": "dpmpp_2m", "eta": 1.0},
}
_IMAGES = 2000
_LEVELS, _SHOWN = 8, 36
_FOLLOWED = "dpmpp_2m"
_SPACING = "geometric"  # any number of evaluations is possible on it


@dataclass(frozen=True)
class Drawn:
    """What one chain of all samples ended in."""

    noisy: int
    frechet: float
    sigma: list[float]  # of each row
    levels: list[float]  # what the states say there, t̂/σ: the mean of all samples


@dataclass(frozen=True)
class Point:
    """A method with so many network evaluations; held is None of the full chain."""

    method: str
    evaluations: int
    held: Drawn | None
    loose: Drawn


@dataclass(frozen=True)
class Level:
    """What images with noise of a level say of it, in parts of it: means and deviations.

    The gain is the share of the noise's mean over an image that is in -n; ideal is that of the
    linear law, σ²/(σ² + v), v being the variance of the data along the mean.
    """

    sigma: float
    by_length: tuple[float, float]  # -⟨x, n⟩ / ⟨n, n⟩
    by_stein: tuple[float, float]  # -⟨x - c, n⟩ / D
    believed: tuple[float, float]
    gain: float
    ideal: float


@dataclass(frozen=True)
class Report:
    """All that was measured, and with what."""

    facts: dict[str, str]
    images: int
    training: float  # Fréchet distance of as many images of the data
    points: list[Point]
    levels: list[Level]


def drawn(
    net: ScoreNetwork, number: int, seed: int, images: Tensor, even: bool = False, **settings: Any
) -> Drawn:
    """The samples of a method against images (M, C, H, W) in [0, 1]; even: from starts whose mean
    is that of the images."""
    sampler = nf.Sampler(net, **settings)
    initial = sampler.first_states(seed, torch.arange(number)) if even else None
    if initial is not None:
        wanted = Space.of(net).enter(images).mean()
        initial = initial - initial.mean((1, 2, 3), keepdim=True) + wanted
    sigma = sampler.table.sigma
    levels = [0.0] * len(sigma)

    def add(row: int, x: Tensor, n: Tensor) -> None:
        levels[row] += float(measured(x, n, sigma[row])[0].sum()) / number

    states = sampler(number, seed=seed, initial=initial, callback=add)
    noisy = int((Space.of(net).beyond(states) > NOISY).sum())
    distance = pixel_frechet_distance(Space.of(net).leave(states), images)
    return Drawn(noisy, distance, [*sigma], levels)


@torch.no_grad()
def level_of(net: ScoreNetwork, index: int, images: Tensor) -> Level:
    """What images (N, C, H, W) with the noise of a level of the ladder say of it."""
    sigma = float(net.sigmas[index])
    z = noise.normal(net.shape, seed=0, stream=noise.PERTURB, sample_ids=range(len(images)))
    clean = Space.of(net).enter(images)
    x = clean + sigma * z
    n = net.normalized(x, None)
    length = -(x * n).flatten(1).sum(1) / n.square().flatten(1).sum(1) / sigma
    ratio, _ = measured(x, n, sigma)
    shares = (length, ratio, 1 + excess(x, n, sigma) / sigma)
    found = [(float(one.mean()), float(one.std())) for one in shares]
    removed, bright, whole = (one.flatten(1).mean(1) for one in (n, z, clean))
    gain = -float((removed * bright).sum() / bright.square().sum())
    along = float(whole.var()) * z[0].numel()  # a mean of D values has noise of σ/√D
    return Level(sigma, found[0], found[1], found[2], gain, sigma**2 / (sigma**2 + along))


def measure(
    net: ScoreNetwork,
    images: Tensor,
    number: int,
    steps: Sequence[int],
    *,
    seed: int = 0,
    precision: str = "auto",
    chain: dict[str, Any] | None = None,
) -> Report:
    """Run all of it; ``images`` (M, C, H, W) in [0, 1], M ≥ 2·number; chain: settings of one more
    method, the full chain."""
    facts = {
        "date": datetime.date.today().isoformat(),
        "precision": nf.Sampler(net, precision=precision).precision,
        **environment(net.sigmas.device),
    }
    rest = images[number:]

    def run(**settings: Any) -> Drawn:
        return drawn(net, number, seed, rest, precision=precision, **settings)

    points = []
    for method, even in (*((name, False) for name in METHODS), (_FOLLOWED, True)):
        for count in steps:
            settings = {**METHODS[method], "steps": count, "spacing": _SPACING}
            evaluations = len(nf.Sampler(net, **settings).table)
            loose, held = (run(even=even, hold_noise=hold, **settings) for hold in (False, True))
            name = f"{method}, even starts" if even else method
            points.append(Point(name, evaluations, held, loose))
    if chain is not None:
        rows = len(nf.Sampler(net, **chain).table)
        points.append(Point("the full chain", rows, None, run(**chain)))
    indices = torch.linspace(0, len(net.sigmas) - 1, _LEVELS).round().int().tolist()
    levels = [level_of(net, index, images[:number]) for index in indices]
    return Report(facts, number, pixel_frechet_distance(images[:number], rest), points, levels)


def as_markdown(report: Report) -> str:
    """The three tables."""
    facts = ", ".join(f"{name} {value}" for name, value in report.facts.items())
    lines = [
        f"{facts}. {report.images} samples; as many images of the data have a Fréchet distance of "
        f"{report.training:.2f}.",
        "",
    ]
    head = ["method", "evaluations", "noisy, held", "not held", "distance, held", "not held"]
    rows = []
    for point in report.points:
        held = ("", "") if point.held is None else _shown(point.held)
        loose = _shown(point.loose)
        row = [point.method, str(point.evaluations), held[0], loose[0], held[1], loose[1]]
        rows.append(row)
    lines += [*markdown(head, rows), ""]
    followed = [point for point in report.points if point.method == _FOLLOWED and point.held]
    for point in followed[:2][-1:]:
        assert point.held is not None
        name = f"{point.method}, {point.evaluations} evaluations"
        head = [f"σ of {name}", "t̂/σ, held", "not held"]
        path = zip(point.held.sigma, point.held.levels, point.loose.levels, strict=True)
        rows = [[f"{sigma:.3g}", f"{one:.2f}", f"{other:.2f}"] for sigma, one, other in path]
        lines += [*markdown(head, rows), ""]
    head = ["σ", "-⟨x, n⟩ / ⟨n, n⟩", "-⟨x - c, n⟩ / D", "believed", "brightness", "ideally"]
    rows = []
    for level in report.levels:
        shares = (level.by_length, level.by_stein, level.believed)
        said = [f"{mean:.2f} ± {spread:.2f}" for mean, spread in shares]
        rows.append([f"{level.sigma:.3g}", *said, f"{level.gain:.2f}", f"{level.ideal:.2f}"])
    return "\n".join([*lines, *markdown(head, rows)])


def panels(
    net: ScoreNetwork, images: Tensor, steps: int, *, seed: int = 0, precision: str = "auto"
) -> dict[str, Tensor]:
    """Titled images to look at: the same samples not held and held, and images of the data."""
    told = {**METHODS[_FOLLOWED], "steps": steps, "spacing": _SPACING, "precision": precision}
    return {
        f"{_FOLLOWED}, {steps} evaluations, {word}": nf.sample(
            net, _SHOWN, hold_noise=hold, seed=seed, **told
        )
        for word, hold in (("not held", False), ("held", True))
    } | {"the data": images[:_SHOWN]}


def _shown(found: Drawn) -> tuple[str, str]:
    return str(found.noisy), f"{found.frechet:.2f}"


def main() -> None:
    command = parser(__doc__)
    add_model(command)
    add_number(command, 64, 5, "samples of each")
    command.add_argument("--steps", type=int, nargs="+", default=[5, 10, 20, 40])
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--precision", default="auto")
    command.add_argument("--full", action="store_true", help="the full annealed chain too")
    add_chain(command)
    add_output(command, "few_steps.json, .md and .png")
    options = command.parse_args()
    told = options.step_size is not None or options.steps_per_level is not None
    if told and not options.full:
        command.error("--step-size and --steps-per-level are of the full chain: give --full too")
    images = held_out(options.model, options.data)
    given = {"seed": options.seed, "precision": options.precision}
    net = nf.load_checkpoint(options.model)
    images = images[:_IMAGES]
    chain = full_chain(net, options) if options.full else None
    report = measure(net, images, options.number, options.steps, chain=chain, **given)
    deliver(options, "few_steps", asdict(report), as_markdown(report))
    if options.out is not None:
        shown = panels(net, images, min(10, max(options.steps)), **given)
        save_panels(options.out / "few_steps.png", shown, count=_SHOWN)


if __name__ == "__main__":
    main()
