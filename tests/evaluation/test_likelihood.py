"""Log-likelihood by the probability flow ODE, against laws whose density is known."""

import math

import pytest
import torch
from helpers import networks

import ncsn_fast as nf
from ncsn_fast.evaluation.likelihood import log_likelihood
from ncsn_fast.models.space import Space

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
    assert float(off.square().mean()) > 0.1  # nor is the error far smaller than said
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


def gaussian(mean, std, dim=1):
    """The score of N(mean, std²) in every coordinate."""
    return nf.Score(
        lambda x, sigma: (mean - x) / (std**2 + sigma[0] ** 2), "score", "sigma", [300.0, 1e-3]
    )


@pytest.mark.parametrize(
    ("kind", "sigma_data"),
    [("normalized", None), ("epsilon", None), ("epsilon", 1.0), ("denoiser", None), ("v", 1.0)],
)
def test_networks_of_every_kind_give_the_same(kind, sigma_data):
    def network(seen, sigma):
        c_in = 1.0 if sigma_data is None else (sigma[0] ** 2 + 1).rsqrt()
        x, s = seen / c_in, sigma[0]
        n = s * gaussian_score(x, sigma)
        outputs = {"normalized": n, "epsilon": -n, "denoiser": x + s * n}
        # v = (ε - σx₀)/√(1 + σ²), with ε = -n and x₀ = x + σn
        return outputs[kind] if kind in outputs else (-n - s * (x + s * n)) * c_in

    score = nf.Score(network, kind, "sigma", [2000.0, 0.01], sigma_data=sigma_data)
    found = log_likelihood(score, X, steps=200, exact=True, prior_mean=MEAN)
    assert float((found.log_likelihood - LAW.log_prob(X)).abs().max()) < 1e-5


CENTRES = torch.tensor([[-2.0, 0.0], [1.5, 1.0], [0.0, -1.0]], dtype=torch.float64)
SHARES = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
POINTS = torch.tensor([[-2.0, 0.1], [0.0, 0.0], [1.0, 1.0], [-0.5, -0.8]], dtype=torch.float64)


def mixture(x, sigma, shares=SHARES):
    """ln of three normal laws of standard deviation 0.4, blurred by σ, up to a constant."""
    s2 = 0.16 + sigma**2
    parts = -(x[:, None] - CENTRES).square().sum(-1) / (2 * s2) + shares.log()
    return parts.logsumexp(-1) - math.log(2 * math.pi * s2)


def mixture_score(x, sigma, shares=SHARES):
    return torch.func.grad(lambda x: mixture(x, float(sigma[0]), shares).sum())(x)


MIXTURE = nf.Score(mixture_score, "score", "sigma", [2000.0, 0.3])


def test_the_density_is_that_of_a_mixture_blurred_by_the_smallest_level():
    found = log_likelihood(MIXTURE, POINTS, exact=True, steps=100)
    torch.testing.assert_close(found.log_likelihood, mixture(POINTS, 0.3), atol=1e-3, rtol=0)
    assert float((mixture(POINTS, 0.3) - mixture(POINTS, 0.0)).abs().min()) > 0.02


@pytest.mark.parametrize("chunk", [4, 2])
def test_further_inputs_and_guidance_reach_the_network(chunk):
    # Of normal laws about y and about 0 the guided score is that about scale·y.
    def network(x, sigma, y):
        return (y[:, None] - x) / (0.16 + sigma[0] ** 2)

    y = torch.tensor([1.0, -1.0, 0.5, 0.0], dtype=torch.float64)
    score = nf.Score(network, "score", "sigma", [2000.0, 0.01])
    guided = nf.guided(score, 2.0, unconditional={"y": 0.0})
    settings = {"exact": True, "steps": 400, "extra": {"y": y}, "batch_size": chunk}
    for used, mean in [(score, y), (guided, 2 * y)]:
        law = torch.distributions.Normal(mean[:, None], math.sqrt(0.16 + 1e-4))
        expected = law.log_prob(POINTS).sum(1)
        found = log_likelihood(used, POINTS, **settings).log_likelihood
        torch.testing.assert_close(found, expected, atol=0.02, rtol=0)


