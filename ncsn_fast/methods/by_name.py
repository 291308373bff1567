"""The methods that are known by name, and from a name and settings to the table to run."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ncsn_fast.methods import tables
from ncsn_fast.methods.levels import best_step_size, check_sigmas
from ncsn_fast.methods.spacings import AUTO, noise_levels, resolve
from ncsn_fast.table import Table

ANNEALED_LANGEVIN = "annealed_langevin"
CONSISTENT_ANNEALED = "consistent_annealed"


class Method(NamedTuple):
    """A method that nf.Sampler knows by name.

    ``table`` is called with the noise levels and those settings of the sampler that it names.
    """

    table: Callable[..., Table]
    uniform_start: bool = False  # from U[0, 1) as published, not from that plus σ₁ noise
    # What it may take from a checkpoint made for annealed Langevin dynamics: elsewhere a setting of
    # the same name means something else, or nothing.
    borrows: tuple[str, ...] = ()
    either: tuple[str, ...] = ()  # settings of which one stands in for the others


METHODS = {
    ANNEALED_LANGEVIN: Method(tables.annealed_langevin, uniform_start=True),
    CONSISTENT_ANNEALED: Method(tables.consistent_annealed),
    "reverse_diffusion": Method(tables.reverse_diffusion),
    "ancestral": Method(tables.ancestral),
    "predictor_corrector": Method(
        tables.predictor_corrector, borrows=("step_size",), either=("snr", "step_size")
    ),
    "euler": Method(tables.euler),
    "heun": Method(tables.heun),
    "dpmpp_2m": Method(tables.dpmpp_2m),
}


def make_table(
    method: str | Table | Callable[..., Table],
    sigmas: Tensor | None,
    settings: Mapping[str, Any],
    defaults: Mapping[str, Any],
    only_levels: bool = False,
) -> Table:
    """The table of a method.

    Args:
        method: a name of ``METHODS``, a function from noise levels and settings to a table, or a
            table, which already says it all.
        sigmas: (L,) noise levels, None where they are not known.
        settings: the method's settings as given, None for those that are not.
        defaults: ``net.sampling`` of a checkpoint: a method and its settings.
        only_levels: whether the network can be told ``sigmas`` and no other levels.

    Raises:
        ValueError: for settings that are unknown, missing, out of range or without effect.
    """
    named = {name: value for name, value in settings.items() if value is not None}
    _check_defaults(defaults)
    if isinstance(method, Table):
        if named:
            raise ValueError(f"{list(named)} given beside a table, which already says it all")
        return method
    known = _find(method)
    if sigmas is None:
        raise ValueError(
            "sigmas are not known: give the noise levels, "
            "for example nf.geometric_sigmas(50, 0.01, 232) or nf.auto_schedule(data).sigmas"
        )
    title = method if isinstance(method, str) else getattr(method, "__name__", "your function")
    takes = check_taken(method, named)
    chosen = {**_defaults(method, known, named, defaults), **named}
    missing = [n for n, p in takes.items() if p.default is p.empty and n not in chosen]
    if missing:
        raise ValueError(
            f"{' and '.join(missing)} not given for {title!r}, {_silence(method, defaults)}: give "
            "them (nf.auto_schedule(data) computes a step size from the training data)"
        )
    if "steps" in takes and isinstance(method, str):
        spacing = chosen.get("spacing", AUTO)
        if chosen.get("steps") is not None:
            chosen["spacing"] = spacing = resolve(spacing, sigmas, only_levels)
        if "rho" in named and str(spacing) != "karras":
            raise ValueError(
                f"rho = {named['rho']!r:.80} has no effect with spacing = {spacing!r}: give "
                'spacing="karras" too'
            )
    table = known.table(check_sigmas(sigmas), **chosen)
    if not isinstance(table, Table):
        raise ValueError(f"method {title!r} returned {type(table).__name__}; needed is a Table")
    return table


def check_taken(
    method: str | Callable[..., Table], settings: Mapping[str, Any]
) -> dict[str, inspect.Parameter]:
    """The settings that a method takes, by name.

    Raises:
        ValueError: where there is no such method, or it takes no setting of this name.
    """
    title = method if isinstance(method, str) else getattr(method, "__name__", "your function")
    takes = _parameters(_find(method).table)
    strange = sorted(name for name in set(settings) - set(takes) if settings[name] is not None)
    if strange:
        others = [name for name, one in METHODS.items() if {*strange} <= {*_parameters(one.table)}]
        raise ValueError(
            f"method {title!r} takes no {' and no '.join(strange)}; its settings are "
            f"{', '.join(takes)}" + (f". Methods that do: {', '.join(others)}" if others else "")
        )
    return takes


def used_settings(
    method: str, settings: Mapping[str, Any], defaults: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """The settings that a method is run with, by where they come from: "given", "checkpoint" or
    "default"; those that the method leaves open are None. The arguments are those of
    :func:`make_table`."""
    takes = _parameters(_find(method).table)
    given = {name: value for name, value in settings.items() if value is not None}
    stored = _defaults(method, _find(method), given, defaults)
    rest = {n: p.default for n, p in takes.items() if p.default is not p.empty}
    return {
        "given": {n: given[n] for n in takes if n in given},
        "checkpoint": {n: stored[n] for n in takes if n in stored and n not in given},
        "default": {n: rest[n] for n in takes if n in rest and n not in {**given, **stored}},
    }


def table_for(
    method: str,
    sigmas: Tensor,
    evaluations: int | None,
    *,
    step_size: float | None = None,
    steps_per_level: int = 5,
    denoise: bool = True,
    spacing: str = AUTO,
    rho: float = 7.0,
    settings: Mapping[str, Any] | None = None,
    only_levels: bool = False,
    name: str = "evaluations",
) -> Table:
    """The table of a method for so many network evaluations, at most.

    A method that is not told how many steps it may take visits as many of the levels as they pay
    for.

    Args:
        method: a name of ``METHODS``.
        sigmas: (L,) the model's noise levels, descending.
        evaluations: how many; None, or more than for all levels of a ladder: all levels.
        step_size: ε; None: for annealed Langevin dynamics that of Technique 4, for the ratio of
            the two smallest levels that are visited.
        steps_per_level, denoise: of the methods that take them.
        spacing, rho: which levels are visited, see :func:`ncsn_fast.methods.spacings.noise_levels`.
        settings: others of the method.
        only_levels: whether the network can be told ``sigmas`` and no other levels, or is told the
            nearest of them: see :func:`ncsn_fast.methods.spacings.resolve`.
        name: what the caller calls the number of evaluations, for the message.

    Raises:
        ValueError: for too few evaluations, and for settings that the method refuses.
    """
    takes = _parameters(_find(method).table)
    given = dict(settings or {})
    own = spacing in (AUTO, "ladder")
    if method == CONSISTENT_ANNEALED:  # it makes its own levels from the ends
        spacing = given["spacing"] = tables.consistent_spacing(sigmas, AUTO if own else spacing)
        on_ladder = own
    else:
        spacing = "ladder" if own and evaluations is None else resolve(spacing, sigmas, only_levels)
        on_ladder = spacing in ("ladder", "nearest")
    if "steps" in takes:
        given["spacing"] = spacing
        if spacing == "karras":
            given["rho"] = rho
        if "step_size" in takes and "snr" not in given:
            given["step_size"] = step_size
        # Every level takes a row or more: for fewer the whole table need not be made.
        if evaluations is None or (on_ladder and evaluations >= len(sigmas)):
            whole = make_table(method, sigmas, given, {})
            if evaluations is None or evaluations >= len(whole):
                return whole
        return make_table(method, sigmas, {**given, "steps": evaluations}, {})
    if evaluations is not None:
        # The last step of consistent annealed sampling is the one that removes the noise.
        more = int(bool(denoise)) if method == ANNEALED_LANGEVIN else 1 - steps_per_level
        number = (evaluations - more) // steps_per_level
        if number < 1:
            raise ValueError(
                f"{name} = {evaluations}: one noise level takes {steps_per_level} network "
                f"evaluations here, and denoising {int(denoise)}"
            )
        number = min(number, len(sigmas)) if on_ladder else number
        sigmas = torch.from_numpy(noise_levels(sigmas, number, spacing, rho))
    if step_size is None and method == ANNEALED_LANGEVIN:
        step_size = _step_size(sigmas, steps_per_level)
    given.update(step_size=step_size, steps_per_level=steps_per_level, denoise=denoise)
    return make_table(method, sigmas, given, {})


def _step_size(levels: Tensor, steps_per_level: int) -> float:
    if len(levels) < 2:
        raise ValueError(
            "step_size is computed from the ratio of noise levels, of which there is one: give "
            "it, 0 < ε < 2σ_L², or more steps"
        )
    last = float(levels[-1])
    return best_step_size(float(levels[-2]) / last, last, steps_per_level)


def known_settings(method: object) -> set[str]:
    """The settings of all named methods, and of the given one where it is a function."""
    functions = [known.table for known in METHODS.values()]
    if callable(method):
        functions.append(method)
    return {name for function in functions for name in _parameters(function)}


def starts_uniform(method: object) -> bool:
    """Whether chains of this method begin in U[0, 1), and not in that plus noise."""
    return isinstance(method, str) and METHODS[method].uniform_start


def _find(method: str | Callable[..., Table]) -> Method:
    if callable(method):
        return Method(method)
    if not isinstance(method, str) or method not in METHODS:
        raise ValueError(
            f"method = {method!r:.80} is unknown; choose one of {list(METHODS)}, or give a table "
            "function or a Table of your own"
        )
    return METHODS[method]


def _parameters(table: Callable[..., Table]) -> dict[str, inspect.Parameter]:
    """The settings that a table function takes: all its parameters but the noise levels."""
    parameters = list(inspect.signature(table).parameters.values())[1:]
    return {p.name: p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}


def _check_defaults(defaults: Mapping[str, Any]) -> None:
    """Refuse settings of a checkpoint that its own method does not have: it would not use them."""
    if not defaults:
        return
    source = defaults.get("method", ANNEALED_LANGEVIN)
    takes = _parameters(_find(source).table)
    given = {name for name, value in defaults.items() if value is not None} - {"method"}
    if strange := sorted(given - set(takes)):
        raise ValueError(
            f"the network's own settings (net.sampling) have {', '.join(strange)}, which their "
            f"method {source!r} does not take: it takes {', '.join(takes)}"
        )


def _defaults(
    method: object, known: Method, named: Mapping[str, Any], defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """The checkpoint's settings as far as they are meant for this method."""
    source = defaults.get("method", ANNEALED_LANGEVIN)
    if method == source:
        meant = set(_parameters(known.table))
    elif source == ANNEALED_LANGEVIN:
        meant = set(known.borrows)
    else:
        meant = set()
    if set(known.either) & set(named):
        meant -= set(known.either)
    return {name: defaults[name] for name in meant if defaults.get(name) is not None}


def _silence(method: object, defaults: Mapping[str, Any]) -> str:
    """Why the checkpoint does not help."""
    source = defaults.get("method", ANNEALED_LANGEVIN)
    if defaults and source != method:
        return f"and the network's checkpoint has settings of {source!r} only"
    return "and the network's checkpoint does not say"


__all__ = [
    "ANNEALED_LANGEVIN",
    "METHODS",
    "check_taken",
    "known_settings",
    "make_table",
    "starts_uniform",
    "table_for",
    "used_settings",
]
