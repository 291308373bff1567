"""A model of a step: what its kernels have to do at least, and how long that takes a GPU.

Nothing here is measured. A launch of ours is taken to last as long as the longest of

- its bytes: each tensor that it reads or writes moved once, at the bandwidth of the memory;
- its instructions: those of its machine code, with its loops as often as their numbers say and
  branches forward not taken;
- its wavefronts: of shared memory and of the cache beside it, 128 bytes at a time,

where programs are dealt out evenly to multiprocessors. PyTorch's own passes are their bytes alone,
and convolutions their operations at 60 % of the peak. There is no latency in it, no launch, and no
cache of the second level, from which small batches come faster than from memory. Counts are of
machine code for sm_90.
"""

import multiprocessing
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor

from ncsn_fast.benchmarks.static import addresses, sass
from ncsn_fast.benchmarks.static.compiled import Listings, compiled, machine_codes
from ncsn_fast.benchmarks.static.networks import Step
from ncsn_fast.benchmarks.static.recording import Convolution, Launch, Pass, size_of
from ncsn_fast.benchmarks.static.rows import PUBLISHED

SHARE_OF_PEAK = 0.6  # that convolutions are taken to reach
_SMALL = 1e-6  # seconds
_ISSUED = 4  # instructions of warps, a clock and multiprocessor


class Gpu(NamedTuple):
    """A GPU's peak figures as NVIDIA publishes them, of the SXM modules, products without sparsity.

    "NVIDIA A100 Tensor Core GPU Architecture" (2020), "NVIDIA H100 Tensor Core GPU Architecture"
    (2022) and the datasheet of the H200 (2023). A multiprocessor of all of them issues an
    instruction of each of four warps a clock, and shared memory and the cache beside it, which are
    one, move 128 bytes.

    Attributes:
        multiprocessors: how many.
        clock: cycles a second, boosted, at which the tensor cores have their peak; what does not
            use them may run some 8 % faster.
        bandwidth: of its memory, bytes a second.
        peaks: operations a second, multiplications and additions, by a network's precision.
    """

    multiprocessors: int
    clock: float
    bandwidth: float
    peaks: dict[str, float]


_HOPPER = {"fp16": 989.4e12, "bf16": 989.4e12, "tf32": 494.7e12, "fp32": 66.9e12}
_AMPERE = {"fp16": 312e12, "bf16": 312e12, "tf32": 156e12, "fp32": 19.5e12}
GPUS = {
    "H100": Gpu(132, 1.83e9, 3.35e12, _HOPPER),
    "H200": Gpu(132, 1.83e9, 4.8e12, _HOPPER),
    "A100": Gpu(108, 1.41e9, 2.039e12, _AMPERE),
}
_SIXTEEN_BITS = {torch.float16: "fp16", torch.bfloat16: "bf16"}


