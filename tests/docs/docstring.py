"""A docstring taken apart: its words, its sections, their entries."""

from __future__ import annotations

import inspect
import re
from functools import cached_property
from typing import Any

_SECTION = re.compile(r"^(Args|Attributes|Returns|Raises):\n((?:    .*\n?|\n)*)", re.MULTILINE)
_ENTRY = re.compile(r"^    (\*{0,2}\w[\w, *]*):((?:.*\n?)(?:     .*\n?|\n)*)", re.MULTILINE)
_REFERENCE = re.compile(r":\w+:`([\w.]+)`")
# (N, C, H, W), (B, *shape), (rows,), (), or in words: of x's shape, like x.
_SHAPE = re.compile(r"\((?:[\w*…·()+ ]+,(?: ?[\w*….+/]+,?)*)?\)|\b0-d\b|shape|\blike\b")


class Docstring:
    """The docstring of an object."""

    def __init__(self, described: Any) -> None:
        self.text = inspect.getdoc(described) or ""
        self.sections = dict(_SECTION.findall(self.text))

    @cached_property
    def parameters(self) -> dict[str, str]:
        """What stands of each name in Args and Attributes."""
        told: dict[str, str] = {}
        for section in ("Args", "Attributes"):
            for names, text in _ENTRY.findall(self.sections.get(section, "")):
                told |= {name.strip(" *"): text for name in names.split(",")}
        return told

    @property
    def references(self) -> list[str]:
        return _REFERENCE.findall(self.text)

    def has_word(self, word: str) -> bool:
        return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", self.text) is not None


def has_shape(text: str) -> bool:
    """Whether a text says the shape of a tensor."""
    return _SHAPE.search(text) is not None


__all__ = ["Docstring", "has_shape"]
