"""The operations as PyTorch knows them: torch.ops.ncsn_fast.*, and how a kernel is found.

Only kernels stand behind them: where the specification runs, its plain PyTorch runs directly, and
torch.compile and autograd see through it. Each operation is declared in its own module; its last
argument says whose kernels run, "triton" or "cpp", where there are several.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor

from ncsn_fast.device import native
from ncsn_fast.device.backends import unwatched

_LIBRARY = torch.library.Library("ncsn_fast", "DEF")
# The dispatch key under which a launch is registered. It lies below autograd, so that an operation
# has the derivative that is declared here, and it is for tensors of any device, not for those of
# CUDA alone: Triton's interpreter takes tensors of the CPU.
_KEY = "CompositeExplicitAutograd"

Launch = Callable[..., Any]


def declare(
    schema: str,
    launch: Launch,
    fake: Launch,
    *,
    backward: Launch | None = None,
    save: Launch | None = None,
) -> Callable[..., Launch]:
    """Make a launch an operation of PyTorch's.

    Args:
        schema: the operation's, as ``torch.library.Library.define`` takes it.
        launch: runs the kernel, on real tensors.
        fake: makes empty tensors like those that the launch returns, from its arguments.
        backward, save: its derivative and what that keeps, as ``torch.library.register_autograd``
            takes them; without them the operation has none.

    Returns:
        A function ``pick(x, …)`` of all tensors that may need a gradient, which says what to call:
        the operation where autograd or anybody else watches, else the launch itself. Being an
        operation of PyTorch's costs more than all the rest of a call.
    """
    name = schema.partition("(")[0]
    _LIBRARY.define(schema)
    _LIBRARY.impl(name, launch, _KEY)
    torch.library.register_fake(f"ncsn_fast::{name}", fake, lib=_LIBRARY)
    if backward is not None:
        torch.library.register_autograd(
            f"ncsn_fast::{name}", backward, setup_context=save, lib=_LIBRARY
        )
    operator = getattr(torch.ops.ncsn_fast, name).default

    def pick(*tensors: Tensor) -> Launch:
        return launch if unwatched(*tensors) else operator

    return pick


def no_second_derivative(operation: str) -> Launch:
    """The derivative of a gradient that a kernel has made: an error that says what has one."""

    def backward(ctx: Any, *upstream: Tensor) -> NoReturn:
        raise RuntimeError(
            f"{operation} has no second derivative as a kernel: with nf.use_backend('torch'): ..."
        )

    return backward


@functools.cache
def triton_kernel(name: str, file: str | None = None) -> Any:
    """A launcher of ``kernels/triton``, where ``backends.missing("triton")`` is None.

    Args:
        name: the launcher's.
        file: its module, where that is not called like it.
    """
    return getattr(importlib.import_module(f"ncsn_fast.kernels.triton.{file or name}"), name)


@functools.cache
def native_kernel(name: str) -> Any:
    """A kernel of ``kernels/cpp``, where :func:`ncsn_fast.device.native.missing` is None."""
    return getattr(native.ops(), name).default


__all__ = ["declare", "native_kernel", "no_second_derivative", "triton_kernel"]
