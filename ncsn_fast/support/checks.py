"""Bad input is refused before work begins: counts, choices, shapes."""

from __future__ import annotations

from collections.abc import Iterable
from operator import index

import torch
from torch import Tensor


def count(name: str, value: int, least: int = 1) -> int:
    """A whole number of at least ``least``; NumPy's integers are welcome.

    Raises:
        ValueError: for anything else.
    """
    try:
        whole = least - 1 if isinstance(value, bool) else index(value)
    except TypeError:
        whole = least - 1
    if whole < least:
        raise ValueError(f"{name} = {value!r}: give a whole number of at least {least}")
    return whole


def number(name: str, value: float) -> float:
    """A float; NumPy's are welcome, and what ``float`` reads.

    Raises:
        ValueError: for anything else.
    """
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name} = {value!r}: it has to be a number") from None


def choice(name: str, value: object, allowed: tuple[object, ...], why: str) -> None:
    """One of the values that this version knows.

    Raises:
        ValueError: for another, with ``why`` it cannot be.
    """
    if value not in allowed:
        raise ValueError(f"{name} = {value!r}: {why}; choose one of {allowed}")


def sample_shape(shape: Iterable[int] | None) -> tuple[int, ...]:
    """The shape of one sample, as positive numbers.

    Raises:
        ValueError: for None, no sizes, or sizes that are no positive whole numbers.
    """
    if shape is None:
        raise ValueError("shape is not known: give the shape of one sample, such as (3, 32, 32)")
    sizes = tuple(shape)
    if not sizes:
        raise ValueError("shape = (): give positive sizes, such as (3, 32, 32)")
    return tuple(count("shape", size) for size in sizes)


def same_shape(name: str, value: Tensor, shape: Iterable[int], like: Tensor) -> Tensor:
    """What a function of the caller's returned, in the dtype and on the device of the state.

    Raises:
        ValueError: unless it is a floating-point tensor of this shape on the state's device.
    """
    if not isinstance(value, Tensor):
        raise ValueError(f"{name} returned {type(value).__name__}; needed is a tensor")
    if value.shape != torch.Size(shape) or value.device != like.device:
        raise ValueError(
            f"{name} returned {tuple(value.shape)} on {value.device}; needed is {tuple(shape)} on "
            f"{like.device}"
        )
    if not value.is_floating_point():
        raise ValueError(f"{name} returned {value.dtype}; needed are floating-point values")
    return value


__all__ = ["choice", "count", "number", "same_shape", "sample_shape"]
