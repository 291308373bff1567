"""Counter-based noise against torch.randn, 2²² normals, in one run."""

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from ncsn_fast import noise

IMAGES, SHAPE = 1365, (3, 32, 32)  # 4.2 million values


@pytest.mark.benchmark(group="4.2 million normals")
def test_philox_normals(benchmark: BenchmarkFixture) -> None:
    ids = torch.arange(IMAGES)
    z = benchmark(noise.normal, SHAPE, seed=0, stream=noise.SAMPLER, sample_ids=ids)
    assert z.shape == (IMAGES, *SHAPE)


@pytest.mark.benchmark(group="4.2 million normals")
def test_torch_randn(benchmark: BenchmarkFixture) -> None:
    z = benchmark(torch.randn, IMAGES, *SHAPE)
    assert z.shape == (IMAGES, *SHAPE)
