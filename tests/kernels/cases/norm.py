"""What InstanceNorm++ has to do, whatever runs it: the cases and their checks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from cases.common import (
    DTYPES,
    FAST_MATH_LIMIT,
    GUARD,
    NATIVE_DTYPES,
    Buffers,
    Way,
    assert_close,
    draw,
    laid,
    name,
)
from cases.images import ANY, NATIVE_IMAGES
from torch import Tensor

from ncsn_fast import ops, reference

EPS = 1e-5


@dataclass(frozen=True)
class Norm:
    """A case of InstanceNorm++.

    Attributes:
        last: whether x is channels_last.
        rows: whether each sample has its own parameters, in a table of all three.
        mean: of x, whose spread is 1.
    """

    shape: tuple[int, ...]
    last: bool
    dtype: torch.dtype = torch.float32
    activation: str | None = "elu"
    rows: bool = False
    mean: float = 0.5

    def __str__(self) -> str:
        sizes = "x".join(map(str, self.shape))
        rows = "rows" if self.rows else "shared"
        return f"{sizes}-{name(self.dtype, self.last)}-{self.activation}-{rows}"


SMALL = ((2, 6, 5, 7), (2, 16, 8, 8))  # with missing pixels and channels, and without
SPLIT = ((1, 8, 45, 46), (1, 16, 32, 36))  # several programs for a sample
MANY_CHANNELS = ((1, 2100, 1, 3), (1, 600, 3, 7))
TINY = ((3, 2, 1, 1), (1, 3, 1, 2))


def norm_cases(way: Way) -> Iterator[Norm]:
    """All dtypes and activations in both formats, and all shapes; on a CPU all of them together."""
    if way.is_native:
        every = itertools.product(NATIVE_IMAGES, (False, True), NATIVE_DTYPES, ANY, (False, True))
        yield from itertools.starmap(Norm, every)
        return
    kinds = itertools.cycle(itertools.product(ANY, DTYPES))
    shared = itertools.cycle((False, False, True))
    for shape, last in itertools.product(SMALL, (True, False)):
        for activation, dtype in itertools.islice(kinds, 8):
            yield Norm(shape, last, dtype, activation, next(shared))
    for shape, last in itertools.product((*SPLIT, *MANY_CHANNELS, *TINY), (True, False)):
        activation, dtype = next(kinds)
        yield Norm(shape, last, dtype, activation, next(shared))


def inputs(case: Norm, way: Way) -> tuple[Tensor, Tensor, Tensor]:
    """x, the upstream gradient, and γ, α and β beside each other, on the CPU."""
    samples, channels = case.shape[:2]
    if way.is_native:
        x, upstream = (draw(case.shape, seed=seed) for seed in (0, 4))
        table = 0.1 * draw((samples if case.rows else 1, 3 * channels), seed=1)
        table[:, : 2 * channels] += 1
        return (x + case.mean).to(case.dtype), upstream.to(case.dtype), table
    for seed in itertools.count(0, 4):
        # Channels whose means differ by more than their pixels do.
        means = draw((samples, channels, 1, 1), seed=seed)
        x = (case.mean + means * 2 + draw(case.shape, seed=seed + 1)).to(case.dtype)
        table = draw((samples if case.rows else 1, 3 * channels), seed=seed + 2)
        # Not at the kink of an activation, where rounding decides about the slope.
        if case.activation not in ("relu", "lrelu") or smallest(x, table) > 1e-5:
            break
    return x, draw(case.shape, case.dtype, seed=seed + 3), table


def smallest(x: Tensor, table: Tensor) -> float:
    """The smallest |z|, of which the activation is taken."""
    z = reference.instance_norm_plus(x.double(), *table.double().chunk(3, 1), EPS)
    return float(z.abs().min())


def specified(
    case: Norm, x: Tensor, upstream: Tensor, table: Tensor, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    """y and the gradients of x and of each sample's γ, α and β by the specification."""
    x = x.to(dtype).requires_grad_()
    parameters = table.to(dtype).expand(case.shape[0], -1).clone().requires_grad_()
    y = reference.instance_norm_plus(x, *parameters.chunk(3, 1), EPS, case.activation)
    gradients = torch.autograd.grad(y, (x, parameters), upstream.to(dtype))
    rows = gradients[1].reshape(case.shape[0], 3, case.shape[1])
    return y.detach(), gradients[0], rows


