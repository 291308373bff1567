"""Memory formats: the two that the kernels know, contiguous and channels_last."""

from __future__ import annotations

import torch
from torch import Tensor


def is_channels_last(tensor: Tensor | None) -> bool:
    """Whether a tensor is dense in (N, H, W, C) order, and not in (N, C, H, W) order as well."""
    if tensor is None or tensor.is_contiguous() or tensor.ndim != 4:
        return False
    return tensor.is_contiguous(memory_format=torch.channels_last)


def is_dense(tensor: Tensor) -> bool:
    """Whether a tensor of any shape is dense in one of the two orders."""
    return tensor.is_contiguous() or is_channels_last(tensor)


def dense(tensor: Tensor) -> Tensor:
    """The tensor itself where it is dense in one of the two orders, else a contiguous copy."""
    return tensor if is_dense(tensor) else tensor.contiguous()


def overlap(a: Tensor, b: Tensor) -> bool:
    """Whether two dense tensors, of any shapes, share memory without being laid out alike.

    Who writes one of them element by element while reading the other is safe where they do not
    touch, and where each element of one lies exactly on its counterpart in the other.
    """
    if a.device != b.device:
        return False
    start, other = a.data_ptr(), b.data_ptr()
    if start == other and a.stride() == b.stride() and a.dtype == b.dtype and a.shape == b.shape:
        return False
    ends = start + a.numel() * a.element_size(), other + b.numel() * b.element_size()
    return start < ends[1] and other < ends[0]


__all__ = ["dense", "is_channels_last", "is_dense", "overlap"]
