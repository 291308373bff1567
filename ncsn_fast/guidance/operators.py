"""Linear operators A of inverse problems y = A x + noise, with exact adjoints.

Complex quantities are two real channels, real and imaginary part, so that white noise of variance
s² in every real number is complex noise of power N₀ = 2s². With the inner product ⟨x, y⟩ = Σ x·y of
such real numbers the adjoint, ⟨Ax, y⟩ = ⟨x, A*y⟩, is the conjugate transpose Aᴴ.

Operators compute in the dtype and on the device of what they are given. Nothing in them waits for
a device, so that they run inside a captured chain. What they are made of, and what they are given,
may be NumPy arrays too; they return tensors.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ncsn_fast.support import checks

Array = Tensor | np.ndarray | Sequence[object]
_POWER_ITERATIONS = 60


class Operator(ABC):
    """A linear operator. One of your own is a class with ``forward`` and ``adjoint``.

    Args:
        shape: shape of one sample x.
        measured: shape of one measurement A x.
        constants: tensors, or arrays, that the operator is made of; :meth:`constant` hands them
            out.

    Attributes:
        shape, measured: as given.
    """

    def __init__(self, shape: Iterable[int], measured: Iterable[int], **constants: Array) -> None:
        self.shape = checks.sample_shape(shape)
        self.measured = checks.sample_shape(measured)
        self._given = {name: checks.tensor(name, value) for name, value in constants.items()}
        for name, value in self._given.items():
            if not bool(torch.isfinite(value).all()):
                raise ValueError(
                    f"{name} of {type(self).__name__} holds values that are not finite"
                )
        self._moved: dict[tuple[str, torch.device, torch.dtype], Tensor] = {}

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """A x: (N, *shape) → (N, *measured)."""

    @abstractmethod
    def adjoint(self, y: Tensor) -> Tensor:
        """A* y: (N, *measured) → (N, *shape)."""

    def constant(self, name: str, like: Tensor) -> Tensor:
        """A tensor of the operator on the device and in the real dtype of ``like``, of any shape.

        It is moved there once: a copy from the host would end the capture of a chain.
        """
        given = self._given[name]
        dtype = like.dtype.to_complex() if given.is_complex() else like.dtype
        key = name, like.device, dtype
        if key not in self._moved:
            with torch.inference_mode(False):
                self._moved[key] = given.to(like.device, dtype)
        return self._moved[key]

    def norm(self, device: torch.device | str = "cpu") -> float:
        """‖A‖, the largest singular value, by power iteration in float64.

        It approaches the norm from below and is exact to a fraction of a percent unless many
        singular values crowd below the largest, where the difference matters least.
        """
        generator = torch.Generator("cpu").manual_seed(0)
        shape = (1, *self.shape)
        x = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu").to(device)
        squared = 0.0
        with torch.no_grad():
            for _ in range(_POWER_ITERATIONS):
                x = self.adjoint(self.forward(x / x.norm()))
                squared = float(x.norm())
                if squared == 0:
                    break
        return math.sqrt(squared)

    def check(self, name: str, given: Array, shape: tuple[int, ...]) -> Tensor:
        """What forward or adjoint is given, (N, *shape) of real numbers, as a tensor.

        Raises:
            ValueError: for another shape or dtype.
        """
        if not isinstance(given, Tensor):
            given = checks.tensor(f"what {type(self).__name__}.{name} was given", given)
        if not given.is_floating_point():
            raise ValueError(
                f"{type(self).__name__}.{name} was given {given.dtype}: give real floating-point "
                "numbers; complex ones are two channels, torch.stack([z.real, z.imag], 1)"
            )
        if given.shape[1:] != shape:
            raise ValueError(
                f"{type(self).__name__}.{name} was given shape {tuple(given.shape)}; needed is "
                f"(N, {', '.join(map(str, shape))})"
            )
        return given


class Mask(Operator):
    """Some of the values: y = m ∘ x, zero where the mask is.

    Args:
        mask: 0 and 1, of a shape that broadcasts to ``shape``.
        shape: of one sample; default: the mask's.
    """

    def __init__(self, mask: Array, shape: Iterable[int] | None = None) -> None:
        mask = _array("mask", mask)
        if shape is None and mask.ndim == 0:
            raise ValueError("mask is one number: say with shape= of which samples")
        sizes = checks.sample_shape(mask.shape if shape is None else shape)
        super().__init__(sizes, sizes, mask=_zeros_and_ones(mask, sizes))

    def forward(self, x: Tensor) -> Tensor:
        x = self.check("forward", x, self.shape)
        return x * self.constant("mask", x)

    def adjoint(self, y: Tensor) -> Tensor:
        y = self.check("adjoint", y, self.measured)
        return y * self.constant("mask", y)


class Blur(Operator):
    """Every channel convolved with a kernel; beyond its borders the image is zero.

    As in ``torch.nn.functional.conv2d`` the kernel is not flipped.

    Args:
        kernel: (kH, kW), or (C, kH, kW) for one per channel; odd sizes.
        shape: (C, H, W).
    """

    def __init__(self, kernel: Array, shape: Iterable[int]) -> None:
        sizes, kernel = _image_shape("Blur", shape), _array("kernel", kernel)
        if kernel.ndim not in (2, 3) or not all(size % 2 for size in kernel.shape[-2:]):
            raise ValueError(
                f"kernel has shape {tuple(kernel.shape)}: give (kH, kW) or (C, kH, kW) with odd "
                "kH and kW (pad an even one with zeros)"
            )
        if kernel.ndim == 3 and len(kernel) not in (1, sizes[0]):
            raise ValueError(
                f"{len(kernel)} kernels for {sizes[0]} channels: give one, or one each"
            )
        kernel = kernel.expand(sizes[0], *kernel.shape[-2:])[:, None]
        super().__init__(sizes, sizes, kernel=_real("kernel", kernel))
        self._padding = (kernel.shape[2] // 2, kernel.shape[3] // 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.check("forward", x, self.shape)
        kernel = self.constant("kernel", x)
        with _as_given(x):
            return F.conv2d(x, kernel, padding=self._padding, groups=len(kernel))

    def adjoint(self, y: Tensor) -> Tensor:
        y = self.check("adjoint", y, self.measured)
        kernel = self.constant("kernel", y)
        with _as_given(y):
            return F.conv_transpose2d(y, kernel, padding=self._padding, groups=len(kernel))


class Downsample(Operator):
    """The mean of every block of factor × factor pixels.

    Args:
        factor: at least 1; H and W are multiples of it.
        shape: (C, H, W).
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
        matrix: (M, D) real, with D values in a sample.
        shape: of one sample; default: (D,).
    """

    def __init__(self, matrix: Array, shape: Iterable[int] | None = None) -> None:
        matrix = _array("matrix", matrix)
        if matrix.ndim != 2:
            raise ValueError(f"matrix has shape {tuple(matrix.shape)}: give (M, D)")
        sizes = checks.sample_shape(matrix.shape[1:] if shape is None else shape)
        if math.prod(sizes) != matrix.shape[1]:
            raise ValueError(
                f"matrix has {matrix.shape[1]} columns, a sample of shape {sizes} "
                f"{math.prod(sizes)} values: give one column per value"
            )
        super().__init__(sizes, matrix.shape[:1], matrix=_real("matrix", matrix))

    def forward(self, x: Tensor) -> Tensor:
        x = self.check("forward", x, self.shape)
        with _as_given(x):
            return x.flatten(1) @ self.constant("matrix", x).T

    def adjoint(self, y: Tensor) -> Tensor:
        y = self.check("adjoint", y, self.measured)
        with _as_given(y):
            flat = y @ self.constant("matrix", y)
        return flat.view(len(y), *self.shape)


class Fourier(Operator):
    """The sampled orthonormal 2-D Fourier transform of a complex image, x and y (2, H, W).

    Args:
        mask: (H, W) of 0 and 1, which frequencies are measured, the zero frequency at [0, 0]
            (one that is centred goes through ``torch.fft.ifftshift`` first).
    """

    def __init__(self, mask: Array) -> None:
        mask = _array("mask", mask)
        sizes = (2, *_plane("mask", mask, 2))
        super().__init__(sizes, sizes, mask=_zeros_and_ones(mask, mask.shape))

    def forward(self, x: Tensor) -> Tensor:
        x = self.check("forward", x, self.shape)
        z = _complex(x, 1)
        return _channels(torch.fft.fft2(z, norm="ortho") * self.constant("mask", x), 1)

    def adjoint(self, y: Tensor) -> Tensor:
        y = self.check("adjoint", y, self.measured)
        z = _complex(y, 1)
        return _channels(torch.fft.ifft2(z * self.constant("mask", y), norm="ortho"), 1)


class MRI(Operator):
    """Parallel imaging: y_c = m ∘ F(S_c ∘ x) for every coil c, F orthonormal.

    x is (2, H, W), y (coils, 2, H, W).

    Args:
        coils: (coils, H, W) complex, the sensitivity maps S_c.
        mask: (H, W), or (W,) for whole lines, of 0 and 1; zero frequency at [0, 0].
    """

    def __init__(self, coils: Array, mask: Array) -> None:
        coils, mask = _array("coils", coils), _array("mask", mask)
        if not coils.is_complex():
            raise ValueError(f"coils are {coils.dtype}: give complex maps, torch.complex(re, im)")
        plane = _plane("coils", coils, 3)
        super().__init__(
            (2, *plane),
            (len(coils), 2, *plane),
            coils=coils,
            mask=_zeros_and_ones(mask, torch.Size(plane)),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.check("forward", x, self.shape)
        z = _complex(x, 1)[:, None] * self.constant("coils", x)
        return _channels(torch.fft.fft2(z, norm="ortho") * self.constant("mask", x), 2)

    def adjoint(self, y: Tensor) -> Tensor:
        y = self.check("adjoint", y, self.measured)
        z = _complex(y, 2) * self.constant("mask", y)
        images = torch.fft.ifft2(z, norm="ortho") * self.constant("coils", y).conj()
        return _channels(images.sum(1), 1)


class MIMO(Operator):
    """Channel estimation: Y = H P for a complex channel matrix H, (2, N_r, N_t), and known pilots.

    Y is (2, N_r, N_p). With receiver noise of power N₀ the noise_std of each real number is
    √(N₀/2).

    Args:
        pilots: (N_t, N_p) complex, the transmitted symbols P.
        receivers: N_r.
    """

    def __init__(self, pilots: Array, receivers: int) -> None:
        pilots = _array("pilots", pilots)
        if not pilots.is_complex() or pilots.ndim != 2:
            raise ValueError(
                f"pilots are {pilots.dtype} of shape {tuple(pilots.shape)}: give a complex matrix "
                "(N_t, N_p), transmit antennas by symbols"
            )
        receivers = checks.count("receivers", receivers, 1, 1 << 31)
        transmitters, symbols = pilots.shape
        super().__init__((2, receivers, transmitters), (2, receivers, symbols), pilots=pilots)

    def forward(self, x: Tensor) -> Tensor:
        x = self.check("forward", x, self.shape)
        z = _complex(x, 1)
        return _channels(z @ self.constant("pilots", x), 1)

    def adjoint(self, y: Tensor) -> Tensor:
        y = self.check("adjoint", y, self.measured)
        z = _complex(y, 1)
        return _channels(z @ self.constant("pilots", y).mH, 1)


def _array(name: str, value: Array) -> Tensor:
    tensor = checks.tensor(name, value)
    if not tensor.numel():
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}: it holds nothing")
    return tensor


def _as_given(x: Tensor) -> torch.autocast:
    """Inside, products are made in the type of x, also where the caller has autocast on."""
    return torch.autocast(x.device.type, enabled=False)


def _complex(channels: Tensor, dim: int) -> Tensor:
    return torch.complex(channels.select(dim, 0), channels.select(dim, 1))


def _channels(z: Tensor, dim: int) -> Tensor:
    return torch.stack([z.real, z.imag], dim)


def _real(name: str, values: Tensor) -> Tensor:
    if values.is_complex():
        raise ValueError(f"{name} is {values.dtype}: give real numbers")
    return values


def _zeros_and_ones(mask: Tensor, shape: Iterable[int]) -> Tensor:
    _real("mask", mask)
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise ValueError("mask holds values other than 0 and 1 (1: measured)")
    try:
        mask.expand(tuple(shape))
    except RuntimeError:
        raise ValueError(
            f"mask has shape {tuple(mask.shape)}, which does not broadcast to {tuple(shape)}"
        ) from None
    return mask


def _image_shape(name: str, shape: Iterable[int]) -> tuple[int, int, int]:
    sizes = checks.sample_shape(shape)
    if len(sizes) != 3:
        raise ValueError(f"{name} acts on images: shape = {sizes}, needed is (C, H, W)")
    return sizes[0], sizes[1], sizes[2]


def _plane(name: str, tensor: Tensor, dimensions: int) -> tuple[int, int]:
    if tensor.ndim != dimensions:
        wanted = "(H, W)" if dimensions == 2 else "(coils, H, W)"
        raise ValueError(f"{name} of shape {tuple(tensor.shape)}: give {wanted}")
    return tensor.shape[-2], tensor.shape[-1]


__all__ = ["MIMO", "MRI", "Blur", "Dense", "Downsample", "Fourier", "Mask", "Operator"]
