"""The targets of the design, and what the rows of a run say to each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ncsn_fast.benchmarks.contest.plans import AUTOTUNED, CIFAR, FROZEN, REDUCED
from ncsn_fast.benchmarks.contest.rows import Results, Row
from ncsn_fast.benchmarks.suites.operations import LOSS, NOISE, NORM, UPDATE
from ncsn_fast.benchmarks.suites.overhead import CALLS, SUITE

Value = Callable[[Results], float | None]
_TRAINED = ("training", "training-compiled")


@dataclass(frozen=True)
class Target:
    """One condition.

    Attributes:
        what: is measured.
        on: "cuda" or "cpu": the device that it is for.
        least, most: its bounds; one of them is given.
        percent: whether it is a share; otherwise a ratio.
        value: finds it among the rows; None where they do not have it.
    """

    what: str
    on: str
    value: Value
    least: float | None = None
    most: float | None = None
    percent: bool = False

    @property
    def goal(self) -> str:
        if self.least is not None:
            return f"≥ {self.text(self.least)}"
        return f"≤ {self.text(self.most or 0.0)}"

    def text(self, value: float) -> str:
        return f"{value:.3g} %" if self.percent else f"{value:.3g}×"

    def shown(self, results: Results) -> float | None:
        """The value, as a percentage where it is a share."""
        value = self.value(Results(r for r in results if r.environment.get("kind") == self.on))
        return value if value is None or not self.percent else 100 * value

    def verdict(self, value: float | None) -> str:
        if value is None:
            return "not yet measured"
        met = value >= self.least if self.least is not None else value <= (self.most or 0.0)
        return "met" if met else "not met"


def operation(results: Results, case: str, contestant: str) -> Row | None:
    """The row of the largest size."""
    rows = results.timed(suite="operations", case=case, contestant=contestant)
    return max(rows, key=lambda row: row.size, default=None)


def best_batch(results: Results) -> int | None:
    """The batch at which our sampler makes most images a second."""
    rows = results.timed(suite="chain", case=CIFAR.name, contestant="ours")
    best = max(rows, key=lambda row: row.figures.get("images_per_s", 0.0), default=None)
    return best.size if best else None


def figure(row: Row | None, name: str) -> float | None:
    return None if row is None else row.figures.get(name)


def ratio(slow: Row | None, fast: Row | None) -> float | None:
    """How many times faster the second is."""
    if slow is None or fast is None or not slow.median_s or not fast.median_s:
        return None
    return slow.median_s / fast.median_s


def fastest(rows: Sequence[Row]) -> Row | None:
    return min(rows, key=lambda row: row.median_s or float("inf"), default=None)


def _over(case: str, other: str) -> Value:
    """How many times faster our operation is than another contestant's."""
    return lambda rows: ratio(operation(rows, case, other), operation(rows, case, "ours"))


def _of_copy(case: str) -> Value:
    return lambda rows: figure(operation(rows, case, "ours"), "share_of_copy")


def _memory(rows: Results) -> float | None:
    eager = figure(operation(rows, LOSS, "eager"), "peak_memory_bytes")
    ours = figure(operation(rows, LOSS, "ours"), "peak_memory_bytes")
    return eager / ours if eager and ours else None


def _chain(
    rows: Results,
    batch: int | None,
    contestant: str,
    suite: str = "chain",
    precision: str | None = None,
) -> Row | None:
    """A contestant's row in a precision, or the fastest of all."""
    wanted = {} if precision is None else {"precision": precision}
    return fastest(
        rows.timed(suite=suite, case=CIFAR.name, size=batch, contestant=contestant, **wanted)
    )


def _chain_figure(name: str, batch: int | None = None) -> Value:
    return lambda rows: figure(_chain(rows, batch or best_batch(rows), "ours"), name)


def _over_official(batch: int | None = None, precision: str | None = None) -> Value:
    """Over the faster of the published loop's float32 and TF32; ours in a precision."""

    def value(rows: Results) -> float | None:
        size = batch or best_batch(rows)
        ours = _chain(rows, size, "ours", precision=precision)
        return ratio(_chain(rows, size, "official"), ours)

    return value


def _over_compiled(way: str, suite: str, precision: str | None = None) -> Value:
    """Over a way of torch.compile in the same precision, at the largest batch of both."""

    def value(rows: Results) -> float | None:
        found = rows.timed(suite=suite, case=CIFAR.name, contestant=way)
        size = max((row.size for row in found), default=None)
        names = way, "ours"
        return ratio(*(_chain(rows, size, name, suite, precision) for name in names))

    return value


def _training(contestant: str) -> Value:
    """Over another contestant's training step, ours in bf16."""

    def value(rows: Results) -> float | None:
        suite = _TRAINED[contestant == REDUCED]
        others = rows.timed(suite=suite, case=CIFAR.name, contestant=contestant)
        if contestant == REDUCED:
            others = [row for row in others if row.precision == "bf16"]
        ours = rows.one(suite=suite, case=CIFAR.name, contestant="ours", precision="bf16")
        return ratio(fastest(others), ours)

    return value


