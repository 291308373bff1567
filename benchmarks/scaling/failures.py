"""Sharded sampling by workers that fail: a simulation, and what can be said without one.

Shards are dealt out by "rank", shard k to worker k mod n for good, or in "turns": who is free takes
the first shard that nobody has. A worker that fails comes back and goes on; where workers are
started ``together``, as torchrun does, all of them are started anew when one fails, and what is
missing is dealt out again, to fewer if that one stays away. A failure loses what has been done of a
shard since it was last saved. Failures of a worker come at random, at a constant rate.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import NamedTuple

DEALT = ("rank", "turns")
_ENDLESS = 700.0  # mean times between failures, whose exponential is beyond floats


class Job(NamedTuple):
    """What is to be done, by whom.

    Attributes:
        shards: how many.
        seconds: that a shard takes a worker of rate 1, at most one that was never stopped.
        rates: of the workers, in shards of ``seconds``.
        mtbf: mean seconds from a worker's start to its failure; infinite: none fails.
        delay: seconds from a failure until its worker, or the group, works again.
        cost: seconds of a shard beside its samples, which are spent anew after a failure.
        saves: seconds between saves of a shard under way; infinite: only whole ones are kept.
        dealt: one of :data:`DEALT`.
        together: whether all are started anew when one fails.
        away: whether one that failed then stays away; the last one returns.
    """

    shards: int
    seconds: float
    rates: tuple[float, ...]
    mtbf: float = math.inf
    delay: float = 0.0
    cost: float = 0.0
    saves: float = math.inf
    dealt: str = "rank"
    together: bool = False
    away: bool = False


class Outcome(NamedTuple):
    """How it went; all in seconds, those of workers summed over them.

    Attributes:
        seconds: until the last shard was done; infinite where it was given up before.
        worked: of workers, that are in finished shards.
        lost: of workers, whose work was thrown away.
        down: of workers, from a failure on.
        idle: of workers, without a shard to take.
        failures: how many.
        finished: which shards, in order.
    """

    seconds: float
    worked: float
    lost: float
    down: float
    idle: float
    failures: int
    finished: list[int]


@dataclass
class _Worker:
    rate: float
    stamp: int = 0  # what was planned before a failure is recognised by an older one
    shard: int | None = None
    since: float = 0.0  # that it works, is idle or is down
    down: bool = False
    queue: list[int] = field(default_factory=list)  # the next one last


class _Simulation:
    def __init__(self, job: Job, seed: int) -> None:
        self.job, self.random = job, Random(seed)
        self.workers = [_Worker(rate) for rate in job.rates]
        self.present = list(range(len(job.rates)))
        self.done = dict.fromkeys(range(job.shards), 0.0)  # of those that are missing, in seconds
        self.shared: list[int] = []
        self.events: list[tuple[float, int, Callable[[int, float], None], int, int]] = []
        self.order = 0
        self.spent = {"worked": 0.0, "lost": 0.0, "down": 0.0, "idle": 0.0}
        self.failures = 0
        self.finished: list[int] = []

    def run(self, patience: float) -> Outcome:
        self.deal()
        for number in self.present:
            self.up(number, 0.0)
        now = 0.0
        while self.done:
            now, _, happens, number, stamp = heapq.heappop(self.events)
            if now > patience:
                return self.outcome(math.inf)
            if stamp == self.workers[number].stamp:
                happens(number, now)
        for number in self.present:
            worker = self.workers[number]
            self.spent["down" if worker.down else "idle"] += now - worker.since
        return self.outcome(now)

    def outcome(self, seconds: float) -> Outcome:
        return Outcome(seconds, **self.spent, failures=self.failures, finished=self.finished)

    def plan(self, time: float, happens: Callable[[int, float], None], number: int) -> None:
        self.order += 1  # of two at the same time the one that was planned first
        entry = (time, self.order, happens, number, self.workers[number].stamp)
        heapq.heappush(self.events, entry)

    def deal(self) -> None:
        missing = sorted(self.done)
        if self.job.dealt == "turns":
            self.shared = missing[::-1]
        for place, number in enumerate(self.present):
            own = missing[place :: len(self.present)]
            self.workers[number].queue = self.shared if self.job.dealt == "turns" else own[::-1]

    def up(self, number: int, now: float) -> None:
        """It works again, or for the first time."""
        worker = self.workers[number]
        if worker.down:
            self.spent["down"] += now - worker.since
        worker.down, worker.since = False, now
        if self.job.mtbf < math.inf:
            self.plan(now + self.random.expovariate(1 / self.job.mtbf), self.failure, number)
        self.take(number, now)

    def take(self, number: int, now: float) -> None:
        worker = self.workers[number]
        if worker.queue:
            self.spent["idle"] += now - worker.since
            worker.shard, worker.since = worker.queue.pop(), now
            left = self.job.seconds - self.done[worker.shard]
            self.plan(now + self.job.cost + left / worker.rate, self.end, number)

    def end(self, number: int, now: float) -> None:
        worker = self.workers[number]
        assert worker.shard is not None
        self.spent["worked"] += now - worker.since
        del self.done[worker.shard]
        self.finished.append(worker.shard)
        worker.shard, worker.since = None, now
        self.take(number, now)

    def failure(self, number: int, now: float) -> None:
        if self.workers[number].shard is None and self.job.dealt == "rank":
            return  # it was through with its shards, and has ended
        self.failures += 1
        together = self.job.together
        for each in list(self.present) if together else [number]:
            self.stop(each, now)
        if together and self.job.away and len(self.present) > 1:
            self.present.remove(number)
        if together:
            self.deal()
        for each in self.present if together else [number]:
            self.plan(now + self.job.delay, self.up, each)
        if self.job.dealt == "turns" and not together:
            for each in self.present:  # what was given back may be taken at once
                waits = self.workers[each]
                if waits.shard is None and not waits.down:
                    self.take(each, now)

    def stop(self, number: int, now: float) -> None:
        worker = self.workers[number]
        worker.stamp += 1
        if worker.shard is not None:
            spent = now - worker.since
            computed = max(0.0, spent - self.job.cost)
            kept = computed - computed % self.job.saves
            self.done[worker.shard] += kept * worker.rate
            self.spent["worked"] += kept
            self.spent["lost"] += spent - kept
            worker.queue.append(worker.shard)
            worker.shard = None
        elif worker.down:
            self.spent["down"] += now - worker.since
        else:
            self.spent["idle"] += now - worker.since
        worker.down, worker.since = True, now


def simulate(job: Job, seed: int, patience: float = math.inf) -> Outcome:
    """How a job goes; the same for the same seed. After ``patience`` seconds it is given up.

    Raises:
        ValueError: for another way of dealing, or numbers out of range.
    """
    if job.dealt not in DEALT:
        raise ValueError(f"dealt = {job.dealt!r}: choose one of {', '.join(DEALT)}")
    positive = (job.shards, job.seconds, job.mtbf, job.saves, len(job.rates), *job.rates)
    if min(positive) <= 0 or min(job.delay, job.cost) < 0:
        raise ValueError(f"{job}: delay and cost are at least 0, all other numbers more")
    return _Simulation(job, seed).run(patience)


def shard_seconds(seconds: float, mtbf: float, delay: float) -> float:
    """Expected seconds until a shard is done that takes ``seconds`` without a failure, and begins
    anew, ``delay`` later, after each: (m + d)(exp(s/m) - 1)."""
    if mtbf == math.inf:
        return seconds
    x = seconds / mtbf
    return (mtbf + delay) * math.expm1(x) if x < _ENDLESS else math.inf


def lost_seconds(seconds: float, mtbf: float) -> float:
    """Expected seconds of work that a failure during a shard throws away: m - s/(exp(s/m) - 1),
    which is half a shard where failures are rare."""
    return seconds / 2 if mtbf == math.inf else mtbf * lost_share(seconds, mtbf)


def lost_share(seconds: float, mtbf: float) -> float:
    """Expected share of the working time that failures throw away, of shards of ``seconds``:
    1 - x/(exp(x) - 1), x = s/m. ``mtbf`` is of what loses its shard at once."""
    x = seconds / mtbf
    if x < 1e-4:  # where the difference would be rounding
        return x / 2 - x * x / 12
    return 1 - x / math.expm1(x) if x < _ENDLESS else 1.0


def best_shard_seconds(cost: float, mtbf: float, seconds: float) -> float:
    """How long a shard should take: √(2c/(1/m + 1/t)).

    A shard of s seconds has a cost c; failures throw s/2 away, s/2m of the time; and at the end of
    a job of t seconds workers wait for the last one, half a shard on average, s/2t of the time.
    c/s + s/2m + s/2t is least there, and √(2c(1/m + 1/t)) of the time. (Young 1974, with the end of
    the job as one more failure.)

    Args:
        mtbf: of what loses its shard at once, one worker or, started together, the group of them.
        seconds: the job's, were nothing lost.
    """
    return math.sqrt(2 * cost / (1 / mtbf + 1 / seconds))


__all__ = [
    "DEALT",
    "Job",
    "Outcome",
    "best_shard_seconds",
    "lost_seconds",
    "lost_share",
    "shard_seconds",
    "simulate",
]
