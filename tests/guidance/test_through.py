"""Guidance through the network: against dense formulas, closed posteriors, importance sampling."""

import math
from functools import partial

import pytest
import torch
from gaussian_problem import SIGMAS, N, distances, draw, problem, whitened
from operator_cases import CASES
from scipy import stats

import ncsn_fast as nf
from ncsn_fast.data.digits import digits
from ncsn_fast.guidance import Nonlinear, diffpir, dps, exact, mmps, pgdm, tmpd
from ncsn_fast.guidance.base import NetworkGuidance
from ncsn_fast.guidance.through import solve
from ncsn_fast.models.packed_conv import PackedConv

pytest_plugins = ["helpers.recorded_capture"]

SIGMA, NOISE_STD, DATA_STD, LAMBDA, ZETA = 0.7, 0.4, 1.3, 5.0, 0.3
ITERATIONS = 40  # more than any case has dimensions


def drift(score, shape, guidance, x, sigma=SIGMA, **settings):
    """What a guidance adds in a row of weight 1."""
    sampler = nf.Sampler(score, shape, method=nf.Table.of([sigma], w=1.0), **settings)
    return sampler(len(x), seed=0, initial=x, guidance=guidance) - x


class Dense:
    """All that the formulas have, as matrices, at states x (B, D) in float64."""

    def __init__(self, case, sigma, x):
        precision = case.prior_precision(sigma)
        self.jacobian = torch.eye(case.size, dtype=torch.float64) - sigma**2 * precision
        self.mean = x + sigma**2 * (case.mean - x) @ precision
        self.a, self.sigma = case.a, sigma
        self.residual = case.y.flatten() - self.mean @ case.a.T

    def pulled(self, inner, jacobian=None):
        """Jᵀ Aᵀ inner⁻¹ r."""
        u = torch.linalg.lstsq(inner, self.residual.T, driver="gelsd").solution.T
        return u @ self.a @ (self.jacobian if jacobian is None else jacobian)

    def bounded(self, g):
        """g, no longer than what moves A D by the residual's length."""
        moved = self.sigma**2 * (g @ self.a.T).norm(dim=1, keepdim=True)
        return g * (self.residual.norm(dim=1, keepdim=True) / moved).clamp(max=1)

    def expected(self, name):
        a, j, square = self.a, self.jacobian, self.sigma**2
        noise = NOISE_STD**2 * torch.eye(len(a), dtype=torch.float64)
        if name == "dps":
            length = self.residual.norm(dim=1, keepdim=True)
            return ZETA * self.residual / length @ a @ j
        if name == "pgdm":
            spread = square * DATA_STD**2 / (square + DATA_STD**2)
            return self.bounded(self.pulled(noise + spread * a @ a.T))
        if name == "tmpd":
            sums = square * (a @ j @ a.T).sum(1)
            return self.bounded(self.pulled(noise + torch.diag(sums.clamp(min=0))))
        if name == "mmps":
            return self.pulled(noise + square * a @ j @ a.T)
        return self.pulled(LAMBDA * noise + square * a @ a.T, torch.eye(len(j), dtype=j.dtype))


def guidances(operator, y):
    return {
        "dps": dps(operator, y, ZETA),
        "pgdm": pgdm(operator, y, NOISE_STD, DATA_STD, ITERATIONS),
        "tmpd": tmpd(operator, y, NOISE_STD),
        "mmps": mmps(operator, y, NOISE_STD, ITERATIONS),
        "diffpir": diffpir(operator, y, NOISE_STD, LAMBDA, ITERATIONS),
    }


RULES = ("dps", "pgdm", "tmpd", "mmps", "diffpir")


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", CASES)
def test_the_drift_is_the_formula(name, rule):
    case = problem(name)
    x = draw(21, 3, *case.operator.shape).float()
    guidance = guidances(case.operator, case.y.float())[rule]
    found = drift(nf.Score(case.score, "score", "sigma"), case.operator.shape, guidance, x)
    expected = Dense(case, SIGMA, x.flatten(1).double()).expected(rule).view(x.shape)
    torch.testing.assert_close(found.double(), expected, atol=2e-4, rtol=2e-3)


