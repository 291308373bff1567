"""Runs the suites one after the other, each in a process of its own, and keeps what they find.

A suite that crashes, hangs or leaves the device in a bad state ends with its process; its rows so
far stay, and the next suite starts afresh. Each row is on the disk as soon as it is there, the
other files are written anew after every suite.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ncsn_fast.benchmarks.contest.plans import Plan
from ncsn_fast.benchmarks.contest.rows import (
    DISAGREES,
    FAILED,
    OK,
    Results,
    Row,
    as_json,
    kept,
    read_rows,
    write_rows,
)
from ncsn_fast.benchmarks.contestants.engines import PACKAGES
from ncsn_fast.benchmarks.processes import Measurer, Piece, measured
from ncsn_fast.benchmarks.report import page, tables
from ncsn_fast.benchmarks.suites import device_tests, hardware, smoke
from ncsn_fast.benchmarks.suites.common import ContestOf, rows_of
from ncsn_fast.benchmarks.suites.foreign import foreign
from ncsn_fast.benchmarks.suites.host_memory import host_memory
from ncsn_fast.benchmarks.suites.operations import operations
from ncsn_fast.benchmarks.suites.overhead import overhead
from ncsn_fast.benchmarks.suites.sampling import chain_contest, forward_contest
from ncsn_fast.benchmarks.suites.score_error import score_error
from ncsn_fast.benchmarks.suites.training import training_contest
from ncsn_fast.device import backends
from ncsn_fast.device.environment import environment, version
from ncsn_fast.support.files import (
    append_text,
    check_writable,
    refuse_link,
    remove_leftovers,
    write_text,
)
from ncsn_fast.support.locks import folder_lock

# In the order in which they run, and their shares of the time; one may take half as much again.
SUITES = {
    "hardware": 1.0,
    "operations": 3.0,
    "chain": 4.0,
    "host-memory": 0.5,
    "overhead": 0.3,
    "precision": 0.5,
    "foreign": 1.0,
    "training": 3.0,
    "chain-compiled": 3.0,
    "training-compiled": 3.0,
    "chain-autotuned": 6.0,
    "forward": 1.0,
}
# Over networks: the contest, and what the plan calls its networks; a suite without any is idle.
_CONTESTS: dict[str, tuple[ContestOf, str]] = {
    "chain": (chain_contest, "sampled"),
    "training": (training_contest, "trained"),
    "chain-compiled": (chain_contest, "compiled"),
    "training-compiled": (training_contest, "trained_compiled"),
    "chain-autotuned": (chain_contest, "autotuned"),
    "forward": (forward_contest, "passed"),
}
_OTHERS: dict[str, Callable[[Plan], Iterator[Row]]] = {
    "hardware": hardware.hardware,
    "operations": operations,
    "host-memory": host_memory,
    "overhead": overhead,
    "precision": score_error,
    "foreign": foreign,
    # Not of a run of the suites: what ``minutes.py`` begins with.
    "smoke-chain": smoke.smoke_chain,
    "smoke-training": smoke.smoke_training,
    "smoke-operations": smoke.smoke_operations,
    "tests": device_tests.device_tests,
}
ROWS, TABLES, PAGE, LOG = "rows.jsonl", "results.md", "report.html", "log.txt"
_LEAST = 15.0  # s, for a suite; on the last ones of a full budget
Say = Callable[[str], None]


def run(plan: Plan, out: Path | None, suites: Sequence[str], say: Say) -> Results:
    """Run suites and keep their rows.

    Args:
        plan: what to measure.
        out: folder for rows.jsonl, results.md, report.html and log.txt; rows that it has from
            other suites are kept. None keeps nothing.
        suites: names of ``SUITES``; the hardware's is always run, as others compare with it.
        say: called with a line for the user.

    Returns:
        All rows.

    Raises:
        ValueError: for an unknown suite, no time, or a folder that holds something else or that
            another process is writing to; it is left as it was.
        OSError: for a folder that cannot be written to.
    """
    wanted = [name for name in SUITES if name in suites or name == "hardware"]
    wanted = [name for name in wanted if not idle(name, plan)]
    unknown = sorted(set(suites) - set(SUITES))
    if unknown:
        raise ValueError(f"there is no suite {unknown}; choose of {list(SUITES)}")
    if not plan.budget > 0:
        raise ValueError(f"budget = {plan.budget}: give the seconds that all suites may take")
    if out is None:
        return _run(plan, None, wanted, say)
    with folder_lock(out, "choose another --out"):
        return _run(plan, out, wanted, say)


class Keeper:
    """The rows so far, on the disk as they come.

    Args:
        out: the folder; None keeps them in memory.
    """

    def __init__(self, out: Path | None, rows: Sequence[Row]) -> None:
        self.out, self.rows = out, list(rows)

    def keep(self, row: Row) -> None:
        self.rows = kept(self.rows, row)
        if self.out is not None:
            append_text(self.out / ROWS, as_json(row) + "\n")

    def save(self, whole: bool = True) -> None:
        """Write all files anew; without the page, which takes a second, unless ``whole``."""
        if self.out is None:
            return
        results = Results(self.rows)
        write_rows(self.out / ROWS, self.rows)
        write_text(self.out / TABLES, tables.markdown(results))
        if whole:
            write_text(self.out / PAGE, page.page(results))


def _run(plan: Plan, out: Path | None, wanted: Sequence[str], say: Say) -> Results:
    keeper = opened(out, wanted)
    ends = time.monotonic() + plan.budget
    with tempfile.TemporaryDirectory() as scratch:
        for i, name in enumerate(wanted):
            share = SUITES[name] / sum(SUITES[later] for later in wanted[i:])
            limit = max(_LEAST, (ends - time.monotonic()) * min(1.0, 1.5 * share))
            log = Path(scratch if out is None else out) / LOG
            seconds = isolated(name, plan, log, limit, keeper.keep)
            say(f"{name}: {_summary(name, keeper.rows)} in {seconds:.0f} s")
            if name == "hardware":
                plan = replace(plan, facts=hardware.facts(keeper.rows))
            keeper.save()
    return Results(keeper.rows)


def isolated(suite: str, plan: Plan, log: Path, limit: float, keep: Callable[[Row], None]) -> float:
    """Run a suite in a process of its own, for so many seconds at most; how many it took."""
    measurer = Measurer(suite_rows, log)
    try:
        (outcome,) = measured([Piece(measurer, suite, plan, limit)], keep)
    finally:
        measurer.end()
    if outcome.status != OK:
        keep(Row(suite, "", "", 0, "").failed(outcome.message, outcome.status))
    return outcome.seconds


def _capability() -> str:
    """What PyTorch may use of the CPU, as it calls it, and whether there is AMX beside it."""
    found = torch.backends.cpu.get_cpu_capability()
    amx = getattr(torch.cpu, "_is_amx_tile_supported", bool)()
    return f"{found} with AMX" if found == "AVX512" and amx else found


def suite_rows(suite: str, plan: Plan) -> Iterator[Row]:
    """The rows of a suite, run here and now, with where and when they were made."""
    torch.backends.cudnn.benchmark = True  # for every contestant but ours
    made = where(plan)
    if suite in _CONTESTS:
        contest_of, subjects = _CONTESTS[suite]
        rows = rows_of(plan, suite, contest_of, getattr(plan, subjects))
    else:
        rows = _OTHERS[suite](plan)
    for row in rows:
        yield replace(row, environment=made)


def where(plan: Plan) -> dict[str, str]:
    """Where and when a row is made."""
    device = torch.device(plan.device)
    found = {**environment(device), "kind": device.type}
    found["operations"] = backends.resolve("auto", device)[0]
    if plan.device == "cpu":
        found["capability"] = _capability()
        found |= {package: version(package) for package in PACKAGES}
    found["date"] = time.strftime("%Y-%m-%d")
    return found


def idle(suite: str, plan: Plan) -> bool:
    """Whether a suite has nothing to do in a plan."""
    if suite == "foreign":
        return not plan.foreign
    return suite in _CONTESTS and not getattr(plan, _CONTESTS[suite][1])


def passed(results: Results) -> bool:
    """Whether nobody's results disagree, and ours did not fail."""
    ours = [row for row in results if row.contestant.startswith("ours")]
    return not results.where(status=DISAGREES) and all(row.status != FAILED for row in ours)


