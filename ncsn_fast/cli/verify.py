"""ncsn-fast verify."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ncsn_fast.cli.common import Command
from ncsn_fast.cli.output import Output
from ncsn_fast.runs.samples import verify as work

_MOST = 20  # lines of a kind


@click.command(cls=Command)
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
@click.pass_context
def verify(context: click.Context, folder: Path) -> None:
    """Check the samples in a folder of ncsn-fast sample against their checksums.

    Names what is missing, what is damaged and what was made with other settings, and the commands
    that make the folder whole. Nothing is changed. The exit code is 0 where all is well, else 1.

    \b
    Examples:
      ncsn-fast verify samples
      ncsn-fast verify cifar10_50k --json report.json
    """
    output: Output = context.obj
    report = work.verify(folder, progress=output.progress)
    for line in _lines(report):
        output.say(line)
    output.report(report)
    if report["run"]:
        context.exit(1)


def _lines(report: dict[str, Any]) -> list[str]:
    lines = [f"{report['good']:,} of {report['wanted']:,} samples are there, as they were written."]
    for kind in ("damaged", "foreign"):
        lines += _some([f"{kind}: {name} ({why})" for name, why in report[kind].items()])
    lines += _some([f"missing: {first} to {last}" for first, last in report["missing"]])
    return lines + (["Now run:", *(f"  {one}" for one in report["run"])] if report["run"] else [])


def _some(lines: list[str]) -> list[str]:
    more = len(lines) - _MOST
    return lines[:_MOST] + ([f"and {more:,} more (--json names all)"] if more > 0 else [])


__all__ = ["verify"]