def linear(kind, case):
    """The exact network of a Gaussian prior, in a parametrisation."""

    def denoised(x, sigma):
        return x + sigma.view(-1, *(1,) * (x.ndim - 1)) ** 2 * case.score(x, sigma)

    def epsilon(x, sigma):
        return (x - denoised(x, sigma)) / sigma.view(-1, *(1,) * (x.ndim - 1))

    if kind == "edm":  # D = c_skip·x + c_out·F(c_in·x)

        def raw(seen, noise):
            sigma = (4 * noise).exp()
            c_in = (sigma**2 + 0.25).rsqrt().view(-1, *(1,) * (seen.ndim - 1))
            x = seen / c_in
            level = sigma.view(c_in.shape)
            return (denoised(x, sigma) - 0.25 * c_in**2 * x) / (0.5 * level * c_in)

        return nf.Score.edm(raw)
    fn = {"denoiser": denoised, "epsilon": epsilon, "score": case.score}[kind]
    return nf.Score(fn, kind, "sigma")


@pytest.mark.parametrize("kind", ["denoiser", "epsilon", "edm"])
def test_it_is_the_same_in_every_parametrisation(kind):
    case = problem("blur")
    x, y = draw(22, 4, *case.operator.shape).float(), case.y.float()
    shape = case.operator.shape
    for guidance in guidances(case.operator, y).values():
        expected = drift(linear("score", case), shape, guidance, x)
        found = drift(linear(kind, case), shape, guidance, x)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)


def test_which_are_exact_and_which_are_not():
    """Against ∇ log p(y | x): the relative error of the drift, of Gaussian priors."""

    def error(case, rule):
        x = draw(23, 50, *case.operator.shape).flatten(1)
        at = Dense(case, SIGMA, x)
        covariance = SIGMA**2 * at.jacobian
        noise = NOISE_STD**2 * torch.eye(len(case.a), dtype=torch.float64)
        truth = at.pulled(noise + case.a @ covariance @ case.a.T)
        return float((at.expected(rule) - truth).norm() / truth.norm())

    full, plain = problem("mask"), problem("mask")
    assert error(full, "mmps") < 1e-9
    assert error(full, "tmpd") > 0.01
    plain = type(plain)(*CASES["mask"])
    plain.rotation = torch.eye(plain.size, dtype=torch.float64)
    assert error(plain, "mmps") < 1e-9
    assert error(plain, "tmpd") < 1e-9
    assert error(plain, "pgdm") > 0.01
    plain.values = torch.full_like(plain.values, DATA_STD**2)
    assert error(plain, "pgdm") < 1e-9
    assert error(plain, "dps") > 0.1
    assert error(plain, "diffpir") > 0.1


class Guided:
    """The law of annealed Langevin chains with the exact likelihood of the noisy state."""

    def __init__(self, case):
        self.case = case

    def precision(self, sigma):
        case = self.case
        prior = case.prior_precision(sigma)
        j = torch.eye(case.size, dtype=torch.float64) - sigma**2 * prior
        inner = case.noise_std**2 * torch.eye(len(case.a), dtype=torch.float64)
        inner = inner + sigma**2 * case.a @ j @ case.a.T
        return prior + j.T @ case.a.T @ torch.linalg.solve(inner, case.a @ j)

    def posterior(self, sigma):
        """Of x₀ + σz given y."""
        covariance = torch.linalg.inv(self.precision(sigma))
        case = self.case
        true = torch.linalg.inv(torch.linalg.inv(case.prior_precision(0.0)))
        true = true + case.a.T @ case.a / case.noise_std**2
        pull = case.prior_precision(0.0) @ case.mean
        pull = pull + case.a.T @ case.y.flatten() / case.noise_std**2
        return torch.linalg.solve(true, pull), covariance


