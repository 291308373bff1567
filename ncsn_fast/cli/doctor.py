"""ncsn-fast doctor."""

from __future__ import annotations

import sys
import time

import click

from ncsn_fast.cli.common import Command
from ncsn_fast.device import native
from ncsn_fast.runs import doctor as work

_MARKS = {True: "ok ", False: "BAD", None: "-- "}


@click.command(cls=Command)
@click.option(
    "--build", is_flag=True, help="Build the kernels of the CPU first, also if they are built."
)
def doctor(build: bool) -> None:
    """What is installed, which backend is used and why, and a self-test.

    The kernels of the CPU are built when first needed, which takes about 20 seconds once; --build
    does it ahead, for example while an image of a container is made.
    Ends with exit code 1 where a check fails; send the output along when you ask for help.

    \b
    Examples:
      ncsn-fast doctor
      ncsn-fast doctor --build
      NCSN_FAST_BACKEND=torch ncsn-fast doctor
    """
    if build:
        start = time.perf_counter()
        try:
            library = native.build(again=True)
        except native.NativeError as error:
            raise click.ClickException(str(error)) from error
        click.echo(f"  built {library} in {time.perf_counter() - start:.0f} s\n")
    for finding in work.environment():
        click.echo(f"  {finding.name:18} {finding.value}")
    click.echo("\nSelf-test")
    results = work.self_test()
    for finding in results:
        click.echo(f"  {_MARKS[finding.good]} {finding.name:14} {finding.value}")
    if any(finding.good is False for finding in results):
        sys.exit(1)


__all__ = ["doctor"]
