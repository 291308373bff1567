"""Posterior sampling: against closed forms, and drifts against the published formulas.

A Gaussian prior has an exact score at every noise level, p_σ = N(μ, Σ + σ²I), and with a linear
measurement of Gaussian noise its posterior is Gaussian. The chain is then a linear recursion too,
so that the law of its end is known to rounding: how far that is from the posterior is checked
first, then the samples are compared with the posterior.
"""

import numpy as np
import pytest
import torch
from gaussian_problem import SIGMAS, STEP_SIZE, N, distances, draw, problem, whitened
from operator_cases import CASES, DIFFERING, SAMPLES, compound
from scipy import stats

import ncsn_fast as nf
from ncsn_fast.guidance.operators import MIMO, MRI, Dense, Mask, Operator
from ncsn_fast.guidance.posterior import gaussian_likelihood, score_scaled
from ncsn_fast.guidance.through import diffpir, mmps
from ncsn_fast.reference import per_sample

pytest_plugins = ["helpers.recorded_capture"]


@pytest.mark.parametrize("name", CASES)
def test_samples_have_the_mean_and_covariance_of_the_posterior(name):
    case = problem(name)
    x = case.sampler()(N, seed=0, guidance=case.guidance()).flatten(1).double()
    white = whitened(x, case.end_of_chain())
    for value, freedom in distances(white.mean(0), white.T.cov(), N):
        assert stats.chi2.sf(value, freedom) > 1e-3


@pytest.mark.parametrize("name", CASES)
def test_the_law_of_those_chains_is_the_posterior_within_the_error_of_the_samples(name):
    case = problem(name)
    law = case.posterior(float(SIGMAS[-1]))
    mean, covariance = case.end_of_chain()
    factor = torch.linalg.cholesky(law[1])
    white = torch.linalg.solve_triangular(factor, covariance, upper=False)
    white = torch.linalg.solve_triangular(factor, white.T, upper=False)
    for value, freedom in distances(whitened(mean[None], law)[0], white, N):
        assert value < 2 * (2 * freedom) ** 0.5  # twice the spread of that χ²


@pytest.mark.parametrize("annealed", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_the_drift_is_the_score_of_the_measurement(name, annealed):
    case = problem(name)
    x = draw(5, 3, *case.operator.shape).requires_grad_()
    residual = x.flatten(1) @ case.a.T - case.y.flatten()
    variance = 0.7**2 + (0.4**2 if annealed else 0)
    log_likelihood = -residual.square().sum() / (2 * variance)
    (expected,) = torch.autograd.grad(log_likelihood, x)
    guidance = gaussian_likelihood(case.operator, case.y, 0.7, annealed)
    found = guidance(x.detach(), x.detach(), 0.4, 0)
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-10)


def complex_of(x):
    return torch.complex(x[:, 0], x[:, 1])


def test_the_drift_of_channels_is_the_published_one():
    pilots, power, sigma = compound(3, 5), 0.3, 0.4
    x, y = draw(6, 2, 2, 4, 3), draw(7, 2, 2, 4, 5)
    guidance = gaussian_likelihood(MIMO(pilots, 4), y, (power / 2) ** 0.5)
    h, measured = complex_of(x), complex_of(y)
    expected = -(h @ pilots - measured) @ pilots.conj().T / (power / 2 + sigma**2)
    torch.testing.assert_close(complex_of(guidance(x, x, sigma, 0)), expected)


def test_the_drift_of_mri_is_the_published_one_per_sample():
    coils, mask, sigma, weight = compound(3, 4, 6), (draw(8, 4, 6) > 0).double(), 0.4, 1.7
    x, n, y = draw(9, 2, 2, 4, 6), draw(10, 2, 2, 4, 6), draw(11, 1, 3, 2, 4, 6)

    def transposed(k_space):
        return (coils.conj() * torch.fft.ifft2(mask * k_space, norm="ortho")).sum(1)

    k_space = mask * torch.fft.fft2(coils * complex_of(x)[:, None], norm="ortho")
    gradient = transposed(k_space) - transposed(torch.complex(y[:, :, 0], y[:, :, 1]))
    found = complex_of(score_scaled(MRI(coils, mask), y, weight)(x, n, sigma, 0))
    for i in range(2):
        score = n[i] / sigma
        expected = -weight * score.norm() / gradient[i].norm() * gradient[i]
        torch.testing.assert_close(found[i], expected)


def test_a_measurement_that_is_met_exactly_gives_no_drift():
    x = torch.rand(2, 3)
    found = score_scaled(Mask(torch.ones(3)), x.clone())(x, x, 0.1, 0)
    assert torch.equal(found, torch.zeros(2, 3))


def test_one_measurement_needs_no_leading_dimension():
    x, operator = torch.rand(4, 3), Dense(torch.ones(2, 3))
    one = gaussian_likelihood(operator, torch.ones(2), 0.1)
    same = gaussian_likelihood(operator, torch.ones(1, 2), 0.1)
    assert torch.equal(one(x, x, 0.5, 0), same(x, x, 0.5, 0))


