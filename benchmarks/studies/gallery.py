"""What a network can do, in pictures: python -m ncsn_fast.benchmarks.studies.gallery --out DIR.

    ... mnist --data t10k-images-idx3-ubyte.gz --out docs/mnist

Written are samples beside real images, the chain from noise to image, images of each class for
several scales of guidance (where the network knows classes), chains between chains, images whose
middle was lost, and blurred and shrunk ones with noise. Of the last three the errors are a table:
the peak signal-to-noise ratio of what was measured, of one sample of the posterior and of the mean
of several, over real images that the network has not been trained on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

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
from ncsn_fast.guidance.operators import Blur, Downsample, Mask, Operator
from ncsn_fast.models.base import ScoreNetwork
from ncsn_fast.models.space import Space, to_images
from ncsn_fast.pictures import images as plots

SCALES = (0.0, 1.0, 2.0, 4.0)
_FRAMES, _TURNS = 12, 12  # columns of the pictures of chains and of interpolations
_NOISE = 0.05  # of measurements


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
    sampler, many = nf.Sampler(net), samples * len(real)
    if isinstance(operator, Mask):
        mask = operator.forward(torch.ones_like(states[:1]))
        known = states.repeat(samples, 1, 1, 1)
        drawn = sampler(many, seed=1, mask=mask, known=known, progress=True)
    else:
        measured = y.repeat(samples, 1, 1, 1)
        guidance = nf.posterior.gaussian_likelihood(operator, measured, problem.noise_std)
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
    _, states = sampler(number, seed=0, every=every)
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


def measure(model: str, data: str | None, out: Path, images: int, samples: int) -> dict[str, Any]:
    """Write the pictures; return the errors."""
    net = nf.load_checkpoint(model).eval()
    real = held_out(model, data)
    out.mkdir(parents=True, exist_ok=True)
    drawn = nf.sample(net, 100, seed=0, progress=True)
    plots.save_panels(out / "samples.png", {"generated": drawn, "real": real}, count=100)
    plots.save_grid(out / "chain.png", chain(net, 8), columns=_FRAMES)
    plots.save_grid(out / "between.png", between(net, 6), columns=_TURNS)
    if classes := getattr(net, "classes", ()):
        plots.save_grid(out / "guidance.png", by_guidance(net), columns=len(classes))
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
    }


def as_markdown(report: dict[str, Any]) -> str:
    """The table of errors."""
    errors = report["errors"]
    head = [f"PSNR in dB, {report['images']} images", *next(iter(errors.values()))]
    rows = [[title, *(f"{v:.1f}" for v in row.values())] for title, row in errors.items()]
    return "\n".join(markdown(head, rows))


def main() -> None:
    command = parser(__doc__)
    add_model(command)
    command.add_argument("--images", type=int, default=32, help="that are reconstructed")
    command.add_argument("--samples", type=int, default=8, help="of the posterior of each")
    add_output(command, "gallery.json, gallery.md and the pictures")
    options = command.parse_args()
    if options.out is None:
        command.error("give --out, the folder for the pictures")
    report = measure(options.model, options.data, options.out, options.images, options.samples)
    deliver(options, "gallery", report, as_markdown(report))


if __name__ == "__main__":
    main()