@pytest.mark.parametrize("space", [{}, {"rescaled": True}, {"logit_transform": True}])
def test_the_density_of_images_sums_to_one_in_every_space(space):
    y = (torch.arange(400, dtype=torch.float64)[:, None] + 0.5) / 400
    states = Space(**space).enter(y)
    # Inside of the range of the states, but for far tails.
    mean, std = {"": (0.4, 0.1), "rescaled": (0.2, 0.2), "logit_transform": (0.3, 1.0)}[
        "".join(space)
    ]
    found = log_likelihood(gaussian(mean, std), states, exact=True, steps=100, **space)
    assert float((2**-found.bits_per_dim).mean()) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("space", [{}, {"rescaled": True}, {"logit_transform": True}])
@pytest.mark.parametrize("as_bytes", [True, False])
def test_the_probabilities_of_all_grey_levels_sum_to_one(space, as_bytes):
    # Many times each, as they are dequantised at random.
    levels = torch.arange(17, dtype=torch.uint8).repeat(300)[:, None]
    images = levels if as_bytes else levels.double() / 16
    mean, std = {"": (0.5, 0.15), "rescaled": (0.2, 0.25), "logit_transform": (0.2, 1.0)}[
        "".join(space)
    ]
    settings = {"exact": True, "grey_levels": 17, "seed": 0, "batch_size": 6000, **space}
    found = log_likelihood(gaussian(mean, std), images, **settings)
    assert float((2**-found.bits_per_dim).sum() / 300) == pytest.approx(1, abs=0.01)


def test_dequantisation_covers_the_cell_of_a_grey_level():
    # The mean over u of the density at (k + u)/2 is twice the probability of the cell.
    images = torch.zeros(4000, 1, dtype=torch.uint8)
    found = log_likelihood(gaussian(0.3, 0.2), images, exact=True, grey_levels=2, seed=0)
    law = torch.distributions.Normal(0.3, 0.2)
    expected = float(law.cdf(torch.tensor(0.5)) - law.cdf(torch.tensor(0.0)))
    assert float((2**-found.bits_per_dim).mean()) == pytest.approx(expected, abs=0.02)


def test_bits_are_per_value():
    one = log_likelihood(gaussian(0.4, 0.1), torch.full((1, 1), 0.3), exact=True)
    many = log_likelihood(gaussian(0.4, 0.1), torch.full((1, 2, 3), 0.3), exact=True)
    torch.testing.assert_close(many.bits_per_dim, one.bits_per_dim)
    torch.testing.assert_close(many.log_likelihood, 6 * one.log_likelihood)


def test_a_network_of_labels_that_takes_the_nearest_steps_between_them():
    ladder = nf.geometric_sigmas(2000, 0.01, 2000)

    def by_label(x, labels):
        return gaussian_score(x, ladder.double()[labels])

    score = nf.Score(by_label, "score", "label", ladder, quantize=True)
    found = log_likelihood(score, X, exact=True, prior_mean=MEAN, steps=150)
    assert float((found.log_likelihood - LAW.log_prob(X)).abs().max()) < 0.05
    assert found.evaluations == 600


LADDER = nf.geometric_sigmas(5, 0.05, 20)


def network(name):
    if name == "MLPScore":
        torch.manual_seed(0)
        return nf.MLPScore(2, 16, 1, sigmas=LADDER)
    return networks.network(name, sigmas=LADDER, channels=2, ngf=2)


