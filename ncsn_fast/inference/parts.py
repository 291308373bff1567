"""What decides on what a module computes, beside the values of its weights: listed, to be compared
with what it is later, and with a module of ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

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
        tensors: shapes of its parameters and buffers.
        settings: its attributes that are numbers, words, functions, and tuples and lists of these.
    """

    name: str
    module: nn.Module
    kind: type
    forward: Callable[..., Any]
    tensors: dict[str, torch.Size]
    settings: dict[str, Any]


def parts(whole: nn.Module) -> list[Part]:
    """All parts of a module, itself first; equal as long as they are the same and set the same.

    Of the module itself no numbers and lists are settings: people count its calls in them.
    """
    return [
        Part(
            name,
            module,
            type(module),
            type(module).forward,
            {
                key: tensor.shape
                for held in (module._parameters, module._buffers)
                for key, tensor in held.items()
                if tensor is not None
            },
            {
                key: tuple(value) if isinstance(value, list) else value
                for key, value in vars(module).items()
                if key not in _EVERYONES and _is_setting(value, counted=module is whole)
            },
        )
        for name, module in whole.named_modules()
    ]


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


__all__ = ["Part", "parts", "set_otherwise"]
