"""What the kernels of the memory-bound passes have to do, whatever runs them.

``test_passes.py`` runs these checks in Triton's interpreter, ``test_gpu_passes.py`` on a GPU. How
far a kernel may be off is said in ``cases/common.py``.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from cases.common import DTYPES, GUARD, Buffers, assert_close, name, stored
from torch import Tensor

from ncsn_fast import reference
from ncsn_fast.device.memory_format import is_channels_last
from ncsn_fast.kernels.triton.common.rows import locate, start
from ncsn_fast.kernels.triton.max_pool5 import max_pool5, max_pool5_gradient
from ncsn_fast.kernels.triton.residual_add import residual_add, residual_add_gradient
from ncsn_fast.kernels.triton.resize_add import resize_add
from ncsn_fast.reference import ACTIVATIONS

RISING = ("elu", "relu", "lrelu")  # the activations that a pooling kernel takes along
# Shapes, and whether they are channels_last: several programs of single elements and of vectors of
# eight, four and two; images smaller than a neighbourhood; two with the same strides either way.
IMAGES = (
    ((2, 3, 9, 11), False),
    ((2, 24, 9, 7), True),
    ((1, 12, 5, 6), True),
    ((1, 6, 4, 9), True),
    ((1, 3, 7, 5), True),
    ((3, 8, 1, 1), True),
    ((2, 1, 3, 2), True),
)
# Sizes of x and of what it is resized to: up, down, one of each, from and to a single pixel.
SIZES = (((4, 5), (8, 9)), ((9, 7), (5, 3)), ((3, 6), (7, 2)), ((1, 1), (4, 3)), ((5, 3), (1, 1)))


@dataclass(frozen=True)
class Pass:
    """Images, their memory format and dtype, and an activation where there is one."""

    shape: tuple[int, ...]
    last: bool
    dtype: torch.dtype
    activation: str | None = None
    size: tuple[int, int] | None = None  # of the x that is resized to the shape

    def __str__(self) -> str:
        sizes = "x".join(map(str, (*self.shape, *(self.size or ()))))
        return f"{sizes}-{name(self.dtype, self.last)}-{self.activation or 'none'}"


def pool_cases() -> list[Pass]:
    """Each activation in each dtype; all layouts."""
    turns = itertools.cycle(itertools.product(DTYPES, (*RISING, None)))
    cases = [Pass(*IMAGES[i % 2], *next(turns)) for i in range(12)]
    return cases + [Pass(*image, *next(turns)) for image in IMAGES]


def residual_cases() -> list[Pass]:
    both = itertools.product(DTYPES, ACTIVATIONS)
    return [Pass(*IMAGES[i % 2], *pair) for i, pair in enumerate(both)]


def resize_cases() -> list[Pass]:
    turns = itertools.cycle(DTYPES)
    images = ((2, 3), False), ((2, 24), True), ((1, 6), True)
    return [
        Pass((*planes, *to), last, next(turns), size=size)
        for (size, to), (planes, last) in itertools.product(SIZES, images)
    ]


def draw(shape: tuple[int, ...], dtype: torch.dtype, count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(shape, generator=generator).to(dtype) for _ in range(count)]


def with_ties(x: Tensor) -> Tensor:
    """Few different values, so that most neighbourhoods have several maxima."""
    return (2 * x).round() / 2


def check_residual_add(case: Pass, device: str, fast_math: bool, guard: int = GUARD) -> None:
    buffers, (x, residual) = Buffers(device, guard), draw(case.shape, case.dtype, 2)
    out = [buffers.output(case.shape, case.dtype, case.last) for _ in range(2)]
    given = [buffers.input(value, case.last) for value in (x, residual)]
    residual_add(*given, *out, case.activation, fast_math=fast_math)
    buffers.check()
    exact = reference.residual_add(x.double(), residual.double(), case.activation)
    plain = reference.residual_add(x.float(), residual.float(), case.activation)
    for found, e, p in zip(out, exact, plain, strict=True):
        assert_close(found, e, stored(p, case.dtype))


def check_residual_add_gradient(case: Pass, device: str, fast_math: bool) -> None:
    buffers, values = Buffers(device), draw(case.shape, case.dtype, 3)
    found = buffers.output(case.shape, case.dtype, case.last)
    given = [buffers.input(value, case.last) for value in values]
    residual_add_gradient(*given, found, case.activation, fast_math=fast_math)
    buffers.check()

    def specified(dtype: torch.dtype) -> Tensor:
        total, upstream, active_upstream = (value.to(dtype) for value in values)
        active = reference.activated(total.requires_grad_(), case.activation)
        return upstream + torch.autograd.grad(active, total, active_upstream)[0]

    assert_close(found, specified(torch.float64), stored(specified(torch.float32), case.dtype))


def check_max_pool5(case: Pass, device: str, fast_math: bool, guard: int = GUARD) -> None:
    buffers, (x,) = Buffers(device, guard), draw(case.shape, case.dtype, 1)
    active = buffers.output(case.shape, case.dtype, case.last) if case.activation else None
    pooled = buffers.output(case.shape, case.dtype, case.last)
    max_pool5(buffers.input(x, case.last), active, pooled, case.activation, fast_math=fast_math)
    buffers.check()
    exact = reference.max_pool5(x.double(), case.activation)
    plain = reference.max_pool5(x.float(), case.activation)
    for found, e, p in zip((active, pooled), exact, plain, strict=True):
        if found is not None:
            assert_close(found, e, stored(p, case.dtype))


def check_max_pool5_gradient(case: Pass, device: str, fast_math: bool) -> None:
    """Also with ties, whose gradient goes to the first one."""
    buffers, (x, *upstreams) = Buffers(device), draw(case.shape, case.dtype, 3)
    x = with_ties(x)
    active = reference.activated(x, case.activation)
    found = buffers.output(case.shape, case.dtype, case.last)
    given = [buffers.input(value, case.last) for value in (x, active, *upstreams)]
    if case.activation is None:
        given[2] = None
    max_pool5_gradient(*given, found, case.activation, fast_math=fast_math)
    buffers.check()

    def specified(dtype: torch.dtype) -> Tensor:
        leaf, values = x.to(dtype).requires_grad_(), active.to(dtype).requires_grad_()
        active_upstream, upstream = (value.to(dtype) for value in upstreams)
        pooled = F.max_pool2d(values, 5, stride=1, padding=2)
        gradient = torch.autograd.grad(pooled, values, upstream)[0]
        if case.activation is None:
            return gradient
        gradient = gradient + active_upstream
        return torch.autograd.grad(reference.activated(leaf, case.activation), leaf, gradient)[0]

    assert_close(found, specified(torch.float64), stored(specified(torch.float32), case.dtype))


def check_resize_add(case: Pass, device: str, guard: int = GUARD) -> None:
    buffers, (base,) = Buffers(device, guard), draw(case.shape, case.dtype, 1)
    (x,) = draw((*case.shape[:2], *case.size), case.dtype, 1)
    found = buffers.output(case.shape, case.dtype, case.last)
    base_given = buffers.input(base, case.last)
    # A base of single pixels is in both formats, and counts as contiguous.
    resize_add(buffers.input(x, is_channels_last(base_given)), base_given, found)
    buffers.check()
    exact = reference.resize_add(x.double(), base.double())
    assert_close(found, exact, stored(reference.resize_add(x.float(), base.float()), case.dtype))


def check_special_values(device: str, last: bool, fast_math: bool) -> None:
    """Assert that NaN spreads over its neighbourhood, and that -inf is a number like others."""
    x = torch.full((1, 8, 7, 9), -torch.inf)
    x[:, :, 5, 6], x[:, 1, 1, 1] = 0.5, torch.nan
    layout = torch.channels_last if last else torch.contiguous_format
    x = x.to(device).contiguous(memory_format=layout)
    for activation in (*RISING, None):
        active, pooled = torch.empty_like(x) if activation else None, torch.empty_like(x)
        max_pool5(x, active, pooled, activation, fast_math=fast_math)
        expected = reference.max_pool5(x, activation)
        for found, wanted in zip((active, pooled), expected, strict=True):
            if found is not None:
                torch.testing.assert_close(found, wanted, equal_nan=True)


def check_elu_near_zero(device: str, fast_math: bool) -> None:
    """Assert that a difference of nearly equal numbers costs ELU no more than exp's own error."""
    x = -torch.logspace(-9, 1, 1000, device=device)
    total, active = torch.empty_like(x), torch.empty_like(x)
    residual_add(x, torch.zeros_like(x), total, active, "elu", fast_math=fast_math)
    torch.testing.assert_close(active.double(), torch.expm1(x.double()), rtol=1e-6, atol=3e-7)


