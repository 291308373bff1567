"""ncsn-fast doctor."""

from __future__ import annotations

import sys
import time

import click

from ncsn_fast.cli.common import Command
from ncsn_fast.cli.output import Output
from ncsn_fast.device import native
from ncsn_fast.runs import doctor as work

_MARKS = {True: "ok ", False: "BAD", None: "-- "}


@click.command(cls=Command)
@click.option(
    "--build", is_flag=True, help="Build the kernels of the CPU first, also if they are built."
)
@click.pass_obj
def doctor(output: Output, build: bool) -> None:
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
        output.say(f"  built {library} in {time.perf_counter() - start:.0f} s\n")
    found = work.environment()
    for finding in found:
        tell = output.warn if finding.good is False else output.say
        tell(f"  {finding.name:18} {finding.value}")
    output.say("\nSelf-test")
    results = work.self_test()
    for finding in results:
        tell = output.warn if finding.good is False else output.say
        tell(f"  {_MARKS[finding.good]} {finding.name:14} {finding.value}")
    output.report(
        {
            "environment": {finding.name: finding.value for finding in found},
            "self_test": {
                finding.name: {"good": finding.good, "value": finding.value} for finding in results
            },
        }
    )
    if any(finding.good is False for finding in (*found, *results)):
        sys.exit(1)


__all__ = ["doctor"]
