"""Inputs that come one per sample, and those that all samples share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

_NO = object()


def one_each(value: object, n: int) -> bool:
    """Whether a value has one entry for each of n samples: a tensor or array (n, …), or a list."""
    return _length(value) == n


def check(name: str, values: object, n: int, shared: object = _NO) -> None:
    """Refuse inputs of which it is not plain what belongs to which of n samples.

    Args:
        name: what the messages call the values.
        values: by name; tensors, arrays, lists and tuples have one entry per sample, or a single
            one for all of them; all else goes to each.
        n: how many samples.
        shared: by name, what all samples get as it is, where that can be told.

    Raises:
        ValueError: for entries of another number, for no mapping of names, and for a name in both.
    """
    for title, given in ((name, values), ("shared", {} if shared is _NO else shared)):
        if not isinstance(given, Mapping) or not all(isinstance(key, str) for key in given):
            raise ValueError(f"{title} = {given!r:.80}: give a mapping from names to inputs")
    assert isinstance(values, Mapping)
    if isinstance(shared, Mapping) and (both := sorted(values.keys() & shared.keys())):
        raise ValueError(f"{both} are in {name} and in shared: give each input once")
    for key, value in values.items():
        length = _length(value)
        if length not in (None, 1, n):
            other = f"shared={{{key!r}: ...}}, which all samples get as it is"
            raise ValueError(
                f"{name}[{key!r}] has {length} entries, for n = {n} samples: give one per sample, "
                f"or {'one for all' if shared is _NO else other}"
            )


def cut(values: Mapping[str, Any], part: slice, n: int) -> dict[str, Any]:
    """The inputs of some of n samples: what comes one each is cut, the rest stays as it is."""
    return {name: value[part] if one_each(value, n) else value for name, value in values.items()}


def _length(value: object) -> int | None:
    """How many entries a value has; None for what is one thing."""
    if isinstance(value, (list, tuple)):
        return len(value)
    return len(value) if isinstance(value, (Tensor, np.ndarray)) and value.ndim else None


__all__ = ["check", "cut", "one_each"]
