"""The fused operations beside PyTorch: python -m ncsn_fast.benchmarks.bandwidth [--quick] [--json].

One row per case, size and contestant, all in one run and in the same precision: ours; what people
write, with torch.randn_like ("eager"); and that under torch.compile ("compile"). Times are
quantiles over repetitions, by the device's own events, with buffers that are rotated so that no
input is still in a cache. ``bytes_per_element`` is what has to be moved, counted from the tensors;
``share_of_copy`` is the bandwidth this amounts to over that of a plain copy in the same run. Where
ours disagrees with the specification there is no figure, and the command fails.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ncsn_fast import ops
from ncsn_fast.benchmarks.environment import environment
from ncsn_fast.ops import backends

IMAGE = (3, 32, 32)
SIZES = {"quick": (1 << 22,), "full": (1 << 20, 1 << 23, 1 << 26)}
_CACHE = 256 << 20  # bytes, more than any cache of today
_SECONDS, _MOST_CALLS = 0.5, 200
_SHORT = 1000.0  # µs
_TOLERANCE = 4e-3  # over the scale of a result of 16 bits

Tensors = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One contestant; times in microseconds, bandwidth in GB/s."""

    case: str
    elements: int
    contestant: str
    median_us: float
    low_us: float  # quantile 0.2
    high_us: float  # quantile 0.8
    bytes_per_element: int
    bandwidth: float
    share_of_copy: float
    warm_up_s: float  # of the first call: compilation, where there is one


@dataclass(frozen=True)
class Case:
    """Ours for a backend, and the same in plain PyTorch; both from the tensors of ``tensors``."""

    name: str
    bytes_per_element: int
    ours: Callable[[Tensors, str], list[Tensor]]
    plain: Callable[[Tensors], list[Tensor]]
    channels_last: bool = False


