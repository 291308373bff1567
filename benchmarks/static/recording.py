"""What some work gives a GPU, recorded and not run: our kernels, convolutions, PyTorch's passes.

Tensors on "meta" have shapes, types and layouts and nothing else: a step of any size takes neither
memory nor time.
"""

from __future__ import annotations

import contextlib
import importlib
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from triton.runtime.interpreter import InterpretedFunction
from triton.runtime.jit import JITFunction

from ncsn_fast.device.memory_format import is_channels_last, is_dense
from ncsn_fast.kernels.triton.common import launch

# What moves nothing, or only what the host has told.
_FREE = {
    "empty",
    "empty_like",
    "empty_strided",
    "new_empty",
    "new_empty_strided",
    "detach",
    "lift_fresh",
}


class Launch(NamedTuple):
    """What a launcher hands to Triton. It can be pickled.

    Attributes:
        module, function: where the kernel is found.
        arguments: its arguments that are no constants, by name.
        settings: those that are, and of the compiler.
        programs: the size of the grid.
    """

    module: str
    function: str
    arguments: dict[str, Any]
    settings: dict[str, Any]
    programs: int

    @property
    def kernel(self) -> Any:
        """The function that is compiled."""
        return getattr(importlib.import_module(self.module), self.function)

    @property
    def name(self) -> str:
        return self.function.removeprefix("_").removesuffix("_kernel")

    @property
    def threads(self) -> int:
        """Of a program, on NVIDIA's GPUs."""
        return 32 * int(self.settings["num_warps"])

    @property
    def signature(self) -> tuple[object, ...]:
        """What it is compiled for but the target: two launches of one signature share the code."""
        types = {
            name: value.dtype if isinstance(value, Tensor) else value is None
            for name, value in self.arguments.items()
            if isinstance(value, Tensor | None)
        }
        fixed = {name: self.settings[name] for name in sorted({*self.settings} - {"FAST_MATH"})}
        return self.name, *types.items(), *fixed.items()

    @property
    def code(self) -> tuple[object, ...]:
        """As signature, but for numbers that Triton makes part of the code, or aligned ones."""
        given = vars(self.kernel).get("kwargs") or vars(self.kernel)  # of the interpreter, or not
        unasked = given.get("do_not_specialize") or ()
        numbers = {name: value for name, value in self.arguments.items() if type(value) is int}
        known = (
            (name, value == 1, value % 16 == 0)
            for name, value in numbers.items()
            if name not in unasked
        )
        return *self.signature, *known

    @property
    def bytes_per_element(self) -> int:
        """Of the tensors of the shape of the state, if each is moved once."""
        return sum(tensor.element_size() for tensor in self.states.values())

    @property
    def states(self) -> dict[str, Tensor]:
        """The arguments of the shape of the state, which is that of the first of them."""
        shape = next(iter(self.tensors.values())).shape
        return {name: t for name, t in self.tensors.items() if t.shape == shape}

    @property
    def tensors(self) -> dict[str, Tensor]:
        return {name: t for name, t in self.arguments.items() if isinstance(t, Tensor)}


class Convolution(NamedTuple):
    """A convolution of PyTorch's, or both of its gradients.

    Attributes:
        operations: multiplications and additions.
        dtype: of what it reads.
    """

    operations: int
    dtype: torch.dtype


class Pass(NamedTuple):
    """Anything else that PyTorch does on the device.

    Attributes:
        name: of the operation, such as "aten.add".
        bytes: of the tensors that it is given and that it returns.
    """

    name: str
    bytes: int


Work = Launch | Convolution | Pass


def record(call: Callable[[], object], kernel: str) -> Launch:
    """The last launch of a kernel that a call makes; nothing is run."""
    return [one for one in launches(call) if one.name == kernel][-1]


def launches(call: Callable[[], object]) -> list[Launch]:
    """The launches that a call makes, none of which is run: what they would write is zero."""
    found: list[Launch] = []
    with _launching(found.append):
        call()
    return found


def work(call: Callable[[], object]) -> list[Work]:
    """All that a call gives the device of its tensors, which are on "meta", in order."""
    found: list[Work] = []
    with _launching(found.append), _Watch(found.append):
        call()
    return found


