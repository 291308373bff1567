"""Bad input is refused before work begins: the checks of what a sampler is called with."""

from __future__ import annotations

from collections.abc import Iterable
from operator import index

import torch
from torch import Tensor

from ncsn_fast.noise import as_sample_ids


def sample_ids(n: int, ids: Iterable[int] | None) -> Tensor:
    """(n,) int64 on the CPU: the given ids, or 0 … n-1."""
    n = count("n", n)
    given = range(n) if ids is None else ids
    checked = as_sample_ids(given.cpu() if isinstance(given, Tensor) else list(given))
    if len(checked) != n:
        raise ValueError(f"{len(checked)} sample_ids for n = {n} samples: give one id per sample")
    if len(checked.unique()) != n:
        raise ValueError("sample_ids repeat: two samples of one id would be the same image")
    return checked


def sample_shape(shape: Iterable[int] | None) -> tuple[int, ...]:
    """The shape of one sample."""
    if shape is None:
        raise ValueError("shape is not known: give the shape of one sample, such as (3, 32, 32)")
    sizes = tuple(shape)
    if not sizes:
        raise ValueError("shape = (): give positive sizes, such as (3, 32, 32)")
    return tuple(count("shape", size) for size in sizes)


def states(name: str, state: Tensor | None, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """States of exactly this shape as float32."""
    if not isinstance(state, Tensor) or not state.is_floating_point():
        raise ValueError(f"{name} has to be a floating-point tensor of shape {shape}")
    if tuple(state.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(state.shape)}; needed is {shape}")
    _check_device(name, state, device)
    if not bool(torch.isfinite(state).all()):
        raise ValueError(f"{name} holds values that are not finite")
    return state.detach().float()


def mask_and_known(
    mask: Tensor | None, known: Tensor | None, shape: tuple[int, ...], device: torch.device
) -> tuple[Tensor | None, Tensor | None]:
    """The imposed region: a bool mask and float32 states, both broadcast to the batch."""
    if mask is None and known is None:
        return None, None
    if mask is None or known is None:
        raise ValueError("mask and known belong together: give both or none")
    _check_device("mask", mask, device)
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise ValueError("mask holds values other than 0 and 1 (1: imposed, 0: free)")
    known = states("known", _broadcast("known", known, shape), shape, device)
    return _broadcast("mask", mask, shape).bool(), known


def clip(value: float | None) -> float | None:
    """The largest norm of the score."""
    if value is not None and not value > 0:
        raise ValueError(f"clip = {value}: the largest norm of the score is positive")
    return value


def count(name: str, value: int) -> int:
    """A whole number of at least 1; NumPy's integers are welcome."""
    try:
        whole = 0 if isinstance(value, bool) else index(value)
    except TypeError:
        whole = 0
    if whole < 1:
        raise ValueError(f"{name} = {value!r}: give a whole number of at least 1")
    return whole


def choice(name: str, value: object, allowed: tuple[object, ...], why: str) -> None:
    """One of the values that this version knows."""
    if value not in allowed:
        raise ValueError(f"{name} = {value!r}: {why}; choose one of {allowed}")


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


def _check_device(name: str, tensor: Tensor, device: torch.device) -> None:
    if tensor.device != device:
        raise ValueError(
            f"{name} is on {tensor.device}, the sampler on {device}: move it, or give the sampler "
            "device="
        )


def _broadcast(name: str, tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    try:
        return tensor.expand(shape)
    except RuntimeError:
        raise ValueError(
            f"{name} has shape {tuple(tensor.shape)}, which does not broadcast to {shape}"
        ) from None


__all__ = [
    "choice",
    "clip",
    "count",
    "mask_and_known",
    "same_shape",
    "sample_ids",
    "sample_shape",
    "states",
]
