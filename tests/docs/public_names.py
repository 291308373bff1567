"""The names of the reference, docs/api/*.md, and what they stand for."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

API = Path(__file__).parents[2] / "docs" / "api"
_ENTRY = re.compile(r"^\.\. (?:auto(?!module)\w+|py:data):: ([\w.]+)$", re.MULTILINE)

NAMES = [
    name for page in sorted(API.glob("*.md")) for name in _ENTRY.findall(page.read_text("utf-8"))
]


def found(name: str) -> Any:
    """What a dotted name stands for, from Python."""
    parts = name.split(".")
    value: Any = importlib.import_module(parts[0])
    for end, part in enumerate(parts[1:], 2):
        if not hasattr(value, part):
            importlib.import_module(".".join(parts[:end]))
        value = getattr(value, part)
    return value


def members(name: str) -> Iterator[tuple[str, Any]]:
    """The public methods and properties that a class of the reference defines itself."""
    for key, value in vars(found(name)).items():
        if key == "__call__" or not key.startswith("_"):
            function = getattr(value, "fget", None) or getattr(value, "__func__", None)
            function = function or getattr(value, "func", None) or value
            if inspect.isfunction(function):
                yield f"{name}.{key}", function


CLASSES = [name for name in NAMES if inspect.isclass(found(name))]
FUNCTIONS = [name for name in NAMES if inspect.isfunction(found(name))]
MEMBERS = dict(member for name in CLASSES for member in members(name))


def public(module: ModuleType) -> dict[str, Any]:
    """What a module hands out, but for modules and constants."""
    names = {name: getattr(module, name) for name in module.__all__}
    return {f"{module.__name__}.{name}": value for name, value in names.items() if callable(value)}


__all__ = ["CLASSES", "FUNCTIONS", "MEMBERS", "NAMES", "found", "public"]