def _overhead(rows: Results) -> float | None:
    """Of a step, over that of the network call in it."""
    chain, calls = (rows.one(suite=SUITE, contestant=name) for name in ("ours", CALLS))
    return ratio(chain, calls)


def _host_memory(rows: Results) -> float | None:
    """Growth over what the states of the additional steps would take."""
    found = rows.where(suite="host-memory", status="ok")
    if not found:
        return None
    figures = found[0].figures
    return figures["growth_bytes"] / figures["states_bytes"]


_UPDATE = "`sampler_update`, largest size"
_LOSS = "`perturb` + `dsm_loss`, loss and gradient"
_NORM = "`instance_norm_plus` + ELU, channels_last"
_SAMPLING = "NCSNv2 CIFAR-10 sampling, best batch"
_FIRST = "NCSNv2 CIFAR-10 sampling, batch 1"
_STEP = "training step, NCSNv2 CIFAR-10, bf16"
_MEMORY = "host memory of a chain 10 times as long: share of its states kept"
_CPU = "NCSNv2 CIFAR-10 sampling, batch 16"
_POINTS = "a chain of 1,000 points over its network calls"
TARGETS = (
    Target(f"{_UPDATE}: share of copy bandwidth", "cuda", _of_copy(UPDATE), 90, percent=True),
    Target(f"{_UPDATE}: over eager", "cuda", _over(UPDATE, "eager"), 4),
    Target(f"{_UPDATE}: over torch.compile", "cuda", _over(UPDATE, "compile"), 1.5),
    Target(f"{_LOSS}: share of copy bandwidth", "cuda", _of_copy(LOSS), 85, percent=True),
    Target(f"{_LOSS}: over eager", "cuda", _over(LOSS, "eager"), 5),
    Target(f"{_LOSS}: peak memory, eager's over ours", "cuda", _memory, 3),
    Target(f"{_NORM}: share of copy bandwidth", "cuda", _of_copy(NORM), 80, percent=True),
    Target(f"{_NORM}: over eager", "cuda", _over(NORM, "eager"), 3),
    Target(f"{_NORM}: over torch.compile", "cuda", _over(NORM, "compile"), 1.3),
    Target(
        f"{_SAMPLING}: step over its convolutions",
        "cuda",
        _chain_figure("over_convolutions"),
        most=1.25,
    ),
    Target(
        f"{_SAMPLING}: over torch.compile max-autotune",
        "cuda",
        _over_compiled(AUTOTUNED, "chain-autotuned"),
        1.3,
    ),
    Target(f"{_SAMPLING}: over the official loop", "cuda", _over_official(), 5),
    Target(
        f"{_SAMPLING}: share of the matrix peak (stretch)",
        "cuda",
        _chain_figure("share_of_peak"),
        60,
        percent=True,
    ),
    Target(f"{_FIRST}: over the official loop", "cuda", _over_official(1), 5),
    Target(f"{_FIRST}: GPU idle", "cuda", _chain_figure("idle", 1), most=5, percent=True),
    Target(f"{_STEP}: over the official step", "cuda", _training("official"), 3),
    Target(f"{_STEP}: over torch.compile", "cuda", _training(REDUCED), 1.2),
    Target(
        f"{_CPU}: step over its convolutions",
        "cpu",
        _chain_figure("over_convolutions", 16),
        most=1.25,
    ),
    Target(f"{_CPU}: over the official loop", "cpu", _over_official(16), 10),
    Target(
        f"{_CPU}: over torch.compile, frozen weights, bf16",
        "cpu",
        _over_compiled(FROZEN, "chain-compiled", "bf16"),
        1.2,
    ),
    Target(f"{_CPU}: fp32 over the official loop", "cpu", _over_official(16, "fp32"), 1.3),
    Target(
        f"{_CPU}: over torch.compile, frozen weights, fp32",
        "cpu",
        _over_compiled(FROZEN, "chain-compiled", "fp32"),
        1,
    ),
    Target(f"{_STEP}: over the official step", "cpu", _training("official"), 3),
    Target(f"{_UPDATE}: over eager", "cpu", _over(UPDATE, "eager"), 4),
    Target("normal numbers alone: over torch.randn", "cpu", _over(NOISE, "eager"), 1),
    Target(_POINTS, "cpu", _overhead, most=1.3),
    Target(f"{_MEMORY}, GPU", "cuda", _host_memory, most=5, percent=True),
    Target(f"{_MEMORY}, CPU", "cpu", _host_memory, most=5, percent=True),
)

__all__ = ["TARGETS", "Target", "best_batch", "fastest", "figure", "operation", "ratio"]
