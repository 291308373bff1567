"""ncsn-fast convert."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ncsn_fast.cli.common import CHECKPOINT, PIXELS, Command
from ncsn_fast.cli.output import Output
from ncsn_fast.runs import convert as work
from ncsn_fast.runs.report import in_words, network_facts, told


@click.command(cls=Command)
@click.argument("source", type=CHECKPOINT, metavar="IN")
@click.argument("target", type=click.Path(path_type=Path), metavar="OUT")
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    default=None,
    help="The YAML file of IN, where it is an official checkpoint.",
)
@click.option(
    "--weights",
    type=click.Choice(["ema", "model"]),
    default=None,
    help="The averaged weights, or those as trained.  [default: the averaged, where IN has them]",
)
@click.option(
    "--dtype",
    type=click.Choice(["float16", "bfloat16"]),
    default=None,
    help="Store a .safetensors file in half the size; loading widens to float32 again.",
)
@click.option("--image-size", type=PIXELS, default=None, help="Where neither IN nor --config says.")
@click.option("--force", is_flag=True, help="Replace files that are there already.")
@click.pass_obj
def convert(
    output: Output, source: Path, target: Path, weights: str | None, **options: Any
) -> None:
    """Convert a checkpoint between the official layouts and ours.

    The ending of OUT decides. A .safetensors file (with a .json to read) holds all that sampling
    needs. A .pth file, with a .yml beside it, is what the official code of NCSN or NCSNv2 loads;
    unless --weights model it gets the averaged weights besides those as trained, where IN has both.
    Numbers come through bit for bit; the state of the optimiser stays behind.

    \b
    Examples:
      ncsn-fast convert checkpoint_300000.pth cifar10.safetensors --config cifar10.yml
      ncsn-fast convert runs/photos/checkpoint.safetensors photos.pth
      ncsn-fast convert runs/photos/model.safetensors small.safetensors --dtype float16
    """
    ema = None if weights is None else weights == "ema"
    net, files = work.convert(source, target, ema=ema, **options)
    facts = network_facts(net)
    output.say(told(facts))
    if net.sampling is None:
        output.say("How to sample from it is not known: give --step-size and --steps-per-level.")
    else:
        output.say(f"To be sampled by {in_words(net.sampling)}")
    for path in files:
        output.say(f"  {path}")
    if net.sampling is not None and target.suffix == ".safetensors":
        output.say(f"Now: ncsn-fast sample {target}")
    output.report({**facts, "dtype": options["dtype"], "files": files})


__all__ = ["convert"]
