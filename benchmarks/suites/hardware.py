"""What the device itself can do: how fast a copy is, and the products of matrices.

One product is no roof: how near to the limit of a CPU or GPU a library comes depends on the shape
and on the library. So the roof of a precision is the fastest of several, on a CPU also of oneDNN's
products and direct convolutions, of weights in its own order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from ncsn_fast.benchmarks.contest.plans import Plan, tf32_is_there
from ncsn_fast.benchmarks.contest.rows import Row
from ncsn_fast.benchmarks.contest.timing import Call, Times, measure
from ncsn_fast.benchmarks.contestants.networks import TYPES
from ncsn_fast.device.precision import float32_mode

CACHE = 256 << 20  # bytes, more than any cache of today
# Rows, inner size and columns; the last of a CPU is a convolution of 3×3, written as a product.
_SHAPES = {
    "cuda": ((4096,) * 3, (8192,) * 3, (16384, 4096, 8192)),
    "cpu": ((512,) * 3, (1024,) * 3, (2048,) * 3, (4096, 1024, 1024), (16384, 1152, 128)),
}
# Images, channels and side of 3×3 convolutions.
_CONVOLUTIONS = ((16, 128, 32), (16, 256, 16))


@dataclass(frozen=True)
class Product:
    """Work that is nothing but multiplications and additions.

    Attributes:
        flop: of one call, a multiplication and an addition as two.
        results: the values that a call makes.
        make: of a type and a device, the call.
    """

    name: str
    flop: int
    results: int
    make: Callable[[torch.dtype, torch.device], Call]


def hardware(plan: Plan) -> Iterator[Row]:
    """A row for the copy (``bandwidth``, GB/s) and one per product and precision (``flops``)."""
    row = Row("hardware", "copy", "torch", CACHE, "bytes")
    yield _measured(row, copy_times, "bandwidth", 2e-9 * CACHE, plan)
    # Of a CPU those that ours runs in: without its instructions bfloat16 takes minutes.
    precisions = ["fp32", "fp16", "bf16"] if plan.device == "cuda" else list(plan.ours)
    if tf32_is_there(plan.device):
        precisions.append("tf32")
    for precision in precisions:
        for product in products(plan.device) if plan.roofs else ():
            row = Row("hardware", product.name, "torch", product.results, precision)
            times = partial(product_times, product, precision)
            yield _measured(row, times, "flops", product.flop, plan)


def facts(rows: Sequence[Row]) -> dict[str, float]:
    """What the other suites compare with: the copy, and the fastest product of each precision."""
    found: dict[str, float] = {}
    for row in rows:
        if row.suite == "hardware" and "bandwidth" in row.figures:
            found["copy_bandwidth"] = row.figures["bandwidth"]
        elif row.suite == "hardware" and "flops" in row.figures:
            name = f"peak_{row.precision}"
            found[name] = max(found.get(name, 0.0), row.figures["flops"])
    return found


def products(device: str) -> list[Product]:
    """The products among which the fastest is the roof."""
    found = [_matrices(*shape) for shape in _SHAPES[device]]
    if device == "cpu" and hasattr(torch.ops.mkldnn, "_convolution_pointwise"):
        found += [_packed_matrices(*shape) for shape in _SHAPES[device][1:]]
        found += [_packed_convolution(*shape) for shape in _CONVOLUTIONS]
    return found


def _matrices(rows: int, inner: int, columns: int) -> Product:
    def make(dtype: torch.dtype, device: torch.device) -> Call:
        a = torch.randn(rows, inner, device=device).to(dtype)
        b = torch.randn(inner, columns, device=device).to(dtype)
        return partial(torch.mm, a, b, out=a.new_empty(rows, columns))

    name = f"matrix product {rows}×{inner}×{columns}"
    return Product(name, 2 * rows * inner * columns, rows * columns, make)


def _packed_matrices(rows: int, inner: int, columns: int) -> Product:
    def make(dtype: torch.dtype, device: torch.device) -> Call:
        x = torch.randn(rows, inner).to(dtype)
        weight = torch.randn(columns, inner).to(dtype)
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
        return partial(torch.ops.mkldnn._linear_pointwise, x, packed, None, "none", [], "")

    name = f"oneDNN product {rows}×{inner}×{columns}"
    return Product(name, 2 * rows * inner * columns, rows * columns, make)


def _packed_convolution(images: int, channels: int, side: int) -> Product:
    def make(dtype: torch.dtype, device: torch.device) -> Call:
        layout = torch.channels_last
        x = torch.randn(images, channels, side, side).to(dtype, memory_format=layout)
        weight = torch.randn(channels, channels, 3, 3).to(dtype)
        geometry: Any = (1, 1), (1, 1), (1, 1), 1  # padding, stride, dilation, groups
        packed = torch._C._nn.mkldnn_reorder_conv2d_weight(weight.to_mkldnn(), *geometry)
        run = torch.ops.mkldnn._convolution_pointwise
        return partial(run, x, packed, None, *geometry, "none", [], "")

    results = images * channels * side**2
    name = f"oneDNN convolution {images}×{channels}×{side}×{side}"
    return Product(name, 18 * channels * results, results, make)


def copy_times(device: torch.device, seconds: float) -> Times:
    """The times of a copy of ``CACHE`` bytes."""
    source = torch.randint(256, (CACHE,), dtype=torch.uint8, device=device)  # zeros are compressed
    target = torch.empty_like(source)

    def call() -> None:
        target.copy_(source)

    call()
    return measure([call], device, seconds)


def product_times(product: Product, precision: str, device: torch.device, seconds: float) -> Times:
    """The times of a product."""
    with float32_mode(precision, device), torch.inference_mode():
        call = product.make(TYPES[precision], device)
        call()
        return measure([call], device, seconds)


def _measured(
    row: Row,
    times_on: Callable[[torch.device, float], Times],
    figure: str,
    work: float,
    plan: Plan,
) -> Row:
    """The row; its figure is how much of the work a second does."""
    try:
        times = times_on(torch.device(plan.device), plan.seconds)
    except Exception as error:  # of whatever kind: the row says which
        return row.failed(error)
    return row.timed(times).more({figure: work / times.median})


__all__ = ["CACHE", "Product", "facts", "hardware", "products"]