def tensors(elements: int, channels_last: bool, device: torch.device) -> Tensors:
    """Whatever a case may need, for so many values in images of 3×32×32."""
    shape = (elements // (3 * 32 * 32), *IMAGE)
    x = torch.randn(shape, device=device)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return {
        "x": x,
        "n": torch.randn_like(x).to(torch.float16, memory_format=layout),
        "row": torch.tensor([1.0, 0.1, 0.0, 0.3, 0.0, 0.0, 0.0, 1.0, 0.0], device=device),
        "sigma": torch.rand(shape[0], device=device) + 0.1,
        "upstream": torch.full((shape[0],), 1 / shape[0], device=device),
        "key": {
            "seed": torch.tensor(0, device=device),
            "step": torch.tensor(0, device=device),
            "sample_ids": torch.arange(shape[0], device=device),
        },
        "format": layout,
    }


def update(t: Tensors, backend: str) -> list[Tensor]:
    result = ops.sampler_update(
        t["x"],
        t["n"],
        t["row"],
        input_dtype=torch.float16,
        input_format=t["format"],
        backend=backend,
        **t["key"],
    )
    return [result.x, result.network_input]


def plain_update(t: Tensors) -> list[Tensor]:
    a, b, _, d, *_ = t["row"].unbind()
    x = a * t["x"] + b * t["n"] + d * torch.randn_like(t["x"])
    return [x, x.to(torch.float16, memory_format=t["format"])]


def training(t: Tensors, backend: str) -> list[Tensor]:
    perturbed = ops.perturb(
        t["x"],
        t["sigma"],
        dtype=torch.float16,
        memory_format=t["format"],
        backend=backend,
        **t["key"],
    )
    loss, gradient = ops.dsm_loss_and_gradient(
        t["n"], upstream=t["upstream"], backend=backend, **t["key"]
    )
    return [perturbed, loss, gradient]


def plain_training(t: Tensors) -> list[Tensor]:
    """With the gradient in closed form, so that torch.compile can take it whole."""
    z = torch.randn_like(t["x"])
    perturbed = t["x"] + t["sigma"].view(-1, 1, 1, 1) * z
    difference = t["n"] + z
    loss = 0.5 * difference.square().flatten(1).sum(1)
    gradient = (t["upstream"].view(-1, 1, 1, 1) * difference).to(torch.float16)
    return [perturbed.to(torch.float16, memory_format=t["format"]), loss, gradient]


CASES = [
    Case("update", 12, update, plain_update),
    Case("update, channels_last", 12, update, plain_update, channels_last=True),
    Case("perturbation, loss and gradient", 10, training, plain_training),
    Case(
        "perturbation, loss and gradient, channels_last",
        10,
        training,
        plain_training,
        channels_last=True,
    ),
]


def measure(calls: list[Callable[[], Any]], device: torch.device) -> tuple[float, float, float]:
    """Quantiles 0.5, 0.2, 0.8 of the time of one call in µs; the calls take turns."""
    for call in calls[:3]:
        call()
    # Several calls to a measurement where one is so short that it would wait for its launch.
    repeats = max(1, min(100, math.ceil(_SHORT / time_of(calls, 1, device))))
    times: list[float] = []
    started = time.perf_counter()
    while len(times) < 5 or (time.perf_counter() - started < _SECONDS and len(times) < _MOST_CALLS):
        times.append(time_of(calls, repeats, device))
    low, _, _, high = statistics.quantiles(times, n=5)
    return statistics.median(times), low, high


def time_of(calls: list[Callable[[], Any]], repeats: int, device: torch.device) -> float:
    """The time of one of several calls in a row, in µs."""
    in_turn = itertools.islice(itertools.cycle(calls), repeats)
    if device.type != "cuda":
        started = time.perf_counter()
        for call in in_turn:
            call()
        return 1e6 * (time.perf_counter() - started) / repeats
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for call in in_turn:
        call()
    end.record()
    end.synchronize()
    return 1e3 * float(start.elapsed_time(end)) / repeats


def copy_bandwidth(device: torch.device) -> float:
    """What a plain copy reads and writes, in GB/s."""
    source = torch.zeros(_CACHE, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    median, _, _ = measure([lambda: target.copy_(source)], device)
    return 2 * _CACHE / median / 1e3


def disagreement(case: Case, given: Tensors, backend: str) -> float:
    """Largest difference between ours and the specification, over the result's scale."""
    found = 0.0
    for ours, expected in zip(case.ours(given, backend), case.ours(given, "torch"), strict=True):
        scale = float(expected.abs().max())
        found = max(found, float((ours.float() - expected.float()).abs().max()) / scale)
    return found


def contestants(case: Case, backend: str) -> dict[str, Callable[[Tensors], Any]]:
    compiled = torch.compile(case.plain, dynamic=False)
    return {
        "ours": lambda given: case.ours(given, backend),
        "eager": case.plain,
        "compile": compiled,
    }


def run(sizes: tuple[int, ...], device: torch.device) -> list[Row]:
    """All rows.

    Raises:
        ArithmeticError: where an operation disagrees with its specification.
    """
    backend, _ = backends.resolve("auto", device)
    copy = copy_bandwidth(device)
    rows = []
    for case in CASES:
        for elements in sizes:
            sets = max(1, min(16, _CACHE // (elements * case.bytes_per_element)))
            given = [tensors(elements, case.channels_last, device) for _ in range(sets)]
            error = disagreement(case, given[0], backend)
            if not error <= _TOLERANCE:
                raise ArithmeticError(f"{case.name}: differs from the specification by {error:.2g}")
            for name, function in contestants(case, backend).items():
                calls: list[Callable[[], Any]] = [partial(function, one) for one in given]
                with torch.no_grad():
                    first = time_of(calls, 1, device)
                    times = measure(calls, device)
                exact = given[0]["x"].numel()
                bandwidth = exact * case.bytes_per_element / times[0] / 1e3
                rows.append(
                    Row(
                        case.name,
                        exact,
                        f"{name} ({backend})" if name == "ours" else name,
                        *times,
                        case.bytes_per_element,
                        bandwidth,
                        bandwidth / copy,
                        first / 1e6,
                    )
                )
    return rows


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="one size, about a minute")
    parser.add_argument("--json", action="store_true", help="rows and environment as JSON")
    options = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = run(SIZES["quick" if options.quick else "full"], device)
    if options.json:
        found = {"environment": environment(device), "rows": [asdict(row) for row in rows]}
        json.dump(found, sys.stdout, indent=1)
        return
    print(*(f"{name}: {value}" for name, value in environment(device).items()), sep="\n")
    print(f"\n{'case':48}{'elements':>10} {'contestant':14}{'µs':>10}{'GB/s':>8}{'of copy':>9}")
    for row in rows:
        print(
            f"{row.case:48}{row.elements:>10} {row.contestant:14}{row.median_us:>10.1f}"
            f"{row.bandwidth:>8.1f}{row.share_of_copy:>8.0%}"
        )


if __name__ == "__main__":
    main()
