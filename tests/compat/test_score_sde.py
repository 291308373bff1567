"""score_sde's samplers: what they return on its diffusions, of which these stand-ins have all that
is looked at, against its algorithms written out."""

import inspect
import math

import numpy as np
import pytest
import torch
from helpers.official import Louder, Official
from torch import nn

import ncsn_fast as nf
from ncsn_fast.compat.score_sde import get_ode_sampler, get_pc_sampler
from ncsn_fast.compat.score_sde_steps import diffusion, predictor_corrector

pytest_plugins = ["helpers.recorded_capture"]

N, SHAPE = 30, (3, 2, 4, 4)
MEAN, VARIANCE = 0.5, 0.25


class VESDE:
    N, T = N, 1
    sigma_min, sigma_max = 0.05, 10.0
    discrete_sigmas = torch.exp(torch.linspace(math.log(0.05), math.log(10.0), N))

    def prior_sampling(self, shape):
        return torch.randn(*shape) * self.sigma_max

    def std(self, t):
        return 0.05 * 200.0**t


class VPSDE:
    N, T = N, 1
    beta_0, beta_1 = 0.1, 20.0
    discrete_betas = torch.linspace(0.1 / N, 20.0 / N, N)
    alphas = 1 - discrete_betas
    sqrt_1m_alphas_cumprod = (1 - torch.cumprod(alphas, 0)).sqrt()

    def prior_sampling(self, shape):
        return torch.randn(*shape)

    def std(self, t):
        return (1 - torch.exp(-(t**2) * 19.9 / 2 - 0.1 * t)).sqrt()


class Network(nn.Module):
    """The exact network of N(MEAN, VARIANCE), told what score_sde tells it."""

    def __init__(self, sde, continuous):
        super().__init__()
        self.sde, self.continuous, self.asked = sde, continuous, 0
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x, labels):
        assert labels.shape == (len(x),)
        assert not self.training
        self.asked += 1
        if isinstance(self.sde, VPSDE):
            t = labels / (999 if self.continuous else N - 1)
            std = self.sde.std(t).view(-1, 1, 1, 1)
            kept = (1 - std**2).sqrt()
            return std * (x - kept * MEAN) / (kept**2 * VARIANCE + std**2)
        if self.continuous:
            sigma = labels
        else:
            assert labels.dtype == torch.int64
            sigma = self.sde.discrete_sigmas.flip(0)[labels]
        return (MEAN - x) / (VARIANCE + sigma.view(-1, 1, 1, 1) ** 2)


def score(x, told):
    return (MEAN - x) / (1 + told.view(-1, 1, 1, 1))


def score_of(sde, model, x, t, continuous):
    labels = torch.ones(len(x)) * t
    if isinstance(sde, VESDE):
        if continuous:
            return model(x, sde.std(labels))
        return model(x, ((1 - labels) * (N - 1)).round().long())
    if continuous:
        return -model(x, 999 * labels) / sde.std(t)
    labels = labels * (N - 1)
    return -model(x, labels) / sde.sqrt_1m_alphas_cumprod[labels.long()[0]]


def predicted(name, sde, score, x, t, flow):
    """(mean, standard deviation of the noise) of one step of a predictor."""
    index, half = int(t * (N - 1)), 0.5 if flow else 1.0
    if isinstance(sde, VESDE):
        sigma = sde.discrete_sigmas[index]
        before = sde.discrete_sigmas[index - 1] if index else torch.tensor(0.0)
        removed = sigma**2 - before**2
        noise = removed.sqrt()
        if name == "ancestral_sampling":
            noise = before * noise / sigma
        if name == "euler_maruyama":
            removed = sde.std(t) ** 2 * 2 * math.log(200) / N
            noise = removed.sqrt()
        return x + half * removed * score, noise * (not flow)
    beta = sde.discrete_betas[index]
    if name == "ancestral_sampling":
        return (x + beta * score) / (1 - beta).sqrt(), beta.sqrt()
    if name == "euler_maruyama":
        rate = (0.1 + t * 19.9) / N
        return x + rate * (x / 2 + half * score), rate.sqrt() * (not flow)
    return (2 - (1 - beta).sqrt()) * x + half * beta * score, beta.sqrt() * (not flow)


