"""ncsn-fast schedule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ncsn_fast.cli.common import (
    COUNT,
    SEED,
    Command,
    Count,
    device_of,
    device_option,
    setting_option,
)
from ncsn_fast.cli.output import Output
from ncsn_fast.runs import schedule as work
from ncsn_fast.runs.training.settings import LOADING, SETTINGS


@click.command(cls=Command, opens=True)
@click.argument("data", default="digits", metavar="[DATA]")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("schedule"),
    show_default=True,
    help="Folder for schedule.json and schedule.png.",
)
@setting_option("image_size", SETTINGS["image_size"])
@click.option(
    "--crop", type=COUNT, default=None, help="Cut a square of this side from their middle first."
)
@setting_option("damaged", SETTINGS["damaged"])
@setting_option("key", SETTINGS["key"])
@setting_option("layout", SETTINGS["layout"])
@setting_option("values", SETTINGS["values"])
@click.option("--rescaled/--no-rescaled", default=False, help="For a network that sees 2x - 1.")
@click.option(
    "--logit-transform/--no-logit-transform", default=False, help="For one that sees the logit."
)
@setting_option("sigma_min", SETTINGS["sigma_min"])
@click.option(
    "--overlap",
    type=float,
    default=0.5,
    show_default=True,
    help="Of neighbouring levels; less gives fewer.",
)
@setting_option("steps_per_level", SETTINGS["steps_per_level"])
@click.option(
    "--max-points",
    type=Count(min=2),
    default=10_000,
    show_default=True,
    help="Compare so many random images where there are more.",
)
@click.option("--seed", type=SEED, default=0, show_default=True, help="Which of them.")
@device_option
@click.pass_obj
def schedule(
    output: Output,
    data: str,
    out: Path,
    rescaled: bool,
    logit_transform: bool,
    device: str | None,
    **settings: Any,
) -> None:
    """Choose noise levels and step size for your images, and show why.

    DATA is what `ncsn-fast train --data` takes: a folder of images, a .npy / .npz file, MNIST's IDX
    files, CIFAR-10's binary version, or the word "digits". The largest level is the largest
    distance between two images, neighbouring levels overlap by --overlap, and the step size keeps
    the sampler's variance (NCSNv2, Techniques 1, 2 and 4). Writes schedule.json (the numbers) and
    schedule.png (a picture of them).

    Training chooses its levels by the same rules, with the same --sigma-min, --overlap and
    --steps-per-level. The command that this one prints in the end trains with exactly these.

    \b
    Examples:
      ncsn-fast schedule photos/ --image-size 32
      ncsn-fast schedule images.npy --steps-per-level 10 --out levels
      ncsn-fast schedule train-images-idx3-ubyte.gz
      ncsn-fast schedule cifar-10-batches-bin --max-points 50000
    """
    report = work.schedule(
        data,
        out,
        loading={name: settings.pop(name) for name in LOADING},
        space={"rescaled": rescaled, "logit_transform": logit_transform},
        settings=settings,
        device=device_of(device),
        say=output.say,
        progress=output.progress,
    )
    output.show(report["files"]["picture"])
    output.told(report)


__all__ = ["schedule"]
