"""What an operation costs in Python over the bare launch of its kernel, in one run.

Without a GPU the kernel is replaced by a function that does nothing, so that what is left on both
sides is Python: the difference between the two rows is what the operation adds. With a GPU the
tensors are too small for the device to matter.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from ncsn_fast import ops
from ncsn_fast.device import backends

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPE = (4, 3, 8, 8)
CALLS = 1000


class NoKernel:
    """Takes a launch and does nothing."""

    def __getitem__(self, grid: tuple[int]) -> Callable[..., None]:
        return lambda *arguments, **settings: None


@pytest.fixture(autouse=True)
def launches(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if DEVICE == "cpu":
        monkeypatch.setattr(backends, "missing", lambda *_: None)
        for name in ("sampler_update", "perturb", "dsm_loss"):
            kernels = pytest.importorskip(f"ncsn_fast.kernels.triton.{name}")
            monkeypatch.setattr(kernels, f"_{name}_kernel", NoKernel())
    with torch.no_grad():
        yield


def tensors() -> tuple[Tensor, dict[str, Any]]:
    x = torch.zeros(SHAPE, device=DEVICE)
    return x, {
        "row": torch.zeros(9, device=DEVICE),
        "seed": torch.tensor(0, device=DEVICE),
        "step": torch.tensor(0, device=DEVICE),
        "sample_ids": torch.arange(len(x), device=DEVICE),
    }


def repeatedly(call: Callable[[], Any]) -> Callable[[], None]:
    def calls() -> None:
        for _ in range(CALLS):
            call()
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    return calls


@pytest.mark.benchmark(group=f"{CALLS} updates, Python only: read ms as µs a call")
def test_operation(benchmark: BenchmarkFixture) -> None:
    x, which = tensors()
    benchmark(repeatedly(lambda: ops.sampler_update(x, x, backend="triton", **which)))


@pytest.mark.benchmark(group=f"{CALLS} updates, Python only: read ms as µs a call")
def test_bare_launch(benchmark: BenchmarkFixture) -> None:
    """The same launch written out, with a new tensor for the result as there."""
    from ncsn_fast.kernels.triton import sampler_update
    from ncsn_fast.kernels.triton.common import launch

    x, which = tensors()
    geometry = launch.over_all(x.shape, False)
    kernel = sampler_update._sampler_update_kernel

    def bare() -> None:
        out = torch.empty_like(x)
        kernel[geometry.grid](
            x, x, *which.values(), None, None, None, None, None, out, None, None,
            *geometry.numbers,
            ADD_NOISE=True,
            N_LAST=False,
            FAST_MATH=launch.FAST_MATH,
            **geometry.settings,
        )  # fmt: skip

    benchmark(repeatedly(bare))


@pytest.mark.benchmark(group=f"{CALLS} training operations, Python only: read ms as µs a call")
@pytest.mark.parametrize("operation", ["perturb", "dsm_loss", "dsm_loss_and_gradient"])
def test_training_operation(benchmark: BenchmarkFixture, operation: str) -> None:
    x, which = tensors()
    del which["row"]
    more: dict[str, Any] = {"perturb": {"sigma": torch.ones(len(x), device=DEVICE)}}
    more["dsm_loss_and_gradient"] = {"upstream": torch.ones(len(x), device=DEVICE)}
    given = {**which, **more.get(operation, {}), "backend": "triton"}
    call = getattr(ops, operation)
    benchmark(repeatedly(lambda: call(x, **given)))
