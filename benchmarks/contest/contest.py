"""A contest: several ways to do the same work, checked against each other and then timed in turns.

No contestant gets a figure while its result disagrees with the reference. One that fails becomes a
row that says why, and the others go on.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ncsn_fast.benchmarks.contest.rows import DISAGREES, LEFT_OUT, Row
from ncsn_fast.benchmarks.contest.timing import Call, Times, in_turns, wall_seconds
from ncsn_fast.runs.profile_table import Profile, read_profile

Key = tuple[str, str]
# Largest difference from the reference over its largest value; the reference is float32.
OPERATION_TOLERANCE = {"fp32": 1e-5, "fp16": 4e-3, "bf16": 3e-2}
NETWORK_TOLERANCE = {"fp32": 1e-4, "tf32": 1e-2, "fp16": 1e-2, "bf16": 8e-2}


@dataclass(frozen=True)
class Ready:
    """A contestant that can be called.

    Attributes:
        calls: the same work on different buffers.
        result: what is compared with the reference's result.
        sample: a shorter call for the profiler, which takes long over many operations, and its
            units of work; None: the first of the calls.
        flop: the multiplications and additions that a unit of work really takes; None where
            nobody can say.
        units: of work in one of the calls, where they are not those of the contest.
    """

    calls: Sequence[Call]
    result: Callable[[], Sequence[Tensor]]
    sample: tuple[Call, int] | None = None
    flop: float | None = None
    units: int | None = None


@dataclass(frozen=True)
class Contestant:
    """One way to do the work; ``prepare``, of a precision, is part of its warm-up."""

    name: str
    precision: str
    prepare: Callable[[str], Ready]

    @property
    def key(self) -> Key:
        return self.name, self.precision


@dataclass(frozen=True)
class Contest:
    """One piece of work.

    Attributes:
        suite, case, size: as in :class:`Row`.
        contestants: in the order of their turns.
        expected: makes the reference's result.
        tolerance: precision → largest allowed difference, over the largest value.
        units: units of work (steps of a chain) in one call.
        seconds: of measuring, per contestant.
        profiled: whether to count launches and sum up the time of kernels, as soon as the
            contestants have been timed; :func:`profiles` does it later.
        figures: what else to say about a contestant's row, which has its time.
    """

    suite: str
    case: str
    size: int
    contestants: Sequence[Contestant]
    expected: Callable[[], Sequence[Tensor]]
    tolerance: Mapping[str, float]
    units: int = 1
    seconds: float = 0.5
    profiled: bool = False
    figures: Callable[[Row], dict[str, float]] = field(default=lambda row: {})

    def row(self, contestant: Contestant) -> Row:
        return Row(self.suite, self.case, contestant.name, self.size, contestant.precision)


@torch.no_grad()
def run(contest: Contest, device: torch.device) -> Iterator[Row]:
    """A row for each contestant; gradients are off but where a contestant turns them on."""
    try:
        expected = [tensor.detach().float() for tensor in contest.expected()]
    except Exception as error:  # of whatever kind: the row says which
        told = (str(error), LEFT_OUT) if isinstance(error, Absent) else (error,)
        yield from (contest.row(one).failed(*told) for one in contest.contestants)
        return
    rows: dict[Key, Row] = {}
    ready: dict[Key, Ready] = {}
    for one in contest.contestants:
        try:
            ready[one.key], rows[one.key] = admitted(contest, one, expected, device)
        except Disagreement as error:
            rows[one.key] = replace(
                contest.row(one).failed(str(error), DISAGREES), error=error.difference
            )
        except Absent as reason:
            rows[one.key] = contest.row(one).failed(str(reason), LEFT_OUT)
        except Exception as error:
            rows[one.key] = contest.row(one).failed(error)
        _clean_up(device)
    calls = {key: one.calls for key, one in ready.items()}
    for key, times in in_turns(calls, device, contest.seconds).items():
        rows[key] = _timed(rows[key], contest, times, ready[key], device)
    yield from rows.values()
    ready.clear()
    calls.clear()
    _forget_compiled()
    _clean_up(device)


class Absent(Exception):
    """Who cannot take part here, and why: the row is left out, not failed."""


class Disagreement(ArithmeticError):
    """A result that is not the reference's."""

    def __init__(self, difference: float, allowed: float) -> None:
        super().__init__(
            f"differs from the reference by {difference:.2g} of its largest value, "
            f"allowed is {allowed:g}"
        )
        self.difference = difference