@pytest.mark.parametrize("name", ["NCSN", "NCSNv2", "MLPScore"])
def test_networks_of_this_package_are_taken_as_they_are(name):
    net = network(name).train()
    x = torch.rand(2, *net.shape, generator=torch.Generator().manual_seed(0))
    settings = {"probes": 2, "seed": 0, "steps": 15 if name == "NCSNv2" else None}
    found = log_likelihood(net, x, **settings)
    assert net.training
    net.eval()
    if name == "NCSNv2":  # its body does not see the noise level, so any will do
        expected = log_likelihood(
            nf.Score(lambda x, s: net.normalized(x, None) / s[0], "score", "sigma", LADDER),
            x,
            prior_mean=0.5,
            **settings,
        )
    else:
        mean = 0.5 if name == "NCSN" else 0.0
        expected = log_likelihood(
            lambda x, labels: net(x, labels), x, LADDER, prior_mean=mean, **settings
        )
    assert found.evaluations == expected.evaluations == (60 if name == "NCSNv2" else 38)
    torch.testing.assert_close(found.log_likelihood, expected.log_likelihood, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("rescaled", [False, True])
def test_a_guided_network_of_this_package_has_its_space(rescaled):
    """Scale 1 is the network itself, in bits of the same images about the same mean."""
    net = networks.network(classes=2, rescaled=rescaled, ngf=2).eval()
    x = torch.rand(2, *net.shape, generator=torch.Generator().manual_seed(0))
    settings = {"seed": 0, "steps": 2, "extra": {"classes": torch.tensor([0, 1])}}
    expected = log_likelihood(net, x, **settings)
    for score in (nf.guided(net, 1.0), nf.Score(net.normalized, "normalized", "none", net.sigmas)):
        found = log_likelihood(score, x, **settings)
        torch.testing.assert_close(found.bits_per_dim, expected.bits_per_dim)
    with pytest.raises(ValueError, match="x has samples of"):
        log_likelihood(nf.guided(net, 1.0), x[:, :1], **settings)


def test_the_exact_divergence_is_the_mean_over_all_probes():
    net = network("MLPScore")
    with torch.no_grad():  # the new one is a multiple of x, where all probes agree
        for parameter in net.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    x = torch.rand(2, 2, generator=torch.Generator().manual_seed(0))
    exact = log_likelihood(net, x, exact=True)
    many = log_likelihood(net, x, probes=100, seed=0)
    assert many.standard_error is not None
    off = (many.log_likelihood - exact.log_likelihood) / many.standard_error
    assert float(off.abs().max()) < 4
    assert exact.standard_error is not None
    assert float(exact.standard_error.abs().max()) == 0


def test_progress_counts_steps_times_samples():
    seen = []
    log_likelihood(SCORE, X, steps=5, batch_size=4, progress=lambda *now: seen.append(now))
    assert seen[-1] == (30, 30)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_a_batch_that_does_not_fit_is_halved(caplog):
    seen = []

    def large(x, sigma):
        if len(x) > 2 and sigma[0] > 10:  # after some steps, which progress takes back
            raise torch.OutOfMemoryError("CUDA out of memory")
        return gaussian_score(x, sigma)

    score = nf.Score(large, "score", "sigma", [2000.0, 0.01])
    settings = {"seed": 0, "probes": 2, "steps": 5}
    found = log_likelihood(score, X, progress=lambda *now: seen.append(now), **settings)
    expected = log_likelihood(SCORE, X, **settings)
    torch.testing.assert_close(found.log_likelihood, expected.log_likelihood)
    torch.testing.assert_close(found.standard_error, expected.standard_error)
    assert seen[-1] == (30, 30)
    assert max(done for done, _ in seen) == 30
    assert caplog.messages == [message for message in caplog.messages if "do not fit" in message]
    assert len(caplog.messages) == 1


def test_a_network_that_breaks_is_told_with_its_level():
    def breaks(x, sigma):
        return gaussian_score(x, sigma) + (math.nan if sigma[0] > 10 else 0.0)

    with pytest.raises(RuntimeError, match="not finite between σ = 9"):
        log_likelihood(nf.Score(breaks, "score", "sigma", [2000.0, 0.01]), X)


def test_a_network_that_hides_its_gradient_is_refused():
    hides = nf.Score(lambda x, s: gaussian_score(x.detach(), s), "score", "sigma", [9.0, 0.1])
    with pytest.raises(ValueError, match="does not depend on x as far as autograd"):
        log_likelihood(hides, X)


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


def test_the_priors_mean_may_be_a_view_of_an_array():
    reversed_twice = MEAN.numpy()[::-1].copy()[::-1]
    found = log_likelihood(SCORE, X, exact=True, prior_mean=reversed_twice, steps=20)
    expected = log_likelihood(SCORE, X, exact=True, prior_mean=MEAN, steps=20)
    assert torch.equal(found.log_likelihood, expected.log_likelihood)


@pytest.mark.parametrize("kind", ["ours", "another"])
def test_autocast_around_it_changes_nothing(kind):
    torch.manual_seed(0)
    net = nf.NCSNv2(channels=1, image_size=8, ngf=4, sigmas=LADDER).eval()
    score = net if kind == "ours" else nf.Score(net.normalized, "normalized", "none", LADDER)
    x = torch.rand(2, 1, 8, 8)
    expected = log_likelihood(score, x, steps=2, seed=0).log_likelihood
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = log_likelihood(score, x, steps=2, seed=0).log_likelihood
    assert torch.equal(found, expected)
