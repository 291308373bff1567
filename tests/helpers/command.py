"""The command line, run inside the tests."""

from __future__ import annotations

from click.testing import CliRunner, Result

from ncsn_fast.cli import main


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def succeed(*arguments: object) -> str:
    """The output of a command that has to end well."""
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    return result.output
