"""The command line, run inside the tests."""

from __future__ import annotations

from typing import Any

import pytest
from click.testing import CliRunner, Result

from ncsn_fast.cli import main
from ncsn_fast.sampling.step import EagerStep


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def succeed(*arguments: object) -> str:
    """The output of a command that has to end well."""
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    return result.output


def stop_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> list[int]:
    """Ctrl-C after so many steps of the engine, none if negative; the rows of those made."""
    made: list[int] = []
    step = EagerStep.run

    def counted(self: EagerStep, row: int, *arguments: Any) -> Any:
        if len(made) == steps:
            raise KeyboardInterrupt
        made.append(row)
        return step(self, row, *arguments)

    monkeypatch.setattr(EagerStep, "run", counted)
    return made