def test_the_drift_is_computed_in_32_bits_where_the_network_is_not():
    x, guidance = torch.rand(4, 3), gaussian_likelihood(Dense(torch.rand(2, 3)), torch.ones(2), 0.1)
    expected = guidance(x, x, 0.5, 0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(guidance(x, x, 0.5, 0), expected)


def test_clip_and_temperature_go_with_a_measurement():
    case = problem("mask")
    guidance, start = case.guidance(), torch.zeros(2, *case.operator.shape)
    call = {"seed": 1, "guidance": guidance, "initial": start, "clip": 0.1, "temperature": 0.0}
    _, states = case.sampler()(2, every=1, **call)
    sigma = SIGMAS[:1].expand(2)
    score = case.score(start, sigma)
    score = score * (0.1 / score.flatten(1).norm(dim=1)).view(-1, 1, 1)
    alpha = STEP_SIZE * float(SIGMAS[0] / SIGMAS[-1]) ** 2
    drift = guidance(start, start, float(SIGMAS[0]), 0)
    torch.testing.assert_close(states[1], start + alpha * (score + drift))


def test_replay_equals_eager_bit_for_bit(recorded):
    for name in ("blur", "dense", "mri", "mimo", "downsample"):
        case = problem(name)
        for guidance in (case.guidance(), score_scaled(case.operator, case.y.float())):
            eager, captured = (
                case.sampler(steps_per_level=5, graph=graph)(3, seed=2, guidance=guidance)
                for graph in (False, True)
            )
            assert torch.equal(eager, captured)
    assert len(recorded.captured) == 10


def score_of_any_shape(x, sigma):
    return -x / (1 + per_sample(sigma, x) ** 2)


def differing(name):
    """An operator that differs from sample to sample, and a measurement of each."""
    given, make = DIFFERING[name]
    operator = make(*given)
    return operator, operator.forward(draw(12, SAMPLES, *operator.shape)).float()


@pytest.mark.parametrize("name", DIFFERING)
def test_each_sample_is_guided_by_its_own_operator_in_every_chunk(name):
    operator, y = differing(name)
    given, make = DIFFERING[name]
    sampler = nf.Sampler(
        nf.Score(score_of_any_shape, "score", "sigma"), operator.shape, SIGMAS, "euler"
    )
    noise_std = 0.5 * operator.norm()
    drifts = (
        lambda a, y: gaussian_likelihood(a, y, noise_std),
        score_scaled,
        lambda a, y: mmps(a, y, noise_std),
        lambda a, y: diffpir(a, y, noise_std),
    )
    for drift in drifts:
        cut, whole = (
            sampler(SAMPLES, seed=3, guidance=drift(operator, y), batch_size=size)
            for size in (2, 5)
        )
        alone = [
            sampler(
                1,
                seed=3,
                sample_ids=[i],
                guidance=drift(make(*(one[i : i + 1] for one in given)), y[i]),
            )
            for i in range(SAMPLES)
        ]
        torch.testing.assert_close(whole, torch.cat(alone), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(cut, whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", DIFFERING)
def test_a_captured_chain_has_the_operators_of_its_chunk(name, recorded):
    operator, y = differing(name)
    guidance = gaussian_likelihood(operator, y, 0.5 * operator.norm())
    eager, captured = (
        nf.Sampler(
            nf.Score(score_of_any_shape, "score", "sigma"),
            operator.shape,
            nf.geometric_sigmas(1.0, 0.4, 12),
            "euler",
            graph=graph,
        )(SAMPLES, seed=2, guidance=guidance, batch_size=2)
        for graph in (False, True)
    )
    assert torch.equal(eager, captured)
    assert recorded.captured


def test_an_operator_of_another_number_of_samples_is_refused():
    operator = Mask(torch.ones(3, 4), (4,))
    guidance = gaussian_likelihood(operator, torch.zeros(4), 1.0)
    sampler = nf.Sampler(nf.Score(score_of_any_shape, "score", "sigma"), (4,), SIGMAS, "euler")
    with pytest.raises(ValueError, match=r"Mask has mask of 3 samples, for n = 2: give one for"):
        sampler(2, guidance=guidance)


@pytest.mark.gpu
@pytest.mark.parametrize("name", CASES)
def test_a_replay_on_a_gpu_equals_eager(name):
    case = problem(name)
    guidance = gaussian_likelihood(case.operator, case.y.float().cuda(), case.noise_std)
    eager, captured = (
        nf.Sampler(
            nf.Score(score_of_any_shape, "score", "sigma"),
            case.operator.shape,
            SIGMAS,
            step_size=STEP_SIZE,
            steps_per_level=5,
            device="cuda",
            graph=graph,
        )(3, seed=2, guidance=guidance)
        for graph in (False, True)
    )
    torch.testing.assert_close(captured, eager, atol=1e-5, rtol=1e-5)


DENSE = Dense(torch.ones(2, 3))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: gaussian_likelihood(DENSE, torch.ones(3), 1.0), r"y has shape \(3,\); Dense mea"),
        (lambda: gaussian_likelihood(DENSE, torch.ones(0, 2), 1.0), "y has shape"),
        (lambda: gaussian_likelihood(DENSE, [1.0, 2.0], 1.0), "y is list: give a real"),
        (lambda: gaussian_likelihood(DENSE, compound(2), 1.0), "complex numbers are two channels"),
        (lambda: gaussian_likelihood(DENSE, torch.full((2,), torch.nan), 1.0), "not finite: mask"),
        (lambda: gaussian_likelihood(DENSE, torch.ones(2), -1.0), "noise_std = -1.0"),
        (lambda: gaussian_likelihood(DENSE, torch.ones(2), 0.0, False), "number, positive"),
        (lambda: score_scaled(DENSE, torch.ones(2), 0.0), "weight = 0.0: give a finite positive"),
    ],
)
def test_measurements_without_a_meaning_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_steps_in_which_the_likelihood_diverges_are_refused():
    table = problem("dense").sampler().table
    loud = Dense(30 * torch.ones(1, 3))
    y = torch.ones(1)
    with pytest.raises(ValueError, match=r"likelihood diverges at σ = 1:.*‖A‖ = 51.96"):
        gaussian_likelihood(loud, y, 0.1).check(table, 2, (3,))
    with pytest.raises(ValueError, match="annealed=True"):
        gaussian_likelihood(Dense(torch.ones(1, 3)), y, 0.1, False).check(table, 2, (3,))
    gaussian_likelihood(Dense(torch.ones(1, 3)), y, 0.1).check(table, 2, (3,))


