"""Operators on images, and on samples of any shape: masks, scales, blurs, pixels, matrices."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch.nn.functional as F
from torch import Tensor

from ncsn_fast.guidance.operators.base import (
    Array,
    Operator,
    array,
    as_given,
    broadcast,
    real,
    zeros_and_ones,
)
from ncsn_fast.support import checks


class _Pointwise(Operator):
    """Every value times a real number of its own, which the operator calls by a name.

    Args:
        each: whether there are such numbers for each sample.
    """

    def __init__(self, shape: tuple[int, ...], name: str, numbers: Tensor, each: bool) -> None:
        super().__init__(shape, shape, per_sample=(name,) if each else (), **{name: numbers})
        self._name = name

    def forward(self, x: Tensor) -> Tensor:
        x = self.check("forward", x, self.shape)
        return x * self.constant(self._name, x)

    def adjoint(self, y: Tensor) -> Tensor:
        y = self.check("adjoint", y, self.measured)
        return y * self.constant(self._name, y)


class Mask(_Pointwise):
    """Some of the values: y = m ∘ x, zero where the mask is.

    Args:
        mask: 0 and 1, of a shape that broadcasts to ``shape``; with one dimension more, (n, …),
            those of each sample.
        shape: of one sample; default: the mask's.

    Raises:
        ValueError: for other values, one number without a shape, and a mask that does not fit.
    """

    def __init__(self, mask: Array, shape: Iterable[int] | None = None) -> None:
        mask = array("mask", mask)
        if shape is None and mask.ndim == 0:
            raise ValueError("mask is one number: say with shape= of which samples")
        sizes = checks.sample_shape(mask.shape if shape is None else shape)
        super().__init__(sizes, "mask", mask, zeros_and_ones(mask, sizes))


class Scale(_Pointwise):
    """Every value times a real number: y = c ∘ x.

    ``Scale(c, scan.measured) @ scan`` measures in another unit, with a gain of each sample, or with
    1/s where the noise is not the same everywhere.

    Args:
        factor: a number, or numbers that broadcast to ``shape``; with one dimension more, (n, …),
            those of each sample: (n, 1, 1, 1) is one number for each of n images.
        shape: of one sample.
    """

    def __init__(self, factor: Array | float, shape: Iterable[int]) -> None:
        sizes, numbers = checks.sample_shape(shape), array("factor", factor)
        super().__init__(sizes, "factor", numbers, broadcast("factor", numbers, sizes))


class Blur(Operator):
    """Every channel convolved with a kernel; beyond its borders the image is zero.

    As in ``torch.nn.functional.conv2d`` the kernel is not flipped.

    Args:
        kernel: (kH, kW), or (C, kH, kW) for one per channel, odd sizes; (n, C, kH, kW) or
            (n, 1, kH, kW) for those of each sample.
        shape: (C, H, W).

    Raises:
        ValueError: for even sizes, and for another number of kernels than of channels.
    """

    def __init__(self, kernel: Array, shape: Iterable[int]) -> None:
        sizes, kernel = _image_shape("Blur", shape), array("kernel", kernel)
        if kernel.ndim not in (2, 3, 4) or not all(size % 2 for size in kernel.shape[-2:]):
            raise ValueError(
                f"kernel has shape {tuple(kernel.shape)}: give (kH, kW), (C, kH, kW), or "
                "(n, C, kH, kW) for n samples, with odd kH and kW (pad an even one with zeros)"
            )
        if kernel.ndim > 2 and kernel.shape[-3] not in (1, sizes[0]):
            raise ValueError(
                f"{kernel.shape[-3]} kernels for {sizes[0]} channels: give one, or one each"
            )
        each = ("kernel",) if kernel.ndim == 4 else ()
        # (1 or n, C, kH, kW)
        kernel = kernel.expand(len(kernel) if each else 1, sizes[0], *kernel.shape[-2:])
        super().__init__(sizes, sizes, per_sample=each, kernel=real("kernel", kernel))
        self._padding = (kernel.shape[2] // 2, kernel.shape[3] // 2)

    def forward(self, x: Tensor) -> Tensor:
        return self._convolved(F.conv2d, self.check("forward", x, self.shape))

    def adjoint(self, y: Tensor) -> Tensor:
        return self._convolved(F.conv_transpose2d, self.check("adjoint", y, self.measured))

    def _convolved(self, convolution: Callable[..., Tensor], x: Tensor) -> Tensor:
        """Kernels of n samples are those of one image of n·C channels."""
        kernel = self.constant("kernel", x).flatten(0, 1)[:, None]
        images = x.reshape(-1, len(kernel), *x.shape[2:])
        with as_given(x):
            blurred = convolution(images, kernel, padding=self._padding, groups=len(kernel))
        return blurred.view(x.shape)


class Downsample(Operator):
    """The mean of every block of factor × factor pixels.

    Args:
        factor: at least 1; H and W are multiples of it.
        shape: (C, H, W).

    Raises:
        ValueError: for a factor that does not divide H and W.
    """

    def __init__(self, factor: int, shape: Iterable[int]) -> None:
        channels, height, width = _image_shape("Downsample", shape)
        self.factor = checks.count("factor", factor)
        if height % factor or width % factor:
            raise ValueError(
                f"factor = {factor} does not divide {height} × {width}: crop or pad the image"
            )
        small = (channels, height // factor, width // factor)
        super().__init__((channels, height, width), small)

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(self.check("forward", x, self.shape), self.factor)

    def adjoint(self, y: Tensor) -> Tensor:
        y = self.check("adjoint", y, self.measured)
        blocks = y[:, :, :, None, :, None].expand(-1, -1, -1, self.factor, -1, self.factor)
        return blocks.reshape(len(y), *self.shape) / self.factor**2


class Dense(Operator):
    """Any matrix on the flattened sample, such as the random one of compressed sensing.

    Args:
        matrix: (M, D) real, with D values in a sample; (n, M, D) for that of each sample.
        shape: of one sample; default: (D,).

    Raises:
        ValueError: for a matrix of other dimensions, or of another width than a sample.
    """

    def __init__(self, matrix: Array, shape: Iterable[int] | None = None) -> None:
        matrix = array("matrix", matrix)
        if matrix.ndim not in (2, 3):
            raise ValueError(
                f"matrix has shape {tuple(matrix.shape)}: give (M, D), or (n, M, D) for n samples"
            )
        *each, rows, columns = matrix.shape
        sizes = checks.sample_shape((columns,) if shape is None else shape)
        if math.prod(sizes) != columns:
            raise ValueError(
                f"matrix has {columns} columns, a sample of shape {sizes} {math.prod(sizes)} "
                "values: give one column per value"
            )
        names = ("matrix",) if each else ()
        super().__init__(sizes, (rows,), per_sample=names, matrix=real("matrix", matrix))

    def forward(self, x: Tensor) -> Tensor:
        x = self.check("forward", x, self.shape)
        return _times(x.flatten(1), self.constant("matrix", x).mT)

    def adjoint(self, y: Tensor) -> Tensor:
        y = self.check("adjoint", y, self.measured)
        return _times(y, self.constant("matrix", y)).view(len(y), *self.shape)


def _times(rows: Tensor, matrix: Tensor) -> Tensor:
    """Rows (N, M) times one matrix (M, D), or each times its own of (N or 1, M, D)."""
    with as_given(rows):
        return rows @ matrix if matrix.ndim == 2 else (rows[:, None] @ matrix)[:, 0]


def _image_shape(name: str, shape: Iterable[int]) -> tuple[int, int, int]:
    sizes = checks.sample_shape(shape)
    if len(sizes) != 3:
        raise ValueError(f"{name} acts on images: shape = {sizes}, needed is (C, H, W)")
    return sizes[0], sizes[1], sizes[2]


__all__ = ["Blur", "Dense", "Downsample", "Mask", "Scale"]