class Cost(NamedTuple):
    """What a launch has to do.

    Attributes:
        bytes: of memory, each tensor once.
        programs, warps: of the launch, and of a program.
        instructions, wavefronts: of a program, instructions counted once for each of its warps.
    """

    bytes: float
    programs: int = 0
    warps: int = 1
    instructions: float = 0.0
    wavefronts: float = 0.0

    def moving(self, gpu: Gpu) -> float:
        """Seconds for its bytes alone."""
        return self.bytes / gpu.bandwidth

    def seconds(self, gpu: Gpu) -> float:
        """The least that it takes."""
        busiest = -(-self.programs // gpu.multiprocessors)  # programs of a multiprocessor
        issued = min(_ISSUED, busiest * self.warps) or 1
        clocks = busiest * max(self.instructions / issued, self.wavefronts)
        return max(self.moving(gpu), clocks / gpu.clock)


class Line(NamedTuple):
    """The launches of a kernel in a step.

    Attributes:
        name: of our kernel, or of PyTorch's operation, such as "aten.add".
        launches: how many.
        bytes, instructions, wavefronts: of all of them.
        seconds: the least that they take, by GPU.
        excess: of it what is beyond moving the bytes once.
    """

    name: str
    launches: int
    bytes: float
    instructions: float
    wavefronts: float
    seconds: dict[str, float]
    excess: dict[str, float]


class Model(NamedTuple):
    """A step.

    Attributes:
        lines: of its kernels, that with the largest excess first.
        convolutions: how many.
        convolving: seconds for their operations at ``SHARE_OF_PEAK``, by GPU.
    """

    lines: list[Line]
    convolutions: int
    convolving: dict[str, float]


def model(step: Step) -> Model:
    """What a step has to do, by kernel."""
    work = step.work()
    costs = _costs([one for one in work if isinstance(one, Launch)])
    by_name: dict[str, list[Cost]] = {}
    for one in work:
        if isinstance(one, Launch):
            by_name.setdefault(one.name, []).append(costs.pop(0))
        elif isinstance(one, Pass):
            by_name.setdefault(one.name, []).append(Cost(one.bytes))
    lines = [_line(name, those) for name, those in by_name.items()]
    first = next(iter(GPUS))
    lines.sort(key=lambda line: (line.excess[first], line.seconds[first]), reverse=True)
    convolutions = [one for one in work if isinstance(one, Convolution)]
    return Model(lines, len(convolutions), _convolving(convolutions, step.precision))


def cells(found: Model) -> list[list[object]]:
    """A table of it: names, a line per kernel, what is small of PyTorch's together, and sums."""
    first = next(iter(GPUS))
    names = ["kernel", "launches", "MB", "10⁶ instructions", "10⁶ wavefronts"]
    names += [*(f"µs on {gpu}" for gpu in GPUS), f"beyond its bytes, {first}"]
    small = [one for one in found.lines if "." in one.name and one.seconds[first] < _SMALL]
    lines = [_cells(one, first) for one in found.lines if one not in small]
    if small:
        lines.append(_cells(_sum("others of PyTorch", small), first))
    lines.append(_cells(_sum("all of these", found.lines), first))
    at_peak = f"convolutions at {SHARE_OF_PEAK * 100:.0f} % of peak"
    times = [_micros(found.convolving[gpu]) for gpu in GPUS]
    lines.append([at_peak, found.convolutions, None, None, None, *times, None])
    return [list(names), *lines]


def _cells(line: Line, first: str) -> list[object]:
    ours = "." not in line.name and " " not in line.name
    counts = [line.instructions, line.wavefronts] if line.instructions else [None, None]
    return [
        f"`{line.name}`" if ours else line.name,
        line.launches,
        _rounded(line.bytes / 1e6),
        *(None if one is None else _rounded(one / 1e6) for one in counts),
        *(_micros(line.seconds[gpu]) for gpu in GPUS),
        _micros(line.excess[first]),
    ]


def _micros(seconds: float) -> float:
    return _rounded(seconds * 1e6)


def _rounded(number: float) -> float:
    """To three digits, and to hundredths."""
    return round(float(f"{number:.3g}"), 2)


def _sum(name: str, lines: Sequence[Line]) -> Line:
    return Line(
        name,
        sum(one.launches for one in lines),
        sum(one.bytes for one in lines),
        sum(one.instructions for one in lines),
        sum(one.wavefronts for one in lines),
        {gpu: sum(one.seconds[gpu] for one in lines) for gpu in GPUS},
        {gpu: sum(one.excess[gpu] for one in lines) for gpu in GPUS},
    )


def _line(name: str, costs: Sequence[Cost]) -> Line:
    seconds = {key: sum(one.seconds(gpu) for one in costs) for key, gpu in GPUS.items()}
    moving = {key: sum(one.moving(gpu) for one in costs) for key, gpu in GPUS.items()}
    return Line(
        name,
        len(costs),
        sum(one.bytes for one in costs),
        sum(one.programs * one.instructions for one in costs),
        sum(one.programs * one.wavefronts for one in costs),
        seconds,
        {key: seconds[key] - moving[key] for key in GPUS},
    )


def _convolving(convolutions: Iterable[Convolution], precision: str) -> dict[str, float]:
    operations: Counter[str] = Counter()
    for one in convolutions:
        # Of a network in 16 bits the first convolution is in float32.
        wide = precision if precision == "tf32" else "fp32"
        operations[_SIXTEEN_BITS.get(one.dtype, wide)] += one.operations
    return {
        key: sum(number / (SHARE_OF_PEAK * gpu.peaks[name]) for name, number in operations.items())
        for key, gpu in GPUS.items()
    }


def _costs(launches: Sequence[Launch]) -> list[Cost]:
    """Those of launches; what is the same is compiled once."""
    keys = [(one.code, one.programs, str(_numbers(one))) for one in launches]
    different = dict(zip(keys, launches, strict=True))
    # Spawned, not forked: torch may have threads.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(mp_context=context) as pool:
        listings = list(pool.map(_compiled, different.values(), chunksize=2))
    codes = machine_codes(listings)
    found = {
        key: cost(launch, one, codes[id(one)])
        for (key, launch), one in zip(different.items(), listings, strict=True)
    }
    return [found[key] for key in keys]


def _compiled(launch: Launch) -> Listings:
    return compiled(launch, PUBLISHED)


def _numbers(launch: Launch) -> list[object]:
    """Its arguments, with shapes for tensors."""
    return [
        (one.shape, one.stride()) if isinstance(one, Tensor) else one
        for one in launch.arguments.values()
    ]


def cost(launch: Launch, listings: Listings, code: list[sass.Instruction]) -> Cost:
    """What a launch has to do, from its listings."""
    found, warps = listings.traffic, launch.threads // 32
    moved = 0.0
    for way in (found.loaded, found.stored):
        for position, asked in way.items():
            tensor = launch.arguments[listings.parameters[position]]
            moved += min(size_of(tensor), asked * launch.programs)
    instructions = executed(code, addresses.Code(listings.ptx), found.turns)
    return Cost(moved, launch.programs, warps, warps * instructions, found.wavefronts)


def executed(code: list[sass.Instruction], ptx: addresses.Code, turns: Sequence[float]) -> float:
    """Instructions of a warp.

    Loops of the machine code are those of PTX that lie as deep. What ptxas makes several turns of
    at once is told by its accesses of memory; the rest of such a loop counts beside it.
    """
    found = sorted(sass.loops(code), key=lambda loop: loop[0] - loop[1])  # from the outside
    weights = [1.0] * len(code)
    for first, last in found:
        depth = sum(one[0] <= first and last <= one[1] for one in found) - 1
        deep = [i for i in range(len(turns)) if ptx.depth(i) == depth]
        # Loops without accesses are over before they begin to matter.
        of_memory = [i for i in deep if ptx.accesses(i)] or deep
        if not of_memory:
            continue
        most = max(of_memory, key=lambda i: turns[i])
        accesses = sass.count(code[first : last + 1], "LDG", "STG")
        together = max(1.0, accesses / max(1, ptx.accesses(most)))
        weights[first : last + 1] = [turns[most] / together] * (last + 1 - first)
    return sum(weights)


__all__ = [
    "GPUS",
    "SHARE_OF_PEAK",
    "Cost",
    "Gpu",
    "Line",
    "Model",
    "cells",
    "cost",
    "executed",
    "model",
]
