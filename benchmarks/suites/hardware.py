"""What the device itself can do: how fast a copy is, and a large matrix product."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch

from ncsn_fast.benchmarks.contest.plans import Plan, tf32_is_there
from ncsn_fast.benchmarks.contest.rows import Row
from ncsn_fast.benchmarks.contest.timing import Times, measure
from ncsn_fast.benchmarks.contestants.networks import TYPES
from ncsn_fast.device.precision import float32_mode

CACHE = 256 << 20  # bytes, more than any cache of today
_SIDE = {"cuda": 8192, "cpu": 1024}


def hardware(plan: Plan) -> Iterator[Row]:
    """A row for the copy (``bandwidth``, GB/s) and one per precision (``flops``, FLOP/s)."""
    row = Row("hardware", "copy", "torch", CACHE, "bytes")
    yield _measured(row, copy_times, "bandwidth", 2e-9 * CACHE, plan)
    side = _SIDE[plan.device]
    precisions = ["fp32", "fp16", "bf16"] if plan.device == "cuda" else ["fp32", plan.half]
    if tf32_is_there(plan.device):
        precisions.append("tf32")
    for precision in precisions:
        row = Row("hardware", "matrix product", "torch", side, precision)
        product = functools.partial(product_times, side, precision)
        yield _measured(row, product, "flops", 2 * side**3, plan)


def facts(rows: list[Row]) -> dict[str, float]:
    """What the other suites compare with."""
    found = {}
    for row in rows:
        if row.case == "copy" and row.figures:
            found["copy_bandwidth"] = row.figures["bandwidth"]
        elif row.case == "matrix product" and row.figures:
            found[f"peak_{row.precision}"] = row.figures["flops"]
    return found


def copy_times(device: torch.device, seconds: float) -> Times:
    """The times of a copy of ``CACHE`` bytes."""
    source = torch.zeros(CACHE, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)

    def call() -> None:
        target.copy_(source)

    call()
    return measure([call], device, seconds)


def product_times(side: int, precision: str, device: torch.device, seconds: float) -> Times:
    """The times of a product of two square matrices."""
    dtype = TYPES[precision]
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)

    def call() -> None:
        torch.mm(a, b, out=out)

    with float32_mode(precision, device):
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


__all__ = ["CACHE", "facts", "hardware"]
