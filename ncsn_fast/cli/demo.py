"""ncsn-fast demo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ncsn_fast.cli.common import SEED, Command, Count, Finite, device_of, device_option
from ncsn_fast.cli.output import Output
from ncsn_fast.pictures.images import image_grid
from ncsn_fast.runs import demo as work

_SHOWN = 64  # in the terminal


@click.command(cls=Command, opens=True, previews=True)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("ncsn_fast_demo"),
    show_default=True,
    help="Folder for the pictures and figures.",
)
@click.option(
    "--seconds",
    type=Finite(1, 86_400),
    default=60,
    show_default=True,
    help="Training time.",
)
@click.option(
    "--samples",
    type=Count(4, 400),
    default=400,
    show_default=True,
    help="Images to generate.",
)
@click.option("--seed", type=SEED, default=0, show_default=True)
@device_option
@click.pass_obj
def demo(output: Output, out: Path, device: str | None, **options: Any) -> None:
    """Train on handwritten digits for a minute, sample, and look at the result.

    \b
    Examples:
      ncsn-fast demo
      ncsn-fast demo --seconds 300 --out better
    """
    result = work.run(
        out, device=device_of(device), say=output.say, progress=output.progress, **options
    )
    output.preview(image_grid(result.images[:_SHOWN]))
    output.show(result.files["samples"])
    distance = result.metrics["pixel_frechet_distance_to_held_out"]
    output.say(
        f"\nPixel Fréchet distance to {result.metrics['held_out_images']} held-out digits "
        f"({result.metrics['images_compared']} images each; 0 is a perfect match):\n"
        f"  generated        {distance['generated']:8.3f}   after "
        f"{result.metrics['training_steps']} training steps\n"
        f"  training images  {distance['training_images']:8.3f}   as good as real images get\n"
        f"  uniform noise    {distance['noise']:8.3f}   what the chains start from\n"
    )
    meaning = {
        "samples": "generated digits beside real ones",
        "chain": "the chains from noise to digits, level by level",
        "loss": "the training loss",
        "metrics": "these figures and the settings",
        "model": f"the network; more: ncsn-fast sample {result.files['model']}",
    }
    for key, path in result.files.items():
        output.say(f"  {path!s:40} {meaning[key]}")
    output.report({**result.metrics, "files": result.files})


__all__ = ["demo"]
