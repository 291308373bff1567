"""The fused operations beside plain PyTorch: ours, eager, torch.compile, in turns.

``bytes_per_element`` is what has to be moved, counted from the tensors; ``share_of_copy`` is the
bandwidth that this amounts to over that of a plain copy in the same run. Buffers are rotated, so
that no input is still in a cache.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ncsn_fast import noise, ops
from ncsn_fast.benchmarks.contest import contest
from ncsn_fast.benchmarks.contest.contest import Contest, Contestant, Ready
from ncsn_fast.benchmarks.contest.plans import Plan
from ncsn_fast.benchmarks.contest.rows import Row
from ncsn_fast.benchmarks.contestants import official
from ncsn_fast.benchmarks.contestants.networks import TYPES
from ncsn_fast.benchmarks.suites.hardware import CACHE
from ncsn_fast.device import backends

Tensors = dict[str, Any]
_MOST_SETS = 16


@dataclass(frozen=True)
class Case:
    """An operation and what people write for it, both from the tensors that ``make`` makes.

    Attributes:
        make: (elements, 16-bit type, device) → the tensors.
        ours: (tensors, backend) → results.
        plain: (tensors, noise or None for torch.randn_like) → the same results.
        noise: (tensors) → the noise that ours draws, where it draws any.
        bytes_per_element, flops_per_element: what has to be moved, and the arithmetic of the
            specification (without that of the noise).
    """

    name: str
    bytes_per_element: float
    flops_per_element: float
    make: Callable[[int, torch.dtype, torch.device], Tensors]
    ours: Callable[[Tensors, str], list[Tensor]]
    plain: Callable[[Tensors, Tensor | None], list[Tensor]]
    noise: Callable[[Tensors], Tensor] | None = None


def images(
    elements: int, dtype: torch.dtype, device: torch.device, channels_last: bool = False
) -> Tensors:
    """Whatever an operation on states may need, for so many values in images of 3×32×32."""
    shape = (max(1, elements // (3 * 32 * 32)), 3, 32, 32)
    x = torch.randn(shape, device=device)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return {
        "x": x,
        "n": torch.randn_like(x).to(dtype, memory_format=layout),
        "row": torch.tensor([1.0, 0.1, 0.0, 0.3, 0.0, 0.0, 0.0, 1.0, 0.0], device=device),
        "sigma": torch.rand(shape[0], device=device) + 0.1,
        "upstream": torch.full((shape[0],), 1 / shape[0], device=device),
        "key": {
            "seed": torch.tensor(0, device=device),
            "step": torch.tensor(0, device=device),
            "sample_ids": torch.arange(shape[0], device=device),
        },
    }


def activations(elements: int, dtype: torch.dtype, device: torch.device) -> Tensors:
    """What an operation inside a network needs: channels_last, of 128×32×32."""
    channels, side = (128, 32) if elements >= 1 << 17 else (8, 8)
    shape = (max(1, elements // (channels * side * side)), channels, side, side)

    def random(*size: int) -> Tensor:
        whole = torch.randn(size, device=device).to(dtype)
        return whole.contiguous(memory_format=torch.channels_last)

    parameters = torch.randn(3, channels, device=device)
    return {
        "x": random(*shape),
        "residual": random(*shape),
        "coarse": random(*shape[:2], side // 2, side // 2),
        "gamma": 1 + 0.1 * parameters[0],
        "alpha": 1 + 0.1 * parameters[1],
        "beta": 0.1 * parameters[2],
    }


def update(t: Tensors, backend: str) -> list[Tensor]:
    """As a chain's step launches it (``tests/benchmarks/test_static.py`` holds it to that)."""
    return [ops.sampler_update(t["x"], t["n"], t["row"], backend=backend, **t["key"]).x]


def plain_update(t: Tensors, z: Tensor | None) -> list[Tensor]:
    a, b, _, d, *_ = t["row"].unbind()
    z = torch.randn_like(t["x"]) if z is None else z
    return [a * t["x"] + b * t["n"] + d * z]


def loss(t: Tensors, backend: str) -> list[Tensor]:
    """The perturbation, then the loss and its gradient: likewise those of a training step."""
    perturbed = ops.perturb(t["x"], t["sigma"], backend=backend, **t["key"])
    found, gradient = ops.dsm_loss_and_gradient(
        t["n"], upstream=t["upstream"], backend=backend, **t["key"]
    )
    return [perturbed, found, gradient]


def plain_loss(t: Tensors, z: Tensor | None) -> list[Tensor]:
    """With the gradient in closed form, so that torch.compile can take it whole."""
    z = torch.randn_like(t["x"]) if z is None else z
    perturbed = t["x"] + t["sigma"].view(-1, 1, 1, 1) * z
    difference = t["n"] + z
    found = 0.5 * difference.square().flatten(1).sum(1)
    gradient = (t["upstream"].view(-1, 1, 1, 1) * difference).to(t["n"].dtype)
    return [perturbed, found, gradient]


def norm(t: Tensors, backend: str) -> list[Tensor]:
    parameters = (t["gamma"], t["alpha"], t["beta"])
    return [ops.instance_norm_plus(t["x"], *parameters, activation="elu", backend=backend)]


def plain_norm(t: Tensors, z: Tensor | None) -> list[Tensor]:
    parameters = (t[name][None].to(t["x"].dtype) for name in ("gamma", "alpha", "beta"))
    return [F.elu(official.instance_norm_plus(t["x"], *parameters))]


def pool(t: Tensors, backend: str) -> list[Tensor]:
    return [*ops.max_pool5(t["x"], activation="elu", backend=backend)]


