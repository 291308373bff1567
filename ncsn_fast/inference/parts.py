"""What decides on what a module computes, beside the values of its weights: listed, to be compared
with what it is later, and with a module of ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

# What every module has: none of it is a setting.
_EVERYONES = frozenset(vars(nn.Module()))
# Of a convolution, besides its padding.
_GEOMETRY = ("kernel_size", "stride", "dilation", "groups", "padding_mode")
# Added to a variance by every InstanceNorm++.
_EPSILON = 1e-5
_NORMS = (nn.InstanceNorm2d, nn.GroupNorm)


class Part(NamedTuple):
    """A part of a module, and what decides on what it computes.

    Attributes:
        name: "" for the whole module.
        module, kind, forward: itself, its class, and what that computes.
        parts: its own parts.
        parameters, buffers: shapes of its tensors; None where it has none by that name.
        settings: its attributes that are numbers, words, functions, and tuples and lists of these.
    """

    name: str
    module: nn.Module
    kind: type
    forward: Callable[..., Any]
    parts: dict[str, nn.Module | None]
    parameters: dict[str, torch.Size | None]
    buffers: dict[str, torch.Size | None]
    settings: dict[str, Any]

    def changed(self) -> Iterator[str]:
        """Names of what is another now. What was not there, or None, a class cannot have gone by:
        people put labels on networks."""
        if (type(self.module), type(self.module).forward) != (self.kind, self.forward):
            yield "forward"
        yield from _unlike(self.module._modules, self.parts)
        yield from _unlike(_shapes(self.module._parameters), self.parameters)
        now = _shapes(self.module._buffers)
        yield from (name for name, shape in self.buffers.items() if now.get(name) != shape)
        own = vars(self.module)
        for name, value in self.settings.items():
            if (found := own.get(name)) is not value and not _same(found, value):
                yield name


def parts(whole: nn.Module) -> list[Part]:
    """All parts of a module as they are now, itself first.

    Of the module itself no numbers and lists are settings: people count its calls in them.
    """
    return [
        Part(
            name,
            module,
            type(module),
            type(module).forward,
            dict(module._modules),
            _shapes(module._parameters),
            _shapes(module._buffers),
            {
                key: tuple(value) if isinstance(value, list) else value
                for key, value in vars(module).items()
                if value is not None
                and key not in _EVERYONES
                and _is_setting(value, counted=module is whole)
            },
        )
        for name, module in whole.named_modules()
    ]


def changed(before: list[Part]) -> str | None:
    """The first thing in the parts of a module that is another now than it was, by its name."""
    return next(
        (f"{one.name}.{name}".lstrip(".") for one in before for name in one.changed()), None
    )


def lasting(now: list[Part], before: list[Part]) -> list[Part]:
    """Parts without the settings that are others than before a call: they remember what it saw."""
    for one, old in zip(now, before, strict=False):
        for name in {*one.settings} - {*old.settings} | {*old.changed()}:
            one.settings.pop(name, None)
    return now


def _shapes(tensors: Mapping[str, Tensor | None]) -> dict[str, torch.Size | None]:
    return {name: None if one is None else one.shape for name, one in tensors.items()}


def _unlike(now: Mapping[str, object], before: Mapping[str, object]) -> list[str]:
    """Names of entries that came, went or became another."""
    if now == before:
        return []
    return [name for name in {**before, **now} if now.get(name, name) != before.get(name, name)]


def _same(found: object, setting: object) -> bool:
    if not _is_setting(found, counted=False):
        return False
    return (tuple(found) if isinstance(found, list) else found) == setting


def _is_setting(value: object, counted: bool) -> bool:
    if isinstance(value, (bool, str)) or value is None or callable(value):
        return True
    if isinstance(value, (tuple, list)):
        return not counted and all(_is_setting(one, counted) for one in value)
    return isinstance(value, (int, float)) and not counted


def set_otherwise(theirs: nn.Module, ours: nn.Module) -> str | None:
    """Which part of a module is not set as ours is, as far as PyTorch's own layers say it; a few
    images may not show it."""
    for name, module in theirs.named_modules():
        epsilon = getattr(module, "eps", _EPSILON) if isinstance(module, _NORMS) else _EPSILON
        if epsilon != _EPSILON:
            return f"{name} has eps={epsilon:g}, not {_EPSILON:g}"
    for name, own in ours.named_modules():
        other = theirs.get_submodule(name) if isinstance(own, nn.Conv2d) else None
        if isinstance(own, nn.Conv2d) and isinstance(other, nn.Conv2d):
            wanted = _geometry(own)
            for setting, value in _geometry(other).items():
                if value != wanted[setting]:
                    return f"{name} has {setting}={value}, not {wanted[setting]}"
    return None


def _geometry(conv: nn.Conv2d) -> dict[str, Any]:
    """What a convolution does beside its weights; padding by name is that of so many pixels."""
    padding = conv.padding
    if padding == "same":
        spans = zip(conv.dilation, conv.kernel_size, strict=True)
        padding = tuple(dilation * (size - 1) // 2 for dilation, size in spans)
    return {**{name: getattr(conv, name) for name in _GEOMETRY}, "padding": padding}


__all__ = ["Part", "changed", "lasting", "parts", "set_otherwise"]
