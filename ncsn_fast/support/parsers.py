"""Texts of strangers, read in bounded time and memory: JSON and YAML.

What is refused is refused as :class:`FileError`, a ValueError whose message names the file and
stays short, whatever the file holds: bombs (a few bytes that stand for gigabytes), nesting that
exhausts the stack, numbers that take minutes to convert, damage, and values that say two things.
"""

from __future__ import annotations

import json
import math
import os
import re
import reprlib
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from typing import IO, Any

LARGEST_TEXT = 4 << 20  # bytes of a JSON text: a hundred times what any of ours has
LARGEST_YAML = 1 << 20  # bytes; a configuration has about two thousand
MOST_NODES = 20_000  # lists, objects and, in YAML, values, aliases written out; ours: a hundred
MOST_NESTED = 100  # levels of brackets
MOST_DIGITS = 400  # of a number; float64 ends at 309
_LONGEST_TOLD = 300  # characters of a message that come from a file
_NUMBER = re.compile(r"[-+.:_0-9a-fA-Fox]+")


class FileError(ValueError):
    """A file or text that cannot be read; the message names it."""


def shown(value: object) -> str:
    """A value for a message: at most some hundred characters, and never written out whole."""
    brief = reprlib.Repr()
    brief.maxstring = brief.maxother = brief.maxlong = 100
    return shortened(brief.repr(value))


def shortened(text: object) -> str:
    """The beginning of what a library says, in one line; it may repeat what a file holds, and so
    what a terminal would obey or cannot be written is escaped."""
    told = " ".join(str(text)[: 8 * _LONGEST_TOLD].split())
    told = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in told)
    return told if len(told) <= _LONGEST_TOLD else f"{told[:_LONGEST_TOLD]} …"


@contextmanager
def naming(what: object, wanted: str, mend: str = "copy or download it again") -> Iterator[None]:
    """Tell whatever is raised in the block as FileError: "WHAT is damaged or WANTED".

    The standard library's and NumPy's readers meet damage with a dozen kinds of exception.
    """
    try:
        yield
    except FileError:
        raise
    except Exception as error:
        told = shortened(f"{type(error).__name__}: {shortened(error)}")
        raise FileError(f"{what} is damaged or {wanted} ({told}): {mend}") from error


def read_text(path: str | os.PathLike[str], limit: int = LARGEST_TEXT) -> str:
    """The text of a file in UTF-8, of at most ``limit`` bytes.

    Raises:
        OSError: where there is none, or it cannot be opened.
        FileError: for something else than a file, a larger one, and other bytes than UTF-8.
    """
    with opened(path) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise FileError(f"{path} is larger than {in_bytes(limit)}: that is not the file meant here")
    return _decoded(data, path)


def read_json(path: str | os.PathLike[str], limit: int = LARGEST_TEXT) -> Any:
    """The value in a JSON file, by :func:`parse_json`; raises what :func:`read_text` raises."""
    return parse_json(read_text(path, limit), path, limit)


def parse_json(text: str | bytes, what: object, limit: int = LARGEST_TEXT) -> Any:
    """The value of a JSON text, as JSON defines it: without NaN, infinity and keys given twice.

    Args:
        text: UTF-8 where it is bytes.
        what: what the message calls it, a path for instance.
        limit: how long it may be, in bytes or characters.

    Raises:
        FileError: for a text that is longer, no JSON, of more than 20,000 lists and objects or 100
            levels, or holds a number of more than 400 digits or beyond float64, or a key twice.
    """
    if len(text) > limit:
        raise FileError(f"{what} is longer than {in_bytes(limit)}")
    if isinstance(text, bytes):
        text = _decoded(text, what)
    with naming(what, "no JSON", "write it again"):
        _check_brackets(text)
        return json.loads(
            text,
            parse_int=_whole,
            parse_float=_finite,
            parse_constant=_refuse_constant,
            object_pairs_hook=_without_doubles,
        )


def parse_yaml(text: str | bytes, what: object, loader: type[Any]) -> Any:
    """The value of a YAML text of one document.

    Args:
        text: UTF-8 where it is bytes.
        what: what the message calls it, a path for instance.
        loader: a class of PyYAML's that constructs nothing but plain values: a SafeLoader.

    Raises:
        FileError: for a text of more than 1 MiB, that is no YAML, is nested more than 100 levels
            deep or within itself, has more than 20,000 values when its aliases are written out,
            gives a key twice with two values, or has a number of more than 400 digits.
    """
    import yaml

    if len(text) > LARGEST_YAML:
        raise FileError(f"{what} is larger than 1 MiB: that is not a configuration file")
    if isinstance(text, bytes):
        text = _decoded(text, what)
    with naming(what, "cannot be read as YAML", "mend it"):
        # Before anything is composed or constructed: merge keys and aliases grow there.
        _check_events(yaml.parse(text, Loader=loader))
        return yaml.load(text, Loader=loader)


