"""ncsn-fast profile."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Any

import click

from ncsn_fast.cli.common import COUNT, Command, device_of, device_option
from ncsn_fast.cli.output import Output
from ncsn_fast.runs import profile as work
from ncsn_fast.training.presets import PRESETS


@click.command(cls=Command, opens=True)
@click.argument("what", type=click.Choice(work.WORK), metavar="sample|train")
@click.argument("model", default="digits", metavar="[MODEL]")
@click.option(
    "--preset",
    type=click.Choice(list(PRESETS)),
    default=None,
    help="Instead of MODEL: the network of a preset of ncsn-fast train, with random weights.",
)
@click.option("--config", default=None, help="The YAML file of an official checkpoint.")
@click.option("--batch", type=COUNT, default=None, help="Images. Default: 128, on a CPU 16.")
@click.option("--steps", type=COUNT, default=10, show_default=True, help="Steps to record.")
@click.option(
    "--precision",
    type=click.Choice(["fp32", "tf32", "fp16", "bf16"]),
    default=None,
    help="Default: what sampling or training takes by itself.",
)
@click.option(
    "--graph/--no-graph", default=None, help="Insist on a captured CUDA graph, or on none."
)
@click.option(
    "--tool",
    type=click.Choice(work.TOOLS),
    default="auto",
    show_default=True,
    help="Which profiler to run; mark: none, one that you started is told which steps to record.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("profiles"),
    show_default=True,
    help="Folder for the report.",
)
@device_option
@click.pass_obj
def profile(output: Output, out: Path, tool: str, device: str | None, **settings: Any) -> None:
    """See where the time of a sampling or training step goes.

    A few steps of the network are run and recorded, after a warm-up. On a GPU with NVIDIA Nsight
    Systems (nsys) installed that writes a report for its window. Everywhere else PyTorch's
    profiler writes a timeline, to be opened at https://ui.perfetto.dev, and a table of the time
    by kernel, on a CPU by operator. The commands for Nsight Systems and Nsight Compute (ncu, one
    kernel under the microscope) are printed, to be copied or changed.

    MODEL is a checkpoint, or "digits", the default, "mnist" or "fashion", which come along.
    How to read all this is explained in docs/profiling.md.

    \b
    Examples:
      ncsn-fast profile sample
      ncsn-fast profile sample --preset cifar10 --batch 128 --precision fp16
      ncsn-fast profile sample --preset cifar10 --batch 1 --no-graph --out without_graph
      ncsn-fast profile train --preset cifar10 --tool torch
      ncsn-fast profile sample runs/photos/model.safetensors --tool ncu
    """
    if settings["preset"] is not None and settings["model"] != "digits":
        raise click.UsageError("give a MODEL or a --preset, not both")
    load = work.Workload(device=device_of(device), **settings)
    if tool != "mark":
        output.say("To profile this with NVIDIA's tools, on a machine that has them:\n")
        for command in work.commands(load, out).values():
            output.say(shlex.join(command) + "\n")
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # PyTorch's profiler tells when it starts
    files = work.profile(load, out, tool, output.say)
    if "page" in files:
        output.show(files["page"])
    output.told({"work": vars(load), "tool": tool, "files": files})


__all__ = ["profile"]
