"""The targets of the design, and what the rows of a run say to each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ncsn_fast.benchmarks.contest.plans import (
    AUTOTUNED,
    CIFAR,
    COMPILED,
    FROZEN,
    ONNXRUNTIME,
    OPENVINO,
    REDUCED,
)
from ncsn_fast.benchmarks.contest.rows import Results, Row
from ncsn_fast.benchmarks.suites import foreign
from ncsn_fast.benchmarks.suites.operations import LOSS, NOISE, NORM, UPDATE
from ncsn_fast.benchmarks.suites.overhead import CALLS, SUITE
from ncsn_fast.benchmarks.suites.sampling import DIRECT

Value = Callable[[Results], float | None]
# In place of a size: the largest, or that at which ours makes most images a second.
_LARGEST, _BEST = 0, -1


@dataclass(frozen=True)
class Target:
    """One condition.

    Attributes:
        what: is measured.
        on: "cuda" or "cpu": the device that it is for.
        sign, bound, unit: "≥" or "≤" so many "×" (a ratio) or "%" (a share).
        value: finds it among the rows; None where they do not have it.
    """

    what: str
    on: str
    sign: str
    bound: float
    unit: str
    value: Value

    @property
    def goal(self) -> str:
        return f"{self.sign} {self.text(self.bound)}"

    def text(self, value: float) -> str:
        return f"{value:.3g} %" if self.unit == "%" else f"{value:.3g}×"

    def shown(self, results: Results) -> float | None:
        """The value, as a percentage where it is a share."""
        value = self.value(Results(r for r in results if r.environment.get("kind") == self.on))
        return value if value is None or self.unit != "%" else 100 * value

    def verdict(self, value: float | None) -> str:
        if value is None:
            return "not yet measured"
        met = value >= self.bound if self.sign == "≥" else value <= self.bound
        return "met" if met else "not met"


def ratio(slow: Row | None, fast: Row | None) -> float | None:
    """How many times faster the second is."""
    if slow is None or fast is None or not slow.median_s or not fast.median_s:
        return None
    return slow.median_s / fast.median_s


def fastest(rows: Sequence[Row]) -> Row | None:
    return min(rows, key=lambda row: row.median_s or float("inf"), default=None)


def _find(
    results: Results, suite: str, case: str, contestant: str, size: int, precision: str = ""
) -> Row | None:
    """A contestant's row at a size, in a precision or the fastest of all."""
    rows = results.timed(suite=suite, case=case, contestant=contestant)
    rows = [row for row in rows if precision in ("", row.precision)]
    if size == _LARGEST:
        size = max((row.size for row in rows), default=0)
    elif size == _BEST:
        ours = results.timed(suite=suite, case=case, contestant="ours")
        best = max(ours, key=lambda row: row.figures.get("images_per_s", 0.0), default=None)
        size = best.size if best else 0
    return fastest([row for row in rows if row.size == size])


def _over(
    suite: str,
    case: str,
    other: str,
    size: int = _LARGEST,
    *,
    both: str = "",
    ours: str = "",
    figure: str = "",
) -> Value:
    """How many times faster ours is than another contestant, or what it has less of a figure.

    Args:
        both, ours: precisions, where it must not be the fastest of all.
    """

    def value(results: Results) -> float | None:
        theirs = _find(results, suite, case, other, size, both)
        if theirs is None:
            return None
        mine = _find(results, suite, case, "ours", theirs.size, ours or both)
        if not figure or mine is None:
            return ratio(theirs, mine)
        more, less = (row.figures.get(figure) for row in (theirs, mine))
        return more / less if more and less else None

    return value


def _of_fastest(
    suite: str, others: Sequence[str], precision: str, size: int, capability: str = ""
) -> Value:
    """Our time over that of the fastest of others, who all have to have one.

    Args:
        capability: of the CPU, or what it begins with, in the words of the rows' environment.
    """

    def value(results: Results) -> float | None:
        found = Results(
            row
            for row in results
            if str(row.environment.get("capability", "")).startswith(capability)
        )
        theirs = [_find(found, suite, CIFAR.name, name, size, precision) for name in others]
        mine = _find(found, suite, CIFAR.name, "ours", size, precision)
        there = [row for row in theirs if row is not None]
        return ratio(mine, fastest(there)) if len(there) == len(others) else None

    return value


