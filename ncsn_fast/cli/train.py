"""ncsn-fast train."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from ncsn_fast.cli.common import COUNT, SEED, Command, device_of, device_option
from ncsn_fast.training.presets import PRESETS

# What a run may change when it goes on; the trainer refuses the same.
_FREE_ON_RESUME = {
    "accumulate",
    "checkpoint_every",
    "graph",
    "keep_every",
    "learning_rate",
    "sample_every",
    "samples",
    "steps",
    "tensorboard",
}
_NOT_IN_FILES = {"config", "device", "help", "out", "resume"}
_FROM_DATA = ("sigma_max", "num_levels", "step_size")


_GROUPS = {
    "Run": "out resume preset config seed device",
    "Data": "data image_size crop channels damaged flip dequantize rescaled logit_transform",
    "Network": "network ngf activation",
    "Noise levels and sampling": "schedule sigma_max sigma_min num_levels overlap step_size "
    "steps_per_level denoise",
    "Training": "steps batch_size accumulate learning_rate warmup beta1 beta2 eps clip_gradient "
    "precision graph ema ema_warmup anneal_power continuous",
    "What is written": "checkpoint_every keep_every sample_every samples tensorboard",
}


class _TrainCommand(Command):
    """Shows its many options in groups, and the presets below them."""

    def format_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        records = {
            parameter.name: parameter.get_help_record(context)
            for parameter in self.get_params(context)
        }
        for title, names in _GROUPS.items():
            with formatter.section(title):
                shown = [records.pop(name) for name in names.split()]
                formatter.write_dl([record for record in shown if record])
        with formatter.section("Other"):
            formatter.write_dl([record for record in records.values() if record])
        with formatter.section("Presets"):
            formatter.write_dl(
                [
                    (name, f"{preset.about}: {preset.network}, {preset.steps:,} steps")
                    for name, preset in PRESETS.items()
                ]
            )


@click.command(cls=_TrainCommand)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the run.")
@click.option(
    "--resume",
    is_flag=True,
    help="Go on with the run in --out. New may be --steps, --learning-rate and what is written.",
)
@click.option(
    "--preset",
    type=click.Choice(list(PRESETS)),
    metavar="NAME",
    default=None,
    help="Settings by name, listed below.",
)
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    default=None,
    help="YAML file: these options by name (batch_size: 32), or an official NCSN or NCSNv2 one.",
)
@click.option("--seed", type=SEED, default=0, show_default=True)
@device_option
@click.option(
    "--data",
    default="digits",
    show_default=True,
    help="digits, a folder of images, a .npy / .npz file, or CIFAR-10's binary version.",
)
@click.option(
    "--image-size", type=COUNT, default=None, help="Cut and shrink the files of a folder to this."
)
@click.option(
    "--crop",
    type=click.IntRange(min=0),
    default=None,
    help="Cut a square of this side from their middle first; 0: do not.",
)
@click.option("--channels", type=COUNT, default=None, help="Refuse images of another number.")
@click.option(
    "--damaged",
    type=click.Choice(["refuse", "skip"]),
    default="refuse",
    show_default=True,
    help="What to do with files that cannot be used.",
)
@click.option("--flip/--no-flip", default=False, help="Mirror half of the images.")
@click.option(
    "--dequantize",
    type=click.Choice(["none", "uniform", "gaussian"]),
    default="none",
    show_default=True,
    help="Noise below the step of 8-bit values.",
)
@click.option("--rescaled/--no-rescaled", default=False, help="Train on 2x - 1.")
@click.option("--logit-transform/--no-logit-transform", default=False, help="Train on the logit.")
@click.option(
    "--network",
    default="NCSNv2",
    show_default=True,
    type=click.Choice(["NCSN", "NCSNv2", "NCSNv2Deeper", "NCSNv2Deepest"]),
)
@click.option("--ngf", type=COUNT, default=32, show_default=True, help="Width of the network.")
@click.option(
    "--activation",
    default="elu",
    show_default=True,
    type=click.Choice(["elu", "relu", "lrelu", "swish"]),
)
@click.option(
    "--schedule",
    type=click.Choice(["auto", "preset"]),
    default=None,
    help="auto: largest level, number of levels and step size follow from the data, whatever a "
    "preset or file says. Default: auto, with a preset or an official file theirs.",
)
@click.option("--sigma-max", type=float, default=None, help="σ₁, the largest noise level.")
@click.option(
    "--sigma-min", type=float, default=0.01, show_default=True, help="The smallest noise level."
)
@click.option("--num-levels", type=click.IntRange(min=2), default=None, help="L.")
@click.option(
    "--overlap",
    type=float,
    default=0.5,
    show_default=True,
    help="Of neighbouring levels, where L follows from it; less gives fewer.",
)
@click.option("--step-size", type=float, default=None, help="ε of the sampler.")
@click.option(
    "--steps-per-level", type=COUNT, default=5, show_default=True, help="T of the sampler."
)
@click.option(
    "--denoise/--no-denoise", default=True, show_default=True, help="End sampling without noise."
)
@click.option("--steps", type=COUNT, default=5000, show_default=True, help="Optimiser steps.")
@click.option("--batch-size", type=COUNT, default=64, show_default=True)
@click.option(
    "--accumulate",
    type=COUNT,
    default=1,
    show_default=True,
    help="Parts a batch is cut into, to need less memory.",
)
@click.option("--learning-rate", type=float, default=1e-3, show_default=True, help="Of Adam.")
@click.option("--warmup", type=click.IntRange(min=0), default=0, help="Steps to reach that rate.")
@click.option("--beta1", type=float, default=0.9, show_default=True)
@click.option("--beta2", type=float, default=0.999, show_default=True)
@click.option("--eps", type=float, default=1e-8, show_default=True)
@click.option("--clip-gradient", type=float, default=None, help="Its largest norm.")
@click.option(
    "--precision",
    type=click.Choice(["fp32", "tf32", "bf16", "fp16"]),
    default="fp32",
    show_default=True,
)
@click.option(
    "--graph/--no-graph",
    default=None,
    help="The step as a CUDA graph. Default: where that is possible.",
)
@click.option(
    "--ema",
    type=float,
    default=0.999,
    show_default=True,
    help="Rate of the weights' moving average; 0 for none.",
)
@click.option(
    "--ema-warmup/--no-ema-warmup",
    default=True,
    show_default=True,
    help="Lower that rate at the beginning, which short runs need.",
)
@click.option(
    "--anneal-power", type=float, default=2.0, show_default=True, help="p of the loss weight σᵖ."
)
@click.option(
    "--continuous/--no-continuous", default=False, help="Noise levels between those of the ladder."
)
@click.option(
    "--checkpoint-every",
    type=COUNT,
    default=500,
    show_default=True,
    help="Steps between two saves: what a power failure can cost.",
)
@click.option("--keep-every", type=COUNT, default=None, help="Also keep the model so often.")
@click.option("--sample-every", type=COUNT, default=None, help="Draw samples so often.")
@click.option(
    "--samples", type=click.IntRange(min=2), default=100, show_default=True, help="How many."
)
@click.option("--tensorboard/--no-tensorboard", default=False, help="Log for TensorBoard too.")
def train(out: Path, resume: bool, device: str | None, **options: Any) -> None:
    """Train a score network on images.

    Settings come from the flags, else from --config, else from --preset, else they have the
    defaults below. Noise levels and step size are chosen from the data unless they are given.
    The folder of the run gets run.json (all settings), log.jsonl, loss.png, checkpoint.safetensors
    (to go on) and model.safetensors (to sample from). Ctrl-C saves; --resume goes on.

    \b
    Examples:
      ncsn-fast train --preset digits --out runs/digits
      ncsn-fast train --data photos/ --image-size 32 --flip --out runs/photos
      ncsn-fast train --data cifar-10-batches-bin --preset cifar10 --out runs/cifar10
      ncsn-fast train --data photos/ --preset cifar10 --schedule auto --batch-size 32 --out runs/a
      ncsn-fast train --data img_align_celeba/ --config celeba.yml --precision bf16 --out runs/b
      ncsn-fast train --out runs/digits --resume --steps 20000
    """
    from dataclasses import replace

    from ncsn_fast.runs import train as work

    context = click.get_current_context()
    source = click.core.ParameterSource.COMMANDLINE
    flags = {k: v for k, v in options.items() if context.get_parameter_source(k) == source}
    if resume:
        _check_free(flags)
        run, config = work.read_run(out)
        config = replace(config, **flags)
    else:
        run, config = work.from_settings(_merged(context, options, flags), out)
    model = work.train(
        run,
        config,
        resume=resume,
        device=device_of(device),
        say=click.echo,
        progress=sys.stderr.isatty(),
    )
    click.echo(f"Done. Now: ncsn-fast sample {model}")


def _check_free(flags: Mapping[str, Any]) -> None:
    """Refuse settings that a run cannot change."""
    refused = sorted(set(flags) - _FREE_ON_RESUME)
    if refused:
        names = ", ".join("--" + name.replace("_", "-") for name in refused)
        raise click.UsageError(f"{names} cannot change on --resume: the run has its settings")


def _merged(
    context: click.Context, options: Mapping[str, Any], flags: Mapping[str, Any]
) -> dict[str, Any]:
    """Flags over the file over the preset over the defaults."""
    file = {} if options["config"] is None else _from_file(context, options["config"])
    name = flags.get("preset", file.get("preset"))
    preset = {} if name is None else PRESETS[name].settings()
    if {**file, **flags}.get("schedule") == "preset" and not {*preset, *file} & {*_FROM_DATA}:
        raise click.UsageError(
            "--schedule preset takes the noise levels of a --preset or of an official --config: "
            "give one that has them, or leave --schedule out"
        )
    settings = {k: v for k, v in options.items() if k not in flags}
    for layer in (preset, file, flags):
        if layer.get("schedule") == "auto":
            settings |= dict.fromkeys(_FROM_DATA)
        settings |= layer
    for name, none in (("dequantize", "none"), ("crop", 0)):
        settings[name] = None if settings[name] == none else settings[name]
    if settings["graph"] is None:
        settings["graph"] = "auto"
    return settings


def _from_file(context: click.Context, path: Path) -> dict[str, Any]:
    """The settings of a YAML file, checked as flags are."""
    from ncsn_fast.checkpoints.official_yaml import is_official, read_official_yaml, run_settings

    values = read_official_yaml(path)
    if is_official(values):
        try:
            return run_settings(values)
        except ValueError as error:
            raise click.UsageError(f"{path}: {error}") from error
    known = {p.name: p for p in context.command.params if p.name not in _NOT_IN_FILES}
    unknown = [str(key) for key in values if key not in known]
    if unknown:
        raise click.UsageError(
            f"{path} sets {', '.join(unknown)}: known are {', '.join(sorted(map(str, known)))}; "
            "an official configuration has the sections data:, model: and training:"
        )
    settings = {}
    for key, value in values.items():
        if isinstance(value, list | dict):
            raise click.UsageError(f"{path}: {key} is {value}, where one value is expected")
        try:
            if value is not None:  # an empty line leaves the setting to preset and defaults
                settings[key] = known[key].type_cast_value(context, str(value))
        except click.BadParameter as error:
            raise click.UsageError(f"{path}: {key}: {error.message}") from error
    return settings


__all__ = ["train"]