@torch.no_grad()
def published(sde, model, predictor, corrector, snr, n_steps, flow, continuous, denoise, eps):
    """Algorithm 1 of Song et al. 2021, with the norms of a batch."""
    x = mean = sde.prior_sampling(SHAPE)
    for t in torch.linspace(1, eps, N):
        alpha = sde.alphas[int(t * (N - 1))] if isinstance(sde, VPSDE) else torch.tensor(1.0)
        for _ in range(n_steps if corrector else 0):
            score, z = score_of(sde, model, x, t, continuous), torch.randn_like(x)
            size = sde.std(t)
            if corrector == "langevin":
                size = z.flatten(1).norm(dim=1).mean() / score.flatten(1).norm(dim=1).mean()
            step = 2 * alpha * (snr * size) ** 2
            mean = x + step * score
            x = mean + (2 * step).sqrt() * z
        if predictor is None:
            mean = x
            continue
        score = score_of(sde, model, x, t, continuous)
        mean, noise = predicted(predictor, sde, score, x, t, flow)
        x = mean + noise * torch.randn_like(x)
    return mean if denoise else x


CASES = [
    ("reverse_diffusion", "langevin", 1, False, True),
    ("reverse_diffusion", "langevin", 2, True, True),
    ("ancestral_sampling", "langevin", 1, False, False),
    ("ancestral_sampling", None, 1, False, True),
    ("euler_maruyama", "ald", 2, False, True),
    ("euler_maruyama", None, 1, True, False),
    (None, "ald", 1, False, True),
    (None, "langevin", 3, False, True),
]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("continuous", [True, False])
@pytest.mark.parametrize("sde", [VESDE(), VPSDE()], ids=["VE", "VP"])
def test_with_torchs_noise_the_samples_are_those_of_score_sde(sde, continuous, case):
    predictor, corrector, n_steps, flow, denoise = case
    model, eps = Network(sde, continuous).eval(), 1e-3
    torch.manual_seed(3)
    expected = published(
        sde, model, predictor, corrector, 0.16, n_steps, flow, continuous, denoise, eps
    )
    asked, model.asked = model.asked, 0
    torch.manual_seed(3)
    sampler = get_pc_sampler(
        sde, SHAPE, predictor, corrector, lambda x: 2 * x, 0.16, n_steps, flow, continuous,
        denoise, eps, "cpu", batch_mean=True, noise="torch",
    )  # fmt: skip
    found, evaluations = sampler(model.train())
    torch.testing.assert_close(found, 2 * expected, rtol=2e-4, atol=2e-4)
    assert asked == model.asked
    if predictor and corrector:
        assert evaluations == asked
    assert evaluations == N * (n_steps + 1)  # as there, also where fewer are made
    assert model.training


def official(kind):
    """Its NCSNv2: noise levels in float64, and "centered" in the place of "rescaled"."""
    net = kind(sigmas=VESDE.discrete_sigmas.flip(0), channels=2, rescaled=True)
    del net.rescaled
    net.sigmas, net.centered = net.sigmas.double(), True
    return net


@pytest.mark.parametrize("sizes", [("none", "ald"), ("reverse_diffusion", "langevin")], ids=str)
@pytest.mark.parametrize("flow", [False, True])
@pytest.mark.parametrize("noise", ["philox", "torch"])
def test_its_ncsnv2_runs_as_ours_unless_it_shall_not(noise, flow, sizes):
    def run(net, **adopt):
        arguments = (VESDE(), (2, 2, 8, 8), *sizes, lambda x: x, 0.16, 1, flow)
        torch.manual_seed(1)
        return get_pc_sampler(*arguments, noise=noise, **adopt)(nn.DataParallel(net))[0]

    net, other = official(Official), official(Official)
    torch.testing.assert_close(run(net), run(other, adopt=False), rtol=1e-4, atol=1e-4)
    assert net.calls == 1  # to be compared
    assert other.calls >= N


def test_one_that_computes_something_else_runs_as_it_is(caplog):
    net = official(Louder)
    get_pc_sampler(VESDE(), (1, 2, 8, 8), None, "ald", lambda x: x, 0.16, seed=0)(net)
    assert net.calls > N
    (line,) = caplog.messages
    assert "Louder looks like an official network, but runs as it is: at noise level 0" in line