@pytest.mark.parametrize("name", ["mask", "blur", "dense"])
def test_chains_with_the_exact_one_end_in_the_posterior(name):
    case, law = problem(name), Guided(problem(name))
    guidance = mmps(case.operator, case.y.float(), case.noise_std, ITERATIONS)
    x = case.sampler()(N, seed=0, guidance=guidance).flatten(1).double()
    # The chain is a linear recursion, as in test_posterior, with another precision.
    mean, covariance = type(case).end_of_chain(_with(case, law))
    white = whitened(x, (mean, covariance))
    for value, freedom in distances(white.mean(0), white.T.cov(), N):
        assert stats.chi2.sf(value, freedom) > 1e-3
    target, spread = law.posterior(float(SIGMAS[-1]))
    off = (mean - target) / spread.diagonal().sqrt()
    assert float(off.abs().max()) < 0.05
    assert float((covariance.diagonal() / spread.diagonal() - 1).abs().max()) < 0.05


def _with(case, law):
    other = object.__new__(type(case))
    other.__dict__.update(case.__dict__, precision=law.precision, posterior=law.posterior)
    return other


def test_dps_goes_down_the_distance_by_zeta_in_each_row():
    case = problem("blur")
    guidance = dps(case.operator, case.y.float(), ZETA)
    score, shape = nf.Score(case.score, "score", "sigma"), case.operator.shape
    x = draw(24, 3, *shape).float()
    for method in ("euler", "ancestral"):
        sampler = nf.Sampler(score, shape, SIGMAS, method)
        plain, guided = (
            sampler(3, seed=0, initial=x, guidance=one, every=1)[1][1] for one in (None, guidance)
        )
        sigma = float(SIGMAS[0])
        step = Dense(case, sigma, x.flatten(1).double()).expected("dps").view(x.shape)
        torch.testing.assert_close((guided - plain).double(), step, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("method", ["euler", "heun", "dpmpp_2m", "ancestral"])
@pytest.mark.parametrize("name", ["mask", "downsample", "dense"])
def test_exact_measurements_are_met(name, method):
    case = problem(name)
    guidance = exact(case.operator, case.y.float(), ITERATIONS)
    sampler = nf.Sampler(
        nf.Score(case.score, "score", "sigma"),
        case.operator.shape,
        nf.geometric_sigmas(5, 0.05, 12),
        method,
    )
    x = sampler(6, seed=0, guidance=guidance)
    reachable = case.a @ torch.linalg.pinv(case.a) @ case.y.flatten()
    if torch.allclose(reachable, case.y.flatten()):
        error = x.flatten(1).double() @ case.a.T - case.y.flatten()
        assert float(error.abs().max()) < 2e-4
    else:  # of what A cannot make, the nearest
        error = x.flatten(1).double() @ case.a.T - reachable
        assert float((error @ case.a).abs().max()) < 2e-3


MODES = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.5, 0.5]])
SPREAD = 0.25


def mixture(x, sigma):
    """The score of three Gaussians in the plane."""
    variance = SPREAD**2 + sigma[:, None, None] ** 2
    away = MODES - x[:, None]
    log_weight = -away.square().sum(-1, keepdim=True) / (2 * variance)
    return (log_weight.softmax(1) * away / variance).sum(1)


def curved(x):
    return x[:, :1] + 0.5 * x[:, 1:].square()


def by_importance(function, y, noise_std, count=200_000):
    """Mean and standard deviation of the posterior, and the share of each mode."""
    which = torch.arange(count) % 3
    generator = torch.Generator().manual_seed(0)
    x = MODES[which] + SPREAD * torch.randn(count, 2, generator=generator)
    weight = (-(function(x)[:, 0] - y).square() / (2 * noise_std**2)).double().exp()
    weight /= weight.sum()
    shares = torch.zeros(3, dtype=torch.float64).index_add(0, which, weight)
    mean = weight @ x.double()
    return mean, (weight @ (x.double() - mean).square()).sqrt(), shares


