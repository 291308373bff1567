"""Log-likelihood by the probability flow ODE, against laws whose density is known."""

import math

import pytest
import torch

import ncsn_fast as nf
from ncsn_fast.likelihood import log_likelihood

MEAN = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
ROOT = torch.tensor([[1, 0.3, 0], [0, 0.5, 0.2], [0, 0, 0.7]], dtype=torch.float64)
COVARIANCE = ROOT @ ROOT.T
EYE = torch.eye(3, dtype=torch.float64)
X = (
    MEAN
    + torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) @ ROOT.T
)
LAW = torch.distributions.MultivariateNormal(MEAN, COVARIANCE + 1e-4 * EYE)


def gaussian_score(x, sigma):
    return -torch.linalg.solve(COVARIANCE + sigma[0] ** 2 * EYE, (x - MEAN).T).T


SCORE = nf.Score(gaussian_score, "score", "sigma", [2000.0, 0.01])


def error(**settings):
    found = log_likelihood(SCORE, X, exact=True, prior_mean=MEAN, **settings).log_likelihood
    return float((found - LAW.log_prob(X)).abs().max())


def test_the_density_of_a_gaussian_is_exact():
    assert error(steps=200) < 1e-5


@pytest.mark.parametrize(("method", "order"), [("heun", 2), ("rk4", 4)])
def test_the_order_of_convergence(method, order):
    coarse, fine = error(steps=100, method=method), error(steps=200, method=method)
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.25)


def test_hutchinsons_estimate_is_right_within_its_standard_error():
    found = log_likelihood(SCORE, X, probes=64, prior_mean=MEAN, seed=1)
    assert found.standard_error is not None
    off = (found.log_likelihood - LAW.log_prob(X)) / found.standard_error
    assert float(off.abs().max()) < 4
    assert found.evaluations == 200


def test_a_sample_does_not_depend_on_the_others():
    whole = log_likelihood(SCORE, X, seed=3, sample_ids=range(6))
    part = log_likelihood(SCORE, X[4:5], seed=3, sample_ids=[4])
    chunked = log_likelihood(SCORE, X, seed=3, batch_size=4)
    torch.testing.assert_close(part.log_likelihood, whole.log_likelihood[4:5])
    torch.testing.assert_close(chunked.log_likelihood, whole.log_likelihood)
    assert not torch.equal(log_likelihood(SCORE, X, seed=4).log_likelihood, whole.log_likelihood)


def test_a_label_only_network_steps_down_its_ladder():
    ladder = nf.geometric_sigmas(2000, 0.01, 400)

    def by_label(x, labels):
        return gaussian_score(x, ladder.double()[labels])

    found = log_likelihood(by_label, X, ladder, exact=True, prior_mean=MEAN)
    assert float((found.log_likelihood - LAW.log_prob(X)).abs().max()) < 0.01
    with pytest.raises(ValueError, match="knows only its levels"):
        log_likelihood(by_label, X, ladder, steps=10)


def test_rescaling_and_grey_levels_are_in_the_bits():
    images = torch.zeros(6, 3, dtype=torch.uint8)
    plain = log_likelihood(SCORE, X, seed=0)
    scaled = log_likelihood(SCORE, X, seed=0, rescaled=True)
    torch.testing.assert_close(scaled.bits_per_dim, plain.bits_per_dim - 1)
    pixels = log_likelihood(SCORE, images.float().double(), grey_levels=256, seed=0)
    expected = -pixels.log_likelihood / (3 * math.log(2)) + 8
    torch.testing.assert_close(pixels.bits_per_dim, expected)


@pytest.mark.parametrize(
    ("x", "settings", "message"),
    [
        (X * math.nan, {}, "not finite"),
        (X[0], {}, "give a tensor"),
        (X, {"probes": 0}, "probes = 0"),
        (X, {"grey_levels": 256}, "does not hold images of 256"),
        (X, {"prior_std": -1.0}, "prior_std"),
        (X, {"prior_mean": torch.zeros(2)}, "prior_mean has shape"),
        (X, {"method": "euler"}, "solver"),
    ],
)
def test_bad_input_is_refused(x, settings, message):
    with pytest.raises(ValueError, match=message):
        log_likelihood(SCORE, x, **settings)