def difference(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest difference over the largest expected value; NaN where there is any."""
    worst = 0.0
    for one, other in zip(found, expected, strict=True):
        if one.shape != other.shape:
            raise ValueError(f"a result has shape {tuple(one.shape)}, not {tuple(other.shape)}")
        scale = float(other.abs().max()) or 1.0
        error = float((one.detach().float() - other).abs().max()) / scale
        if not error <= worst:
            worst = error
            if worst != worst:
                break
    return worst


@torch.no_grad()
def admitted(
    contest: Contest, one: Contestant, expected: Sequence[Tensor], device: torch.device
) -> tuple[Ready, Row]:
    """The contestant, warm and checked, and its row so far.

    Raises:
        Disagreement: where its result is not the reference's.
        Absent: where it cannot take part.
        Exception: whatever it raises.
    """
    on_gpu = device.type == "cuda"
    before = torch.cuda.memory_allocated(device) if on_gpu else 0
    made: list[Ready] = []

    def first() -> None:
        made.append(one.prepare(one.precision))
        made[0].calls[0]()

    warm_up = wall_seconds(first, device)
    (ready,) = made
    found = difference(ready.result(), expected)
    allowed = contest.tolerance[one.precision]
    if not found <= allowed:
        raise Disagreement(found, allowed)
    for call in ready.calls[1:]:
        call()
    figures: dict[str, float] = {} if ready.flop is None else {"done_flop": ready.flop}
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
        ready.calls[0]()
        torch.cuda.synchronize(device)
        figures["peak_memory_bytes"] = torch.cuda.max_memory_allocated(device) - before
    row = replace(contest.row(one), warm_up_s=warm_up, error=found, figures=figures)
    return ready, row


def _timed(
    row: Row, contest: Contest, times: Times | Exception, ready: Ready, device: torch.device
) -> Row:
    """The row with its times and figures."""
    if isinstance(times, Exception):
        return row.failed(times)
    row = row.timed(times, ready.units or contest.units)
    if contest.profiled:
        try:
            row = row.with_profile(kernel_figures(ready, contest, device))
        except Exception as error:  # a profiler that fails costs its figures, not the time
            row = replace(row, message=f"not profiled: {type(error).__name__}: {error}"[:200])
    return below_the_roof(row.more(contest.figures(row)))


@torch.no_grad()
def profiles(contest: Contest, device: torch.device) -> Iterator[Row]:
    """A row for each contestant with the figures of its kernels, and no time.

    A GPU's profiler, once loaded, makes every launch of its process dearer: those who are launched
    one by one would be timed too slow. So a process profiles when it has timed everybody.
    """
    for one in contest.contestants:
        try:
            ready = one.prepare(one.precision)
            ready.calls[0]()
            yield contest.row(one).more(kernel_figures(ready, contest, device))
        except Exception as error:  # its time stays
            message = f"not profiled: {type(error).__name__}: {error}"[:200]
            yield replace(contest.row(one), message=message)
        _clean_up(device)


def below_the_roof(row: Row) -> Row:
    """The row; a share of the peak of more than the whole is none, and the row says so.

    Either the products that were measured are no roof on this device, or more is counted than done.
    """
    share = row.figures.get("share_of_peak", 0.0)
    if share <= 1:
        return row
    figures = {name: value for name, value in row.figures.items() if name != "share_of_peak"}
    message = f"{share:.0%} of the fastest product that was measured: that one is no roof here"
    return replace(row, figures=figures, message=f"{row.message} {message}".strip())


def profile(call: Call, units: int, device: torch.device) -> Profile:
    """A profile of one call, per unit of work."""
    kinds = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        kinds.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=kinds) as found:
        wall_seconds(call, device)
    return read_profile(found.events(), units)


def kernel_figures(ready: Ready, contest: Contest, device: torch.device) -> dict[str, float]:
    """What the kernels (on a CPU: the operators) of a unit of work take."""
    call, units = ready.sample or (ready.calls[0], ready.units or contest.units)
    found = profile(call, units, device)
    groups = found.by_group()
    busy = 1e-6 * sum(seconds for _, seconds in groups.values())
    figures = {"kernels": sum(calls for calls, _ in groups.values()), "busy_s": busy}
    if found.on_gpu:
        figures["launches"] = found.launches
    if "convolutions" in groups:
        figures["convolutions_s"] = 1e-6 * groups["convolutions"][1]
    return figures


def _clean_up(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _forget_compiled() -> None:
    """What torch.compile made: it keeps its graphs' memory, and limits how often it compiles."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


__all__ = [
    "NETWORK_TOLERANCE",
    "OPERATION_TOLERANCE",
    "Absent",
    "Contest",
    "Contestant",
    "Disagreement",
    "Ready",
    "admitted",
    "below_the_roof",
    "difference",
    "kernel_figures",
    "profile",
    "profiles",
    "run",
]