@pytest.mark.parametrize("rule", ["pgdm", "tmpd", "mmps"])
def test_no_chain_of_a_real_network_is_thrown_off(rule):
    """Of a network σ²J is no covariance: unbounded, 10 to 54 of 64 such chains ended at |x| of
    10 to 1,500 (docs/posterior.md)."""
    net, real = nf.load_checkpoint("digits"), digits("test").images[:64]
    operator, noise_std = nf.operators.Downsample(2, net.shape), 0.05
    y = operator.forward(real) + noise_std * draw(25, 64, *operator.measured).float()
    guidance = {"pgdm": partial(pgdm, data_std=0.38), "tmpd": tmpd, "mmps": mmps}[rule]
    sampler = nf.Sampler(net, method="ancestral", steps=20)
    x = sampler(64, seed=0, guidance=guidance(operator, y, noise_std=noise_std))
    assert float(x.abs().max()) < 2
    misfit = (operator.forward(x) - y).square().flatten(1).mean(1).sqrt() / noise_std
    assert float(misfit.median()) < 1.7
    assert float((x - real).square().mean()) < 0.06  # 0.14 without the measurement


def test_a_mixture_behind_a_nonlinear_measurement():
    """Of a mixture no guidance is exact; 0.05 is left here, of standard deviations of 0.5."""
    y, noise_std = 0.6, 0.3
    mean, spread, shares = by_importance(curved, y, noise_std)
    guidance = mmps(Nonlinear(curved, (2,), (1,)), torch.tensor([y]), noise_std, iterations=1)
    score = nf.Score(mixture, "score", "sigma")
    sampler = nf.Sampler(score, (2,), nf.geometric_sigmas(5, 0.02, 100), "ancestral")
    x = sampler(4000, seed=0, guidance=guidance)
    found = torch.bincount(torch.cdist(x, MODES).argmin(1), minlength=3) / len(x)
    assert float((x.mean(0) - mean).abs().max()) < 0.08
    assert float((x.std(0) - spread).abs().max()) < 0.05
    assert float((found - shares).abs().max()) < 0.08
    free = sampler(4000, seed=0)
    assert float((free.mean(0) - mean).abs().max()) > 0.4


def test_the_network_is_called_once_a_row():
    case, calls = problem("mask"), []

    def score(x, sigma):
        calls.append(len(x))
        return case.score(x, sigma)

    sampler = nf.Sampler(nf.Score(score, "score", "sigma"), case.operator.shape, SIGMAS, "euler")
    sampler(3, seed=0, guidance=mmps(case.operator, case.y.float(), 0.3, 5), batch_size=2)
    assert calls == [2] * len(sampler.table) + [1] * len(sampler.table)


def test_a_sample_is_the_same_in_every_chunk():
    case = problem("mask")
    y = case.y.float() + draw(25, 5, *case.operator.measured).float()
    guidance = mmps(case.operator, y, 0.3)
    sampler = case.sampler(steps_per_level=2)
    whole = sampler(5, seed=0, guidance=guidance)
    parts = sampler(5, seed=0, guidance=guidance, batch_size=2)
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=1e-5)


def network():
    torch.manual_seed(0)
    sigmas = nf.geometric_sigmas(3.0, 0.05, 6)
    return nf.NCSNv2(channels=1, image_size=8, ngf=4, sigmas=sigmas).eval()


@pytest.mark.parametrize("rule", RULES)
def test_networks_of_ours_are_differentiated(rule):
    """The drift against the derivative of the network itself, and nobody's gradients are left."""
    net = network()
    operator = nf.operators.Downsample(2, net.shape)
    y = draw(26, 1, *operator.measured).float()
    guidance = guidances(operator, y)[rule]
    x = draw(27, 2, *net.shape).float()
    found = drift(net, None, guidance, x, hold_noise=False)

    leaf = x.clone().requires_grad_()
    mean = leaf + SIGMA * net.normalized(leaf, None)

    def pull(v):
        return torch.autograd.grad(mean, leaf, v, retain_graph=True)[0]

    at = nf.guidance.Denoised(operator, y, mean.detach(), SIGMA, 1.0, pull)
    torch.testing.assert_close(found, guidance.rule(at), atol=1e-3, rtol=1e-3)
    assert all(parameter.grad is None for parameter in net.parameters())


def test_a_blind_network_is_guided_with_its_noise_held():
    net = network()
    operator = nf.operators.Downsample(2, net.shape)
    sampler = nf.Sampler(net, method="dpmpp_2m", steps=5)
    assert sampler.hold_noise
    x = sampler(2, seed=0, guidance=pgdm(operator, torch.rand(1, *operator.measured), 0.1))
    assert bool(x.isfinite().all())


