"""The rows of a run as tables: for results.md, the page and the terminal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ncsn_fast.benchmarks.contest.rows import FAILED, OK, Results, Row
from ncsn_fast.benchmarks.report.targets import TARGETS, fastest, ratio

_STEPS = {
    "chain": "Step of a chain",
    "chain-compiled": "Step of a chain, beside compilers",
    "chain-autotuned": "Step of a chain, beside torch.compile max-autotune",
    "forward": "Forward pass",
    "foreign": "Step with somebody else's network",
    "overhead": "Step of a chain of points, beside its network call alone",
    "training": "Training step",
    "training-compiled": "Training step, beside torch.compile",
}
_OF_CHAINS = (
    "Times are of one step, from the first rows of a chain; images per second are scaled to "
    "the whole chain. Quantiles 0.2 and 0.8 in brackets."
)
Lines = list[tuple[str, ...]]


@dataclass(frozen=True)
class Table:
    """A table of texts, and a sentence above it."""

    title: str
    head: tuple[str, ...]
    lines: Lines
    note: str = ""

    def markdown(self) -> str:
        rows = [self.head, ("---",) * len(self.head), *self.lines]
        text = "\n".join("| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows)
        note = f"{self.note}\n\n" if self.note else ""
        return f"## {self.title}\n\n{note}{text}\n"


def tables(results: Results) -> list[Table]:
    """All tables that the rows have something for."""
    found = [targets(results), minutes(results), first_look(results)]
    found += [hardware(results), operations(results)]
    found += [steps(results, suite) for suite in _STEPS]
    found += [problems(results)]
    return [table for table in found if table.lines]


def markdown(results: Results) -> str:
    """The page results.md."""
    parts = ["# Results\n", environment(results)]
    return "\n".join([*parts, *(table.markdown() for table in tables(results))])


def brief(results: Results) -> str:
    """Operations and steps for a terminal: times, and how ours compares."""
    lines = []
    for row in (*results.timed(suite="chain"), *results.timed(suite="operations")):
        what, speed = row.case, f"{_number(row.figures.get('bandwidth'))} GB/s"
        if row.suite == "chain":
            what = f"{row.case}, batch {row.size}"
            speed = f"{_number(row.figures.get('images_per_s'))} images/s"
        who = f"{row.contestant} ({row.precision})"
        compared = _times_slower(results, row)
        faster = f"ours is {compared}" if compared else ""
        lines.append(f"{what:46} {who:26} {_time(row).split(' [')[0]:>10} {speed:>16}  {faster}")
    return "\n".join(line.rstrip() for line in lines)


def environment(results: Results) -> str:
    """Where and when, as a list."""
    lines = {f"- {name}: {value}" for row in results for name, value in row.environment.items()}
    return "\n".join(sorted(lines)) + "\n"


def targets(results: Results) -> Table:
    """Every target, measured or not."""
    lines: Lines = []
    for target in TARGETS:
        value = target.shown(results)
        shown = "–" if value is None else target.text(value)
        device = {"cuda": "GPU", "cpu": "CPU"}[target.on]
        lines.append((target.what, device, target.goal, shown, target.verdict(value)))
    return Table("Targets", ("what", "on", "target", "measured", ""), lines)


def minutes(results: Results) -> Table:
    """How the tasks of a run of minutes ended, and its tests."""
    lines: Lines = []
    for row in results.where(suite="minutes"):
        seconds = _number(row.figures.get("seconds"), " s")
        lines.append((row.case, row.status, seconds, row.message))
    tests = results.where(suite="tests", precision="")
    if tests:
        each = [row for row in tests if "seconds" in row.figures or row.status == FAILED]
        passed = sum(row.status == OK for row in each)
        lines.append(("tests", f"{passed} passed, {len(each) - passed} failed", "", ""))
    return Table("Tasks", ("task", "ended", "in", "why"), lines)


def first_look(results: Results) -> Table:
    """Real sizes, each checked; the times are no contest's."""
    lines: Lines = [
        (*_which(row), _time(row), _number(row.error)) for row in results.timed(suite="smoke")
    ]
    note = "Taken while others worked on the device too: the contests below measure."
    head = ("what", "size", "contestant", "time", "difference from its reference")
    return Table("First look", head, lines, note)


