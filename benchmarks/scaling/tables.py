"""The tables of docs/scaling.md. All of them are of models, whose figures have three digits."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from ncsn_fast.benchmarks.scaling import failures, sampling, training
from ncsn_fast.benchmarks.scaling.cluster import Cluster, summing
from ncsn_fast.benchmarks.scaling.failures import Job, simulate
from ncsn_fast.benchmarks.scaling.sampling import Chains
from ncsn_fast.benchmarks.scaling.training import Point, StepTime

GPUS = (1, 8, 64, 1024)
SAMPLES = 50_000
_BUCKET = 25e6  # bytes, of PyTorch's DistributedDataParallel
WORKERS, MTBF, DELAY, COST = 64, 86_400.0, 120.0, 0.5  # of the table with failures; seconds
SEEDS = 20
SAVES = 30.0  # seconds between two saves of a sample store
_WAYS: dict[str, dict[str, Any]] = {
    "rank": {},
    "turns": {"dealt": "turns"},
    "turns, saved": {"dealt": "turns", "saves": SAVES},
    "torchrun": {"dealt": "turns", "together": True},
    "torchrun, saved": {"dealt": "turns", "together": True, "saves": SAVES},
}
_DIGITS = 3
Table = list[list[str]]


def number(value: float) -> str:
    """To three digits, without an exponent."""
    if not math.isfinite(value):
        return "∞"
    return f"{float(f'{value:.{_DIGITS}g}'):,.12g}"


def share(value: float) -> str:
    return f"{100 * value:.1f} %"


def step_times(found: Mapping[str, StepTime]) -> Table:
    """What the other tables go by, as they are given to :func:`read_step_times`."""
    head = ["step", "fixed, ms", "an image, ms", "launches"]
    rows = [
        [name, number(1e3 * one.fixed), number(1e3 * one.image), str(one.launches)]
        for name, one in found.items()
    ]
    return [head, *rows]


def read_step_times(table: Sequence[Sequence[str]]) -> dict[str, StepTime]:
    """A table of :func:`step_times` read again."""
    return {
        name: StepTime(float(fixed) / 1e3, float(image) / 1e3, int(launches))
        for name, fixed, image, launches in table[1:]
    }


def trained(step: StepTime, gradient: float, batch: int, grows: bool, cluster: Cluster) -> Table:
    """Training on more GPUs with one batch for all, or, where it ``grows``, one for each."""
    head = ["GPUs", "batch", "images a GPU", "computing, ms", "summing, ms", "waiting, ms"]
    head += ["step, ms", "images/s", "efficiency"]
    rows, one = [], None
    for gpus in GPUS:
        whole = batch * gpus if grows else batch
        found = training.point(step, gradient, whole, gpus, cluster)
        if found is None:
            rows.append([str(gpus), str(whole), "fewer than one", *["–"] * (len(head) - 3)])
            continue
        one = one or found
        rows.append(_point(found, training.efficiency(one, found)))
    return [head, *rows]


def summed(gradient: float, cluster: Cluster) -> Table:
    """The sum of the gradients in one message, as here, and in buckets."""
    rows = []
    for gpus in GPUS[1:]:
        found = (summing(gradient, gpus, cluster, bucket) for bucket in (math.inf, _BUCKET))
        rows.append([str(gpus), *(number(1e3 * seconds) for seconds in found)])
    return [["GPUs", "one message, ms", f"buckets of {_BUCKET / 1e6:g} MB, ms"], *rows]


def _point(found: Point, efficiency: float) -> list[str]:
    parts = (found.computing, found.summing, found.waiting, found.seconds)
    return [
        str(found.gpus),
        f"{found.batch:,}",
        str(found.images),
        *(number(1e3 * part) for part in parts),
        number(found.rate),
        share(efficiency),
    ]


def shards(found: Mapping[str, Chains], cluster: Cluster) -> Table:
    """How long a shard of 1,000 samples takes a GPU, and how many it has in a minute."""
    head = ["network", "evaluations", "samples at once", "samples/s", "1,000 samples, minutes"]
    head += ["samples in a minute"]
    rows = []
    for name, chains in found.items():
        rate = chains.most / chains.seconds(chains.most, cluster.launch)
        thousand = chains.seconds(1000, cluster.launch)
        row = [name, f"{chains.rows:,}", f"{chains.most:,}", number(rate)]
        rows.append([*row, number(thousand / 60), number(60 * rate)])
    return [head, *rows]


def sampled(chains: Chains, sizes: Sequence[int], cluster: Cluster) -> Table:
    """50,000 samples on more GPUs, in shards of several sizes."""
    head = ["GPUs", "samples a shard", "shards", "shards of a GPU", "a shard, s", "all, s"]
    rows = []
    for gpus in GPUS:
        for size in sizes:
            plan = sampling.plan(chains, SAMPLES, size, gpus, cluster)
            row = [str(gpus), f"{size:,}", f"{plan.shards:,}", str(plan.rounds)]
            rows.append([*row, number(plan.shard), number(plan.seconds), share(plan.efficiency)])
    return [[*head, "efficiency"], *rows]


def filled(chains: Chains, shard: int, cluster: Cluster) -> Table:
    """What of all GPUs' is full first while they sample."""
    head = ["of all GPUs", "a GPU, in a second", "there is, in a second", "full at, GPUs"]
    return [
        head,
        *(
            [use.name, number(use.each), number(use.limit), f"{use.full:,}"]
            for use in sampling.uses(chains, shard, cluster)
        ),
    ]


