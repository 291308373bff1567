"""ncsn-fast train."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click

from ncsn_fast.checkpoints.official_yaml import is_official, read_official_yaml, run_settings
from ncsn_fast.cli.common import Command, device_of, device_option, setting_option
from ncsn_fast.cli.output import Output
from ncsn_fast.distributed.group import join
from ncsn_fast.distributed.ranks import from_environment
from ncsn_fast.runs import train as work
from ncsn_fast.runs.training.settings import FROM_DATA, SETTINGS, from_settings
from ncsn_fast.training.presets import PRESETS

_NOT_IN_FILES = {"config", "device", "help", "help_all", "open", "out", "quiet", "report", "resume"}
_FIRST = ("data", "image_size", "out", "preset", "steps", "conditional", "resume", "device")


class _TrainCommand(Command):
    """Shows the presets below all its options."""

    def format_all_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_all_options(context, formatter)
        with formatter.section("Presets"):
            formatter.write_dl(
                [
                    (name, f"{preset.about}: {preset.network}, {preset.steps:,} steps")
                    for name, preset in PRESETS.items()
                ]
            )


def _groups() -> dict[str, list[str]]:
    """The options by the headings under which they are shown."""
    groups: dict[str, list[str]] = {"Main options": [*_FIRST], "Run": ["config"]}
    for name, setting in SETTINGS.items():
        if name not in _FIRST and setting.group:
            groups.setdefault(setting.group, []).append(name)
    groups["Noise levels and sampling"].insert(0, "schedule")
    return groups


def _setting_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """An option for every setting of a run."""
    for name in reversed(SETTINGS):
        command = setting_option(name, SETTINGS[name])(command)
    return command


@click.command(cls=_TrainCommand, groups=_groups(), opens=True)
@_setting_options
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder of the run, such as runs/mine.",
)
@click.option(
    "--resume",
    is_flag=True,
    help="Go on with the run in --out. New may be --steps, --learning-rate, what is written, and "
    "--data where the same images lie elsewhere by now.",
)
@click.option(
    "--preset",
    type=click.Choice(list(PRESETS)),
    metavar="NAME",
    default=None,
    help=f"Settings by name: {', '.join(PRESETS)}.",
)
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    default=None,
    help="YAML file: these options by name (batch_size: 32), or an official NCSN or NCSNv2 one.",
)
@device_option
@click.option(
    "--schedule",
    type=click.Choice(["auto", "preset"]),
    default=None,
    help="auto: largest level, number of levels and step size follow from the data, whatever a "
    "preset or file says. Default: auto, with a preset or an official file theirs.",
)
@click.pass_obj
def train(output: Output, out: Path, resume: bool, device: str | None, **options: Any) -> None:
    """Train a score network on images.

    Settings come from the flags, else from --config, else from --preset, else they have the
    defaults below. Noise levels and step size are chosen from the data unless they are given.
    The folder of the run gets training.html (to watch it), run.json (all settings), log.jsonl,
    loss.png, checkpoint.safetensors (to go on) and model.safetensors (to sample from). Ctrl-C
    saves, a second one ends at once; --resume goes on.

    \b
    Examples:
      ncsn-fast train --preset digits --out runs/digits
      ncsn-fast train --data photos/ --image-size 32 --flip --out runs/photos
      ncsn-fast train --data cifar-10-batches-bin --preset cifar10 --out runs/cifar10
      ncsn-fast train --data photos/ --preset cifar10 --schedule auto --batch-size 32 --out runs/a
      ncsn-fast train --data img_align_celeba/ --config celeba.yml --precision bf16 --out runs/b
      ncsn-fast train --out runs/digits --resume --steps 20000
      torchrun --nproc-per-node=4 -m ncsn_fast train --data photos/ --out runs/c
    """
    context = click.get_current_context()
    source = click.core.ParameterSource.COMMANDLINE
    flags = {k: v for k, v in options.items() if context.get_parameter_source(k) == source}
    told: dict[str, Any] = {"say": output.say, "progress": output.progress, "show": output.show}
    told |= {"device": (device := device_of(device))}
    group = join(from_environment(), device)
    if resume:
        group.first_alone(lambda: _check_free(flags))
        report = work.resume(out, flags, **told)
    else:
        merged = partial(_merged, context, options, flags)
        run, config = group.first_alone(lambda: from_settings(merged(), out))
        report = work.train(run, config, **told)
    if not group.ranks.is_first:
        return
    output.say(f"Done. Now: ncsn-fast sample {report['files']['model']}")
    output.report(report)


def _check_free(flags: Mapping[str, Any]) -> None:
    """Refuse settings that a run cannot change."""
    refused = sorted(name for name in flags if name not in SETTINGS or not SETTINGS[name].free)
    if refused:
        names = ", ".join("--" + name.replace("_", "-") for name in refused)
        free = ", ".join("--" + n.replace("_", "-") for n in SETTINGS if SETTINGS[n].free)
        raise click.UsageError(
            f"{names} cannot change on --resume: the run has its settings. These may be new: {free}"
        )


def _merged(
    context: click.Context, options: Mapping[str, Any], flags: Mapping[str, Any]
) -> dict[str, Any]:
    """Flags over the file over the preset over the defaults."""
    file = {} if options["config"] is None else _from_file(context, options["config"])
    name = flags.get("preset", file.get("preset"))
    preset = {} if name is None else PRESETS[name].settings()
    told = {**file, **flags}
    if "steps" in told and "cooldown" in preset:  # its share of the run, not its length
        preset["cooldown"] = preset["cooldown"] * told["steps"] // preset["steps"]
    if flags.get("conditional") is False:  # what it says of classes is then for nobody
        preset = {k: v for k, v in preset.items() if not k.startswith("class_")}
    if told.get("schedule") == "preset" and not {*preset, *file} & {*FROM_DATA}:
        raise click.UsageError(
            "--schedule preset takes the noise levels of a --preset or of an official --config: "
            "give one that has them, or leave --schedule out"
        )
    settings = {k: v for k, v in options.items() if k not in flags}
    for layer in (preset, file, flags):
        if layer.get("schedule") == "auto":
            settings |= dict.fromkeys(FROM_DATA)
        settings |= layer
    if "class_dropout" in told and not settings["conditional"]:
        raise click.UsageError("--class-dropout is for --conditional: add it, or leave it out")
    return {name: value for name, value in settings.items() if not _is_none(name, value)}


def _is_none(name: str, value: Any) -> bool:
    """Whether this is how the command says that a setting is None."""
    none = SETTINGS[name].none if name in SETTINGS else None
    return none is not None and value == none


def _from_file(context: click.Context, path: Path) -> dict[str, Any]:
    """The settings of a YAML file, checked as flags are."""
    values = read_official_yaml(path)
    if is_official(values):
        try:
            return run_settings(values)
        except ValueError as error:
            raise click.UsageError(f"{path}: {error}") from error
    known = {p.name: p for p in context.command.params if p.name not in _NOT_IN_FILES}
    names = sorted(map(str, known))
    if unknown := [_with_guess(str(key), names) for key in values if key not in known]:
        raise click.UsageError(
            f"{path} sets {', '.join(unknown)}: known are {', '.join(names)}; "
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


def _with_guess(name: str, known: Sequence[str]) -> str:
    """A name that is unknown, with the one that may be meant."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
    return f"{name} ({near[0]}?)" if near else name


__all__ = ["train"]
