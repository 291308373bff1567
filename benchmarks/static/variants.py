"""What is compiled to check the GPU kernels: their variants and budgets.

Here is what all areas share, and the variants of sampling and training. An area of its own is a
module with a ``variants()``, which ``compiled.py`` collects.
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ncsn_fast.kernels.triton import begin_step, dsm_loss, perturb, sampler_update

_SAMPLES = 8


@dataclass(frozen=True)
class Budget:
    """The most that a variant may use; None is no limit.

    No variant may have a stack, local memory or spills on any target; what is said here holds on
    all NVIDIA targets.
    """

    instructions: float | None = None  # per element
    shared: int | None = 0
    barriers: int | None = 0
    lanes: int = 4  # elements that each load and store takes at once, up to 128 bits
    once: bool = True  # each tensor is moved once


def quads(settings: dict[str, Any]) -> int:
    """Elements of a program that takes BLOCK_SIZE quads of each of its channels."""
    return 4 * settings["BLOCK_SIZE"] * settings["CHANNELS"]


class Variant(NamedTuple):
    """A launch to compile: ``call`` calls a launcher with tensors that have no storage.

    Attributes:
        kernel: the function's name without ``_`` and ``_kernel``; of the launches that the call
            makes, this one is meant.
        elements: of the state that a program takes, from what it is compiled for; None where it
            does not go through a state, which is what has the shape of the first tensor.
        loop: whether it takes them in each turn of a loop.
        everywhere: compiled for all targets also in a quick check.
    """

    kernel: str
    name: str
    call: Callable[[], object]
    budget: Budget
    elements: Callable[[dict[str, Any]], int] | None = quads
    loop: bool = False
    everywhere: bool = False


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor without storage."""
    return torch.empty(shape, dtype=dtype, device="meta")


def _scalars(kind: torch.dtype = torch.int64) -> tuple[Tensor, Tensor, Tensor]:
    """Seed, step and sample ids."""
    return meta(dtype=kind), meta(dtype=kind), meta(_SAMPLES, dtype=kind)


def _states(network: torch.dtype, channels: int, strided: bool) -> tuple[Tensor, Tensor]:
    """A float32 state and the network's tensor of its shape: channels_last if channels are given.

    With an odd number of pixels, if strided.
    """
    x = meta(_SAMPLES, channels or 3, *((5, 7) if strided else (32, 32)))
    n = x.to(network)
    return x, n.to(memory_format=torch.channels_last) if channels else n


def _sampler_update(
    *,
    network: torch.dtype = torch.float16,
    channels: int = 0,
    strided: bool = False,
    history: bool = False,
    guidance: bool = False,
    mask: bool = False,
    noise: bool = True,
    scale: bool = False,
    clamp: tuple[float, float] | None = None,
    words: torch.dtype = torch.int64,
) -> None:
    x, n = _states(network, channels, strided)
    h = x if history else None
    g = x if guidance else None
    is_known, known = (x.bool(), x) if mask else (None, None)
    sampler_update.sampler_update(
        x, n, meta(9), *_scalars(words), None, h, g, is_known, known, x, h, n,
        add_noise=noise, scale_input=scale, clamp=clamp, fast_math=True,
    )  # fmt: skip


def _perturb(*, channels: int = 0, strided: bool = False) -> None:
    x, out = _states(torch.float16, channels, strided)
    perturb.perturb(x, meta(_SAMPLES), *_scalars(), out, fast_math=True)


def _dsm_loss(
    *,
    loss: bool = True,
    gradient: bool = True,
    weights: bool = False,
    channels: int = 0,
    strided: bool = False,
) -> None:
    _, n = _states(torch.float16, channels, strided)
    per_sample = meta(_SAMPLES)
    dsm_loss.dsm_loss(
        n, per_sample if weights else None, *_scalars(), per_sample if gradient else None,
        loss=per_sample if loss else None, gradient=n if gradient else None, fast_math=True,
    )  # fmt: skip


def _begin_step() -> None:
    counter, labels = meta(2, dtype=torch.int64), meta(7, dtype=torch.int64)
    _, step, per_sample = _scalars()
    begin_step.begin_step(counter, meta(7, 9), labels, meta(9), step, per_sample)


def variants() -> Iterator[Variant]:
    """Sampling and training; the network is float16 if not said."""
    of, update = functools.partial, "sampler_update"
    everything = of(
        _sampler_update, history=True, guidance=True, mask=True, scale=True, clamp=(-1.0, 1.0)
    )
    strided = Budget(shared=None, barriers=None, lanes=1)
    yield Variant(update, "plain", _sampler_update, Budget(45), everywhere=True)
    yield Variant(update, "history", of(_sampler_update, history=True), Budget(50))
    yield Variant(update, "guidance", of(_sampler_update, guidance=True), Budget(48))
    yield Variant(update, "mask", of(_sampler_update, mask=True), Budget(65))
    yield Variant(update, "everything", everything, Budget(80))
    silent = of(_sampler_update, noise=False)
    yield Variant(update, "no noise", silent, Budget(13))
    yield Variant(update, "no noise, history", of(silent, history=True), Budget(19))
    for channels in (2, 3, 4, 8):
        call = of(_sampler_update, channels=channels)
        yield Variant(update, f"channels_last {channels}", call, Budget(45))
    call = of(everything, channels=3)
    yield Variant(update, "everything, channels_last 3", call, Budget(80), everywhere=True)
    yield Variant(update, "fp32 network", of(_sampler_update, network=torch.float32), Budget(45))
    yield Variant(update, "bf16 network", of(_sampler_update, network=torch.bfloat16), Budget(45))
    yield Variant(update, "32-bit words", of(_sampler_update, words=torch.int32), Budget(45))
    yield Variant(update, "strided", of(_sampler_update, channels=3, strided=True), strided)

    yield Variant("perturb", "plain", _perturb, Budget(30), everywhere=True)
    yield Variant("perturb", "channels_last 3", of(_perturb, channels=3), Budget(30))
    yield Variant("perturb", "strided", of(_perturb, channels=3, strided=True), strided)

    summing = Budget(36, shared=16, barriers=2)
    yield Variant("dsm_loss", "forward and backward", _dsm_loss, summing, everywhere=True)
    yield Variant("dsm_loss", "forward", of(_dsm_loss, gradient=False), summing)
    yield Variant("dsm_loss", "backward", of(_dsm_loss, loss=False), Budget(36))
    yield Variant("dsm_loss", "weights", of(_dsm_loss, weights=True), summing)
    yield Variant("dsm_loss", "channels_last 3", of(_dsm_loss, channels=3), summing)
    yield Variant("dsm_loss", "strided", of(_dsm_loss, channels=3, strided=True), strided)

    once = Budget(barriers=1, lanes=1)
    yield Variant("begin_step", "labels", _begin_step, once, None, everywhere=True)


__all__ = ["Budget", "Variant", "meta", "quads", "variants"]
