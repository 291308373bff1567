"""A stand-in for ``ncsn_fast/device/capture.py`` that needs no GPU.

It records the operations that a step dispatches and replays exactly those on the same memory.
Python is not run again, as in a real graph: a value that the host computed is frozen, a branch
that it took stays taken. What would wait for the device is refused while warming up, what is
captured is not done, and until the first replay the tensors it makes hold NaN.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

from ncsn_fast.device import capture as real
from ncsn_fast.device.capture import CaptureError
from ncsn_fast.models import packed_conv as packed
from ncsn_fast.models import trained_conv as trained

# They look at tensors on the CPU only, which here stand for those of a device.
_CPU_ONLY = {"as_sample_ids", "check_labels", "_checked_labels", "_factor"}
_WAITS = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)


def tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, Tensor)]


def memory(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


class Watch(TorchDispatchMode):
    """Refuses what would wait for the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if self._waits(func, args, kwargs):
            raise CaptureError(f"it waits for the device ({func})")
        return func(*args, **kwargs)

    def _waits(self, func: Any, args: Any, kwargs: Any) -> bool:
        if func is torch.ops.aten.index.Tensor:
            return any(index.dtype in (torch.bool, torch.uint8) for index in tensors(args[1]))
        if any(tag in func.tags for tag in _WAITS):
            return not _CPU_ONLY & set(_callers())
        devices = {tensor.device for tensor in tensors((args, kwargs)) if tensor.ndim}
        if func is torch.ops.aten._to_copy.default and kwargs.get("device") is not None:
            devices.add(torch.device(kwargs["device"]))
        return len(devices) > 1


class Tape(Watch):
    """Records operations besides, and what they overwrite."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, list[Tensor]]] = []
        self.own: dict[int, Tensor] = {}  # memory made by recorded operations
        self.overwritten: dict[int, tuple[Tensor, Tensor]] = {}  # older memory: alias, contents

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        for argument, value in self._named(func, args, kwargs):
            if argument.alias_info is not None and argument.alias_info.is_write:
                for tensor in tensors(value):
                    self._keep(tensor)
        given = {memory(tensor) for tensor in tensors((args, kwargs))}
        result = super().__torch_dispatch__(func, types, args, kwargs)
        for tensor in tensors(result):
            # Memory of a host's value: frozen as it is, where a real graph holds it too.
            if memory(tensor) not in given and func is not torch.ops.aten.lift_fresh.default:
                self.own.setdefault(memory(tensor), tensor)
        frozen = tree_map_only(Tensor, _alias, (args, kwargs))
        self.calls.append((func, *frozen, [_alias(tensor) for tensor in tensors(result)]))
        return result

    def _named(self, func: Any, args: Any, kwargs: Any) -> Iterator[tuple[Any, Any]]:
        for i, argument in enumerate(func._schema.arguments):
            if i < len(args):
                yield argument, args[i]
            elif argument.name in kwargs:
                yield argument, kwargs[argument.name]

    def _keep(self, tensor: Tensor) -> None:
        key = memory(tensor)
        if key not in self.own and key not in self.overwritten:
            whole = _alias(tensor).new_empty(0, dtype=torch.uint8)
            whole.set_(tensor.untyped_storage())
            self.overwritten[key] = (whole, whole.clone())

    def undo(self) -> None:
        """As if nothing of it had been done: older memory as it was, what it made unknown."""
        for tensor, contents in self.overwritten.values():
            tensor.copy_(contents)
        for tensor in self.own.values():
            if tensor.is_floating_point():
                _alias(tensor).fill_(torch.nan)


def _callers() -> Iterator[str]:
    """The names of the functions that are running."""
    frame = sys._getframe()
    while frame is not None:
        yield frame.f_code.co_name
        frame = frame.f_back


def _alias(tensor: Tensor) -> Tensor:
    """The same memory under another version counter: a real replay does not count either."""
    return tensor.detach().data


class Recorded:
    """What ``capture`` returns here."""

    def __init__(self, tape: Tape) -> None:
        self._tape: Tape | None = tape
        self.replays = 0

    @property
    def released(self) -> bool:
        return self._tape is None

    @torch.inference_mode()  # which may have been on when it was recorded
    def replay(self) -> None:
        if self._tape is None:
            raise RuntimeError("this graph has been released: capture the work again")
        self.replays += 1
        for func, args, kwargs, results in self._tape.calls:
            again = tensors(func(*args, **kwargs))
            for tensor, new in zip(results, again, strict=True):
                if memory(tensor) != memory(new):
                    tensor.copy_(new)

    def release(self) -> None:
        self._tape = None


class Recorder:
    """The captures of a test.

    Attributes:
        captured: all that were made, in order.
        warm_ups: how many there were.
    """

    def __init__(self) -> None:
        self.captured: list[Recorded] = []
        self.warm_ups = 0

    def capture(
        self, step: Callable[[], None], device: torch.device, *, warm_ups: int = 3
    ) -> Recorded:
        for run in range(warm_ups):
            self.warm_ups += 1
            if run == 0:
                step()
                continue
            with Watch():
                step()
        tape = Tape()
        try:
            with tape:
                step()
        finally:
            tape.undo()
        self.captured.append(Recorded(tape))
        return self.captured[-1]

    def obstacle(self, device: torch.device) -> str | None:
        return None

    @contextmanager
    def side_stream(self, device: torch.device) -> Iterator[None]:
        yield

    @contextmanager
    def waiting_refused(self) -> Iterator[None]:
        with Watch():
            yield


def record(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """From here on all captures are recorded ones."""
    recorder = Recorder()
    for name in ("capture", "obstacle", "side_stream", "waiting_refused"):
        monkeypatch.setattr(real, name, getattr(recorder, name))
    # No device has packed or filtered convolutions; what is recorded would be run without them.
    for module in (packed, trained):
        monkeypatch.setattr(module, "can_pack", lambda weight: False)
    return recorder


def read_no_values_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU the values of ids and labels are checked; on a GPU, or while tracing, not."""
    tracing = torch._C._len_torch_dispatch_stack
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: tracing() > 0)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """All captures of a test are recorded ones."""
    return record(monkeypatch)
