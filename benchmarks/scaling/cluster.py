"""A cluster of GPUs, and how long sums over them take.

A model: nothing of it is measured. All GPUs of a node are joined by NVLink, and each has a network
adapter of its own. A sum is made within the nodes first: each GPU of a node holds the sum of its
share, the shares are summed over the nodes, and then handed around in the node.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import NamedTuple


class Cluster(NamedTuple):
    """Its figures; docs/scaling.md says where they are from, and which of them are assumed.

    Attributes:
        node: GPUs in a node.
        nvlink, network: bytes a second that a GPU sends, and receives, in its node and beyond it.
        reached: share of both that sums reach.
        call: seconds before a sum begins to move.
        nvlink_hop, network_hop: seconds from one GPU to the next, and from one node to the next.
        launch: seconds that a launch in a captured graph takes beside its work.
        jitter: standard deviation of a step's time, in steps.
        start: seconds until a process samples: imports, weights, captured graph.
        libraries: bytes that a node reads to import them.
        storage: bytes a second that the shared file system writes, or reads.
        creates: files a second that it creates.
    """

    node: int = 8
    nvlink: float = 450e9
    network: float = 50e9
    reached: float = 0.8
    call: float = 8.4e-6
    nvlink_hop: float = 3.4e-6
    network_hop: float = 14e-6
    launch: float = 2e-6
    jitter: float = 0.02
    start: float = 30.0
    libraries: float = 2e9
    storage: float = 12.5e9
    creates: float = 10_000.0


def ring(size: float, ranks: int, bandwidth: float, hop: float) -> float:
    """Seconds of a sum of ``size`` bytes around a ring: each rank sends 2(n - 1)/n of them, in
    2(n - 1) hops. ``bandwidth`` is bytes a second, ``hop`` seconds."""
    return 2 * (ranks - 1) * (size / ranks / bandwidth + hop)


def tree(size: float, ranks: int, bandwidth: float, hop: float) -> float:
    """Seconds of a sum up two binary trees, each of half the bytes, and down again: each rank sends
    all of them twice, in 2 log₂ n hops."""
    return 0.0 if ranks == 1 else 2 * (size / bandwidth + math.ceil(math.log2(ranks)) * hop)


def summing(size: float, gpus: int, cluster: Cluster, bucket: float = math.inf) -> float:
    """Seconds of a sum of ``size`` bytes over GPUs that fill their nodes, a bucket (bytes) at a
    time; none of a single one."""
    if gpus == 1:
        return 0.0
    buckets = max(1, math.ceil(size / bucket))
    inside = min(gpus, cluster.node)
    nodes = math.ceil(gpus / cluster.node)
    part = size / buckets
    seconds = cluster.call + ring(
        part, inside, cluster.reached * cluster.nvlink, cluster.nvlink_hop
    )
    over = (part / inside, nodes, cluster.reached * cluster.network, cluster.network_hop)
    return buckets * (seconds + min(ring(*over), tree(*over)))


def waiting(seconds: float, gpus: int, jitter: float) -> float:
    """Seconds that the mean GPU waits for the slowest of them, whose times are normal around
    ``seconds`` with a standard deviation of ``jitter`` of these: the expected largest of n
    normals, by Blom's approximation, of 1 % and less."""
    return seconds * jitter * NormalDist().inv_cdf((gpus - 0.375) / (gpus + 0.25))


__all__ = ["Cluster", "ring", "summing", "tree", "waiting"]
