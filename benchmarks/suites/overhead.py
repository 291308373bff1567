"""What the engine costs beside the network where problems are small: points in the plane."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

import ncsn_fast as nf
from ncsn_fast.benchmarks.contest.plans import Plan
from ncsn_fast.benchmarks.contest.rows import Row
from ncsn_fast.benchmarks.contest.timing import in_turns
from ncsn_fast.inference.prepare import prepare_for_inference

SUITE, CASE, CALLS = "overhead", "MLPScore, points in the plane", "network calls"
_POINTS, _LEVELS, _STEPS_PER_LEVEL = 1000, 10, 10


def overhead(plan: Plan) -> Iterator[Row]:
    """Two rows, of a step of the chain and of the network call in it alone, timed in turns."""
    device = torch.device(plan.device)
    torch.manual_seed(0)
    sigmas = nf.geometric_sigmas(50, 0.01, _LEVELS)
    net = nf.MLPScore(dim=2, sigmas=sigmas).to(device)
    sampler = nf.Sampler(net, step_size=6e-6, steps_per_level=_STEPS_PER_LEVEL, denoise=False)
    steps = len(sampler.table)
    prepared = prepare_for_inference(net)
    x = torch.rand(_POINTS, 2, device=device)
    labels = torch.zeros(_POINTS, dtype=torch.int64, device=device)

    def calls() -> Tensor:
        with torch.no_grad():
            for _ in range(steps):
                n = prepared.normalized(x, labels)
        return n

    def chain() -> Tensor:
        return sampler(_POINTS, seed=0, initial=x, batch_size=_POINTS)

    contestants = {CALLS: [calls], "ours": [chain]}
    for (call,) in contestants.values():
        call()
    for name, times in in_turns(contestants, device, max(1.0, plan.seconds)).items():
        row = Row(SUITE, CASE, name, _POINTS, prepared.precision)
        yield row.failed(times) if isinstance(times, Exception) else row.timed(times, steps)


__all__ = ["CALLS", "CASE", "SUITE", "overhead"]
