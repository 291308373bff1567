"""Guidances with inputs of their own: cut into chunks with the samples, checked before any work."""

import pytest
import torch

import ncsn_fast as nf
from ncsn_fast.guidance.base import Guidance
from ncsn_fast.guidance.operators import Dense
from ncsn_fast.guidance.posterior import gaussian_likelihood

pytest_plugins = ["helpers.recorded_capture"]

SIGMAS = nf.geometric_sigmas(1.0, 0.1, 6)
OPERATOR = Dense(torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, -1.0]]))
Y = torch.tensor([[0.0, 1.0], [2.0, -1.0], [5.0, 0.0], [-3.0, 3.0], [1.0, 1.0]])


def sampler(graph=False):
    score = nf.Score(lambda x, sigma: -x / (1 + sigma[:, None] ** 2), "score", "sigma")
    settings = {"step_size": 1e-3, "steps_per_level": 4}
    return nf.Sampler(score, (3,), SIGMAS, graph=graph, **settings)


def run(y, n=5, graph=False, **call):
    guidance = gaussian_likelihood(OPERATOR, y, 0.2)
    return sampler(graph)(n, seed=1, guidance=guidance, **call)


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("batch_size", [5, 3, 2, 1])
def test_measurements_go_with_their_samples(recorded, batch_size, graph):
    expected = torch.cat([run(Y[i : i + 1], 1, sample_ids=[i]) for i in range(5)])
    torch.testing.assert_close(run(Y, batch_size=batch_size, graph=graph), expected)


@pytest.mark.parametrize("graph", [False, True])
def test_one_measurement_goes_to_all_samples(recorded, graph):
    expected = run(Y[:1].expand(5, -1))
    torch.testing.assert_close(run(Y[:1], batch_size=2, graph=graph), expected)


def test_chunks_of_one_size_share_a_graph(recorded):
    run(Y[:4], 4, batch_size=2, graph=True)
    assert len(recorded.captured) == 1


def test_measurements_that_are_not_one_per_sample_are_refused():
    for n, batch_size in ((4, 4), (10, 5), (1, 1)):
        with pytest.raises(ValueError, match=f"5 measurements for n = {n} samples"):
            run(Y, n, batch_size=batch_size)


def test_an_operator_for_other_samples_is_refused():
    guidance = gaussian_likelihood(Dense(torch.ones(2, 4)), Y, 0.2)
    with pytest.raises(ValueError, match=r"samples have shape \(3,\), those of Dense \(4,\)"):
        sampler()(5, guidance=guidance)


def test_a_likelihood_that_diverges_is_refused_before_any_work():
    guidance = gaussian_likelihood(Dense(100 * torch.ones(2, 3)), Y, 0.2)
    with pytest.raises(ValueError, match="the likelihood diverges at"):
        sampler()(5, guidance=guidance, progress=lambda done, total: pytest.fail("it began"))


def test_a_guidance_of_ones_own_has_inputs(recorded):
    class Towards(Guidance):
        @property
        def inputs(self):
            return {"target": Y, "strength": torch.full((1,), 3.0)}

        def __call__(self, x, n, sigma, row, target, strength):
            return strength * (target[:, :1] - x)

    expected = sampler()(5, seed=1, guidance=lambda x, n, sigma, row: 3 * (Y[:, :1] - x))
    for graph in (False, True):
        found = sampler(graph)(5, seed=1, guidance=Towards(), batch_size=2)
        torch.testing.assert_close(found, expected)


def test_only_the_rows_that_are_run_have_to_be_stable():
    guidance = gaussian_likelihood(OPERATOR, Y, 0.2, annealed=False)
    with pytest.raises(ValueError, match="diverges at σ = 1:"):
        sampler()(5, guidance=guidance)
    assert torch.isfinite(sampler()(5, guidance=guidance, start_level=3)).all()