def run(
    case: Norm, x: Tensor, upstream: Tensor, table: Tensor, way: Way, guard: int = GUARD
) -> tuple[Tensor, ...]:
    """The same by Triton's kernels, which write into NaN."""
    from ncsn_fast.kernels.triton.instance_norm import apply
    from ncsn_fast.kernels.triton.instance_norm_gradient import gradient
    from ncsn_fast.kernels.triton.instance_norm_statistics import statistics

    samples, channels = case.shape[:2]
    buffers = Buffers(way.device, guard)
    x, upstream = buffers.input(x, case.last), buffers.input(upstream, case.last)
    parameters = buffers.input(table).chunk(3, 1)
    if not case.rows:
        parameters = [parameter[0] for parameter in parameters]
    found = buffers.output((samples * (2 * channels + 2),), torch.float32)
    y = buffers.output(case.shape, case.dtype, case.last)
    of_x = buffers.output(case.shape, case.dtype, case.last)
    rows = buffers.output((samples, 3, channels), torch.float32)
    how = {"eps": EPS, "activation": case.activation, "fast_math": way.fast_math}
    statistics(x, found)
    apply(x, *parameters, found, y, **how)
    gradient(x, upstream, *parameters, found, of_x, rows, **how)
    buffers.check()
    return y, of_x, rows


def run_natively(case: Norm, x: Tensor, upstream: Tensor, table: Tensor) -> tuple[Tensor, ...]:
    """The same by the CPU's kernels; the rows of shared parameters are one, their sum."""
    x, upstream = laid(x, case.last).requires_grad_(), laid(upstream, case.last)
    parameters = [parameter.requires_grad_() for parameter in table.chunk(3, 1)]
    given = parameters if case.rows else [parameter[0] for parameter in parameters]
    y = ops.instance_norm_plus(x, *given, activation=case.activation, backend="cpp")
    of_x, *rows = torch.autograd.grad(y, (x, *parameters), upstream)
    assert y.stride() == of_x.stride() == x.stride()
    return y.detach(), of_x, torch.stack(rows, 1)


def check_norm(case: Norm, way: Way, guard: int = GUARD) -> None:
    """Assert that the kernels do what the specification says, and nothing else."""
    given = inputs(case, way)
    exact = specified(case, *given, torch.float64)
    plain = specified(case, *given, torch.float32)
    found = run_natively(case, *given) if way.is_native else run(case, *given, way, guard)
    if way.is_native and not case.rows:
        exact, plain = ((*two, rows.sum(0, keepdim=True)) for *two, rows in (exact, plain))
    # Sums of as many normals as there are pixels: brought to order one, as the tolerances are.
    scales = (1.0, 1.0, 1 / math.sqrt(case.shape[2] * case.shape[3]))
    if way.is_native:
        # Single pixels have a deviation of √ε: gradients are as large as they are then inexact.
        scales = (1.0, *(1 / max(1.0, float(e.abs().max())) for e in exact[1:]))
    slack = FAST_MATH_LIMIT if way.fast_math else 0.0
    for result, e, p, scale in zip(found, exact, plain, scales, strict=True):
        assert_close(result * scale, e * scale, way.stored(p, result.dtype) * scale, slack)


def check_statistics(shape: tuple[int, ...], last: bool, device: str) -> None:
    """Assert that large means cost the variances no digits that x itself has, and that the
    statistics of a sum are those of the sum as it is stored, bit for bit."""
    from ncsn_fast.kernels.triton.instance_norm_statistics import statistics

    x = (draw(shape, seed=1) * 0.25 + 1000).half()
    residual = draw(shape, seed=2).half()
    total = x + residual
    buffers, samples = Buffers(device), shape[0]
    size = samples * (2 * shape[1] + 2)
    written = buffers.output(shape, torch.float16, last)
    of_sum, of_total = (buffers.output((size,), torch.float32) for _ in range(2))
    statistics(buffers.input(x, last), of_sum, buffers.input(residual, last), written)
    statistics(buffers.input(total, last), of_total)
    buffers.check()
    assert torch.equal(written.cpu(), total)
    assert torch.equal(of_sum, of_total)
    variance, mean = torch.var_mean(total.double(), (2, 3), correction=0)
    over = torch.var_mean(mean, 1)
    for found, exact, limit in zip(
        of_total.cpu().double().split([mean.numel(), mean.numel(), samples, samples]),
        (mean, variance, over[1], over[0]),
        (2e-4, 1e-5, 2e-4, 1e-4),
        strict=True,
    ):
        assert (found - exact.flatten()).abs().max() <= limit * max(1.0, float(exact.max()) / 1000)


def is_split(shape: tuple[int, ...], last: bool) -> bool:
    """Whether the statistics of a sample take several programs."""
    from ncsn_fast.kernels.triton.instance_norm_statistics import reduction

    return not reduction(torch.Size(shape), last, 4).whole
