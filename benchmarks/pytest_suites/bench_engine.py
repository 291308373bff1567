"""What the contests measure, and what they do not, as pytest-benchmark suites.

The contests' contestants are those of ``python -m ncsn_fast.benchmarks``, which lets them take
turns; here each runs by itself, after the same check. ``extra_info`` holds the quantiles of its
time by the device's own clock.

A launch is what an operation costs in Python over the bare launch of its kernel. Without a GPU the
kernel is replaced by a function that does nothing, so that what is left on both sides is Python:
the difference between the two rows is what the operation adds. With a GPU the tensors are too small
for the device to matter.
"""

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from ncsn_fast import noise, ops
from ncsn_fast.benchmarks.contest.contest import Contest, admitted
from ncsn_fast.benchmarks.contest.plans import PLANS
from ncsn_fast.benchmarks.contest.timing import measure, wall_seconds
from ncsn_fast.benchmarks.contestants import networks
from ncsn_fast.benchmarks.suites.operations import CASES, Case, operation_contest
from ncsn_fast.benchmarks.suites.sampling import chain_contest
from ncsn_fast.device import backends

KIND = "cuda" if torch.cuda.is_available() else "cpu"
DEVICE = torch.device(KIND)
PLAN = replace(PLANS[KIND, "short"], compile_operations=True)
CALLS = 1000
UPDATES = f"{CALLS} updates, Python only: read ms as µs a call"


@pytest.mark.parametrize("contestant", ["ours", "eager", "compile"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_operation(benchmark: BenchmarkFixture, case: Case, contestant: str) -> None:
    run(benchmark, operation_contest(PLAN, case, PLAN.elements[0]), contestant)


@pytest.mark.parametrize("contestant", ["official", "eager channels_last", "ours"])
def test_chain(benchmark: BenchmarkFixture, contestant: str) -> None:
    subject = PLAN.sampled[0]
    work = networks.make(subject, DEVICE)
    run(benchmark, chain_contest(PLAN, "chain", subject, work, subject.batches[0]), contestant)


@torch.no_grad()
def run(benchmark: BenchmarkFixture, contest: Contest, contestant: str) -> None:
    """The contestant's first precision."""
    one = next(one for one in contest.contestants if one.name == contestant)
    benchmark.group = f"{contest.case}, {contest.size}"
    ready, row = admitted(contest, one, contest.expected(), DEVICE)
    times = measure(ready.calls, DEVICE, contest.seconds)
    benchmark.extra_info.update(asdict(times), precision=one.precision, error=row.error)
    benchmark.pedantic(wall_seconds, (ready.calls[0], DEVICE), rounds=5)


@pytest.mark.benchmark(group="import, whole process")
@pytest.mark.parametrize("name", ["torch", "ncsn_fast"])
def test_import(benchmark: BenchmarkFixture, name: str) -> None:
    command = [sys.executable, "-c", f"import {name}"]
    done = benchmark.pedantic(subprocess.run, (command,), rounds=7, warmup_rounds=1)
    assert done.returncode == 0


@pytest.mark.benchmark(group="4.2 million normals")
@pytest.mark.parametrize("name", ["philox", "torch.randn"])
def test_normals_on_the_cpu(benchmark: BenchmarkFixture, name: str) -> None:
    shape, ids = (3, 32, 32), torch.arange(1365)
    if name == "philox":
        benchmark(noise.normal, shape, seed=0, stream=noise.SAMPLER, sample_ids=ids)
    else:
        benchmark(torch.randn, len(ids), *shape)


class NoKernel:
    """Takes a launch and does nothing."""

    def __getitem__(self, grid: tuple[int]) -> Callable[..., None]:
        return lambda *arguments, **settings: None


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Tensor, dict[str, Any]]]:
    """Small images, and what says which noise is theirs."""
    if KIND == "cpu":
        monkeypatch.setattr(backends, "missing", lambda *_: None)
        for name in ("sampler_update", "perturb", "dsm_loss"):
            kernels = pytest.importorskip(f"ncsn_fast.kernels.triton.{name}")
            monkeypatch.setattr(kernels, f"_{name}_kernel", NoKernel())
    x = torch.zeros(4, 3, 8, 8, device=DEVICE)
    seed, step = (torch.tensor(0, device=DEVICE) for _ in range(2))
    with torch.no_grad():
        yield x, {"seed": seed, "step": step, "sample_ids": torch.arange(len(x), device=DEVICE)}


def repeatedly(benchmark: BenchmarkFixture, call: Callable[[], Any]) -> None:
    def calls() -> None:
        for _ in range(CALLS):
            call()
        if KIND == "cuda":
            torch.cuda.synchronize()

    benchmark(calls)


@pytest.mark.benchmark(group=UPDATES)
def test_update(benchmark: BenchmarkFixture, launched: tuple[Tensor, dict[str, Any]]) -> None:
    x, which = launched
    row = torch.zeros(9, device=DEVICE)
    repeatedly(benchmark, lambda: ops.sampler_update(x, x, row, backend="triton", **which))


@pytest.mark.benchmark(group=UPDATES)
def test_bare_launch(benchmark: BenchmarkFixture, launched: tuple[Tensor, dict[str, Any]]) -> None:
    """The same launch written out, with a new tensor for the result as there."""
    from ncsn_fast.kernels.triton import sampler_update
    from ncsn_fast.kernels.triton.common import launch

    x, which = launched
    row = torch.zeros(9, device=DEVICE)
    geometry = launch.over_all(x.shape, False)
    kernel = sampler_update._sampler_update_kernel

    def bare() -> None:
        out = torch.empty_like(x)
        kernel[geometry.grid](
            x, x, row, *which.values(), None, None, None, None, None, out, None, None,
            *geometry.numbers,
            ADD_NOISE=True,
            N_LAST=False,
            FAST_MATH=launch.FAST_MATH,
            **geometry.settings,
        )  # fmt: skip

    repeatedly(benchmark, bare)


@pytest.mark.benchmark(group=f"{CALLS} training operations, Python only: read ms as µs a call")
@pytest.mark.parametrize(
    ("operation", "more"),
    [("perturb", "sigma"), ("dsm_loss", None), ("dsm_loss_and_gradient", "upstream")],
)
def test_training_operation(
    benchmark: BenchmarkFixture,
    launched: tuple[Tensor, dict[str, Any]],
    operation: str,
    more: str | None,
) -> None:
    x, which = launched
    given = which if more is None else {**which, more: torch.ones(len(x), device=DEVICE)}
    call = getattr(ops, operation)
    repeatedly(benchmark, lambda: call(x, backend="triton", **given))
