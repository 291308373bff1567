"""Multi-scale fusion: base + a coarser image resized to it.

Formula and tensors: :func:`ncsn_fast.reference.resize_add`.
"""

from __future__ import annotations

from torch import Tensor

from ncsn_fast import reference


def resize_add(x: Tensor, base: Tensor, *, backend: str = "auto") -> Tensor:
    """base + x resized to base's size (bilinear, corners aligned), in one pass; differentiable.

    Args:
        x: (N, C, h, w) float32, float16 or bfloat16, in any memory format.
        base: (N, C, H, W) of x's dtype. Of x's very size the result is the plain sum.
        backend: see :func:`ncsn_fast.use_backend`.

    Returns:
        (N, C, H, W) in base's dtype and memory format.

    Raises:
        ValueError: where batch, channels, dtypes or devices differ, or the backend cannot run.
    """
    return reference.resize_add(x, base)


__all__ = ["resize_add"]