def opened(path: str | os.PathLike[str]) -> IO[bytes]:
    """A file opened for reading; what is none, a folder, pipe or device, is refused.

    Raises:
        OSError: where there is none, or it cannot be opened.
        FileError: for what is no file.
    """
    # Without waiting: a pipe to which nobody writes would hold the process for ever.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise FileError(f"{path} is no file but a folder, a pipe or a device: give a file")
    return os.fdopen(descriptor, "rb")


def _decoded(data: bytes, what: object) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FileError(
            f"{what} is no text in UTF-8 (byte {error.start}): it is damaged or something else"
        ) from error


def in_bytes(number: int) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if number < 1024:
            break
        number, unit = number // 1024, "TiB"
    return f"{number:,} {unit}"


def _check_brackets(text: str) -> None:
    """Refuse a JSON text of too many or too deeply nested brackets; those in strings are none."""
    if text.count("[") + text.count("{") <= MOST_NESTED:
        return
    outside = "".join(text.replace("\\\\", "").replace('\\"', "").split('"')[::2])
    if outside.count("[") + outside.count("{") > MOST_NODES:
        raise ValueError(f"more than {MOST_NODES:,} lists and objects")
    steps = {"[": 1, "{": 1, "]": -1, "}": -1}
    if max(accumulate(steps.get(character, 0) for character in outside)) > MOST_NESTED:
        raise ValueError(f"nested more than {MOST_NESTED} levels deep")


def _whole(digits: str) -> int:
    if len(digits) > MOST_DIGITS:  # the time of a conversion grows with the square
        raise ValueError(f"a number of {len(digits):,} digits")
    return int(digits)


def _finite(digits: str) -> float:
    if len(digits) > MOST_DIGITS or not math.isfinite(value := float(digits)):
        raise ValueError(f"{shown(digits)} is beyond what a float64 holds")
    return value


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key {shown(twice)} is given twice")
    return found


class _Open:
    """A mapping, a sequence or the document, while its events go by."""

    def __init__(self, mapping: bool, anchor: str | None) -> None:
        self.anchor = anchor
        self.nodes = 1  # in it, aliases written out
        self._items: list[Any] | None = [] if mapping else None
        self._given: dict[Any, Any] = {}

    def add(self, nodes: int, scalar: Any) -> None:
        """Take in an item: of how many nodes, and what it is, None for more than a scalar."""
        self.nodes += nodes
        if self._items is None:
            return
        self._items.append(scalar)
        if len(self._items) == 2:
            key, value = self._items
            self._items.clear()
            value = object() if value is None else value
            if key is not None and self._given.setdefault(key, value) != value:
                raise ValueError(f"the key {shown(key[0])} has two values")


def _check_events(events: Iterator[Any]) -> None:
    """Refuse a YAML text that would grow when it is composed and constructed.

    Merge keys cost as many pairs as their aliases have, written out; so does whoever prints the
    value, or walks through it.
    """
    import yaml

    stack = [_Open(False, None)]
    anchors: dict[str, int | None] = {}  # how many nodes; None while inside
    for event in events:
        scalar, nodes = None, 0
        if isinstance(event, yaml.CollectionStartEvent):
            stack.append(_Open(isinstance(event, yaml.MappingStartEvent), event.anchor))
            if event.anchor is not None:
                anchors[event.anchor] = None
            if len(stack) > MOST_NESTED:
                raise ValueError(f"nested more than {MOST_NESTED} levels deep")
            continue
        if isinstance(event, yaml.AliasEvent):
            known = anchors.get(event.anchor or "", 1)  # PyYAML refuses an unknown one
            if known is None:
                raise ValueError(f"the alias {shown(event.anchor)} stands for what it lies in")
            nodes = known
        elif isinstance(event, yaml.ScalarEvent):
            if len(event.value) > MOST_DIGITS and _NUMBER.fullmatch(event.value):
                raise ValueError(f"a number of {len(event.value):,} digits")
            scalar, nodes = (event.value, event.implicit[0], event.tag), 1
            if event.anchor is not None:
                anchors[event.anchor] = 1
        elif isinstance(event, yaml.CollectionEndEvent):
            done = stack.pop()
            nodes = done.nodes
            if done.anchor is not None:
                anchors[done.anchor] = nodes
        stack[-1].add(nodes, scalar)
        if sum(one.nodes for one in stack) > MOST_NODES:
            raise ValueError(f"more than {MOST_NODES:,} values, aliases written out")


__all__ = [
    "LARGEST_YAML",
    "FileError",
    "in_bytes",
    "naming",
    "opened",
    "parse_json",
    "parse_yaml",
    "read_json",
    "read_text",
    "shortened",
    "shown",
]