def _figure(suite: str, case: str, name: str, size: int = _LARGEST) -> Value:
    """A figure of ours."""

    def value(results: Results) -> float | None:
        row = _find(results, suite, case, "ours", size)
        return row.figures.get(name) if row else None

    return value


def _overhead(rows: Results) -> float | None:
    """Of a step, over that of the network call in it."""
    chain, calls = (rows.one(suite=SUITE, contestant=name) for name in ("ours", CALLS))
    return ratio(chain, calls)


def _host_memory(rows: Results) -> float | None:
    """Growth over what the states of the additional steps would take."""
    for row in rows.where(suite="host-memory", status="ok"):
        return row.figures["growth_bytes"] / row.figures["states_bytes"]
    return None


_OF_COPY = "share_of_copy"
_UPDATE, _IN_UPDATE = "`sampler_update`, largest size", ("operations", UPDATE)
_LOSS, _IN_LOSS = "`perturb` + `dsm_loss`, loss and gradient", ("operations", LOSS)
_NORM, _IN_NORM = "`instance_norm_plus` + ELU, channels_last", ("operations", NORM)
_SAMPLING, _IN_CHAIN = "NCSNv2 CIFAR-10 sampling, best batch", ("chain", CIFAR.name)
_FIRST = "NCSNv2 CIFAR-10 sampling, batch 1"
_IN_AUTOTUNED = ("chain-autotuned", CIFAR.name)
_RIVALS = (FROZEN, OPENVINO, ONNXRUNTIME)
_OF_RIVALS = "of the fastest of torch.compile, OpenVINO and ONNX Runtime"
# Nothing keeps ONNX Runtime to AVX2.
_HELD, _OF_HELD = (FROZEN, OPENVINO), "of the faster of torch.compile and OpenVINO"
_CPU_FIRST, _COMPILING = "NCSNv2 CIFAR-10 sampling, batch 1", "chain-compiled"
_CPU, _IN_COMPILED = "NCSNv2 CIFAR-10 sampling, batch 16", ("chain-compiled", CIFAR.name)
_STEP, _IN_TRAINING = "training step, NCSNv2 CIFAR-10, bf16", ("training", CIFAR.name)
_OVER_OFFICIAL = _over(*_IN_TRAINING, "official", ours="bf16")
_OVER_REDUCED = _over("training-compiled", CIFAR.name, REDUCED, both="bf16")
_MEMORY = "host memory of a chain 10 times as long: share of its states kept"
# fmt: off
TARGETS = tuple(Target(*line) for line in (
    (f"{_UPDATE}: share of copy bandwidth", "cuda", "≥", 90, "%", _figure(*_IN_UPDATE, _OF_COPY)),
    (f"{_UPDATE}: over eager", "cuda", "≥", 4, "×", _over(*_IN_UPDATE, "eager")),
    (f"{_UPDATE}: over torch.compile", "cuda", "≥", 1.5, "×", _over(*_IN_UPDATE, "compile")),
    (f"{_LOSS}: share of copy bandwidth", "cuda", "≥", 85, "%", _figure(*_IN_LOSS, _OF_COPY)),
    (f"{_LOSS}: over eager", "cuda", "≥", 5, "×", _over(*_IN_LOSS, "eager")),
    (f"{_LOSS}: peak memory, eager's over ours", "cuda", "≥", 3, "×",
     _over(*_IN_LOSS, "eager", figure="peak_memory_bytes")),
    (f"{_NORM}: share of copy bandwidth", "cuda", "≥", 80, "%", _figure(*_IN_NORM, _OF_COPY)),
    (f"{_NORM}: over eager", "cuda", "≥", 3, "×", _over(*_IN_NORM, "eager")),
    (f"{_NORM}: over torch.compile", "cuda", "≥", 1.3, "×", _over(*_IN_NORM, "compile")),
    (f"{_SAMPLING}: step over its convolutions", "cuda", "≤", 1.25, "×",
     _figure(*_IN_CHAIN, "over_convolutions", _BEST)),
    (f"{_SAMPLING}: over torch.compile max-autotune", "cuda", "≥", 1.3, "×",
     _over(*_IN_AUTOTUNED, AUTOTUNED)),
    (f"{_SAMPLING}: over the official loop", "cuda", "≥", 5, "×",
     _over(*_IN_CHAIN, "official", _BEST)),
    (f"{_SAMPLING}: share of the matrix peak (stretch)", "cuda", "≥", 60, "%",
     _figure(*_IN_CHAIN, "share_of_peak", _BEST)),
    (f"{_FIRST}: over the official loop", "cuda", "≥", 5, "×", _over(*_IN_CHAIN, "official", 1)),
    (f"{_FIRST}: GPU idle", "cuda", "≤", 5, "%", _figure(*_IN_CHAIN, "idle", 1)),
    (f"{_STEP}: over the official step", "cuda", "≥", 3, "×", _OVER_OFFICIAL),
    (f"{_STEP}: over torch.compile", "cuda", "≥", 1.2, "×", _OVER_REDUCED),
    (f"{_CPU}: step over its convolutions", "cpu", "≤", 1.25, "×",
     _figure(*_IN_CHAIN, "over_convolutions", 16)),
    (f"{_CPU}: over the official loop", "cpu", "≥", 10, "×", _over(*_IN_CHAIN, "official", 16)),
    (f"{_CPU}: over torch.compile, frozen weights, bf16", "cpu", "≥", 1.2, "×",
     _over(*_IN_COMPILED, FROZEN, both="bf16")),
    (f"{_CPU}: fp32 over the official loop", "cpu", "≥", 1.3, "×",
     _over(*_IN_CHAIN, "official", 16, ours="fp32")),
    (f"{_CPU}: over torch.compile, frozen weights, fp32", "cpu", "≥", 1, "×",
     _over(*_IN_COMPILED, FROZEN, both="fp32")),
    (f"{_CPU}: time of a step in fp32, {_OF_RIVALS} (AVX-512)", "cpu", "≤", 0.5, "×",
     _of_fastest(_COMPILING, _RIVALS, "fp32", 16, "AVX512")),
    (f"{_CPU_FIRST}: time of a step in fp32, {_OF_RIVALS} (AVX-512)", "cpu", "≤", 0.6, "×",
     _of_fastest(_COMPILING, _RIVALS, "fp32", 1, "AVX512")),
    (f"{_CPU}: time of a step in fp32, {_OF_HELD} (AVX2)", "cpu", "≤", 0.65, "×",
     _of_fastest(_COMPILING, _HELD, "fp32", 16, "AVX2")),
    (f"{_CPU}: time of a step in bf16, {_OF_HELD} (AMX)", "cpu", "≤", 0.8, "×",
     _of_fastest(_COMPILING, _HELD, "bf16", 16, "AVX512 with AMX")),
    ("training step, NCSNv2 CIFAR-10, fp32: time, of the faster of plain PyTorch and torch.compile",
     "cpu", "≤", 0.75, "×",
     _of_fastest("training-compiled", ("eager channels_last", COMPILED), "fp32", 16)),
    ("the digits network in fp32, batch 16: over its direct convolutions", "cpu", "≥", 1, "×",
     _over("chain", "digits", DIRECT, 16, both="fp32")),
    ("the digits network in fp32, batch 1: over its direct convolutions", "cpu", "≥", 1, "×",
     _over("chain", "digits", DIRECT, 1, both="fp32")),
    ("somebody else's U-Net in fp32: over its own loop", "cpu", "≥", 1.3, "×",
     _over(foreign.SUITE, foreign.CASE, foreign.OWN)),
    (f"{_STEP}: over the official step", "cpu", "≥", 3, "×", _OVER_OFFICIAL),
    (f"{_UPDATE}: over eager", "cpu", "≥", 4, "×", _over(*_IN_UPDATE, "eager")),
    ("normal numbers alone: over torch.randn", "cpu", "≥", 1, "×",
     _over("operations", NOISE, "eager")),
    ("a chain of 1,000 points over its network calls", "cpu", "≤", 1.3, "×", _overhead),
    (f"{_MEMORY}, GPU", "cuda", "≤", 5, "%", _host_memory),
    (f"{_MEMORY}, CPU", "cpu", "≤", 5, "%", _host_memory),
))
# fmt: on

__all__ = ["TARGETS", "Target", "fastest", "ratio"]
