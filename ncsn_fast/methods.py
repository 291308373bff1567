"""The methods that are known by name, and from a name and settings to the table to run."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from ncsn_fast import samplers
from ncsn_fast.table import Table


class Method(NamedTuple):
    """A method that nf.Sampler knows by name.

    ``table`` is called with the noise levels and those settings of the sampler that it names.
    """

    table: Callable[..., Table]
    uniform_start: bool = False  # from U[0, 1) as published, not from that plus σ₁ noise


METHODS = {"annealed_langevin": Method(samplers.annealed_langevin, uniform_start=True)}


def make_table(
    method: str | Table,
    sigmas: Tensor | None,
    settings: dict[str, Any],
    defaults: dict[str, Any],
) -> Table:
    """The table of a method.

    Args:
        method: a name of ``METHODS``, or a table, which already says it all.
        sigmas: (L,) noise levels, None where they are not known.
        settings: the method's settings as given, None for those that are not.
        defaults: settings of the network's checkpoint.

    Raises:
        ValueError: for settings that are unknown or missing.
    """
    named = {name: value for name, value in settings.items() if value is not None}
    if isinstance(method, Table):
        if named:
            raise ValueError(f"{list(named)} given beside a table, which already says it all")
        return method
    if method not in METHODS:
        raise ValueError(f"method = {method!r} is unknown; choose one of {list(METHODS)}")
    if sigmas is None:
        raise ValueError(
            "sigmas are not known: give the noise levels, "
            "for example nf.geometric_sigmas(50, 0.01, 232) or nf.auto_schedule(data).sigmas"
        )
    make = METHODS[method].table
    takes = list(inspect.signature(make).parameters.values())[1:]
    strange = sorted(set(named) - {parameter.name for parameter in takes})
    if strange:
        raise ValueError(f"method {method!r} takes no {' and no '.join(strange)}")
    chosen = {**{p.name: defaults.get(p.name) for p in takes}, **named}
    chosen = {name: value for name, value in chosen.items() if value is not None}
    missing = [p.name for p in takes if p.default is p.empty and p.name not in chosen]
    if missing:
        raise ValueError(
            f"{' and '.join(missing)} not given, and the network's checkpoint does not say: "
            "give them (nf.auto_schedule(data) computes a step size from the training data)"
        )
    return make(sigmas, **chosen)


__all__ = ["METHODS", "Method", "make_table"]
