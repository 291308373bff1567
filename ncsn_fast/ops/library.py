"""The operations as PyTorch knows them: torch.ops.ncsn_fast.*.

Only kernels stand behind them: where the specification runs, its plain PyTorch runs directly, and
torch.compile and autograd see through it. Each operation is defined, implemented and given its
fake in its own module; its last argument says whose kernels run, "triton" or "cpp".
"""

from __future__ import annotations

import functools
from typing import Any

import torch

from ncsn_fast.device import native

LIBRARY = torch.library.Library("ncsn_fast", "DEF")


# Below autograd, for every device: Triton's interpreter runs kernels on CPU tensors.
KERNEL = "CompositeExplicitAutograd"


@functools.cache
def native_kernel(name: str) -> Any:
    """A kernel of ``kernels/cpp``, where :func:`ncsn_fast.native.missing` is None."""
    return getattr(native.ops(), name).default


__all__ = ["KERNEL", "LIBRARY", "native_kernel"]
