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
_FACE = re.compile(r":`nf\.([\w.]+)`")
_SPECIAL = re.compile(r"[*|\\]|_(?!\w)")


def read(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Rewrite the lines of a docstring."""
    lines[:] = [line for block in blocks(lines) for line in block]
    if what == "property":
        lines.insert(0, "\\ ")  # or napoleon takes what stands before a colon for a type


def blocks(lines: list[str]) -> Iterator[list[str]]:
    """The docstring's paragraphs, sections and formulas, as reStructuredText."""
    section = None
    for blank, group in groupby(lines, key=lambda line: not line.strip()):
        block = list(group)
        if blank:
            yield block
            continue
        if not block[0][0].isspace():
            section = re.fullmatch(r"(\w+):", block[0])
        if section is None and block[0][0].isspace():
            yield ["::", "", *block]
            continue
        if section is not None and section[1] == "Returns":
            # Napoleon would take what stands before a colon for a type.
            block[:2] = [f":returns: {block[1].strip()}"]
        yield marked("\n".join(block)).split("\n")


def marked(text: str) -> str:
    """``text`` with a backslash before what would be markup, and links to ``nf.`` names."""
    parts = _MARKED.split(text)
    parts[::2] = (_SPECIAL.sub(r"\\\g<0>", part) for part in parts[::2])
    parts[1::2] = (_FACE.sub(r":`nf.\1 <ncsn_fast.\1>`", part) for part in parts[1::2])
    return "".join(parts)


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", read, priority=400)  # before napoleon's
    return {"parallel_read_safe": True}
