"""A run of so many minutes on a machine that is there once: what is worth most comes first.

First whether the real sizes run and are right, then the tests of every kernel, then the contests of
the targets. Each row is on the disk as soon as it is there, each task has an end of its own, and
the same command goes on where a run was killed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ncsn_fast.benchmarks import runner
from ncsn_fast.benchmarks.contest.plans import Plan, Subject
from ncsn_fast.benchmarks.contest.rows import DISAGREES, FAILED, LEFT_OUT, OK, Results, Row
from ncsn_fast.benchmarks.processes import Measurer, Outcome, Piece, measured
from ncsn_fast.benchmarks.suites import device_tests, hardware
from ncsn_fast.benchmarks.suites.operations import LOSS, NOISE, NORM, UPDATE, cases
from ncsn_fast.support.locks import folder_lock

SUITE = "minutes"
# One task that fits in less says little; and what a result has to have in common with another.
_LEAST = 3.0
_SAME = ("device", "torch", "triton", "python", "commit")
_GRAPHS, _TRAINING = "tests/sampling/test_gpu_graphs.py", "tests/training/test_gpu_training.py"
_OTHER_TESTS = "gpu and not gpu_smoke and not alone"


@dataclass(frozen=True)
class Task:
    """A suite, narrowed down to what is measured together.

    Attributes:
        name: of its row, which says how it ended.
        process: tasks of the same one follow each other in one process: what compiles nothing
            needs no fresh one.
        seconds: its own end.
        beside: whether it runs at the same time as its neighbours that do so too.
    """

    name: str
    suite: str
    plan: Plan
    process: str
    seconds: float
    beside: bool = False


def tasks(plan: Plan) -> list[Task]:
    """What a run does, the most valuable first."""
    on_gpu = plan.device == "cuda"
    found = [*_smoke(plan, on_gpu), *_tests(plan, on_gpu), *_contests(plan, on_gpu)]
    return [task for task in found if not runner.idle(task.suite, task.plan)]


def _smoke(plan: Plan, on_gpu: bool) -> Iterator[Task]:
    """Side by side on a GPU, where a process takes ten seconds to begin."""

    def task(what: str, suite: str, made: Plan) -> Task:
        return Task(what, suite, made, what if on_gpu else "main", 60.0, on_gpu)

    for batch in plan.sampled[0].batches:
        yield task(f"smoke, chain {batch}", "smoke-chain", _at(plan, "sampled", batch))
    yield task("smoke, training", "smoke-training", plan)
    yield task("smoke, operations", "smoke-operations", plan)


def _tests(plan: Plan, on_gpu: bool) -> Iterator[Task]:
    """Without a GPU all of them are skipped: the first ones show that they are there."""

    def task(what: str, seconds: float, arguments: Sequence[str], workers: int = 0) -> Task:
        made = replace(plan, tests=tuple(arguments), workers=workers)
        return Task(what, device_tests.SUITE, made, what, seconds, what != "gpu_smoke")

    yield task("gpu_smoke", 100.0, ["-m", "gpu_smoke"], 8 if on_gpu else 0)
    if on_gpu:
        # Captures that fail on purpose have a process of their own for each file.
        yield task("tests of graphs", 80.0, [_GRAPHS, "-m", _OTHER_TESTS])
        yield task("tests of training", 80.0, [_TRAINING, "-m", _OTHER_TESTS])
        rest = [f"--ignore={path}" for path in (_GRAPHS, _TRAINING)]
        yield task("other tests", 80.0, ["-m", _OTHER_TESTS, *rest], 8)


def _contests(plan: Plan, on_gpu: bool) -> Iterator[Task]:
    """Those of the targets first; what is compiled, and profiles, in processes of their own."""
    timed = replace(plan, parts=("times",), compile_operations=False)
    profiled = replace(plan, parts=("profiles",))
    largest, *others = plan.sampled[0].batches

    def chain(batch: int, seconds: float) -> Task:
        return Task(f"chain {batch}", "chain", _at(timed, "sampled", batch), "main", seconds)

    def operations(name: str, which: Sequence[str], seconds: float, **more: Any) -> Task:
        made = replace(timed, operations=tuple(which), **more)
        process = "compiled operations" if more else "main"
        return Task(name, "operations", made, process, seconds)

    yield Task("hardware", "hardware", timed, "main", 30.0)
    yield chain(largest, 60.0)
    for name in (UPDATE, LOSS, NORM):
        yield operations(name, [name], 20.0)
    if others:
        yield chain(others[0], 50.0)
    yield Task("training", "training", timed, "main", 60.0)
    if on_gpu:
        for batch in (largest, *others[:1]):
            made = _at(profiled, "sampled", batch)
            yield Task(f"profile {batch}", "chain", made, "profiles", 40.0)
    yield Task("max-autotune", "chain-autotuned", plan, "max-autotune", 150.0)
    yield Task("compiled training", "training-compiled", plan, "compiled training", 100.0)
    if plan.compile_operations:
        compiled = {"compile_operations": True}
        yield operations("compiled operations", [UPDATE, NORM], 60.0, **compiled)
    for batch in others[1:]:
        yield chain(batch, 50.0)
    rest = [case.name for case in cases(plan) if case.name not in (UPDATE, LOSS, NORM, NOISE)]
    yield operations("other operations", rest, 60.0)
    for suite in ("host-memory", "overhead", "precision", "forward"):
        yield Task(suite, suite, timed, "main", 40.0)
    if on_gpu:
        yield Task("profile of training", "training", profiled, "profiles", 40.0)


def _at(plan: Plan, subjects: str, batch: int) -> Plan:
    """The plan with its first network alone, at one batch size."""
    first: Subject = getattr(plan, subjects)[0]
    one: dict[str, Any] = {subjects: (replace(first, batches=(batch,)),)}
    return replace(plan, **one)


def run(
    plan: Plan, minutes: float, out: Path, say: runner.Say, todo: Sequence[Task] | None = None
) -> Results:
    """Do what a folder has not yet, for so many minutes at most.

    A task counts as done when it has ended by itself; one that failed, or whose time was over, is
    tried again when all others have had their turn.

    Args:
        out: folder of the rows; a run that was killed there goes on.
        say: called with a line for the user.
        todo: in place of :func:`tasks`.

    Returns:
        All rows of the folder.

    Raises:
        ValueError: for no time, and for a folder that holds something else, what another device,
            version or commit has measured, or that another process is writing to.
        OSError: for a folder that cannot be written to.
    """
    if not 0 < minutes < math.inf:
        raise ValueError(f"--minutes {minutes:g}: give how many minutes the run may take, above 0")
    ends = time.monotonic() + 60 * minutes
    with folder_lock(out, "choose another --out"):
        keeper = runner.opened(out, ())
        here = runner.where(plan)
        _check_same(keeper.rows, here, out)
        crew = _Crew(plan, keeper, here, say)
        todo = crew.left(tasks(plan) if todo is None else todo)
        try:
            for at, group in _groups(todo):
                left = ends - time.monotonic()
                if left < _LEAST:
                    crew.leave_out(todo[at:])
                    break
                crew.do(group, left)
                crew.dismiss({task.process for task in todo[at + len(group) :]})
                keeper.save(whole=False)
        finally:
            crew.dismiss(())
        keeper.save()
        return Results(keeper.rows)


def _groups(todo: Sequence[Task]) -> Iterator[tuple[int, list[Task]]]:
    """Tasks that are done at once, and the place of the first of them."""
    at = 0
    while at < len(todo):
        group = [todo[at]]
        while group[0].beside and at + len(group) < len(todo) and todo[at + len(group)].beside:
            group.append(todo[at + len(group)])
        yield at, group
        at += len(group)


def _check_same(rows: Sequence[Row], here: dict[str, str], out: Path) -> None:
    for row in rows:
        other = {name: row.environment.get(name, "") for name in _SAME}
        differ = [name for name in _SAME if row.suite == SUITE and other[name] != here[name]]
        if differ:
            name = differ[0]
            raise ValueError(
                f"{out} was begun on {name} {other[name]!r}, and this is {here[name]!r}: choose "
                "another --out"
            )


class _Crew:
    """Processes by name, and what they have been given to do."""

    def __init__(
        self, plan: Plan, keeper: runner.Keeper, here: dict[str, str], say: runner.Say
    ) -> None:
        self.plan, self.keeper, self.here, self.say = plan, keeper, here, say
        self.measurers: dict[str, Measurer] = {}

    def left(self, todo: Sequence[Task]) -> list[Task]:
        """What has not been done; what has been tried comes last."""
        before = {row.case: row for row in self.keeper.rows if row.suite == SUITE}
        tried = {name for name, row in before.items() if row.figures.get("seconds")}
        done = {name for name, row in before.items() if row.status == OK}
        return sorted((t for t in todo if t.name not in done), key=lambda t: t.name in tried)

    def do(self, group: Sequence[Task], left: float) -> None:
        """Have tasks done at once, in so many seconds at most."""
        pieces = []
        for task in group:
            if task.process not in self.measurers:
                log = (self.keeper.out or Path()) / runner.LOG
                self.measurers[task.process] = Measurer(runner.suite_rows, log)
            seconds = min(task.seconds, left)
            measurer = self.measurers[task.process]
            pieces.append(Piece(measurer, task.suite, self._ready(task), seconds))
        for task, outcome in zip(group, measured(pieces, self._keep), strict=True):
            if outcome.status != OK:
                del self.measurers[task.process]
            self._end(task, outcome)

    def leave_out(self, todo: Sequence[Task]) -> None:
        for task in todo:
            self._end(task, Outcome(LEFT_OUT, "no time was left: give the same command again", 0.0))

    def dismiss(self, needed: set[str] | tuple[()]) -> None:
        """End the processes that have no more to do."""
        for name in [name for name in self.measurers if name not in needed]:
            self.measurers.pop(name).end()

    def _ready(self, task: Task) -> Plan:
        """The plan of a task with what earlier ones have found."""
        rows = self.keeper.rows
        passed = [row.case for row in rows if row.suite == device_tests.SUITE and row.status == OK]
        # pytest takes an id for the beginning of others: those with parameters have an end.
        ended = [f"--deselect={one}" for one in passed if one.endswith("]")]
        tests = (*task.plan.tests, *(ended if task.suite == device_tests.SUITE else ()))
        return replace(task.plan, facts=hardware.facts(rows), tests=tests)

    def _keep(self, row: Row) -> None:
        self.keeper.keep(row)
        if row.suite != device_tests.SUITE or row.status != OK:
            self.say(f"  {_told(row)}")

    def _end(self, task: Task, outcome: Outcome) -> None:
        row = Row(SUITE, task.name, "ours", 0, "", outcome.status, outcome.message)
        seconds = {"seconds": outcome.seconds}
        self.keeper.keep(replace(row, figures=seconds, environment=self.here))
        told = f"in {outcome.seconds:.0f} s" if outcome.seconds else ""
        self.say(" ".join(f"{task.name}: {outcome.status} {told} {outcome.message}".split()))


def _told(row: Row) -> str:
    """A row in a line."""
    which = " ".join(filter(None, (row.suite, row.case, str(row.size or ""), row.contestant)))
    which = f"{which} ({row.precision})" if row.precision else which
    if row.status in (DISAGREES, FAILED, LEFT_OUT):
        return f"{which}: {row.status}: {row.message}"
    if row.median_s is None:
        return which
    error = "" if row.error is None else f", difference {row.error:.2g}"
    return f"{which}: {1e3 * row.median_s:.4g} ms{error}"


__all__ = ["SUITE", "Task", "run", "tasks"]
