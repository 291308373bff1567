"""Settings as fields of a dataclass that also say their bounds, what they mean, and where they
are shown: from them come checks, the class's documentation and the options of a command."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar, get_args, get_type_hints

from ncsn_fast.support.checks import count

T = TypeVar("T")
_KEY = "setting"


@dataclass(frozen=True)
class Setting:
    """What a setting is, besides its name.

    Attributes:
        default: that of the dataclass; ``command_default``: that of the command.
        help: what it is, in a line.
        more: what else somebody who writes Python should know.
        kind: bool, int, float or str; of several the first in the annotation.
        group: the heading under which the command shows it; None: it is no option of the command.
        least, most: bounds of a whole number, both included.
        choices: the values it may have, or None.
        none: how the command says None, where that has a word.
        check: takes (name, value), returns the value as it is kept or raises ValueError.
        free: whether it may be another one when a run goes on.
    """

    default: Any
    command_default: Any
    help: str = ""
    more: str = ""
    kind: type = str
    group: str | None = None
    least: int | None = None
    most: int | None = None
    choices: tuple[Any, ...] | None = None
    none: Any = None
    check: Callable[[str, Any], Any] | None = None
    free: bool = False

    def checked(self, name: str, value: Any) -> Any:
        """The value as it is kept.

        Raises:
            ValueError: where it is out of bounds, none of the choices, or of another kind.
        """
        if value is None and self.default is None:
            return None
        if self.check is not None:
            return self.check(name, value)
        allowed = (True, False) if self.kind is bool and self.choices is None else self.choices
        # Of an array it cannot be said whether it is one of them.
        if allowed is not None and (getattr(value, "ndim", 0) != 0 or value not in allowed):
            raise ValueError(f"{name} = {value!r:.80}: choose {self._in_words(allowed)}")
        if allowed is not None:
            return allowed[allowed.index(value)]
        return count(name, value, self.least, self.most) if self.least is not None else value

    def _in_words(self, allowed: tuple[Any, ...]) -> str:
        if self.default is not None and all(isinstance(choice, str) for choice in allowed):
            return f"one of {allowed}"
        *some, last = map(repr, (*allowed, *([None] if self.default is None else [])))
        return f"{', '.join(some)} or {last}"


_SAME = object()


def setting(
    default: Any, help: str = "", more: str = "", *, command: Any = _SAME, **others: Any
) -> Any:
    """A field of a dataclass that is a setting.

    Args:
        command: the default of the command, where it is another.
        others: further attributes of :class:`Setting`.
    """
    if command is _SAME:
        command = others.get("none") if default is None else default
    found = Setting(default, command, help, more, **others)
    return field(default=default, metadata={_KEY: found})


def settings_of(kind: type) -> dict[str, Setting]:
    """The settings among the fields of a dataclass, by name, in their order."""
    hints = get_type_hints(kind)
    return {
        f.name: replace(f.metadata[_KEY], kind=(*get_args(hints[f.name]), hints[f.name])[0])
        for f in fields(kind)
        if _KEY in f.metadata
    }


def check_settings(values: Any) -> None:
    """Check the settings of a frozen dataclass, and keep them as Python's own numbers.

    Raises:
        ValueError: for the first one that is not as it should be.
    """
    for name, what in settings_of(type(values)).items():
        object.__setattr__(values, name, what.checked(name, getattr(values, name)))


def documented(kind: type[T]) -> type[T]:
    """Add the settings of a dataclass to its documentation."""
    lines = [f"{kind.__doc__}", "", "Attributes:"]
    for name, what in settings_of(kind).items():
        text = " ".join(filter(None, (f"{name}:", what.help, what.more)))
        lines.append(textwrap.fill(text, 96, initial_indent="    ", subsequent_indent="        "))
    kind.__doc__ = "\n".join(lines)
    return kind


__all__ = ["Setting", "check_settings", "documented", "setting", "settings_of"]
