"""What a network can do, in pictures: python -m ncsn_fast.benchmarks.studies.gallery --out DIR.

    ... mnist --data t10k-images-idx3-ubyte.gz --out docs/mnist

Written are samples beside real images, the chain from noise to image, images of each class for
several scales of guidance (where the network knows classes: then samples and chains too are of each
in its turn), chains between chains, images whose middle was lost, and blurred and shrunk ones with
noise, all these of no class. Of the last three the errors are a table:
the peak signal-to-noise ratio of what was measured, of one sample of the posterior and of the mean
of several, over real images that the network has not been trained on.

And what two settings of a chain do: the same seeds at several temperatures, with a table of how
good and how different their images are; and ``clip``, with chains of another score that run off.
"""

from __future__ import annotations

import contextlib
import math
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import ncsn_fast as nf
from ncsn_fast.benchmarks.studies.common import (
    add_model,
    add_number,
    add_output,
    deliver,
    held_out,
    markdown,
    parser,
)
from ncsn_fast.data.pixels import eight_bits
from ncsn_fast.device.environment import environment
from ncsn_fast.evaluation.quality import Reference
from ncsn_fast.guidance.operators import Blur, Downsample, Mask, Operator
from ncsn_fast.methods.tables import langevin
from ncsn_fast.models.base import ScoreNetwork
from ncsn_fast.models.space import Space, to_images
from ncsn_fast.pictures import images as plots
from ncsn_fast.pictures.curves import new_figure, save_figure
from ncsn_fast.training.samples import in_turn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCALES = (0.0, 1.0, 2.0, 4.0)
TEMPERATURES = (0.5, 0.8, 1.0, 1.2)
CLIPS = (1 / 32, 1 / 8, 1 / 2, 1.0)  # in lengths of the score at the smallest level, √D/σ_L
_SHOWN = 16  # images a row of these
_FAR_CLIP, _FAR_STEPS = 100.0, 60
_FRAMES, _TURNS = 12, 12  # columns of the pictures of chains and of interpolations
_NOISE = 0.05  # of measurements
_SOLVED_IN = 20  # evaluations, each with four backward passes


class Problem(NamedTuple):
    """An image that was measured through an operator, with noise."""

    title: str
    operator: Operator
    noise_std: float