@triton.jit
def _locate_kernel(out_ptr, total, bands, across, BLOCK_SIZE: tl.constexpr):
    live, image, band, vector = locate(total, bands, across, BLOCK_SIZE)
    index = tl.arange(0, BLOCK_SIZE)[:, None]
    tl.store(out_ptr + 4 * index, live.to(tl.int32))
    tl.store(out_ptr + 4 * index + 1, image)
    tl.store(out_ptr + 4 * index + 2, band)
    tl.store(out_ptr + 4 * index + 3, vector)


def check_locate(device: str) -> None:
    """Assert that vectors are counted along rows, bands and images, and the last one repeated."""
    out = torch.full((32, 4), -1, dtype=torch.int32, device=device)
    images, bands, across = 2, 3, 5
    _locate_kernel[(1,)](out, images * bands * across, bands, across, BLOCK_SIZE=32)
    places = itertools.product(range(images), range(bands), range(across))
    last = [0, images - 1, bands - 1, across - 1]
    assert out.tolist() == [[1, *place] for place in places] + [last, last]


@triton.jit
def _start_kernel(out_ptr, image, row, vector, across, height, VECTOR: tl.constexpr):
    at = tl.zeros((1, 1), tl.int32)
    offsets = start(at + image, at + row, at + vector, across, height, VECTOR)
    tl.store(out_ptr + tl.arange(0, VECTOR)[None, :], offsets)


def check_offsets(device: str) -> None:
    """Assert that rows beyond 2³¹ elements are found where they lie."""
    out = torch.zeros(8, dtype=torch.int64, device=device)
    image, row, vector, across, height = 40_000, 301, 1_003, 4_096, 512
    _start_kernel[(1,)](out, image, row, vector, across, height, VECTOR=8)
    first = ((image * height + row) * across + vector) * 8
    assert first > 1 << 36
    assert out.tolist() == list(range(first, first + 8))


__all__ = [
    "IMAGES",
    "RISING",
    "Pass",
    "check_elu_near_zero",
    "check_locate",
    "check_max_pool5",
    "check_max_pool5_gradient",
    "check_offsets",
    "check_residual_add",
    "check_residual_add_gradient",
    "check_resize_add",
    "check_special_values",
    "draw",
    "pool_cases",
    "residual_cases",
    "resize_cases",
    "with_ties",
]
