"""What the commands share: how they refuse, and the options that several of them have."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from typing import Any, NoReturn

import click
import torch

import ncsn_fast as nf
from ncsn_fast.support.settings import Setting
from ncsn_fast.support.signals import on_stop

SEED = click.IntRange(0, 2**64 - 1)
COUNT = click.IntRange(min=1)


class Command(click.Command):
    """Turns the library's refusals into one clear line instead of a traceback.

    After a signal the exit code is 128 and its number, as is the custom: 130 for Ctrl-C, 143 for
    SIGTERM, 129 for SIGHUP.
    """

    def invoke(self, context: click.Context) -> Any:
        came = [signal.SIGINT]

        def stop(number: signal.Signals) -> NoReturn:
            came.append(number)
            raise KeyboardInterrupt

        try:
            with on_stop(stop):
                return super().invoke(context)
        except (ValueError, OSError) as error:
            raise click.ClickException(self._in_flags(str(error))) from error
        except RuntimeError as error:
            if isinstance(error, nf.SamplingError | nf.TrainingError):
                raise click.ClickException(str(error)) from error
            raise
        except KeyboardInterrupt as end:
            click.echo(f"\nstopped{f': {end}' if str(end) else ''}", err=True)
            context.exit(128 + getattr(end, "signal", came[-1]))

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


def device_of(wish: str | None) -> str:
    """The device asked for, or a GPU if there is one; refused where it cannot compute."""
    if wish is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        float(torch.zeros(1, device=wish))
    except Exception as error:  # each backend of torch has its own
        reason = str(error).splitlines()[0]
        raise click.UsageError(f"--device {wish} cannot be used here: {reason}") from error
    return wish


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
        kind = click.IntRange(setting.least, setting.most)
    return click.option(
        flag, type=kind, default=default, show_default=default is not None, help=setting.help
    )


__all__ = ["COUNT", "SEED", "Command", "device_of", "device_option", "setting_option"]
