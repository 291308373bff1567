"""What the commands share: how they refuse and end, and the options that several of them have."""

from __future__ import annotations

import contextlib
import math
import re
import signal
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import click
import torch

import ncsn_fast as nf
from ncsn_fast.cli.output import Output, open_streams, write
from ncsn_fast.device import backends
from ncsn_fast.distributed.group import OtherProcessError
from ncsn_fast.distributed.ranks import Ranks, device_here, from_environment
from ncsn_fast.support.settings import Setting
from ncsn_fast.support.signals import on_stop

_MOST = 2**31 - 1
_ALL_HELP = "ncsn_fast.all_help"  # in a context's meta: --help-all was given
_TO_SPEAK = 15  # seconds
_REFUSED = (ValueError, OSError, nf.SamplingError, nf.TrainingError, OtherProcessError)
_NO_MEMORY = (MemoryError, torch.OutOfMemoryError)


def _in_words(least: float | None, most: float | None) -> str:
    """The numbers of a range."""
    if most is None:
        return f"{least} or more"
    if isinstance(most, int) and most > _MOST and not most & (most + 1):
        return f"{least} to 2^{most.bit_length()} - 1"
    return f"{least} to {most:,}"


class Count(click.IntRange):
    """A number of things; one that nobody has is refused without a bound in the help."""

    name = "whole number"

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        return "N"

    def _describe_range(self) -> str:
        return _in_words(self.min, self.max)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        number: int = super().convert(value, param, ctx)
        if self.max is None and number > _MOST:
            self.fail(f"{value} is too large: the most is {_MOST:,}.", param, ctx)
        return number


class Finite(click.FloatRange):
    """A number that is neither infinite nor none."""

    name = "number"

    def _describe_range(self) -> str:
        return _in_words(self.min, self.max)

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not finite.", param, ctx)
        return number


class Words(click.ParamType):
    """Names with commas between them."""

    name = "words"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        return tuple(word.strip() for word in value.split(","))


class Checkpoint(click.ParamType):
    """A file, or the name of a network that comes along; "./mnist" is a file of that name."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        path = Path(value)  # which would make "mnist" of it
        return path if str(path) == str(value) else path.absolute()


SEED = Count(0, 2**64 - 1)
COUNT = Count(min=1)
PIXELS = Count(1, 1 << 14)
CHECKPOINT = Checkpoint()
WORDS = Words()


class Group(click.Group):
    """The command line: its commands can do without stdin, stdout and stderr, and are listed under
    headings."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._sections: dict[str, Sequence[click.Command]] = {}

    def add_section(self, title: str, commands: Sequence[click.Command]) -> None:
        self._sections[title] = commands
        for command in commands:
            self.add_command(command)

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        for title, commands in self._sections.items():
            with formatter.section(title):
                formatter.write_dl(
                    [(str(one.name), one.get_short_help_str(limit=200)) for one in commands]
                )

    def main(self, *arguments: Any, **keywords: Any) -> Any:
        open_streams()
        return super().main(*arguments, **keywords)


