"""Bad input is refused before work begins: counts, choices, shapes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from operator import index
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack


def count(name: str, value: object, least: int = 1, most: int | None = None) -> int:
    """A whole number of at least ``least``; those of NumPy and in tensors are welcome.

    Args:
        name: what the message calls it.
        value: the number.
        least, most: its bounds, both included; None: no upper one.

    Raises:
        ValueError: for anything else.
    """
    truth = isinstance(value, bool) or "bool" in str(getattr(value, "dtype", ""))
    try:
        if truth or getattr(value, "ndim", 0) != 0:
            raise TypeError
        whole = index(value)  # type: ignore[arg-type]
    except (TypeError, RuntimeError):
        whole = least - 1
    if whole < least or (most is not None and whole > most):
        bounds = f"of at least {least}" if most is None else f"from {least} to {most:,}"
        raise ValueError(f"{name} = {value!r:.80}: give a whole number {bounds}")
    return whole


def number(name: str, value: object) -> float:
    """A float where a number is given: Python's, NumPy's or a tensor's, no word and no truth value.

    Raises:
        ValueError: for anything else.
    """
    truth = isinstance(value, bool) or "bool" in str(getattr(value, "dtype", ""))
    try:
        if truth or isinstance(value, (str, bytes)) or getattr(value, "ndim", 0) != 0:
            raise TypeError
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{name} = {value!r:.80}: it has to be a number") from None


def positive(name: str, value: object) -> float:
    """A finite number above 0.

    Raises:
        ValueError: for anything else.
    """
    found = number(name, value)
    if not (math.isfinite(found) and found > 0):
        raise ValueError(f"{name} = {found}: give a finite positive number")
    return found


def choice(name: str, value: object, allowed: tuple[object, ...], why: str) -> None:
    """One of the values that this version knows.

    Raises:
        ValueError: for another, with ``why`` it cannot be.
    """
    # Of an array it cannot be said whether it is one of them.
    if getattr(value, "ndim", 0) != 0 or value not in allowed:
        raise ValueError(f"{name} = {value!r:.80}: {why}; choose one of {allowed}")


def printable(text: object) -> str:
    """A name of a stranger's for a message: what would steer a terminal, or is no character, is
    written as Python writes it."""
    name = str(text)
    return name if name.isprintable() else repr(name)[1:-1]


def tensor(name: str, value: object) -> Tensor:
    """A tensor as it is, detached; of an array, or of nested lists of numbers, a tensor of its own.

    An array keeps its type, lists become float64, complex128, int64 or bool.

    Raises:
        ValueError: for what is no array of numbers, and for tensors without values in memory.
    """
    if isinstance(value, Tensor):
        if value.is_meta or value.layout != torch.strided or value.is_quantized:
            raise ValueError(
                f"{name} is a tensor of {value.dtype} on {value.device}, {value.layout}: give one "
                "with its values in memory (.to_dense(), .dequantize())"
            )
        return value.detach()
    try:
        array = np.array(value, order="C")
        # Of big-endian files the bytes are in another order.
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(
            f"{name} is a {type(value).__name__} that is no array of numbers ({error}): give a "
            "tensor or a NumPy array"
        ) from None


def untransformed(what: str) -> None:
    """Refuse to work inside of a transform of torch.func.

    Raises:
        ValueError: there; ``what`` begins the message.
    """
    if not torch.compiler.is_compiling() and peek_interpreter_stack() is not None:
        raise ValueError(
            f"{what} inside of torch.func.vmap, grad, jvp or another transform, which hide the "
            "values of tensors that it decides by: do that outside, for many samples in one batch"
        )


def sample_shape(shape: Iterable[int] | None) -> tuple[int, ...]:
    """The shape of one sample, as positive numbers.

    Raises:
        ValueError: for None, no sizes, or sizes that are no positive whole numbers.
    """
    if shape is None:
        raise ValueError("shape is not known: give the shape of one sample, such as (3, 32, 32)")
    found = sizes("shape", shape)
    if not found:
        raise ValueError("shape = (): give positive sizes, such as (3, 32, 32)")
    return found


def sizes(name: str, value: object, least: int = 1) -> tuple[int, ...]:
    """Whole numbers of at least ``least``.

    Raises:
        ValueError: for anything else.
    """
    single = isinstance(value, (str, bytes)) or getattr(value, "ndim", 1) != 1
    if single or not isinstance(value, Iterable):
        raise ValueError(f"{name} = {value!r:.80}: give sizes, such as (3, 32, 32)")
    return tuple(count(name, size, least, 1 << 31) for size in value)


def from_numpy(name: str, value: Any, device: torch.device) -> Any:
    """A NumPy array as a tensor on the device; anything else as it is.

    Raises:
        ValueError: for an array of other things than numbers.
    """
    return tensor(name, value).to(device) if isinstance(value, (np.ndarray, np.generic)) else value


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
    if value.layout != torch.strided:
        raise ValueError(f"{name} returned {value.layout}; needed are all values (.to_dense())")
    if not value.is_floating_point():
        raise ValueError(f"{name} returned {value.dtype}; needed are floating-point values")
    return value


def factors(name: str, value: Tensor, like: Tensor) -> Tensor:
    """What a function of the caller's returned for some levels, a factor above 0 for each.

    Raises:
        ValueError: as :func:`same_shape`; and for others than finite positive numbers, on a CPU.
    """
    same_shape(name, value, like.shape, like)
    # A device would have to be waited for, and a transform hides the values.
    seen = value.device.type == "cpu" and not torch.compiler.is_compiling()
    if seen and peek_interpreter_stack() is None:
        wrong = ~((value > 0) & torch.isfinite(value))
        if bool(wrong.any()):
            raise ValueError(
                f"{name} returned {float(value[wrong][0]):g} for {float(like[wrong][0]):g}: "
                "needed are finite positive numbers"
            )
    return value


__all__ = [
    "choice",
    "count",
    "factors",
    "from_numpy",
    "number",
    "printable",
    "same_shape",
    "sample_shape",
    "sizes",
    "tensor",
    "untransformed",
]
