"""What a sampler is called with, and its checks: bad input is refused before work begins."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypedDict

import torch
from torch import Tensor

from ncsn_fast.guidance.base import Guidance
from ncsn_fast.guidance.operators.base import Operator
from ncsn_fast.models.score import Score
from ncsn_fast.sampling.chain import Callback, Drift, Noise
from ncsn_fast.support import checks
from ncsn_fast.support.callables import fits
from ncsn_fast.support.progress import ProgressWish


class Call(TypedDict, total=False):
    """The keywords of ``Sampler.__call__`` but ``every``, by which its result differs."""

    seed: int | None
    sample_ids: Iterable[int] | None
    initial: Tensor | None
    start_level: int
    noise: Noise | None
    mask: Tensor | None
    known: Tensor | None
    guidance: Drift | None
    clip: float | None
    temperature: float
    callback: Callback | None
    extra: Mapping[str, object] | None
    shared: Mapping[str, object] | None
    batch_size: int | str
    progress: ProgressWish


def states(name: str, value: object, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """States of the caller's, detached, as float32.

    Args:
        name: what the messages call them.
        value: (n, *shape), floating point, on the device, or a NumPy array.
        shape: n and the shape of one sample.
        device: where the chain runs.

    Returns:
        (n, *shape) float32 on the device.

    Raises:
        ValueError: for another shape, dtype or device, and for values that are not finite.
    """
    checks.untransformed(f"{name} is given")
    state = checks.from_numpy(name, value, device)
    if not isinstance(state, Tensor) or not state.is_floating_point():
        given = state.dtype if isinstance(state, Tensor) else type(value).__name__
        raise ValueError(f"{name} has to be a floating-point tensor of shape {shape}, got {given}")
    if tuple(state.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(state.shape)}; needed is {shape}")
    _check_device(name, state, device)
    if not bool(torch.isfinite(state).all()):
        raise ValueError(f"{name} holds values that are not finite")
    return state.detach().float()


def mask_and_known(
    mask: object, known: object, shape: tuple[int, ...], device: torch.device
) -> tuple[Tensor | None, Tensor | None]:
    """The imposed region, broadcast to the batch.

    Args:
        mask: 0 and 1, of any dtype, and a shape that broadcasts to (n, *shape); on the device, or
            a NumPy array.
        known: states, floating point, likewise.
        shape: n and the shape of one sample.
        device: where the chain runs.

    Returns:
        The mask (n, *shape) bool, and the states (n, *shape) float32; None and None for neither.

    Raises:
        ValueError: for one without the other, other values in the mask, a shape that does not
            broadcast, another device or dtype, and states that are not finite.
    """
    if mask is None and known is None:
        return None, None
    if mask is None or known is None:
        raise ValueError("mask and known belong together: give both or none")
    mask = _broadcast("mask", mask, shape, device)
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise ValueError("mask holds values other than 0 and 1 (1: imposed, 0: free)")
    known = states("known", _broadcast("known", known, shape, device), shape, device)
    return mask.bool(), known


def functions(**given: object) -> None:
    """Refuse what cannot be called.

    Raises:
        ValueError: for anything but functions and None.
    """
    for name, value in given.items():
        if value is not None and not callable(value):
            raise ValueError(f"{name} = {value!r:.80}: give a function")


def clip(value: float | None) -> float | None:
    """The largest norm of the score, as it is.

    Raises:
        ValueError: unless it is positive, or None.
    """
    if value is None:
        return None
    if not checks.number("clip", value) > 0:
        raise ValueError(f"clip = {value}: the largest norm of the score is positive")
    return float(value)


def _check_device(name: str, tensor: Tensor, device: torch.device) -> None:
    if tensor.device != device:
        raise ValueError(
            f"{name} is on {tensor.device}, the sampler on {device}: move it, or give the sampler "
            "device="
        )


def _broadcast(name: str, value: object, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Expanded to (n, *shape).

    Raises:
        ValueError: where it is no tensor there or does not fit, and where its first size may be
            that of a sample or the number of samples.
    """
    tensor = checks.from_numpy(name, value, device)
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{name} is {type(value).__name__}: give a tensor or a NumPy array")
    _check_device(name, tensor, device)
    n, *sample = shape
    if n > 1 and tensor.ndim == len(sample) > 1 and tensor.shape[0] == n == sample[0]:
        raise ValueError(
            f"{name} has shape {tuple(tensor.shape)}, which may be that of one sample or begin "
            f"with n = {n} samples: give {name}[None] for one that all samples share, or "
            f"{name}[:, None] for one per sample"
        )
    try:
        return tensor.expand(shape)
    except RuntimeError:
        raise ValueError(
            f"{name} has shape {tuple(tensor.shape)}, which does not broadcast to {shape}"
        ) from None


def check_guidance(guidance: object) -> None:
    """Refuse what is no function of x, n, σ and the row.

    Raises:
        ValueError: for anything else, with what it may be meant to be.
    """
    if isinstance(guidance, Score):
        raise ValueError(
            "guidance is a Score: nf.guided(...) stands in the place of the network, "
            "nf.Sampler(nf.guided(...), ...)"
        )
    if guidance is None or isinstance(guidance, Guidance):
        return
    if callable(guidance) and fits(guidance, (None,) * 4, {}):
        return
    cure = "it is called with four arguments and returns the drift (B, *shape)"
    if isinstance(guidance, Operator):
        cure = "nf.posterior.gaussian_likelihood(operator, y, noise_std) makes one"
    raise ValueError(
        f"guidance is a {type(guidance).__name__}, needed is a function (x, n, σ, row): {cure}"
    )


__all__ = ["Call", "check_guidance", "clip", "functions", "mask_and_known", "states"]
