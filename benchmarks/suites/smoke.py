"""The first look at a device: whether the real sizes run at all, are right, and how long they take.

Each row has been checked. The times are taken beside others who work on the same device, and are a
first look: the contests measure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

import ncsn_fast as nf
from ncsn_fast.benchmarks.contest import contest
from ncsn_fast.benchmarks.contest.contest import Disagreement, Ready
from ncsn_fast.benchmarks.contest.plans import Plan, Subject
from ncsn_fast.benchmarks.contest.rows import DISAGREES, Row
from ncsn_fast.benchmarks.contest.timing import measure
from ncsn_fast.benchmarks.contestants import networks
from ncsn_fast.benchmarks.contestants.networks import Work
from ncsn_fast.benchmarks.suites.operations import cases, operation_contest
from ncsn_fast.benchmarks.suites.sampling import Chains
from ncsn_fast.benchmarks.suites.training import Steps

SUITE = "smoke"
_REPLAYS, _STEPS = 20, 8
_SECONDS = 0.1  # of measuring
_LOSSES = 1e-3  # by how much those of two runs of the same steps may differ


def smoke_chain(plan: Plan) -> Iterator[Row]:
    """A row per network and batch: replays are the eager rows bit for bit, the drift is the
    published loop's; the time is that of a replay."""
    device = torch.device(plan.device)
    for subject in plan.sampled:
        work = networks.make(subject, device)
        for batch in subject.batches:
            row = Row(SUITE, f"chain, {subject.name}", "ours", batch, plan.ours[0])
            yield _looked_at(row, device, partial(_chain, plan, work, batch))


def _chain(plan: Plan, work: Work, batch: int) -> tuple[Ready, float]:
    run = Chains(work, batch, min(_REPLAYS, plan.rows_for(batch)), _REPLAYS)
    precision, graph = plan.ours[0], work.device.type == "cuda" or "auto"
    eager, replayed = (_states(run, precision, wish) for wish in (False, graph))
    if not torch.equal(eager, replayed):
        raise Disagreement(contest.difference([replayed], [eager]), 0.0)
    ready = run.ours(precision, graph)
    ready.calls[0]()
    found = contest.difference(ready.result(), run.expected())
    if not found <= contest.NETWORK_TOLERANCE[precision]:
        raise Disagreement(found, contest.NETWORK_TOLERANCE[precision])
    return ready, found


def _states(run: Chains, precision: str, graph: bool | str) -> Tensor:
    """The end of the chain, as its user has cuDNN: by algorithms that are not chosen anew."""
    table, n = run.work.table(run.rows_of_ours), len(run.x)
    sampler = nf.Sampler(run.work.net, method=table, precision=precision, graph=graph)
    with networks.tuned(False):
        return sampler(n, seed=networks.SEED, initial=run.x, batch_size=n)


def smoke_training(plan: Plan) -> Iterator[Row]:
    """A row per network and batch: the losses of steps in a graph are those without."""
    device = torch.device(plan.device)
    precision = plan.trained_in[0]
    for subject in plan.trained:
        for batch in subject.batches:
            row = Row(SUITE, f"training, {subject.name}", "ours", batch, precision)
            yield _looked_at(row, device, partial(_training, plan, subject, batch))


def _training(plan: Plan, subject: Subject, batch: int) -> tuple[Ready, float]:
    device = torch.device(plan.device)
    run = Steps(networks.make(subject, device), batch)
    run.checked = _STEPS
    eager = run.ours(plan.trained_in[0], False)
    ready = run.ours(plan.trained_in[0], device.type == "cuda" or "auto")
    found = contest.difference(ready.result(), [one.float() for one in eager.result()])
    if not found <= _LOSSES:
        raise Disagreement(found, _LOSSES)
    return ready, found


def smoke_operations(plan: Plan) -> Iterator[Row]:
    """A row per operation in the largest size: ours, beside the specification."""
    plan = replace(plan, seconds=min(plan.seconds, _SECONDS), compile_operations=False)
    device = torch.device(plan.device)
    for case in cases(plan):
        made = operation_contest(plan, case, max(plan.elements))
        ours = [one for one in made.contestants if one.name == "ours"]
        yield from contest.run(replace(made, suite=SUITE, contestants=ours), device)


def _looked_at(row: Row, device: torch.device, ready_of: Callable[[], tuple[Ready, float]]) -> Row:
    """The row of what has been checked and can be called, with its time and its difference."""
    try:
        ready, found = ready_of()
        times = measure(ready.calls, device, _SECONDS)
    except Disagreement as different:
        return replace(row.failed(str(different), DISAGREES), error=different.difference)
    except Exception as error:  # of whatever kind: the row says which
        return row.failed(error)
    return replace(row.timed(times, ready.units or 1), error=found)


__all__ = ["SUITE", "smoke_chain", "smoke_operations", "smoke_training"]
