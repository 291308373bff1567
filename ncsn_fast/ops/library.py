"""The operations as PyTorch knows them: torch.ops.ncsn_fast.*.

Only kernels stand behind them: where the specification runs, its plain PyTorch runs directly, and
torch.compile and autograd see through it. Each operation is defined, implemented and given its
fake in its own module.
"""

from __future__ import annotations

import torch

LIBRARY = torch.library.Library("ncsn_fast", "DEF")
# Below autograd, for every device: Triton's interpreter runs kernels on CPU tensors.
KERNEL = "CompositeExplicitAutograd"

__all__ = ["KERNEL", "LIBRARY"]
