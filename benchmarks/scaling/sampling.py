"""Sampling on more GPUs: shards that need nothing of each other.

A model: nothing of it is measured. Here no GPU fails and all are alike; ``failures.py`` is of
those that do.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from ncsn_fast.benchmarks.scaling.cluster import Cluster
from ncsn_fast.benchmarks.scaling.training import StepTime


class Chains(NamedTuple):
    """Chains of a network.

    Attributes:
        step: of a row.
        rows: of a chain, network evaluations.
        most: samples that are computed at once, at most.
        values: of a sample.
        weights: bytes of the network's.
    """

    step: StepTime
    rows: int
    most: int
    values: int
    weights: float

    def seconds(self, samples: int, launch: float) -> float:
        """Of so many samples on one GPU, in chunks as even as they can be."""
        chunks = math.ceil(samples / self.most)
        size = math.ceil(samples / chunks)
        return chunks * self.rows * self.step.seconds(size, launch)


class Plan(NamedTuple):
    """Samples on so many GPUs.

    Attributes:
        gpus, shards: how many.
        rounds: shards of the GPU that has the most of them.
        shard: seconds of a shard.
        seconds: from the start of the processes to the end of the last one.
        efficiency: of all that time of all GPUs, what one alone would have taken for the samples in
            the largest chunks.
    """

    gpus: int
    shards: int
    rounds: int
    shard: float
    seconds: float
    efficiency: float


def plan(chains: Chains, samples: int, shard: int, gpus: int, cluster: Cluster) -> Plan:
    """So many samples in shards of so many, dealt out to GPUs."""
    shards = math.ceil(samples / shard)
    rounds = math.ceil(shards / gpus)
    seconds = chains.seconds(min(shard, samples), cluster.launch)
    total = cluster.start + rounds * seconds
    alone = chains.seconds(chains.most, cluster.launch) * samples / chains.most
    return Plan(gpus, shards, rounds, seconds, total, alone / (gpus * total))


class Use(NamedTuple):
    """What a resource of all is asked for.

    Attributes:
        name: of the resource, and of what asks for it.
        each: that a GPU asks for in a second.
        limit: that there is in a second.
    """

    name: str
    each: float
    limit: float

    @property
    def full(self) -> int:
        """How many GPUs use it up."""
        return math.floor(self.limit / self.each)


def uses(chains: Chains, shard: int, cluster: Cluster) -> list[Use]:
    """What sampling asks of the shared file system, the first that is full first.

    While it samples: bytes and files of finished samples. While processes start: libraries and
    weights, which each node reads once.
    """
    rate = shard / chains.seconds(shard, cluster.launch)
    read = cluster.libraries + chains.weights
    found = [
        Use("bytes written, 8 bits a value", rate * chains.values, cluster.storage),
        Use("bytes written, float32", 4 * rate * chains.values, cluster.storage),
        Use("files created, a shard and its checksum", 2 * rate / shard, cluster.creates),
        Use("files created, a PNG a sample", rate, cluster.creates),
        Use("bytes read, at the start", read / cluster.node / cluster.start, cluster.storage),
    ]
    return sorted(found, key=lambda use: use.limit / use.each)


__all__ = ["Chains", "Plan", "Use", "plan", "uses"]