def test_the_limit_of_stability_is_where_the_residual_grows():
    row = nf.Table.of([0.5], b=0.6 / 0.5)  # w = 0.6
    for size in (1.0, 1.1):
        operator = Dense(size * torch.ones(1, 1))
        limit = (0.6 * size**2 / 2 - 0.25) ** 0.5  # of the noise_std
        for noise_std, refused in ((limit * 1.02, False), (limit * 0.98, True)):
            guidance = gaussian_likelihood(operator, torch.zeros(1), noise_std)
            x = torch.ones(1, 1)
            assert (abs(float(x + 0.6 * guidance(x, x, 0.5, 0))) > 1) == refused
            if refused:
                with pytest.raises(ValueError, match="diverges"):
                    guidance.check(row, 1, (1,))
            else:
                guidance.check(row, 1, (1,))


@pytest.mark.parametrize("dtype", ["float32", "float64", ">f4"])
def test_a_measurement_may_be_an_array(dtype):
    x = torch.randn(3, 3)
    y = np.array([1.0, 2.0], dtype)
    for make in (lambda y: gaussian_likelihood(DENSE, y, 0.5), lambda y: score_scaled(DENSE, y)):
        found, expected = make(y)(x, x, 0.1, 0), make(torch.tensor([1.0, 2.0]))(x, x, 0.1, 0)
        assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: gaussian_likelihood(len, torch.ones(2), 1.0), "operator is a builtin_function"),
        (lambda: gaussian_likelihood(DENSE, np.ones(2, complex), 1.0), r"y is torch.complex128"),
        (lambda: gaussian_likelihood(DENSE, np.ones(2, int), 1.0), "y is torch.int64"),
        (
            lambda: gaussian_likelihood(DENSE, np.array(["a", "b"]), 1.0),
            "y is a ndarray that is no",
        ),
        (lambda: gaussian_likelihood(DENSE, torch.ones(2), "0.1"), "noise_std = '0.1'"),
        (lambda: gaussian_likelihood(DENSE, torch.ones(2), None), "noise_std = None"),
        (lambda: gaussian_likelihood(DENSE, torch.ones(2), float("nan")), "noise_std = nan"),
        (lambda: gaussian_likelihood(DENSE, torch.ones(2), 1.0, "no"), "annealed = 'no'"),
        (lambda: score_scaled(DENSE, torch.ones(2), "1"), "weight = '1'"),
        (lambda: score_scaled(DENSE, torch.ones(2), torch.ones(2)), r"weight = tensor"),
        (lambda: score_scaled(DENSE, torch.ones(2), float("nan")), "weight = nan"),
    ],
)
def test_settings_of_the_wrong_kind_are_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_an_operator_that_measures_another_shape_than_it_says_is_refused():
    class Wrong(Operator):
        def __init__(self):
            super().__init__((3,), (2,))

        def forward(self, x):
            return x[:, :1]

        def adjoint(self, y):
            return y.expand(-1, 3)

    with pytest.raises(ValueError, match=r"Wrong.forward returned \(2, 1\).* \(2, 2\)"):
        score_scaled(Wrong(), torch.ones(2))
    guidance = score_scaled(Dense(torch.ones(2, 3)), torch.ones(2))
    object.__setattr__(guidance, "operator", Wrong())  # as if it measured so from now on
    with pytest.raises(ValueError, match=r"operator.forward\(\) returned \(4, 1\).* \(4, 2\)"):
        guidance(torch.ones(4, 3), torch.ones(4, 3), 1.0, 0)