@pytest.mark.parametrize("sde", [VESDE(), VPSDE()], ids=["VE", "VP"])
def test_of_one_sample_its_own_norms_are_the_mean_norms(sde):
    arguments = (sde, (1, 2, 4, 4), "reverse_diffusion", "langevin", lambda x: x, 0.16)
    found = []
    for batch_mean in (False, True):
        sampler = get_pc_sampler(*arguments, continuous=True, batch_mean=batch_mean, seed=1)
        found.append(sampler(Network(sde, True))[0])
    assert torch.equal(*found)


@pytest.mark.parametrize("sde", [VESDE(), VPSDE()], ids=["VE", "VP"])
def test_with_norms_of_its_own_a_sample_does_not_depend_on_its_batch(sde):
    def drawn(number, **keywords):
        shape = (number, 2, 4, 4)
        sampler = get_pc_sampler(
            sde, shape, "reverse_diffusion", "langevin", lambda x: x, 0.16, continuous=True,
            seed=4, **keywords,
        )  # fmt: skip
        return sampler(Network(sde, True))[0]

    whole = drawn(5)
    torch.testing.assert_close(whole[:2], drawn(2))
    assert (drawn(5, batch_mean=True)[:2] - drawn(2, batch_mean=True)).abs().max() > 1e-3


@pytest.mark.parametrize("sde", [VESDE(), VPSDE()], ids=["VE", "VP"])
def test_samples_have_the_law_of_the_data(sde):
    shape, model = (400, 2, 4, 4), Network(sde, True)
    pc = get_pc_sampler(
        sde, shape, "reverse_diffusion", "langevin", lambda x: x, 0.16, continuous=True, seed=0
    )
    ode = get_ode_sampler(sde, shape, lambda x: x, denoise=True, seed=0)
    for sampler in (pc, ode):
        x = sampler(model)[0]
        assert float(x.mean()) == pytest.approx(MEAN, abs=0.05)
        assert float(x.std()) == pytest.approx(VARIANCE**0.5, rel=0.15)


@pytest.mark.parametrize("sde", [VESDE(), VPSDE()], ids=["VE", "VP"])
def test_captured_or_not_the_corrected_samples_are_the_same(sde, recorded):
    at = diffusion(sde, True, 1e-3)
    table, adapts = predictor_corrector(
        at, "reverse_diffusion", "langevin", 0.16, 1, probability_flow=False, denoise=True
    )
    corrector = nf.guidance.NormAdaptive(table, adapts)
    found = []
    for graph in (False, True):
        sampler = nf.Sampler(at.score(score), SHAPE[1:], method=table, graph=graph)
        with nf.use_backend("torch"):  # its noise is made of operations that a capture sees
            found.append(sampler(3, seed=2, initial=torch.ones(SHAPE), guidance=corrector))
    assert len(recorded.captured) == 1
    assert torch.equal(*found)


@pytest.mark.parametrize("denoise", [True, False])
@pytest.mark.parametrize("sde", [VESDE(), VPSDE()], ids=["VE", "VP"])
def test_the_flow_ends_where_its_closed_form_does(sde, denoise):
    eps, model = 1e-3, Network(sde, True)
    z = sde.prior_sampling(SHAPE)
    sampler = get_ode_sampler(sde, SHAPE, lambda x: x, denoise, 1e-7, 1e-7, eps=eps)
    found, evaluations = sampler(model, z)
    first, last = (sde.std(torch.tensor(t, dtype=torch.float64)) for t in (1.0, eps))
    kept = [(1 - one**2).sqrt() if isinstance(sde, VPSDE) else 1.0 for one in (first, last)]
    spread = [(k**2 * VARIANCE + s**2) ** 0.5 for k, s in zip(kept, (first, last), strict=True)]
    expected = kept[1] * MEAN + spread[1] / spread[0] * (z.double() - kept[0] * MEAN)
    if denoise:
        score = score_of(sde, model.eval(), expected.float(), torch.tensor(eps), True)
        expected = predicted("reverse_diffusion", sde, score, expected, torch.tensor(eps), False)[0]
    torch.testing.assert_close(found.double(), expected.detach().double(), rtol=1e-4, atol=1e-4)
    assert evaluations + denoise <= model.asked <= evaluations + 2


