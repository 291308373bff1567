"""What all launches share: the mathematics, the device, the shape of a program."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from ncsn_fast.kernels.triton.common.tiles import Plan, magic_number, plan

IS_HIP = torch.version.hip is not None
# Triton's interpreter runs kernels on the CPU, without the hardware's approximate functions.
INTERPRETED = bool(triton.knobs.runtime.interpret)
FAST_MATH = not INTERPRETED
# A thread takes four quads: less, and the key schedule and the addresses outweigh the work; more,
# and the registers run out. Of a channels_last tensor a thread takes one quad of each channel.
_QUADS, _WARPS = 256, 2
_HERE = contextlib.nullcontext()
_ALONE = 32 * _WARPS  # one quad a thread
_FEW_CHANNELS = 4


def program(channels: int, strided: bool, *, light: bool = False) -> dict[str, int]:
    """Quads and warps of a program.

    Args:
        channels: that a thread takes together.
        strided: whether elements are addressed one by one.
        light: a kernel that reads and writes one tensor has the registers for two quads of each of
            a few channels.
    """
    quads = _QUADS
    if strided or channels > 1:
        quads = _ALONE * (2 if light and not strided and channels <= _FEW_CHANNELS else 1)
    return {"BLOCK_SIZE": quads, "num_warps": _WARPS}


def settings(found: Plan, *, light: bool = False) -> dict[str, Any]:
    """What a kernel is compiled for, as far as the plan says it."""
    where = {"CHANNELS": found.CHANNELS, "STRIDED": found.STRIDED, "IS_HIP": IS_HIP}
    return {**where, **program(found.CHANNELS, found.STRIDED, light=light)}


def on_device_of(tensor: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Where to launch: Triton goes by the current device, not by its arguments."""
    if tensor.is_cuda and tensor.device.index != torch.cuda.current_device():
        return torch.cuda.device(tensor.device)
    return _HERE


def cuts(most: int, samples: int) -> Iterator[Callable[[Any], Any]]:
    """For each launch of at most so many samples the function that cuts them out of a tensor (or
    None)."""
    for first in range(0, samples, most):
        yield functools.partial(_cut, slice(first, first + most))


def _cut(part: slice, tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor[part]


class Geometry(NamedTuple):
    """All of a launch but its tensors."""

    plan: Plan
    grid: tuple[int]
    programs: int  # per sample, where each has one
    numbers: tuple[int, ...]  # the kernel's integer arguments
    settings: dict[str, Any]  # what it is compiled for


# Cached, since a launch is to cost no more than a few microseconds of Python.
@functools.lru_cache(maxsize=1024)
def over_all(shape: torch.Size, channels_last: bool) -> Geometry:
    """A flat grid over the quads of all samples."""
    found = plan(shape, channels_last)
    compiled_for = settings(found)
    total = shape[0] * found.quads
    numbers = (total, found.quads, found.magic, found.shift, found.channels, found.pixels)
    return Geometry(found, (-(-total // compiled_for["BLOCK_SIZE"]),), 0, numbers, compiled_for)


@functools.lru_cache(maxsize=1024)
def within_samples(shape: torch.Size, channels_last: bool) -> Geometry:
    """A grid whose programs have one sample each."""
    found = plan(shape, channels_last)
    compiled_for = settings(found, light=True)
    programs = -(-found.quads // compiled_for["BLOCK_SIZE"])
    numbers = (programs, *magic_number(programs), found.quads, found.channels, found.pixels)
    return Geometry(found, (shape[0] * programs,), programs, numbers, compiled_for)
