"""What the engine costs beside the network: a chain against its network calls alone, in one run."""

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

import ncsn_fast as nf
from ncsn_fast.models.base import ScoreNetwork

LEVELS, STEPS = 10, 2


def image_network() -> tuple[ScoreNetwork, int]:
    """NCSNv2 of 32 channels on images of 3×32×32, batch 16."""
    return nf.NCSNv2(channels=3, image_size=32, ngf=32, sigmas=ladder()), 16


def point_network() -> tuple[ScoreNetwork, int]:
    """A small network for points in the plane, 1,000 of them."""
    return nf.MLPScore(dim=2, sigmas=ladder()), 1000


def ladder() -> torch.Tensor:
    return nf.geometric_sigmas(50, 0.01, LEVELS)


NETWORKS = {"images": image_network, "points": point_network}


@pytest.mark.parametrize("name", NETWORKS)
def test_chain(benchmark: BenchmarkFixture, name: str) -> None:
    benchmark.group = f"{LEVELS * STEPS} steps, {name}"
    torch.manual_seed(0)
    net, batch = NETWORKS[name]()
    sampler = nf.Sampler(net, step_size=6e-6, steps_per_level=STEPS, denoise=False)
    x = benchmark(sampler, batch, seed=0, batch_size=batch)
    assert torch.isfinite(x).all()


@pytest.mark.parametrize("name", NETWORKS)
def test_network_calls_alone(benchmark: BenchmarkFixture, name: str) -> None:
    benchmark.group = f"{LEVELS * STEPS} steps, {name}"
    torch.manual_seed(0)
    net, batch = NETWORKS[name]()
    net.eval()
    x = torch.rand(batch, *net.shape)
    labels = torch.zeros(batch, dtype=torch.int64)

    @torch.no_grad()
    def calls() -> torch.Tensor:
        for _ in range(LEVELS * STEPS):
            n = net.normalized(x, labels)
        return n

    assert torch.isfinite(benchmark(calls)).all()
