"""The story of the 2019 paper on a mixture with a known score: ⅕ N((-5,-5), I) + ⅘ N((5,5), I)."""

import pytest
import torch
from scipy import stats

import ncsn_fast as nf

MEANS = torch.tensor([[-5.0, -5.0], [5.0, 5.0]])
WEIGHTS = torch.tensor([0.2, 0.8])
SIGMAS = nf.geometric_sigmas(20.0, 0.01, 40)
N = 4000


def mixture_score(x, sigma):
    """∇ log p_σ(x): every component is blurred to the variance 1 + σ²."""
    variance = 1 + torch.as_tensor(sigma).reshape(-1, 1) ** 2
    towards = MEANS[None] - x[:, None]
    share = (WEIGHTS.log() - 0.5 * towards.square().sum(2) / variance).softmax(1)
    return (share[..., None] * towards).sum(1) / variance


def uniform_start():
    """U[-8, 8)² for N points."""
    u = nf.noise.uniform((2,), seed=0, stream=nf.noise.INITIAL, sample_ids=range(N))
    return 16 * u - 8


@pytest.fixture(scope="module")
def annealed():
    score = nf.Score(mixture_score, "score", "sigma")
    sampler = nf.Sampler(score, (2,), SIGMAS, step_size=2e-5, steps_per_level=40)
    return sampler(N, seed=1, initial=uniform_start())


def left(x):
    return x.sum(1) < 0


def test_plain_langevin_gets_the_weights_wrong():
    end = nf.langevin(lambda x: mixture_score(x, 0.0), uniform_start(), 0.05, 1000, seed=1)
    share = float(left(end).float().mean())
    assert share == pytest.approx(0.5, abs=0.05)  # the start decides, not the law


def test_annealed_langevin_gets_the_weights_right(annealed):
    assert float(left(annealed).float().mean()) == pytest.approx(0.2, abs=0.03)


@pytest.mark.parametrize("component", [0, 1])
@pytest.mark.parametrize("direction", [(1.0, 0.0), (0.0, 1.0), (0.6, 0.8), (0.8, -0.6)])
def test_projections_of_each_component_pass_kolmogorov_smirnov(annealed, component, direction):
    chosen = annealed[left(annealed) == (component == 0)] - MEANS[component]
    projected = chosen @ torch.tensor(direction)
    assert len(projected) > 600
    assert stats.kstest(projected.numpy(), "norm").pvalue > 0.01


def test_the_empty_middle_stays_empty(annealed):
    # Between the modes, more than 5 from both, lie 4e-6 of the law.
    distance = torch.cdist(annealed, MEANS).min(1).values
    assert int((distance > 5).sum()) <= 1
