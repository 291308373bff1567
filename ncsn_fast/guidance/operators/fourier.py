"""Sampled Fourier transforms of complex images, seen by one receiver or by many coils."""

from __future__ import annotations

import torch
from torch import Tensor

from ncsn_fast.guidance.operators.base import (
    Array,
    Operator,
    array,
    as_channels,
    as_complex,
    zeros_and_ones,
)
from ncsn_fast.support import checks

_PLANE = (-2, -1)


class Fourier(Operator):
    """The sampled orthonormal 2-D Fourier transform of a complex image, x and y (2, H, W).

    Args:
        mask: (H, W) of 0 and 1, which frequencies are measured; (n, H, W) for those of each sample.
        centered: whether the zero frequency and the origin of the image are at [H // 2, W // 2], as
            in fftshift(fft2(ifftshift(x))); otherwise at [0, 0].
    """

    def __init__(self, mask: Array, *, centered: bool = False) -> None:
        mask = array("mask", mask)
        sizes = (2, *_plane("mask", mask, 2, "(H, W)"))
        each = ("mask",) if zeros_and_ones(mask, sizes[1:]) else ()
        super().__init__(sizes, sizes, per_sample=each, mask=mask)
        self.centered = _flag(centered)

    def forward(self, x: Tensor) -> Tensor:
        x = self.check("forward", x, self.shape)
        z = _transform(as_complex(x, 1), self.centered)
        return as_channels(z * self.constant("mask", x), 1)

    def adjoint(self, y: Tensor) -> Tensor:
        y = self.check("adjoint", y, self.measured)
        z = as_complex(y, 1) * self.constant("mask", y)
        return as_channels(_transform(z, self.centered, inverse=True), 1)


class MRI(Operator):
    """Parallel imaging: y_c = m ∘ F(S_c ∘ x) for every coil c, F orthonormal.

    x is (2, H, W), y (coils, 2, H, W).

    Args:
        coils: (coils, H, W) complex, the sensitivity maps S_c; (n, coils, H, W) for those of each
            sample.
        mask: of 0 and 1, (H, W), or (W,) for whole lines; (n, H, W) or (n, 1, W) for that of each
            sample.
        centered: as of :class:`Fourier`.

    Raises:
        ValueError: for maps that are not complex, a mask with other values, and sizes that differ.
    """

    def __init__(self, coils: Array, mask: Array, *, centered: bool = False) -> None:
        coils, mask = array("coils", coils), array("mask", mask)
        if not coils.is_complex():
            raise ValueError(f"coils are {coils.dtype}: give complex maps, torch.complex(re, im)")
        plane = _plane("coils", coils, 3, "(coils, H, W)")
        each = ["coils"] if coils.ndim == 4 else []
        if zeros_and_ones(mask, plane):
            mask = mask[:, None]  # for all coils
            each.append("mask")
        measured = (coils.shape[-3], 2, *plane)
        super().__init__((2, *plane), measured, per_sample=each, coils=coils, mask=mask)
        self.centered = _flag(centered)

    def forward(self, x: Tensor) -> Tensor:
        x = self.check("forward", x, self.shape)
        z = _transform(as_complex(x, 1)[:, None] * self.constant("coils", x), self.centered)
        return as_channels(z * self.constant("mask", x), 2)

    def adjoint(self, y: Tensor) -> Tensor:
        y = self.check("adjoint", y, self.measured)
        z = as_complex(y, 2) * self.constant("mask", y)
        images = _transform(z, self.centered, inverse=True) * self.constant("coils", y).conj()
        return as_channels(images.sum(1), 1)


def _transform(z: Tensor, centered: bool, inverse: bool = False) -> Tensor:
    """The orthonormal transform of planes (…, H, W); its inverse is its adjoint."""
    transform = torch.fft.ifft2 if inverse else torch.fft.fft2
    if not centered:
        return transform(z, norm="ortho")
    return torch.fft.fftshift(transform(torch.fft.ifftshift(z, _PLANE), norm="ortho"), _PLANE)


def _plane(name: str, tensor: Tensor, dimensions: int, wanted: str) -> tuple[int, int]:
    if tensor.ndim not in (dimensions, dimensions + 1):
        raise ValueError(
            f"{name} of shape {tuple(tensor.shape)}: give {wanted}, or n of these in front"
        )
    return tensor.shape[-2], tensor.shape[-1]


def _flag(centered: bool) -> bool:
    checks.choice("centered", centered, (True, False), "whether zero is in the middle")
    return bool(centered)


__all__ = ["MRI", "Fourier"]