def problems(shape: tuple[int, int, int]) -> list[Problem]:
    """The middle lost, blurred, and shrunk to half."""
    _, height, width = shape
    mask = torch.ones(1, height, width)
    mask[:, height // 4 : height - height // 4, width // 4 : width - width // 4] = 0
    side = torch.arange(-3.0, 4.0)
    bell = (-side.square() / (2 * 1.5**2)).exp()
    kernel = bell[:, None] * bell
    return [
        Problem("middle lost", Mask(mask, shape), 0.0),
        Problem("blurred", Blur(kernel / kernel.sum(), shape), _NOISE),
        Problem("half the size", Downsample(2, shape), _NOISE),
    ]


def solve(net: ScoreNetwork, problem: Problem, real: Tensor, samples: int) -> dict[str, Tensor]:
    """What was measured of images (N, C, H, W), as an image, and samples (S, N, C, H, W) of what
    they may have been."""
    states = Space.of(net).enter(real)
    operator = problem.operator
    ids = range(len(real))
    z = nf.noise.normal(operator.measured, seed=9, stream=nf.noise.KNOWN, sample_ids=ids)
    y = operator.forward(states) + problem.noise_std * z
    many = samples * len(real)
    if isinstance(operator, Mask):
        mask = operator.forward(torch.ones_like(states[:1]))
        known = states.repeat(samples, 1, 1, 1)
        drawn = nf.Sampler(net)(many, seed=1, mask=mask, known=known, progress=True)
    else:
        guidance = nf.guidance.mmps(operator, y.repeat(samples, 1, 1, 1), problem.noise_std)
        sampler = nf.Sampler(net, method="ancestral", steps=min(_SOLVED_IN, len(net.sigmas)))
        drawn = sampler(many, seed=1, guidance=guidance, progress=True)
    seen = y
    if isinstance(operator, Downsample):
        seen = y.repeat_interleave(2, -1).repeat_interleave(2, -2)
    return {
        "measured": seen.clamp(0, 1),
        "samples": to_images(net, drawn).unflatten(0, (samples, len(real))),
    }


def psnr(images: Tensor, real: Tensor) -> float:
    """Peak signal-to-noise ratio in dB, the mean over images (N, C, H, W) in [0, 1]."""
    errors = (images - real).square().flatten(1).mean(1)
    return float((-10 * errors.log10()).mean())


def chain(net: ScoreNetwork, number: int) -> Tensor:
    """States of the first chains, evenly spread from noise to image, as rows of a grid.

    Early states are shown with their noise shrunk to that of the images.
    """
    sampler = nf.Sampler(net)
    every = max(1, len(sampler.table) // (_FRAMES - 1))
    _, states = sampler(number, seed=0, every=every, extra=in_turn(net, number))
    sigmas = torch.tensor(sampler.kept_sigmas(every)).view(-1, 1, 1, 1, 1)
    shown = 0.5 + (states - 0.5) / (1 + (3 * sigmas).square()).sqrt()
    picked = torch.linspace(0, len(shown) - 1, _FRAMES).round().long()
    return to_images(net, shown[picked].transpose(0, 1).flatten(0, 1))


def by_guidance(net: ScoreNetwork, **settings: Any) -> Tensor:
    """A row for each scale, with an image of each class; seed and ids are the same."""
    classes: Tensor = torch.arange(len(getattr(net, "classes", ())))
    told = {"extra": {"classes": classes}, **settings}
    rows = [nf.sample(nf.guided(net, scale), len(classes), seed=4, **told) for scale in SCALES]
    return torch.cat(rows)


def between(net: ScoreNetwork, pairs: int) -> Tensor:
    """A row for each pair of chains, and the chains between them."""
    sampler = nf.Sampler(net)
    return to_images(net, nf.interpolate(sampler, pairs, _TURNS, seed=2).flatten(0, 1))


def _noisy(net: ScoreNetwork) -> dict[str, Any]:
    """A method of this network that adds noise: its own, if that does."""
    return {} if nf.Sampler(net).table.adds_noise else {"method": "ancestral"}


def at_temperatures(net: ScoreNetwork, number: int) -> dict[float, Tensor]:
    """Images (N, C, H, W) of the same seed and ids at each temperature."""
    settings = {"seed": 5, "progress": True, "extra": in_turn(net, number), **_noisy(net)}
    return {one: nf.sample(net, number, temperature=one, **settings) for one in TEMPERATURES}


def clipped(net: ScoreNetwork, number: int) -> dict[float, tuple[float, Tensor]]:
    """For each of ``CLIPS``, in how many of the steps it shortened the score, and the images
    (N, C, H, W), of the same seed and ids."""
    sampler = nf.Sampler(net, **_noisy(net))
    longest = math.sqrt(math.prod(sampler.shape)) / min(sampler.table.sigma)
    found = {}
    for share in CLIPS:
        bitten = 0

        def count(row: int, x: Tensor, n: Tensor, most: float = share * longest) -> None:
            nonlocal bitten
            length = n.flatten(1).norm(dim=1) / sampler.table.sigma[row]
            bitten += int((length > most * (1 - 1e-5)).sum())

        states = sampler(number, seed=5, clip=share * longest, callback=count)
        found[share] = bitten / (number * len(sampler.table)), to_images(net, states)
    return found


def far(clip: float | None, number: int = 8) -> Tensor:
    """Chains (rows + 1, N) of Langevin dynamics on the score x - x³, whose modes are ±1, from -20
    to 20, until one is no longer finite: steps of 0.02 run off beyond |x| = 10."""
    score = nf.Score(lambda x: x - x**3, "score", "none")
    sampler = nf.Sampler(score, (1,), method=langevin(0.02, _FAR_STEPS))
    initial = torch.linspace(-20, 20, number)[:, None]
    seen: list[Tensor] = []
    with contextlib.suppress(nf.SamplingError):
        callback = partial(_keep, seen)
        seen.append(sampler(number, seed=0, initial=initial, clip=clip, callback=callback))
    chains = torch.cat(seen, 1).T
    lost = (~chains.isfinite().all(1)).nonzero()
    return chains[: int(lost[0])] if len(lost) else chains


def _keep(seen: list[Tensor], row: int, x: Tensor, n: Tensor) -> None:
    seen.append(x)


def clip_picture(found: dict[float, tuple[float, Tensor]]) -> Figure:
    """Chains that run off, or are held; and a row of images for each clip of :func:`clipped`."""
    figure = new_figure(9.5, 3.6, dpi=100)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.6))
    for clip, colour in ((None, "tab:red"), (_FAR_CLIP, "tab:blue")):
        label = "without" if clip is None else f"clip = {clip:g}"
        chains = far(clip).abs().numpy()
        left.plot(chains, color=colour, linewidth=1, label=[label, *[None] * (chains.shape[1] - 1)])
    left.set(yscale="log", ylim=(0.1, 1e4), xlabel="step", ylabel="|x|")
    left.set_title("score x - x³, ε = 0.02", fontsize=10)
    left.legend(frameon=False, fontsize=9)
    rows = [images[: _SHOWN // 2] for _, images in found.values()]
    grid = np.asarray(plots.image_grid(torch.cat(rows), columns=len(rows[0])))
    right.imshow(grid, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    height = len(grid) / len(rows)
    told = [f"{Fraction(share)}: {100 * bitten:.0f} %" for share, (bitten, _) in found.items()]
    right.set_yticks([height * (i + 0.5) for i in range(len(rows))], told, fontsize=9)
    right.set_xticks([])
    right.set_title("clip in √D/σ_L, and in how many steps it bites", fontsize=10)
    return figure


def measure(
    model: str, data: str | None, out: Path, images: int, samples: int, number: int = 100
) -> dict[str, Any]:
    """Write the pictures; return the errors, and the quality at each temperature."""
    net = nf.load_checkpoint(model).eval()
    real = held_out(model, data)
    out.mkdir(parents=True, exist_ok=True)
    drawn = nf.sample(net, 100, seed=0, extra=in_turn(net, 100), progress=True)
    plots.save_panels(out / "samples.png", {"generated": drawn, "real": real}, count=100)
    plots.save_grid(out / "chain.png", chain(net, 8), columns=_FRAMES)
    plots.save_grid(out / "between.png", between(net, 6), columns=_TURNS)
    if classes := getattr(net, "classes", ()):
        plots.save_grid(out / "guidance.png", by_guidance(net), columns=len(classes))
    warm = at_temperatures(net, number)
    titled = {f"temperature {one:g}": found for one, found in warm.items()}
    plots.save_panels(out / "temperature.png", titled, count=_SHOWN, columns=_SHOWN, per_row=1)
    save_figure(out / "clip.png", clip_picture(clipped(net, _SHOWN)))
    reference = Reference(eight_bits(real.numpy()))
    quality = {
        one: reference.quality(eight_bits(found.cpu().numpy())) for one, found in warm.items()
    }
    errors = {}
    shape, real = net.shape, real[:images]
    assert len(shape) == 3
    for problem in problems((shape[0], shape[1], shape[2])):
        found = solve(net, problem, real, samples)
        mean = found["samples"].mean(0)
        rows = [real[:12], found["measured"][:12], mean[:12], *found["samples"][:2, :12]]
        name = problem.title.replace(" ", "_")
        plots.save_grid(out / f"{name}.png", torch.cat(rows), columns=len(rows[0]))
        errors[problem.title] = {
            "measured": psnr(found["measured"], real),
            "one sample": psnr(found["samples"][0], real),
            f"mean of {samples}": psnr(mean, real),
        }
    return {
        "model": model,
        "images": len(real),
        "environment": environment(net.sigmas.device),
        "errors": errors,
        "temperatures": {
            f"{one:g}": {name: getattr(found, name) for name in ("frechet", "precision", "recall")}
            for one, found in quality.items()
        },
        "drawn": number,
    }


def as_markdown(report: dict[str, Any]) -> str:
    """The tables of errors and of temperatures."""
    errors = report["errors"]
    head = [f"PSNR in dB, {report['images']} images", *next(iter(errors.values()))]
    rows = [[title, *(f"{v:.1f}" for v in row.values())] for title, row in errors.items()]
    lines = [*markdown(head, rows), ""]
    head = [f"temperature, {report['drawn']} images", "precision", "recall", "Fréchet distance"]
    rows = []
    for one, found in report["temperatures"].items():
        distance = "" if found["frechet"] is None else f"{found['frechet']:.2f}"
        shares = [f"{100 * found[name]:.0f} %" for name in ("precision", "recall")]
        rows.append([one, *shares, distance])
    return "\n".join([*lines, *markdown(head, rows)])


def main() -> None:
    command = parser(__doc__)
    add_model(command)
    command.add_argument("--images", type=int, default=32, help="that are reconstructed")
    command.add_argument("--samples", type=int, default=8, help="of the posterior of each")
    add_number(command, 100, 5, "images of a temperature")
    add_output(command, "gallery.json, gallery.md and the pictures")
    options = command.parse_args()
    if options.out is None:
        command.error("give --out, the folder for the pictures")
    numbers = options.images, options.samples, options.number
    report = measure(options.model, options.data, options.out, *numbers)
    deliver(options, "gallery", report, as_markdown(report))


if __name__ == "__main__":
    main()