def test_it_goes_through_in_inference_mode():
    net = network()
    operator = nf.operators.Downsample(2, net.shape)
    guidance = mmps(operator, torch.rand(1, *operator.measured), 0.3)
    x = draw(28, 2, *net.shape).float()
    expected = drift(net, None, guidance, x, hold_noise=False)
    with torch.inference_mode():
        assert torch.equal(drift(net, None, guidance, x, hold_noise=False), expected)


@pytest.mark.parametrize("inside", [False, True])
def test_what_inference_mode_made_is_taken(inside):
    def score(x, sigma, scale):
        return -x * scale[:, None] * sigma[:, None]

    def square(x, weights):
        return weights * x.square()

    x = draw(39, 2, 3).float()
    with torch.inference_mode():
        made = torch.tensor([1.0, 2.0]), torch.rand(2, 3)
    found = []
    for scale, y in (made, tuple(one.clone() for one in made)):
        weights = scale.view(2, 1)
        for rule in (mmps, diffpir):
            guidance = rule(Nonlinear(square, (3,), (3,), weights=weights), y, 0.3)
            sampler = nf.Sampler(nf.Score(score, "score", "sigma"), (3,), [0.8, 0.4], "euler")
            with torch.inference_mode(inside):
                found.append(
                    sampler(2, seed=0, initial=x, guidance=guidance, extra={"scale": scale})
                )
    torch.testing.assert_close(found[:2], found[2:])


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_fewer_bits_are_refused(precision):
    net = network()
    operator = nf.operators.Downsample(2, net.shape)
    guidance = mmps(operator, torch.rand(1, *operator.measured), 0.3)
    sampler = nf.Sampler(net, method="euler", precision=precision)
    with pytest.raises(ValueError, match=f"precision = '{precision}': guidance through"):
        sampler(2, seed=0, guidance=guidance)
    assert bool(sampler(2, seed=0, guidance=diffpir(operator, guidance.y, 0.3)).isfinite().all())


@pytest.mark.parametrize("precision", ["auto", "fp32"])
def test_networks_run_prepared_and_give_what_they_give_as_they_are(precision, monkeypatch):
    torch.manual_seed(0)  # a network without maxima, whose gradients do not jump
    net = nf.NCSN(channels=1, image_size=8, ngf=4, sigmas=nf.geometric_sigmas(3.0, 0.05, 6)).eval()
    operator = nf.operators.Downsample(2, net.shape)
    guidance = mmps(operator, torch.rand(2, *operator.measured), 0.3)
    back = PackedConv.adjoint
    asked = []
    monkeypatch.setattr(PackedConv, "adjoint", lambda conv: asked.append(conv) or back(conv))
    found = []
    for prepare in (False, True):
        how = {"steps": 4, "precision": precision, "prepare": prepare}
        sampler = nf.Sampler(net, method="ancestral", **how)
        found.append(sampler(2, seed=0, guidance=guidance))
        assert bool(asked) == (prepare and torch.backends.mkldnn.is_available())
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-3 * float(found[0].abs().max()))
    with torch.no_grad():
        net.end_conv.weight.mul_(0.5)
    other = sampler(2, seed=0, guidance=guidance)
    assert float((other - found[1]).abs().max()) > 0.01  # it follows
    plain = nf.Sampler(net, method="ancestral", steps=4, precision=precision, prepare=False)
    expected = plain(2, seed=0, guidance=guidance)
    torch.testing.assert_close(other, expected, rtol=0, atol=1e-3 * float(expected.abs().max()))


@torch.no_grad()
def without(x, sigma):
    return -x


LINEAR = torch.nn.Linear(3, 3)


@pytest.mark.parametrize("score", [without, lambda x, sigma: LINEAR(x.detach())])
def test_networks_without_a_derivative_are_refused(score):
    guidance = dps(nf.operators.Mask(torch.ones(3)), torch.ones(3))
    with pytest.raises(ValueError, match=r"no derivative: it runs under torch.no_grad"):
        drift(nf.Score(score, "score", "sigma"), (3,), guidance, torch.rand(2, 3))


