"""The operations as PyTorch knows them: torch.ops.ncsn_fast.*.

Only kernels stand behind them: where the specification runs, its plain PyTorch runs directly, and
torch.compile and autograd see through it. Each operation is defined, implemented and given its
fake in its own module; its last argument says whose kernels run, "triton" or "cpp".
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from ncsn_fast import native

LIBRARY = torch.library.Library("ncsn_fast", "DEF")
# Below autograd, for every device: Triton's interpreter runs kernels on CPU tensors.
KERNEL = "CompositeExplicitAutograd"
# What networks take and give, as far as kernels know it.
NETWORK_TYPES = (torch.float32, torch.float16, torch.bfloat16)
NATIVE_TYPES = (torch.float32, torch.bfloat16)  # those of the CPU
MEMORY_FORMATS = (torch.contiguous_format, torch.channels_last)


def plain_call(x: Tensor) -> bool:
    """Whether nobody watches: being an operation of PyTorch's costs more than all the rest of a
    call, and only who traces it needs that."""
    if torch.compiler.is_compiling() or type(x) is not Tensor:
        return False
    return torch._C._len_torch_dispatch_stack() == 0


@functools.cache
def native_kernel(name: str) -> Any:
    """A kernel of ``kernels/cpp``, where :func:`ncsn_fast.native.missing` is None."""
    return getattr(native.ops(), name).default


__all__ = [
    "KERNEL",
    "LIBRARY",
    "MEMORY_FORMATS",
    "NATIVE_TYPES",
    "NETWORK_TYPES",
    "native_kernel",
    "plain_call",
]