def plain_pool(t: Tensors, z: Tensor | None) -> list[Tensor]:
    active = F.elu(t["x"])
    return [active, F.max_pool2d(active, 5, stride=1, padding=2)]


def add(t: Tensors, backend: str) -> list[Tensor]:
    found = ops.residual_add(t["x"], t["residual"], activation="elu", backend=backend)
    return [one for one in found[:2] if one is not None]


def plain_add(t: Tensors, z: Tensor | None) -> list[Tensor]:
    total = t["x"] + t["residual"]
    return [total, F.elu(total)]


def resize(t: Tensors, backend: str) -> list[Tensor]:
    return [ops.resize_add(t["coarse"], t["x"], backend=backend)]


def plain_resize(t: Tensors, z: Tensor | None) -> list[Tensor]:
    size = t["x"].shape[2:]
    wide = F.interpolate(t["coarse"], size=size, mode="bilinear", align_corners=True)
    return [t["x"] + wide]


def draw(t: Tensors, backend: str) -> list[Tensor]:
    """The noise that has one implementation, as it is drawn outside of the other operations."""
    return [_SAMPLER(t)]


def plain_draw(t: Tensors, z: Tensor | None) -> list[Tensor]:
    return [torch.randn_like(t["x"]) if z is None else z]


def drawn(stream: int, t: Tensors) -> Tensor:
    """The noise that our operations draw from a stream."""
    return noise.normal(t["x"].shape[1:], stream=stream, **t["key"])


_SAMPLER = functools.partial(drawn, noise.SAMPLER)
_PERTURB = functools.partial(drawn, noise.PERTURB)
_LAST = functools.partial(images, channels_last=True)
UPDATE, LOSS, NORM = "sampler_update", "perturb, dsm_loss and gradient", "instance_norm_plus + ELU"
NOISE = "normal numbers"
CASES = (
    Case(UPDATE, 10, 5, images, update, plain_update, _SAMPLER),
    Case(f"{UPDATE}, channels_last", 10, 5, _LAST, update, plain_update, _SAMPLER),
    Case(LOSS, 12, 7, images, loss, plain_loss, _PERTURB),
    Case(f"{LOSS}, channels_last", 12, 7, _LAST, loss, plain_loss, _PERTURB),
    Case(NORM, 6, 7, activations, norm, plain_norm),
    Case("max_pool5 + ELU", 6, 10, activations, pool, plain_pool),
    Case("residual_add + ELU", 8, 2, activations, add, plain_add),
    Case("resize_add", 4.5, 9, activations, resize, plain_resize),
    Case(NOISE, 4, 0, images, draw, plain_draw, _SAMPLER),
)
# Alone, noise is many passes on a GPU, which no kernel of the engine makes.
_OF_CPUS = {NOISE}


def operations(plan: Plan) -> Iterator[Row]:
    """Rows of all operations in all sizes."""
    device = torch.device(plan.device)
    for case in cases(plan):
        for elements in plan.elements:
            yield from contest.run(operation_contest(plan, case, elements), device)


def cases(plan: Plan) -> list[Case]:
    """Those that a plan measures on its device."""
    here = [case for case in CASES if plan.device == "cpu" or case.name not in _OF_CPUS]
    return [case for case in here if not plan.operations or case.name in plan.operations]


def operation_contest(plan: Plan, case: Case, elements: int) -> Contest:
    """The contestants of an operation."""
    device = torch.device(plan.device)
    backend, _ = backends.resolve("auto", device)
    sets = max(1, min(_MOST_SETS, int(CACHE // (elements * case.bytes_per_element))))
    given = [case.make(elements, TYPES[plan.half], device) for _ in range(sets)]

    def ours(precision: str) -> Ready:
        return _ready(lambda t, z: case.ours(t, backend), given)

    def plain(precision: str) -> Ready:
        return _ready(case.plain, given, case.noise)

    def compiled(precision: str) -> Ready:
        return _ready(torch.compile(case.plain, dynamic=False), given, case.noise)

    entries = [Contestant("ours", plan.half, ours), Contestant("eager", plan.half, plain)]
    if plan.compile_operations:
        entries.append(Contestant("compile", plan.half, compiled))
    return Contest(
        suite="operations",
        case=case.name,
        size=given[0]["x"].numel(),
        contestants=entries,
        expected=lambda: case.ours(given[0], "torch"),
        tolerance=contest.OPERATION_TOLERANCE,
        seconds=plan.seconds,
        figures=lambda row: figures(row, case, plan),
    )


def figures(row: Row, case: Case, plan: Plan) -> dict[str, float]:
    """The bandwidth in GB/s, and the share of that of a plain copy."""
    seconds = row.median_s or float("nan")
    bandwidth = row.size * case.bytes_per_element / seconds / 1e9
    found = {
        "bandwidth": bandwidth,
        "bytes_per_element": case.bytes_per_element,
        "flops_per_element": case.flops_per_element,
    }
    if "copy_bandwidth" in plan.facts:
        found["share_of_copy"] = bandwidth / plan.facts["copy_bandwidth"]
    return found


def _ready(
    function: Callable[[Tensors, Tensor | None], list[Tensor]],
    given: list[Tensors],
    noise_of: Callable[[Tensors], Tensor] | None = None,
) -> Ready:
    calls = [functools.partial(function, one, None) for one in given]
    return Ready(calls, lambda: function(given[0], noise_of(given[0]) if noise_of else None))


__all__ = [
    "CASES",
    "LOSS",
    "NOISE",
    "NORM",
    "UPDATE",
    "Case",
    "cases",
    "operation_contest",
    "operations",
]