def test_a_network_that_writes_into_its_input_is_told_as_elsewhere():
    guidance = dps(nf.operators.Mask(torch.ones(3)), torch.ones(3))
    with pytest.raises(ValueError, match="the network writes into its input"):
        drift(
            nf.Score(lambda x, sigma: x.mul_(-1), "score", "sigma"),
            (3,),
            guidance,
            torch.rand(2, 3),
        )


def test_rows_without_weight_are_refused_by_dps():
    table = nf.Table.of([1.0, 0.5], b=[0.3, 0.0])
    sampler = nf.Sampler(nf.Score(lambda x, sigma: -x, "score", "sigma"), (3,), method=table)
    with pytest.raises(ValueError, match="row 1 of the table gives guidance no weight"):
        sampler(2, guidance=dps(nf.operators.Mask(torch.ones(3)), torch.ones(3)))


def test_it_is_for_the_sampler_itself():
    guidance = dps(nf.operators.Mask(torch.ones(3)), torch.ones(3))
    x = torch.rand(2, 3)
    with pytest.raises(TypeError, match="give it to the sampler itself"):
        guidance(x, x, 0.5, 0)


def test_replay_equals_eager_bit_for_bit(recorded):
    case = problem("blur")
    for guidance in guidances(case.operator, case.y.float()).values():
        eager, captured = (
            case.sampler(steps_per_level=3, graph=graph)(3, seed=2, guidance=guidance)
            for graph in (False, True)
        )
        assert torch.equal(eager, captured)
    assert len(recorded.captured) == len(RULES)


@pytest.mark.gpu
@pytest.mark.parametrize("rule", RULES)
def test_a_replay_on_a_gpu_equals_eager(rule):
    net = network().cuda()
    operator = nf.operators.Downsample(2, net.shape)
    guidance = guidances(operator, torch.rand(1, *operator.measured).cuda())[rule]
    eager, captured = (
        nf.Sampler(net, method="euler", steps=4, graph=graph)(3, seed=2, guidance=guidance)
        for graph in (False, True)
    )
    torch.testing.assert_close(captured, eager, atol=1e-4, rtol=1e-4)


def test_a_rule_of_ones_own():
    """The likelihood of the denoised image alone, V = 0."""

    def rule(at):
        return at.pull(at.adjoint(at.residual)) / NOISE_STD**2

    case = problem("dense")
    x = draw(29, 2, *case.operator.shape).float()
    guidance = nf.guidance.Through(case.operator, case.y.float(), rule)
    found = drift(nf.Score(case.score, "score", "sigma"), case.operator.shape, guidance, x)
    at = Dense(case, SIGMA, x.flatten(1).double())
    expected = at.residual @ at.a @ at.jacobian / NOISE_STD**2
    torch.testing.assert_close(found.flatten(1).double(), expected, atol=1e-3, rtol=1e-3)


def test_one_that_says_it_needs_no_derivative_gets_none():
    class Liar(NetworkGuidance):
        differentiates = False

        def drift(self, x, n, sigma, weight, pull, **inputs):
            return pull(x)

    with pytest.raises(ValueError, match="Liar says that it needs no derivative"):
        drift(nf.Score(lambda x, sigma: -x, "score", "sigma"), (3,), Liar(), torch.rand(2, 3))


def test_conjugate_gradients_solve_and_stop():
    factor = draw(30, 4, 4)
    matrix = factor @ factor.T + torch.eye(4, dtype=torch.float64)
    b = torch.cat([draw(31, 2, 4), torch.zeros(1, 4, dtype=torch.float64)])
    found = solve(lambda v: v @ matrix, b, 6)
    torch.testing.assert_close(found, torch.linalg.solve(matrix, b.T).T)
    assert torch.equal(found[2], torch.zeros(4, dtype=torch.float64))
    assert torch.equal(solve(lambda v: -v, b, 3), torch.zeros_like(b))


def test_nonlinear_measurements_are_linearized_at_the_image():
    operator = Nonlinear(lambda x: x[:, :2] * x[:, 1:], (3,), (2,))
    x = draw(32, 5, 3)
    measured, forward, adjoint = operator.linearized(x)
    assert torch.equal(measured, x[:, :2] * x[:, 1:])
    u, v = draw(33, 5, 3), draw(34, 5, 2)
    torch.testing.assert_close(forward(u), u[:, :2] * x[:, 1:] + x[:, :2] * u[:, 1:])
    torch.testing.assert_close((forward(u) * v).sum(1), (u * adjoint(v)).sum(1))