def hardware(results: Results) -> Table:
    lines: Lines = []
    for row in results.timed(suite="hardware"):
        speed = row.figures.get("bandwidth")
        text = f"{speed:.4g} GB/s" if speed else f"{row.figures['flops'] / 1e12:.4g} TFLOP/s"
        lines.append((row.case, row.precision, str(row.size), text))
    return Table("The device", ("what", "precision", "size", "measured"), lines)


def operations(results: Results) -> Table:
    """The operations; how many times faster ours is than each of the others."""
    head = ("operation", "elements", "contestant", "time", "GB/s", "of copy", "ours is", "memory")
    lines: Lines = []
    for row in results.timed(suite="operations"):
        figure = row.figures.get
        speed = (f"{row.figures['bandwidth']:.4g}", _percent(figure("share_of_copy")))
        compared = (_times_slower(results, row), _bytes(figure("peak_memory_bytes")))
        lines.append((*_which(row), _time(row), *speed, *compared))
    return Table("Operations", head, lines)


def steps(results: Results, suite: str) -> Table:
    """Steps or forward passes of one suite."""
    columns: dict[str, Callable[[Row], str]] = {
        "time": _time,
        "images/s": lambda row: _number(row.figures.get("images_per_s")),
        "ours is": lambda row: _times_slower(results, row),
        "over its convolutions": lambda row: _number(row.figures.get("over_convolutions"), "×"),
        "published TFLOP/s": lambda row: _tera(row.figures.get("flops")),
        "of peak": lambda row: _percent(row.figures.get("share_of_peak")),
        "kernels": lambda row: _number(row.figures.get("kernels")),
        "launches": lambda row: _number(row.figures.get("launches")),
        "idle": lambda row: _percent(row.figures.get("idle")),
        "memory": lambda row: _bytes(row.figures.get("peak_memory_bytes")),
        "warm-up": lambda row: _number(row.warm_up_s, " s"),
    }
    lines: Lines = [
        (*_which(row), *(text(row) for text in columns.values()))
        for row in results.timed(suite=suite)
    ]
    note = _OF_CHAINS if suite.startswith("chain") else ""
    return Table(_STEPS[suite], ("network", "batch", "contestant", *columns), lines, note)


def problems(results: Results) -> Table:
    """What has no figure or lacks some, and why."""
    lines: Lines = [
        (row.suite, *_which(row), row.status, row.message)
        for row in results
        if (row.status != OK or row.message) and row.suite != "minutes"
    ]
    return Table(
        "Without a figure, or some of them",
        ("suite", "case", "size", "contestant", "", "why"),
        lines,
    )


def _time(row: Row) -> str:
    if row.median_s is None or row.low_s is None or row.high_s is None:
        return "–"
    unit, factor = ("ms", 1e3) if row.median_s >= 1e-3 else ("µs", 1e6)
    median, low, high = (factor * value for value in (row.median_s, row.low_s, row.high_s))
    return f"{median:.4g} {unit} [{low:.3g}, {high:.3g}]"


def _which(row: Row) -> tuple[str, str, str]:
    return row.case, str(row.size), f"{row.contestant} ({row.precision})"


def _times_slower(results: Results, row: Row) -> str:
    """Beside the fastest of ours at the same work."""
    same = results.timed(suite=row.suite, case=row.case, size=row.size, contestant="ours")
    ours = fastest(same)
    found = None if ours == row else ratio(row, ours)
    return "" if found is None else f"{found:.2f}× as fast"


def _number(value: float | None, unit: str = "") -> str:
    return "–" if value is None else f"{value:.3g}{unit}"


def _tera(value: float | None) -> str:
    return _number(None if value is None else value / 1e12)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _bytes(value: float | None) -> str:
    return "–" if value is None else f"{value / 2**20:.4g} MiB"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


__all__ = ["Table", "brief", "environment", "markdown", "problems", "steps", "tables", "targets"]
