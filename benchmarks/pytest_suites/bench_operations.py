"""The fused operations and a chain as pytest-benchmark suites.

The contestants are those of ``python -m ncsn_fast.benchmarks``, which lets them take turns; here
each runs by itself, after the same check. ``extra_info`` holds the quantiles of its time by the
device's own clock.
"""

from dataclasses import asdict, replace

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from ncsn_fast.benchmarks.contest.contest import Contest, admitted
from ncsn_fast.benchmarks.contest.plans import PLANS
from ncsn_fast.benchmarks.contest.timing import measure, wall_seconds
from ncsn_fast.benchmarks.contestants import networks
from ncsn_fast.benchmarks.suites.operations import CASES, Case, operation_contest
from ncsn_fast.benchmarks.suites.sampling import chain_contest

KIND = "cuda" if torch.cuda.is_available() else "cpu"
DEVICE = torch.device(KIND)
PLAN = replace(PLANS[KIND, "short"], compile_operations=True)


@pytest.mark.parametrize("contestant", ["ours", "eager", "compile"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_operation(benchmark: BenchmarkFixture, case: Case, contestant: str) -> None:
    run(benchmark, operation_contest(PLAN, case, PLAN.elements[0]), contestant)


@pytest.mark.parametrize("contestant", ["official", "eager channels_last", "ours"])
def test_chain(benchmark: BenchmarkFixture, contestant: str) -> None:
    subject = PLAN.sampled[0]
    work = networks.make(subject, DEVICE)
    run(benchmark, chain_contest(PLAN, "chain", subject, work, subject.batches[0]), contestant)


def run(benchmark: BenchmarkFixture, contest: Contest, contestant: str) -> None:
    """The contestant's first precision."""
    one = next(one for one in contest.contestants if one.name == contestant)
    benchmark.group = f"{contest.case}, {contest.size}"
    ready, row = admitted(contest, one, contest.expected(), DEVICE)
    times = measure(ready.calls, DEVICE, contest.seconds)
    benchmark.extra_info.update(asdict(times), precision=one.precision, error=row.error)
    benchmark.pedantic(wall_seconds, (ready.calls[0], DEVICE), rounds=5)