def default_folder(device: str) -> Path:
    """benchmarks/results/<device>-<date> in a checkout, ncsn_fast_benchmarks elsewhere."""
    checkout = Path(__file__).resolve().parent.parent
    if not (checkout / ".git").exists():
        return Path("ncsn_fast_benchmarks")
    name = environment(torch.device(device))["device"].split(",")[0].lower()
    name = re.sub(r"[^a-z0-9]+", "-", name).strip("-")
    return checkout / "benchmarks" / "results" / f"{name}-{time.strftime('%Y-%m-%d')}"


def opened(out: Path | None, wanted: Sequence[str]) -> Keeper:
    """What a folder, whose lock is held, has of other suites; those of ``wanted`` go.

    Raises:
        ValueError: for a folder that holds something else; it is left as it was.
    """
    if out is None:
        return Keeper(None, [])
    check_writable(out / ROWS)
    ours = (out / ROWS).exists()
    found = read_rows(out / ROWS) if ours else []
    there = [name for name in (TABLES, PAGE) if (out / name).exists()]
    if there and not ours:
        raise ValueError(f"{out / there[0]} is there already and not of a benchmark: move it")
    remove_leftovers(out)
    refuse_link(out / LOG)
    rows: list[Row] = []
    for row in found:
        if row.suite not in wanted:
            rows = kept(rows, row)
    # Now, so that nothing is appended to half of a line that a killed process has left.
    write_rows(out / ROWS, rows)
    if ours:  # else it may be of somebody else, and is appended to
        write_text(out / LOG, "")
    return Keeper(out, rows)


def _summary(suite: str, rows: Sequence[Row]) -> str:
    mine = [row for row in rows if row.suite == suite]
    bad = [row for row in mine if row.status != "ok"]
    return f"{len(mine) - len(bad)} rows" + (f", {len(bad)} without a figure" if bad else "")


__all__ = [
    "LOG",
    "PAGE",
    "ROWS",
    "SUITES",
    "TABLES",
    "Keeper",
    "default_folder",
    "opened",
    "passed",
    "run",
    "suite_rows",
    "where",
]
