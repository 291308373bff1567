"""Each linear operator with its definition by other means, small enough for dense matrices."""

import torch

from ncsn_fast.guidance.operators import (
    MIMO,
    MRI,
    Blur,
    Dense,
    Downsample,
    Fourier,
    Mask,
    Scale,
)

SEED = torch.Generator().manual_seed(0)


def real(*shape):
    return torch.randn(*shape, generator=SEED, dtype=torch.float64)


def compound(*shape):
    return torch.complex(real(*shape), real(*shape))


def bits(*shape):
    return (torch.rand(*shape, generator=SEED) < 0.6).double()


def complex_of(x, dim=0):
    return torch.complex(x.select(dim, 0), x.select(dim, 1))


def channels(z, dim=0):
    return torch.stack([z.real, z.imag], dim)


def transform(size):
    """The matrix of the orthonormal Fourier transform."""
    k = torch.arange(size, dtype=torch.float64)
    angle = -2 * torch.pi * k[:, None] * k / size
    return torch.polar(torch.ones_like(angle), angle) / size**0.5


def fourier(z):
    """The 2-D transform of (…, H, W), by its matrices."""
    return transform(z.shape[-2]) @ z @ transform(z.shape[-1])


def centred(z):
    """The same with zero in the middle of image and transform, from its definition."""
    for dim in (-2, -1):
        size = z.shape[dim]
        k = torch.arange(size, dtype=torch.float64) - size // 2
        angle = -2 * torch.pi * k[:, None] * k / size
        matrix = torch.polar(torch.ones_like(angle), angle) / size**0.5
        z = (z.transpose(dim, -1) @ matrix).transpose(dim, -1)
    return z


def blurred(kernel, x):
    """Correlation with zeros around the image, pixel by pixel."""
    (height, width), (down, right) = x.shape[1:], (kernel.shape[1] // 2, kernel.shape[2] // 2)
    y = torch.zeros_like(x)
    for i in range(height):
        for j in range(width):
            for k in range(kernel.shape[1]):
                for m in range(kernel.shape[2]):
                    u, v = i + k - down, j + m - right
                    if 0 <= u < height and 0 <= v < width:
                        y[:, i, j] += kernel[:, k, m] * x[:, u, v]
    return y


def block_means(x, factor):
    rows = [row.mean(1) for row in x.split(factor, 1)]
    columns = [torch.stack(rows, 1)[:, :, i : i + factor] for i in range(0, x.shape[2], factor)]
    return torch.stack([part.mean(2) for part in columns], 2)


def cases():
    """Each operator with its definition, on one sample, by other means."""
    mask, kernel, kernels = bits(3, 4), real(3, 5), real(2, 3, 3)
    matrix, plane, lines = real(5, 12), bits(3, 4), bits(4)
    coils, pilots = compound(3, 3, 4), compound(3, 5)
    combiner, factor = compound(4, 2), real(4, 2)
    return {
        "mask": (Mask(mask), lambda x: mask * x),
        "mask broadcast": (Mask(mask, (2, 3, 4)), lambda x: torch.stack([mask * c for c in x])),
        "blur": (Blur(kernel, (2, 4, 3)), lambda x: blurred(kernel.expand(2, -1, -1), x)),
        "blur per channel": (Blur(kernels, (2, 3, 3)), lambda x: blurred(kernels, x)),
        "downsample": (Downsample(2, (2, 4, 2)), lambda x: block_means(x, 2)),
        "dense": (Dense(matrix), lambda x: matrix @ x),
        "dense image": (Dense(matrix, (1, 3, 4)), lambda x: matrix @ x.flatten()),
        "fourier": (Fourier(plane), lambda x: channels(plane * fourier(complex_of(x)))),
        "mri": (
            MRI(coils, plane),
            lambda x: channels(plane * fourier(coils * complex_of(x)), 1),
        ),
        "mri lines": (
            MRI(coils, lines),
            lambda x: channels(lines * fourier(coils * complex_of(x)), 1),
        ),
        "mimo": (MIMO(pilots, 2), lambda x: channels(complex_of(x) @ pilots)),
        "mimo from the left": (
            MIMO(combiner=combiner, transmitters=3),
            lambda x: channels(combiner @ complex_of(x)),
        ),
        "mimo from both sides": (
            MIMO(pilots, combiner=combiner),
            lambda x: channels(combiner @ complex_of(x) @ pilots),
        ),
        "fourier centred": (
            Fourier(plane, centered=True),
            lambda x: channels(plane * centred(complex_of(x))),
        ),
        "mri centred": (
            MRI(coils, plane, centered=True),
            lambda x: channels(plane * centred(coils * complex_of(x)), 1),
        ),
        "scale": (Scale(factor, (2, 4, 2)), lambda x: factor * x),
        "one after another": (
            Scale(0.5, (2, 2, 1)) @ Downsample(2, (2, 4, 2)) @ Blur(kernels, (2, 4, 2)),
            lambda x: 0.5 * block_means(blurred(kernels, x), 2),
        ),
    }


CASES = cases()

SAMPLES = 5  # of the operators below


def differing():
    """Operators of which something is another for each of five samples: (made of, how)."""
    n, m = SAMPLES, Mask(bits(2, 4))
    return {
        "mask": ((bits(n, 3, 4),), lambda mask: Mask(mask, (3, 4))),
        "scale": ((real(n, 1, 1),), lambda factor: Scale(factor, (3, 4))),
        "blur": ((real(n, 2, 3, 5),), lambda kernel: Blur(kernel, (2, 4, 3))),
        "blur of all channels": ((real(n, 1, 3, 3),), lambda kernel: Blur(kernel, (2, 4, 3))),
        "dense": ((real(n, 5, 12),), lambda matrix: Dense(matrix, (1, 3, 4))),
        "fourier": ((bits(n, 3, 4),), lambda mask: Fourier(mask, centered=True)),
        "mri": ((compound(n, 3, 3, 4), bits(n, 3, 4)), MRI),
        "mri, one mask": ((compound(n, 3, 3, 4),), lambda coils: MRI(coils, bits_of_lines)),
        "mri, one set of coils": ((bits(n, 1, 4),), lambda lines: MRI(some_coils, lines)),
        "mimo": (
            (compound(n, 3, 5), compound(n, 4, 2)),
            lambda pilots, combiner: MIMO(pilots, combiner=combiner),
        ),
        "one after another": (
            (real(n, 1, 1), bits(n, 2, 4)),
            lambda factor, mask: Scale(factor, (2, 4)) @ Mask(mask, (2, 4)) @ m,
        ),
    }


bits_of_lines, some_coils = bits(4), compound(3, 3, 4)
DIFFERING = differing()


def matrix_of(function, shape):
    """The matrix of a linear map, from what it makes of each unit vector."""
    size = torch.Size(shape).numel()
    units = torch.eye(size, dtype=torch.float64).view(size, *shape)
    return torch.stack([function(unit).flatten() for unit in units], 1)
