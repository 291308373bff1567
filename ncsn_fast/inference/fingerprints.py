"""Which of a network's tensors have changed, told by their values.

No mark of PyTorch's tells: weights that are swapped in through ``.data`` move no counter. To read
them once is a small part of copying and packing them, and half of what comparing would read.
"""

from __future__ import annotations

from torch import Tensor

from ncsn_fast.device import native


def fingerprints(tensors: dict[str, Tensor]) -> dict[str, int]:
    """64 bits of each tensor's values, type, shape and strides.

    They differ for certain where a single number has changed, be it to or from NaN. Of other
    changes one in 2⁶⁴ goes unnoticed.

    Args:
        tensors: by name, of any shape and type.

    Returns:
        By name; nothing at all for tensors on other devices than the CPU, which would have to be
        waited for, and where the native kernels are not built.
    """
    kernels = native.ready()
    if kernels is None or any(tensor.device.type != "cpu" for tensor in tensors.values()):
        return {}
    return dict(zip(tensors, kernels.fingerprints(list(tensors.values())), strict=True))


__all__ = ["fingerprints"]