def test_the_positional_arguments_are_those_of_score_sde():
    empty = inspect.Parameter.empty
    first = {"sde": empty, "shape": empty}
    pc = {"predictor": empty, "corrector": empty, "inverse_scaler": empty, "snr": empty}
    pc |= {"n_steps": 1, "probability_flow": False, "continuous": False, "denoise": True}
    ode = {"inverse_scaler": empty, "denoise": False, "rtol": 1e-5, "atol": 1e-5, "method": "RK45"}
    # There the device is "cuda"; here it is the model's.
    last = {"eps": 1e-3, "device": None}
    for function, own in ((get_pc_sampler, pc), (get_ode_sampler, ode)):
        parameters = inspect.signature(function).parameters.items()
        found = {n: p.default for n, p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD}
        assert list(found.items()) == list({**first, **own, **last}.items())


class ReverseDiffusionPredictor:
    pass


class LangevinCorrector:
    pass


class subVPSDE:
    N, T, beta_0, beta_1 = N, 1, 0.1, 20.0


RIGHT = {
    "sde": VESDE(),
    "shape": SHAPE,
    "predictor": ReverseDiffusionPredictor,
    "corrector": LangevinCorrector,
    "inverse_scaler": lambda x: x,
    "snr": 0.16,
}


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("sde", [None, subVPSDE(), 3]),
        ("shape", [(3,), 3, (0, 2), "abc"]),
        ("predictor", ["magic", ReverseDiffusionPredictor(), 3, np.ones(2)]),
        ("corrector", ["reverse_diffusion", 3]),
        ("inverse_scaler", [None, 2]),
        ("snr", [0, -1, math.inf, "0.1", None]),
        ("n_steps", [0, 1.5, None]),
        ("probability_flow", ["no", None]),
        ("continuous", ["no", 2]),
        ("denoise", ["last", None]),
        ("eps", [0, 1, -1, None, math.nan]),
        ("noise", ["numpy"]),
        ("seed", [-1, 1.5]),
        ("batch_mean", ["no"]),
    ],
)
def test_a_wrong_argument_is_refused_by_name(name, values):
    get_pc_sampler(**RIGHT)
    for value in values:
        with pytest.raises(ValueError, match=rf"\b{name}\b"):
            get_pc_sampler(**{**RIGHT, name: value})


@pytest.mark.parametrize(
    ("name", "value"), [("method", "RK4"), ("rtol", -1), ("atol", math.nan), ("denoise", 2)]
)
def test_a_wrong_argument_of_the_solver_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=rf"\b{name}\b"):
        get_ode_sampler(VESDE(), SHAPE, lambda x: x, **{name: value})


@pytest.mark.parametrize(("snr", "n_steps"), [(0, 0), (None, 1), (math.nan, 3)])
def test_without_a_corrector_its_settings_do_not_matter(snr, n_steps):
    for corrector in (None, "none"):
        arguments = {**RIGHT, "corrector": corrector, "snr": snr, "n_steps": n_steps}
        found, evaluations = get_pc_sampler(**arguments, continuous=True, seed=0)(score)
        plain = get_pc_sampler(**{**RIGHT, "corrector": None}, continuous=True, seed=0)(score)[0]
        assert torch.equal(found, plain)
        assert evaluations == N * (n_steps + 1)


def test_betas_of_1_and_more_are_refused():
    sde = VPSDE()
    sde.discrete_betas = torch.linspace(0.01, 20 / 15, N)
    with pytest.raises(ValueError, match=r"betas reach from 0.01 to 1.33333.*N = 30 steps"):
        get_pc_sampler(**{**RIGHT, "sde": sde})


def test_what_would_do_nothing_or_has_no_ode_is_refused():
    with pytest.raises(ValueError, match="predictor and corrector are both none"):
        get_pc_sampler(**{**RIGHT, "predictor": None, "corrector": "none"})
    with pytest.raises(ValueError, match="probability_flow=True: ancestral_sampling has no ODE"):
        get_pc_sampler(**{**RIGHT, "predictor": "ancestral_sampling"}, probability_flow=True)
    with pytest.raises(ValueError, match="model is int; needed is a function"):
        get_pc_sampler(**RIGHT)(3)