MASK = nf.operators.Mask(torch.ones(3))
ONES = torch.ones(3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: dps(MASK, ONES, 0.0), "zeta = 0.0: give a finite positive"),
        (lambda: dps(MASK, ONES, "1"), "zeta = '1'"),
        (lambda: dps(len, ONES), r"operator is a builtin.*nf\.guidance\.Nonlinear"),
        (lambda: dps(MASK, torch.ones(4)), r"y has shape \(4,\); Mask measures"),
        (lambda: dps(MASK, [1.0]), "y is list"),
        (lambda: pgdm(MASK, ONES, -1.0), "noise_std = -1.0: give a finite number, at least 0"),
        (lambda: pgdm(MASK, ONES, 0.1, math.nan), "data_std = nan"),
        (lambda: pgdm(MASK, ONES, 0.1, iterations=0), "iterations = 0"),
        (lambda: tmpd(MASK, ONES, math.inf), "noise_std = inf"),
        (lambda: mmps(MASK, ONES, 0.1, 2.5), "iterations = 2.5"),
        (lambda: diffpir(MASK, ONES, 0.1, -1), "weight = -1"),
        (lambda: exact(MASK, ONES, "many"), "iterations = 'many'"),
        (lambda: Nonlinear(3, (2,), (1,)), "the measurement is a int"),
        (lambda: Nonlinear(len, (0,), (1,)), "shape"),
        (lambda: Nonlinear(len, (2,), (1,), w=2.0), r"w is one number: give \(1, …\)"),
        (
            lambda: Nonlinear(lambda x: x.detach(), (2,), (2,)).linearized(torch.ones(1, 2)),
            "the measurement has no derivative",
        ),
    ],
)
def test_what_has_no_meaning_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_samples_and_measurements_that_do_not_fit_are_refused_before_any_work():
    sampler = nf.Sampler(nf.Score(None or abs, "score", "sigma"), (4,), SIGMAS, "euler")
    with pytest.raises(ValueError, match=r"the sampler's samples have shape \(4,\)"):
        sampler(2, guidance=dps(MASK, ONES))
    with pytest.raises(ValueError, match="3 measurements for n = 2"):
        nf.Sampler(nf.Score(abs, "score", "sigma"), (3,), SIGMAS, "euler")(
            2, guidance=dps(MASK, torch.ones(3, 3))
        )


def test_what_measures_may_differ_from_sample_to_sample():
    weights = 1 + draw(35, 5, 1).square().float()
    y, x = draw(36, 5, 3).float(), draw(37, 5, 3).float()
    score = nf.Score(lambda x, sigma: -x / (1 + sigma[:, None] ** 2), "score", "sigma")
    scaled = nf.operators.Mask((draw(38, 5, 3) > 0).float(), (3,))
    power = Nonlinear(lambda x, weights: weights * x.square(), (3,), (3,), weights=weights)
    for operator in (scaled, power):
        sampler = nf.Sampler(score, (3,), SIGMAS, "euler")
        guidance = mmps(operator, y, 0.5)
        whole = sampler(5, seed=0, initial=x, guidance=guidance)
        parts = sampler(5, seed=0, initial=x, guidance=guidance, batch_size=2)
        torch.testing.assert_close(parts, whole)
        for i in range(5):
            one = operator.of({name: value[i : i + 1] for name, value in operator.inputs.items()})
            alone = sampler(1, seed=0, initial=x[i : i + 1], guidance=mmps(one, y[i : i + 1], 0.5))
            torch.testing.assert_close(alone, whole[i : i + 1])
        with pytest.raises(ValueError, match="of 5 samples, for n = 4"):
            sampler(4, guidance=mmps(operator, y[:1], 0.5))
    with pytest.raises(ValueError, match="different numbers of samples"):
        Nonlinear(len, (3,), (3,), a=torch.ones(2), b=torch.ones(3))
