"""ncsn-fast doctor."""

from __future__ import annotations

import sys

import click

from ncsn_fast.cli.common import Command

_MARKS = {True: "ok ", False: "BAD", None: "-- "}


@click.command(cls=Command)
def doctor() -> None:
    """What is installed, which backend is used and why, and a self-test.

    Ends with exit code 1 where a check fails; send the output along when you ask for help.

    \b
    Examples:
      ncsn-fast doctor
      NCSN_FAST_BACKEND=torch ncsn-fast doctor
    """
    from ncsn_fast import doctor as work

    for finding in work.environment():
        click.echo(f"  {finding.name:18} {finding.value}")
    click.echo("\nSelf-test")
    results = work.self_test()
    for finding in results:
        click.echo(f"  {_MARKS[finding.good]} {finding.name:14} {finding.value}")
    if any(finding.good is False for finding in results):
        sys.exit(1)


__all__ = ["doctor"]
