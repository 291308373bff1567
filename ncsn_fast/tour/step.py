"""One step of the tour: a claim, its formula, the code that shows it, figures, asserted numbers."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ncsn_fast.tour.figure import Figure
from ncsn_fast.tour.maths import superscript

# Told by a step how much of its work is done, from 0 to 1.
Told = Callable[[float], None]
# quick: fewer chains and steps of training, wider bounds.
StepFunction = Callable[[bool, Told], "Step"]


@dataclass(frozen=True)
class Number:
    """A number that the step asserts.

    Attributes:
        what: a few words, with the unit if there is one.
        wanted: what theory says, in words or figures, as "0.20" or "larger than the other".
        found: what was measured.
        low, high: the bounds that it has to lie within; ±inf for none. From the number of chains,
            where it is an average by an exact score.
        digits: how many are shown after the point.
    """

    what: str
    wanted: str
    found: float
    low: float
    high: float
    digits: int = 3

    @property
    def holds(self) -> bool:
        """Whether it lies within its bounds."""
        return self.low <= self.found <= self.high

    def shown(self, value: float) -> str:
        """A value as it is written; one that so many digits would hide, by a power of ten."""
        if value and abs(value) < 0.5 * 10.0**-self.digits:
            factor, power = f"{value:.1e}".split("e")
            return f"{factor} × 10{superscript(int(power))}"
        return f"{value:,.{self.digits}f}" if value else "0"

    @property
    def bounds(self) -> str:
        """The bounds in words."""
        if self.low == self.high:
            return f"exactly {self.shown(self.low)}"
        if self.low == float("-inf"):
            return f"at most {self.shown(self.high)}"
        if self.high == float("inf"):
            return f"at least {self.shown(self.low)}"
        return f"{self.shown(self.low)} to {self.shown(self.high)}"


@dataclass(frozen=True)
class Step:
    """What one step of the tour shows.

    Attributes:
        name: of ``--step``, and of the link to it.
        title: a few words.
        claim: one sentence.
        formula: MathML, made by ``maths.py``.
        code: at most ten lines, by :func:`source` of the function that computed the numbers.
        figures: at least one.
        numbers: at least one.
        text: short paragraphs below the claim, plain text: what to look for, and why.
    """

    name: str
    title: str
    claim: str
    formula: str
    code: str
    figures: Sequence[Figure]
    numbers: Sequence[Number]
    text: Sequence[str] = ()

    @property
    def command(self) -> str:
        """What makes this step alone once more, and prints its numbers."""
        return f"ncsn-fast tour --step {self.name}"


def source(*functions: Callable[..., Any]) -> str:
    """The source of these functions as it ran, without their docstrings."""
    return "\n\n".join(_source(function) for function in functions)


def _source(function: Callable[..., Any]) -> str:
    text = textwrap.dedent(inspect.getsource(function))
    lines, definition = text.splitlines(), ast.parse(text).body[0]
    assert isinstance(definition, ast.FunctionDef)
    if ast.get_docstring(definition) is not None:
        words = definition.body[0]
        del lines[words.lineno - 1 : words.end_lineno]
    return "\n".join(lines)


__all__ = ["Number", "Step", "StepFunction", "Told", "source"]