def failing(chains: Chains, sizes: Sequence[int], cluster: Cluster) -> Table:
    """50,000 samples by workers that fail once a day: the hours until the end and the share of the
    work that is lost, means over seeds, and, in brackets, what is expected without a simulation."""
    ideal = SAMPLES / chains.most * chains.seconds(chains.most, cluster.launch) / WORKERS
    head = ["samples a shard", "a shard, minutes", "shards", *_WAYS]
    rows = []
    for size in sizes:
        seconds = chains.seconds(size, cluster.launch)
        job = Job(math.ceil(SAMPLES / size), seconds, (1.0,) * WORKERS, MTBF, DELAY, COST)
        ways = (_simulated(job._replace(**settings), 30 * ideal) for settings in _WAYS.values())
        rows.append([f"{size:,}", number(seconds / 60), f"{job.shards:,}", *ways])
    return [head, *rows]


def _simulated(job: Job, patience: float) -> str:
    """A cell; once a run is given up, all are."""
    found = []
    for seed in range(SEEDS):
        found.append(simulate(job, seed, patience))
        if found[-1].seconds == math.inf:
            return f"more than {number(patience / 3600)} h"
    hours = statistics.fmean(one.seconds for one in found) / 3600
    lost, worked = sum(one.lost for one in found), sum(one.worked for one in found)
    told = f"{number(hours)} h, {share(lost / (lost + worked))}"
    if job.saves < math.inf:
        return told
    mtbf = job.mtbf / len(job.rates) if job.together else job.mtbf
    return f"{told} ({share(failures.lost_share(job.seconds + job.cost, mtbf))})"


def slow(chains: Chains, sizes: Sequence[int], cluster: Cluster) -> Table:
    """50,000 samples where nothing fails: what the end costs, and one worker of half the rate."""
    ideal = SAMPLES / chains.most * chains.seconds(chains.most, cluster.launch)
    head = ["samples a shard", *("all alike: " + one for one in ("hours", "idle"))]
    head += [f"one slow, {way}: {what}" for way in ("rank", "turns") for what in ("hours", "idle")]
    rows = []
    for size in sizes:
        seconds = chains.seconds(size, cluster.launch)
        alike = Job(math.ceil(SAMPLES / size), seconds, (1.0,) * WORKERS, cost=COST)
        half = alike._replace(rates=(0.5, *alike.rates[1:]))
        row = [f"{size:,}"]
        for job in (alike, half, half._replace(dealt="turns")):
            found = simulate(job, 0)
            row += [number(found.seconds / 3600), share(found.idle / found.seconds / WORKERS)]
        rows.append(row)
    best = (ideal / WORKERS, ideal / (WORKERS - 0.5))
    last = [number(best[0] / 3600), "0 %", "–", "–", number(best[1] / 3600), "0 %"]
    return [head, *rows, ["infinitely few", *last]]


__all__ = [
    "failing",
    "filled",
    "number",
    "read_step_times",
    "sampled",
    "shards",
    "slow",
    "step_times",
    "summed",
    "trained",
]
