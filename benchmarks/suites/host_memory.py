"""Whether a chain ten times as long needs more memory of the host."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from functools import reduce
from operator import add

from torch import Tensor

import ncsn_fast as nf
from ncsn_fast.benchmarks.contest.plans import Plan
from ncsn_fast.benchmarks.contest.rows import Row
from ncsn_fast.methods.tables import annealed_langevin

_ROWS, _TIMES, _IMAGES = 16, 10, 64
_SHAPE = (3, 32, 32)


def host_memory(plan: Plan) -> Iterator[Row]:
    """One row: ``growth_bytes``, what the peak of the process's memory grows by.

    The network is the score of a Gaussian: what is looked for are states that are kept, and those
    of the additional rows would be ``states_bytes``.
    """
    row = Row("host-memory", "the score of a Gaussian", "ours", _ROWS * _TIMES, "auto")
    try:
        table = annealed_langevin([1.0, 0.1], 1e-3, _ROWS // 2, denoise=False)
        long = reduce(add, [table] * _TIMES)
        for _ in range(3):
            _sample(table, plan.device)
        before = _peak()
        _sample(long, plan.device)
        growth = float(_peak() - before)
        states = 4.0 * _IMAGES * math.prod(_SHAPE) * (len(long) - len(table))
        yield row.more({"growth_bytes": growth, "states_bytes": states})
    except Exception as error:  # of whatever kind: the row says which
        yield row.failed(error)


def _sample(table: nf.Table, device: str) -> Tensor:
    score = nf.Score(lambda x: -x, "score", "none")
    sampler = nf.Sampler(score, _SHAPE, method=table, device=device)
    return sampler(_IMAGES, seed=0, batch_size=_IMAGES)


def _peak() -> int:
    """The largest resident memory of this process so far, in bytes."""
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


__all__ = ["host_memory"]
