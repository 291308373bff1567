"""Pixels: 8 bits to floats and back, and images mirrored."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def unit_interval(pixels: Tensor) -> Tensor:
    """Map 8-bit pixels to [0, 1]: value / 255, the same floats on every device.

    Args:
        pixels: uint8, any shape.

    Returns:
        float32 of the same shape and device.

    Raises:
        ValueError: for another data type.
    """
    if pixels.dtype != torch.uint8:
        raise ValueError(f"the pixels are {pixels.dtype}: give uint8 values from 0 to 255")
    # By a plain number a GPU would divide as it multiplies, by the rounded 1/255.
    return pixels.float() / torch.full((), 255, dtype=torch.float32, device=pixels.device)


def eight_bits(pixels: np.ndarray) -> Tensor:
    """Images as picture files hold them.

    Args:
        pixels: uint8, or floating point in [0, 1]; what lies outside is clamped.

    Returns:
        uint8 of the same shape, contiguous, on the CPU: 255 x rounded to the nearest, halves to
        the even one.
    """
    if pixels.dtype != np.uint8:
        pixels = np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8)
    return torch.from_numpy(np.require(pixels, requirements=["C", "W"]))


def horizontal_flip(x: Tensor, mask: Tensor) -> Tensor:
    """Mirror the images that ``mask`` selects, left to right.

    Args:
        x: (N, C, H, W), any dtype.
        mask: bool (N,) on x's device; True mirrors the image.

    Returns:
        A new tensor of x's shape and dtype.

    Raises:
        ValueError: if x has not four axes, or mask is not a bool tensor with an entry per image.
    """
    if x.ndim != 4:
        raise ValueError(f"x must be (N, C, H, W), got shape {tuple(x.shape)}")
    if mask.dtype != torch.bool or mask.shape != x.shape[:1]:
        raise ValueError(
            f"mask must be a bool tensor of shape ({x.shape[0]},), "
            f"got {mask.dtype} {tuple(mask.shape)}"
        )
    return torch.where(mask[:, None, None, None], x.flip(-1), x)


__all__ = ["eight_bits", "horizontal_flip", "unit_interval"]
