"""What a callable runs in the end: behind partials, bound methods and wrappers of modules."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

# By name: not every build of torch has them all.
_WRAPPERS = (
    "AveragedModel",
    "DataParallel",
    "DistributedDataParallel",
    "FullyShardedDataParallel",
    "OptimizedModule",
)


def layers(function: Any) -> Iterator[Any]:
    """A callable and what it hands its call on to, the last being what computes.

    A ``functools.partial`` and what has ``__wrapped__`` go on to theirs, a bound method to its
    owner, and the modules of ``_WRAPPERS`` to the one inside. What a lambda or a function calls is
    not seen.
    """
    seen: set[int] = set()
    while id(function) not in seen:
        seen.add(id(function))
        yield function
        inside = getattr(function, "_modules", {}) if isinstance(function, nn.Module) else {}
        if isinstance(function, functools.partial):
            function = function.func
        elif inspect.ismethod(function):
            function = function.__self__
        elif type(function).__name__ in _WRAPPERS and len(inside) == 1:
            function = next(iter(inside.values()))
        elif inspect.isfunction(function):
            compiled = getattr(function, "_torchdynamo_orig_callable", function)
            function = getattr(function, "__wrapped__", compiled)
        elif not isinstance(function, nn.Module):
            function = getattr(function, "__dict__", {}).get("__wrapped__", function)


def fits(function: Any, given: Sequence[Any], named: Mapping[str, Any]) -> bool:
    """Whether a callable takes these arguments, by its signature, if that can be read."""
    try:
        function = getattr(function, "__wrapped__", function)
        # A module's own signature takes anything.
        inspect.signature(getattr(function, "forward", function)).bind(*given, **named)
    except TypeError:
        return False
    except ValueError:
        return True
    return True


__all__ = ["fits", "layers"]
