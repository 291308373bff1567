"""ncsn-fast sample."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ncsn_fast.cli.common import COUNT, PIXELS, SEED, WORDS, Command, device_of, device_option
from ncsn_fast.cli.output import Output
from ncsn_fast.runs import sample as work

_MOST_SAMPLES = 10_000_000


@click.command(cls=Command)
@click.argument(
    "checkpoint", type=click.Path(path_type=Path), default=Path("digits"), metavar="[CHECKPOINT]"
)
@click.option(
    "-n",
    "--number",
    type=click.IntRange(1, _MOST_SAMPLES),
    default=64,
    show_default=True,
    help="How many images.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("samples"),
    show_default=True,
    help="Folder for samples.npz and grid.png.",
)
@click.option("--seed", type=SEED, default=0, show_default=True)
@click.option(
    "--first-id",
    type=click.IntRange(0, 2**48 - _MOST_SAMPLES),
    default=0,
    show_default=True,
    help="Id of the first image: 64 here continues a set of 64.",
)
@click.option(
    "--label",
    "labels",
    type=WORDS,
    metavar="CLASS[,CLASS...]",
    default=None,
    help="Classes by name or number, one after the other; all: each of them. Default: none, an "
    "image of any class.",
)
@click.option(
    "--guidance",
    type=float,
    default=None,
    help="How much the class is exaggerated: 1 as trained, 2 clearer and less varied.",
)
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    default=None,
    help="The YAML file of an official checkpoint.",
)
@click.option("--image-size", type=PIXELS, default=None, help="Where the checkpoint does not say.")
@click.option(
    "--method",
    metavar="NAME",
    default=None,
    help="How to get from noise to an image: annealed_langevin (the usual default: what the "
    "checkpoint says), consistent_annealed, reverse_diffusion, ancestral, predictor_corrector, "
    "euler, heun or dpmpp_2m. The last six take --steps. On the digits dpmpp_2m --steps 10 "
    "is as good as the full chain; of a network in the midst of its training ancestral is better.",
)
@click.option(
    "--steps",
    type=click.IntRange(1, 100_000),
    default=None,
    help="How often the network is run, at most: fewer is faster. Default: once per noise level.",
)
@click.option(
    "--spacing",
    metavar="NAME",
    default=None,
    help="Which noise levels the steps visit: auto (the default: those of the training where "
    "these are geometric), ladder, nearest, geometric, karras or linear.",
)
@click.option("--rho", type=float, default=None, help="ρ of --spacing karras. Default: 7.")
@click.option(
    "--snr",
    type=float,
    default=None,
    help="r of predictor_corrector, 0.1 to 0.3. Default: from the checkpoint's ε.",
)
@click.option(
    "--step-size",
    type=float,
    default=None,
    help="ε of annealed_langevin, consistent_annealed, predictor_corrector. Default: the "
    "checkpoint's.",
)
@click.option(
    "--steps-per-level",
    type=click.IntRange(1, 10_000),
    default=None,
    help="T of annealed_langevin, k of consistent_annealed. Default: the checkpoint's.",
)
@click.option("--denoise/--no-denoise", default=None, help="Last step of theirs without noise.")
@click.option(
    "--hold-noise/--no-hold-noise",
    default=None,
    help="Whether an image on its way, which says itself how noisy it is, is kept as noisy as each "
    "step expects. Default: with euler, heun and dpmpp_2m, for networks that do not see the noise "
    "level.",
)
@click.option("--batch-size", type=COUNT, default=None, help="Images at once; changes no image.")
@click.option("--gif", is_flag=True, help="Also animate the first chains.")
@device_option
@click.pass_obj
def sample(
    output: Output,
    checkpoint: Path,
    number: int,
    out: Path,
    seed: int,
    first_id: int,
    labels: tuple[str, ...] | None,
    guidance: float | None,
    config: Path | None,
    image_size: int | None,
    batch_size: int | None,
    gif: bool,
    device: str | None,
    **settings: Any,
) -> None:
    """Sample images from a checkpoint: ours or the official ones.

    Without CHECKPOINT, or with the word "digits", from the network of handwritten digits that
    comes along. Writes samples.npz (the images as numbers), grid.png (a picture of them) and,
    with --gif, chain.gif. Stopped half-way, the same command goes on where it was.

    \b
    Examples:
      ncsn-fast sample -n 100 --gif
      ncsn-fast sample digits -n 100 --method dpmpp_2m --steps 10 --out quick
      ncsn-fast sample runs/fashion/model.safetensors --label boot,bag --guidance 2 --out boots
      ncsn-fast sample runs/photos/model.safetensors -n 16 --out photos
      ncsn-fast sample checkpoint_300000.pth --config cifar10.yml -n 16
    """
    report = work.sample(
        checkpoint,
        out,
        ids=range(first_id, first_id + number),
        seed=seed,
        settings=settings,
        labels=labels or (),
        guidance=guidance,
        config=config,
        image_size=image_size,
        batch_size="auto" if batch_size is None else batch_size,
        gif=gif,
        device=device_of(device),
        say=output.say,
        progress=output.progress,
    )
    output.told(report)


__all__ = ["sample"]