@contextlib.contextmanager
def _launching(tell: Callable[[Launch], None]) -> Iterator[None]:
    """Launches inside are told and not made."""

    def run(function: Any, *arguments: Any, grid: Any, warmup: bool, **settings: Any) -> None:
        # In place and unseen by autograd.
        given = [one.data if isinstance(one, Tensor) else one for one in arguments]
        named = dict(zip(function.arg_names, given, strict=False))
        tell(Launch(function.fn.__module__, function.__name__, named, settings, math.prod(grid)))
        for one in given:
            if isinstance(one, Tensor) and one.is_meta:
                continue
            # What is expanded cannot be an output.
            if isinstance(one, Tensor) and one.is_floating_point() and is_dense(one):
                one.zero_()

    kind = InterpretedFunction if launch.INTERPRETED else JITFunction
    with mock.patch.object(kind, "run", run):
        yield


class _Watch(TorchDispatchMode):
    """Tells of convolutions and passes, and lets the operations of this package launch."""

    def __init__(self, tell: Callable[[Work], None]) -> None:
        super().__init__()
        self._tell = tell

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "ncsn_fast":
            key = torch._C.DispatchKey.CompositeExplicitAutograd
            with self:
                return func._op_dk(key, *args, **kwargs)
        result = func(*args, **kwargs)
        name = func._schema.name.removeprefix("aten::")
        if name.startswith("convolution"):
            laid = _as_cudnn_lays_it_out(name, args, result)
            if name == "convolution" and is_channels_last(laid) and not is_channels_last(args[0]):
                self._tell(Pass("aten.contiguous", 2 * size_of(args[0])))
            self._tell(_convolution(name, args, result))
            if name == "convolution" and args[2] is not None:  # which cuDNN is not given
                self._tell(Pass("aten.add_", 2 * size_of(laid) + size_of(args[2])))
            if name != "convolution" and args[-1][2]:  # nor is it asked for the gradient of one
                self._tell(Pass("aten.sum", size_of(args[0]) + size_of(result[2])))
            return laid
        leaves = tree_leaves((args, kwargs, result))
        on_device = any(isinstance(one, Tensor) and one.is_meta for one in leaves)
        if name not in _FREE and not func.is_view and on_device:
            written = [
                value
                for argument, value in zip(func._schema.arguments, args, strict=False)
                if argument.is_write
            ]
            moved = _bytes((args, kwargs)) + _bytes((written, result))
            self._tell(Pass(f"{func.namespace}.{name}", moved))
        return result


def _convolution(name: str, args: tuple[Any, ...], result: Any) -> Convolution:
    if name == "convolution":
        (x, weight), upstream, gradients = args[:2], result, 1
    else:
        upstream, x, weight = args[:3]
        gradients = sum(args[-1][:2])  # of the image and of the weight
    return Convolution(2 * gradients * upstream.numel() * weight[0].numel(), x.dtype)


def _as_cudnn_lays_it_out(name: str, args: tuple[Any, ...], result: Any) -> Any:
    """Images are channels_last where the image or the weight that they come from is."""
    x, weight = args[:2] if name == "convolution" else args[1:3]
    layout = torch.channels_last
    if layout not in (suggest_memory_format(x), suggest_memory_format(weight)):
        return result
    if name == "convolution":
        return result.contiguous(memory_format=layout)
    image, *others = result
    return (None if image is None else image.contiguous(memory_format=layout), *others)


def _bytes(tree: Any) -> int:
    """Of all different tensors, where one that is expanded has its own size."""
    seen = {
        (tensor.untyped_storage()._cdata, tensor.storage_offset(), tensor.shape): tensor
        for tensor in tree_leaves(tree)
        if isinstance(tensor, Tensor)
    }
    return sum(size_of(tensor) for tensor in seen.values())


def size_of(tensor: Tensor) -> int:
    """Bytes that it reaches."""
    sides = (size for size, step in zip(tensor.shape, tensor.stride(), strict=True) if step)
    return math.prod(sides) * tensor.element_size()


__all__ = ["Convolution", "Launch", "Pass", "Work", "launches", "record", "size_of", "work"]
