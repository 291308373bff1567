"""What is compiled to check the GPU kernels: their variants and budgets.

Here is what all areas share, and the variants of sampling and training, whose launches are those
that the engine's own steps make (``steps.py``). Those of networks are in ``passes.py``.
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ncsn_fast.benchmarks.static import steps
from ncsn_fast.benchmarks.static.recording import Launch, record
from ncsn_fast.kernels.triton import sampler_update

_LAYOUTS = (("", 0), (", channels_last 3", 3))  # of the network's output, and its channels
_OTHER_TYPES = (("fp32 network", torch.float32), ("bf16 network", torch.bfloat16))


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
    conflicts: float | None = None  # wavefronts of shared memory over the fewest possible


class Variant(NamedTuple):
    """A launch to compile.

    Attributes:
        kernel: the function's name without ``_`` and ``_kernel``.
        launch: gives the launch, of an engine whose launches are recorded and not run.
        counted: how instructions are counted per element of the state, which is what has the shape
            of the first tensor: "all" of them, those of a "loop", or None, where the kernel does
            not go through a state.
        everywhere: compiled for all targets also in a quick check.
    """

    kernel: str
    name: str
    launch: Callable[[], Launch]
    budget: Budget
    counted: str | None = "all"
    everywhere: bool = False


def _made(
    kernel: str,
    name: str,
    call: Callable[[], object],
    budget: Budget,
    counted: str | None = "all",
    everywhere: bool = False,
) -> Variant:
    """A variant whose launch is the last one of its kernel that a call makes."""
    return Variant(
        kernel, name, functools.partial(record, call, kernel), budget, counted, everywhere
    )


def _meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor without storage."""
    return torch.empty(shape, dtype=dtype, device="meta")


def _words_of_32_bits() -> None:
    """What the engine never launches: how a compiler that drops shifts beyond a word is caught."""
    x, samples = _meta(8, 3, 32, 32), _meta(8, dtype=torch.int32)
    word = _meta(dtype=torch.int32)
    sampler_update.sampler_update(
        x, x.half(), _meta(9), word, word, samples, *[None] * 5, x, None, None,
        add_noise=True, fast_math=True,
    )  # fmt: skip


def variants() -> Iterator[Variant]:
    """Sampling and training; the network's output is float16 if not said.

    With guidance it is float32: the normalised score, which the guidance has seen; and so it is
    where the noise of a state is held, which is measured by it.
    """
    of, update, everything = functools.partial, "sampler_update", steps.EVERYTHING
    strided = Budget(shared=None, barriers=None, lanes=1)
    uses = (
        ("plain", 45), ("history", 50), ("guidance", 48), ("mask", 65), ("scaled input", 45),
        (everything, 80), ("no noise", 13), ("no noise, history", 19),
        ("no noise, history, scaled input", 19), ("no noise, held", 13),
        ("no noise, history, held", 19), ("given noise", 13),
    )  # fmt: skip
    for last, channels in _LAYOUTS:
        for use, most in uses:
            name = ("everything" if use == everything else use) + last
            call = of(steps.sample, use, channels=channels)
            first = name in ("plain", "everything, channels_last 3")
            yield _made(update, name, call, Budget(most), everywhere=first)
        for name, dtype in _OTHER_TYPES:
            call = of(steps.sample, dtype=dtype, channels=channels)
            yield _made(update, name + last, call, Budget(45))
    for channels in (2, 4, 8):
        call = of(steps.sample, channels=channels)
        yield _made(update, f"channels_last {channels}", call, Budget(45, lanes=8))
    yield _made(update, "32-bit words", _words_of_32_bits, Budget(45))
    yield _made(update, "strided", of(steps.sample, channels=3, size=(5, 7)), strided)

    yield _made("perturb", "plain", steps.train, Budget(30), everywhere=True)
    yield _made("perturb", "strided", of(steps.train, size=(5, 7)), strided)

    summing = Budget(36, shared=16, barriers=2)
    for last, channels in _LAYOUTS:
        name, call = f"forward and backward{last}", of(steps.train, channels=channels)
        yield _made("dsm_loss", name, call, summing, everywhere=not last)
        call = of(steps.train, anneal_power=1.0, channels=channels)
        yield _made("dsm_loss", f"weights{last}", call, summing)
        for name, dtype in _OTHER_TYPES:
            call = of(steps.train, dtype=dtype, channels=channels)
            yield _made("dsm_loss", name + last, call, summing)
    for channels in (2, 4, 8):
        call = of(steps.train, channels=channels)
        # Quads in pairs: 128 bits of a 16-bit type.
        yield _made("dsm_loss", f"channels_last {channels}", call, replace(summing, lanes=8))
    yield _made("dsm_loss", "forward", steps.loss, summing)
    yield _made("dsm_loss", "backward", of(steps.loss, backward=True), Budget(36))
    yield _made("dsm_loss", "strided", of(steps.train, channels=3, size=(5, 7)), strided)

    once = Budget(barriers=1, lanes=1)
    yield _made("begin_step", "labels", steps.captured, once, None, everywhere=True)


__all__ = ["Budget", "Variant", "variants"]
