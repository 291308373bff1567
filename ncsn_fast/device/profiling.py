"""Marks for profilers: NVTX ranges of the domain ``ncsn_fast``, and what a profile records.

The ranges nest as the work does:

    sample > chunk > step > network, update
    train > step > data, forward, backward, optimizer

A step is one row of a sampler's table or one optimiser step. Ranges belong to the host: those
opened while a CUDA graph is captured do not come back when it is replayed, so a replay is a "step"
with nothing inside, and its kernels are told apart by their names.

Without the ``nvtx`` package, or where no profiler is attached when this module is imported, a range
does nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

DOMAIN = "ncsn_fast"
NAMES = (
    "sample",
    "chunk",
    "step",
    "network",
    "update",
    "train",
    "data",
    "forward",
    "backward",
    "optimizer",
)


class _Range(contextlib.ContextDecorator):
    """One named range; it keeps nothing of a single use, so that one object serves them all."""

    def __init__(self, name: str) -> None:
        self.name = name
        # Making the attributes takes longer than a push: they are made once.
        self.attributes = None if _nvtx is None else _nvtx.get_event_attributes(message=name)

    def __enter__(self) -> None:
        if _sink is not None:
            _sink.push_range(self.attributes if _sink is _nvtx else self.name)

    def __exit__(self, *_: object) -> None:
        if _sink is not None:
            _sink.pop_range()


class _TorchRanges:
    """Takes ranges in the place of the NVTX domain, for torch's profiler."""

    def __init__(self) -> None:
        self._open: list[torch.profiler.record_function] = []

    def push_range(self, name: str) -> None:
        self._open.append(torch.profiler.record_function(f"{DOMAIN}@{name}"))
        self._open[-1].__enter__()

    def pop_range(self) -> None:
        self._open.pop().__exit__(None, None, None)


def mark(name: str) -> _Range:
    """A range: ``with profiling.mark("step"): ...``, or a decorator of a function.

    Args:
        name: one of ``NAMES``.

    Raises:
        ValueError: for another name.
    """
    try:
        return _RANGES[name]
    except KeyError:
        raise ValueError(f"there is no range {name!r}: choose one of {', '.join(NAMES)}") from None


@contextlib.contextmanager
def ranges_for_torch() -> Iterator[None]:
    """Give the ranges to torch's profiler inside the block, as ``ncsn_fast@name``.

    For the thread that profiles: no other may open or close ranges meanwhile.
    """
    global _sink
    before, _sink = _sink, _TorchRanges()
    try:
        yield
    finally:
        _sink = before


@contextlib.contextmanager
def capture_range(device: torch.device) -> Iterator[None]:
    """What a profiler that waits for the CUDA profiler API records (nsys, ncu): all of the block.

    The device has finished the work of before when it begins, and that of the block when it ends.
    On a device that is not a GPU it does nothing.
    """
    if device.type != "cuda":
        yield
        return
    torch.cuda.synchronize(device)
    torch.cuda.profiler.start()
    try:
        yield
        torch.cuda.synchronize(device)
    finally:
        torch.cuda.profiler.stop()


def _nvtx_domain() -> Any:
    """The domain if a profiler is there to see it, else None."""
    try:
        import nvtx
    except ImportError:
        return None
    domain = nvtx.get_domain(DOMAIN)
    # With no profiler attached the package gives a stand-in, whose attributes are None.
    return None if domain.get_event_attributes(message=DOMAIN) is None else domain


_nvtx = _nvtx_domain()
_sink = _nvtx
_RANGES = {name: _Range(name) for name in NAMES}

__all__ = ["DOMAIN", "NAMES", "capture_range", "mark", "ranges_for_torch"]
