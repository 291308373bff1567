"""Docstrings are written for whoever reads the code; here they become reStructuredText.

A star, a bar and an underscore stand for themselves but in ``literals`` and :role:`names`, and an
indented paragraph that belongs to no section ("Args:") is a formula that is shown as it stands.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import groupby

from sphinx.application import Sphinx

_MARKED = re.compile(r"(``.+?``|:\w+:`.+?`)", re.DOTALL)
_SPECIAL = re.compile(r"[*|\\]|_(?!\w)")


def read(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Rewrite the lines of a docstring."""
    lines[:] = [line for block in blocks(lines) for line in block]


def blocks(lines: list[str]) -> Iterator[list[str]]:
    """The docstring's paragraphs, sections and formulas, as reStructuredText."""
    section = False
    for blank, group in groupby(lines, key=lambda line: not line.strip()):
        block = list(group)
        if blank:
            yield block
            continue
        if not block[0][0].isspace():
            section = re.fullmatch(r"\w+:", block[0]) is not None
        if block[0][0].isspace() and not section:
            yield ["::", "", *block]
        else:
            yield escaped("\n".join(block)).split("\n")


def escaped(text: str) -> str:
    """``text`` with a backslash before what would be markup."""
    parts = _MARKED.split(text)
    parts[::2] = (_SPECIAL.sub(r"\\\g<0>", part) for part in parts[::2])
    return "".join(parts)


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", read, priority=400)  # before napoleon's
    return {"parallel_read_safe": True}