class Command(click.Command):
    """Refuses in one clear line, and tells what it does through an :class:`Output`, which its
    function gets by ``click.pass_obj``.

    After a signal the exit code is 128 and its number, as is the custom: 130 for Ctrl-C, 143 for
    SIGTERM, 129 for SIGHUP. Of several processes (torchrun) the first one speaks; another one only
    of what went wrong in itself.

    Args:
        opens: whether it has --open, by which :meth:`Output.show` opens what its function shows.
        previews: whether it has --preview, for what its function gives :meth:`Output.preview`.
        groups: names of options by the heading that they are shown under; others come last. Of
            several groups --help shows the first alone, and --help-all every one.
    """

    def __init__(
        self,
        *arguments: Any,
        opens: bool = False,
        previews: bool = False,
        groups: Mapping[str, Iterable[str]] | None = None,
        **keywords: Any,
    ) -> None:
        super().__init__(*arguments, **keywords)
        self._groups = {title: list(names) for title, names in (groups or {}).items()}
        if previews:
            self.params.append(
                click.Option(
                    ["--preview/--no-preview"],
                    default=None,
                    help="Draw the picture in the terminal. Default: where it can show one.",
                )
            )
        if opens:
            self.params.append(
                click.Option(["--open"], is_flag=True, help="Open the result when it is there.")
            )
        if len(self._groups) > 1:
            self.params.append(
                click.Option(
                    ["--help-all"],
                    is_flag=True,
                    is_eager=True,
                    expose_value=False,
                    callback=_show_all,
                    help="Show all options and exit.",
                )
            )
        self.params += [
            click.Option(["--quiet"], is_flag=True, help="Say nothing but warnings and errors."),
            click.Option(
                ["--json", "report"],
                metavar="FILE",
                help="Write a report of what was done: a file ending in .json, or - for stdout, "
                "where nothing else is said then.",
            ),
        ]

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        try:
            self._check_words(context, list(args))
            return super().parse_args(context, args)
        except click.UsageError as error:
            if not _ranks().is_first:  # all of them have been given these words
                _leave_to_first(context, 2)
            if isinstance(error, click.MissingParameter) and isinstance(error.param, click.Option):
                raise click.MissingParameter(error.param.help, context, error.param) from error
            raise

    def invoke(self, context: click.Context) -> Any:
        quiet, report = context.params.pop("quiet"), context.params.pop("report")
        opens = context.params.pop("open", False)
        previews = context.params.pop("preview", None)
        came = [signal.SIGINT]

        def stop(number: signal.Signals) -> NoReturn:
            came.append(number)
            raise KeyboardInterrupt

        ranks = _ranks()
        silent = not ranks.is_first
        try:
            context.obj = Output(
                str(self.name),
                quiet=quiet,
                report=report,
                opens=opens,
                previews=previews,
                silent=silent,
            )
            with context.obj.warnings(), on_stop(stop):
                return super().invoke(context)
        except _REFUSED as error:
            if silent and isinstance(error, OtherProcessError):
                _leave_to_first(context, 1)
            # What the system says, without the number of its error.
            told = getattr(error, "strerror", None) if not getattr(error, "filename", 0) else None
            who = f"{ranks}: " if silent else ""
            raise click.ClickException(who + self._in_flags(told or str(error))) from error
        except _NO_MEMORY as error:
            reason = str(error).splitlines()[0] if str(error) else "nothing more can be had"
            raise click.ClickException(f"out of memory ({reason}): ask for less at once") from error
        except KeyboardInterrupt as end:
            if not silent:
                write(f"\nstopped{f': {end}' if str(end) else ''}", err=True)
            context.exit(128 + getattr(end, "signal", came[-1]))

    def format_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        if len(self._groups) < 2 or _ALL_HELP in context.meta:
            self.format_all_options(context, formatter)
            return
        groups = self._grouped(context)
        title, number = next(iter(groups)), sum(map(len, groups.values()))
        with formatter.section(title):
            formatter.write_dl(groups[title])
        formatter.write_paragraph()
        formatter.write_text(f"All {number} options: {context.command_path} --help-all")

    def format_all_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write all options under their headings."""
        for title, records in self._grouped(context).items():
            with formatter.section(title):
                formatter.write_dl(records)

    def _grouped(self, context: click.Context) -> dict[str, list[tuple[str, str]]]:
        """What the help says of each option, by heading."""
        records = {
            option.name: record
            for option in self.get_params(context)
            if isinstance(option, click.Option) and (record := option.get_help_record(context))
        }
        groups = {
            title: [records.pop(name) for name in names] for title, names in self._groups.items()
        }
        return groups | {"Other options" if groups else "Options": list(records.values())}

    def _check_words(self, context: click.Context, args: list[str]) -> None:
        """Refuse what could only be taken by a guess: an option given twice, without a value, or
        with an empty one, and a value without its option.

        Raises:
            click.UsageError: naming the option.
        """
        values, further, order = self.make_parser(context).parse_args(args)
        flags = {flag for option in self.params for flag in (*option.opts, *option.secondary_opts)}
        for parameter in order:
            if not isinstance(parameter, click.Option):
                title = parameter.make_metavar(context).strip("[]")
            else:
                title = parameter.opts[-1]
                if sum(parameter is other for other in order) > 1 and not parameter.is_eager:
                    raise click.UsageError(f"{title} is given more than once: give it once")
            value = values.get(str(parameter.name))
            if isinstance(value, str) and not value.strip():
                raise click.UsageError(f"{title} is empty: give a value, or leave it out")
            if isinstance(parameter, click.Option) and value in flags:
                raise click.UsageError(f"{title} has no value: {value} is an option itself")
        first = next(iter(self._groups.values()), ["out"])[0]
        takes_some = any(isinstance(one, click.Argument) for one in self.params)
        if further and not takes_some and any(one.name == first for one in self.params):
            raise click.UsageError(
                f"{further[0]!r:.80} stands alone: say what it is, as in --{first} {further[0]:.80}"
            )

    def _in_flags(self, message: str) -> str:
        """What the library calls image_size=32 and resume=True is --image-size 32 and --resume
        here, but within a call."""
        options = {
            option.name: option for option in self.params if isinstance(option, click.Option)
        }

        def flag(found: re.Match[str]) -> str:
            name, value = found[1].replace("_", "-"), found[2] or found[3]
            if found[1] not in options:
                return found[0]
            if not options[found[1]].is_flag:
                return f"--{name} {value}"
            return {"True": f"--{name}", "False": f"--no-{name}"}.get(value, found[0])

        return re.sub(r"(?<!, )\b(\w+)=(?:'([^']*)'|([\w.-]*\w))", flag, message)


def _show_all(context: click.Context, parameter: click.Parameter, given: bool) -> None:
    if given:
        context.meta[_ALL_HELP] = True
        click.echo(context.get_help(), color=context.color)
        context.exit()


def _ranks() -> Ranks:
    """Which process of how many this one is.

    Raises:
        click.UsageError: where the environment says nonsense.
    """
    try:
        return from_environment()
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def _leave_to_first(context: click.Context, code: int) -> NoReturn:
    """End without a word, as the first process says what it was.

    torchrun ends all processes when one has ended so, and may not end the first before it has
    spoken: it is given time to end by itself, upon which torchrun ends this one.
    """
    with contextlib.suppress(KeyboardInterrupt):
        time.sleep(_TO_SPEAK)
    context.exit(code)


def device_of(wish: str | None) -> str:
    """The device asked for, or a GPU if there is one, of several processes each its own; refused
    where it cannot compute, or the environment asks for a backend that it does not have."""
    wish = device_here(wish, _ranks())
    device = wish or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        float(torch.zeros(1, device=device))
        if torch.device(device).type == "cpu" and torch.device(device).index:
            raise ValueError("there is one cpu, whatever the number of its cores")
    except Exception as error:  # each backend of torch has its own
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise click.UsageError(
            f"--device {device} cannot be used here: {reason}; without --device a GPU is taken if "
            "there is one, else the CPU"
        ) from error
    if backends.wished()[0] != "auto":
        backends.resolve("auto", device)
    return device


def device_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--device", default=None, help="cpu or cuda[:N]. Default: a GPU if there is one."
    )(command)


def setting_option(
    name: str, setting: Setting
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The option of a setting: its flag, type, bounds, default and help."""
    flag, default = "--" + name.replace("_", "-"), setting.command_default
    kind: Any = setting.kind
    if kind is bool:
        default = default if isinstance(default, bool) else None
        return click.option(
            f"{flag}/--no-{flag[2:]}",
            default=default,
            show_default=default is True,
            help=setting.help,
        )
    if setting.choices is not None:
        kind = click.Choice([*([setting.none] if setting.none else []), *setting.choices])
    elif setting.least is not None:
        kind = Count(setting.least, setting.most)
    return click.option(
        flag, type=kind, default=default, show_default=default is not None, help=setting.help
    )


__all__ = [
    "CHECKPOINT",
    "COUNT",
    "PIXELS",
    "SEED",
    "WORDS",
    "Command",
    "Count",
    "Finite",
    "Group",
    "device_of",
    "device_option",
    "setting_option",
]
