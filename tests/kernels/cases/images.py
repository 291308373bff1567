"""What the tests of the operations on images share: cases, and comparisons between backends."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from cases.common import DTYPES, NATIVE_DTYPES, Way, draw, name
from torch import Tensor

from ncsn_fast.reference import ACTIVATIONS

HALF, LAST = torch.float16, torch.channels_last
ANY = (*ACTIVATIONS, None)
SHAPE = (2, 8, 4, 5)
# Shapes, and whether they are channels_last: several programs of single elements and of vectors of
# eight, four and two; images smaller than a neighbourhood; two with the same strides either way.
IMAGES = (
    ((2, 3, 5, 11), False),
    ((2, 24, 5, 7), True),
    ((1, 12, 5, 6), True),
    ((1, 6, 4, 9), True),
    ((1, 3, 7, 5), True),
    ((3, 8, 1, 1), True),
    ((2, 1, 3, 2), True),
)
# Of networks: whole blocks of channels, parts of them, sizes that nothing divides, single pixels.
NATIVE_IMAGES = (
    (2, 32, 8, 8),
    (2, 71, 5, 9),
    (1, 3, 33, 7),
    (3, 40, 1, 1),
    (2, 2, 4, 3),
    (1, 33, 70, 2),
)
both_formats = pytest.mark.parametrize("last", [True, False], ids=["last", "first"])


@dataclass(frozen=True)
class Images:
    """Images, their memory format and dtype, and an activation where there is one."""

    shape: tuple[int, ...]
    last: bool
    dtype: torch.dtype
    activation: str | None = None
    size: tuple[int, int] | None = None  # of the x that is resized to the shape

    def __str__(self) -> str:
        sizes = "x".join(map(str, (*self.shape, *(self.size or ()))))
        return f"{sizes}-{name(self.dtype, self.last)}-{self.activation or 'none'}"


def each_kind(activations: Sequence[str | None]) -> Iterator[Images]:
    """Each activation in each dtype and in both formats; ELU in float16 and channels_last, in
    vectors of eight, is what NCSNv2 runs."""
    for (i, dtype), (k, activation) in itertools.product(enumerate(DTYPES), enumerate(activations)):
        yield Images(*IMAGES[(i + k) % 2], dtype, activation)


def all_kinds(
    shapes: Iterable[tuple[int, ...]], activations: Sequence[str | None]
) -> Iterator[Images]:
    """All combinations, which the kernels of the CPU take no time for."""
    for combination in itertools.product(shapes, (False, True), NATIVE_DTYPES, activations):
        yield Images(*combination)


def leaves(way: Way, *shapes: tuple[int, ...], last: bool = False) -> list[Tensor]:
    """float32 images of these shapes where the kernels are, with gradients."""
    return [
        draw(shape, last=last, seed=seed).to(way.device).requires_grad_()
        for seed, shape in enumerate(shapes)
    ]


def check_backend(
    operation: Callable[..., Sequence[Tensor | None]], inputs: list[Tensor], way: Way, like: Tensor
) -> None:
    """Assert that results and gradients of a public operation are those of the specification, and
    that the results are laid out like a tensor."""
    answers = []
    for backend in ("torch", way.backend):
        results = [r for r in operation(*inputs, backend=backend) if r is not None]
        loss = sum((r.square() * (i + 1)).sum() for i, r in enumerate(results))
        answers.append([*results, *torch.autograd.grad(loss, inputs)])
    for expected, found in zip(*answers, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert all(result.stride() == like.stride() for result in results)


def check_no_second_derivative(y: Tensor, x: Tensor, operation: str) -> None:
    """Assert that the gradient of y has none, and says what has."""
    (gradient,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    message = rf"{operation}.*second derivative.*nf\.use_backend\('torch'\)"
    with pytest.raises(RuntimeError, match=message):
        gradient.sum().backward()


def refusals(*calls: tuple[Callable[[Tensor], Any], str]) -> Any:
    """A mark: run a test of (call, message) for each of these calls of some images."""
    return pytest.mark.parametrize(("call", "message"), calls)
