"""One law, seen through every parametrisation of its score: all sample the same."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import ncsn_fast as nf
from ncsn_fast.methods.tables import annealed_langevin, dpmpp_2m, euler, heun
from ncsn_fast.table import Table

pytest_plugins = ["helpers.recorded_capture"]

SIGMAS = nf.geometric_sigmas(10, 0.02, 12)
LADDER = SIGMAS.double()
MEANS = torch.tensor([[2.0, 0.0], [-1.0, 1.5], [0.0, -1.0]], dtype=torch.float64)
SPREAD = 0.4
# float32 has a spacing of 2e-6 near the first states of 20 and of 2e-7 near the last ones of 2: the
# parametrisations differ by up to 1e-6. A condition off by a thousandth of a level shows above it.
TOLERANCE = 5e-6


def denoised(x, sigma):
    """E[x₀ | x] of the mixture of Gaussians, float64, for x (B, 2) and σ (B, 1)."""
    variance = SPREAD**2 + sigma**2
    offsets = x[:, None] - MEANS
    weights = (-0.5 * offsets.square().sum(-1) / variance).softmax(1)
    return x - sigma**2 / variance * (weights[..., None] * offsets).sum(1)


KINDS = {  # from x, σ, D and the scale of the input c, as their authors define them
    "normalized": lambda x, sigma, d, c: (d - x) / sigma,
    "score": lambda x, sigma, d, c: (d - x) / sigma**2 / c,
    "epsilon": lambda x, sigma, d, c: (x - d) / sigma,
    "denoiser": lambda x, sigma, d, c: d,
}


def velocity(x, sigma, d, c):
    alpha_bar = 1 / (1 + sigma**2)
    return alpha_bar.sqrt() * (x - d) / sigma - (1 - alpha_bar).sqrt() * d


def raw_edm(x, sigma, d, c):
    data = (1 / c**2 - sigma**2).sqrt()
    total = (sigma**2 + data**2).sqrt()
    return (d - data**2 / total**2 * x) / (sigma * data / total)


def power_of_sigma(sigma):
    return sigma**-2


def name_of(condition):
    return condition if isinstance(condition, str) else condition.__name__


CONDITIONS = {  # told -> σ
    "label": lambda told: LADDER[told],
    "timestep": lambda told: _between(told),
    "sigma": lambda told: told.double(),
    "log_sigma": lambda told: told.double().exp(),
    "c_noise": lambda told: (4 * told.double()).exp(),
    power_of_sigma: lambda told: told.double() ** -0.5,
}


def _between(timestep):
    place = timestep.double()
    rising = LADDER.flip(0).log()
    low = place.floor().long().clamp(0, len(rising) - 2)
    return (rising[low] + (place - low) * (rising[low + 1] - rising[low])).exp()


PARAMETRISATIONS = [(kind, data) for kind in KINDS for data in (None, 0.5)]
PARAMETRISATIONS += [("v", 1.0), ("edm", 1.0), ("edm", 0.5)]


def made(kind, data, condition, fixed=None):
    """The mixture's network of this kind."""
    formula = {**KINDS, "v": velocity, "edm": raw_edm}[kind]

    def fn(seen, told=None):
        sigma = torch.full((len(seen),), fixed) if told is None else CONDITIONS[condition](told)
        sigma = sigma.double()[:, None]
        c = torch.ones_like(sigma) if data is None else 1 / (sigma**2 + data**2).sqrt()
        x = seen.double() / c
        return formula(x, sigma, denoised(x, sigma), c).to(seen.dtype)

    return nf.Score(fn, kind, condition, SIGMAS, sigma_data=data)


TABLES = {
    "annealed_langevin": annealed_langevin(SIGMAS, 1e-4, 4),
    "euler": euler(SIGMAS),
    "heun": heun(SIGMAS),  # with a history of states
    "dpmpp_2m": dpmpp_2m(SIGMAS),  # with one of states and scores
}


def sampled(score, table, *, graph=False, **call):
    initial = 10 * torch.randn(5, 2, generator=torch.Generator().manual_seed(1))
    sampler = nf.Sampler(score, (2,), method=table, graph=graph)
    return sampler(5, seed=3, initial=initial, **call)


@pytest.mark.parametrize("method", TABLES)
@pytest.mark.parametrize(("kind", "data"), PARAMETRISATIONS)
def test_every_kind_samples_the_same(kind, data, method):
    expected = sampled(made("normalized", None, "sigma"), TABLES[method])
    found = sampled(made(kind, data, "sigma"), TABLES[method])
    assert torch.allclose(found, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("condition", CONDITIONS, ids=name_of)
@pytest.mark.parametrize(("kind", "data"), PARAMETRISATIONS)
def test_every_condition_samples_the_same(kind, data, condition):
    table = TABLES["dpmpp_2m"]
    expected = sampled(made("normalized", None, "sigma"), table)
    found = sampled(made(kind, data, condition), table)
    assert torch.allclose(found, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(("kind", "data"), PARAMETRISATIONS)
def test_a_network_without_a_condition_samples_the_same_at_its_level(kind, data):
    table = Table.of([0.5] * 20, b=0.1, d=0.3)
    expected = sampled(made("normalized", None, "sigma"), table)
    found = sampled(made(kind, data, "none", fixed=0.5), table)
    assert torch.allclose(found, expected, atol=TOLERANCE, rtol=0)


def drift(x, n, sigma, row):
    return 0.3 * n / sigma - 0.01 * x


MASK = {"mask": torch.tensor([1, 0]), "known": torch.tensor([2.0, 0.0])}
CALLS = {
    "clip": ("dpmpp_2m", {"clip": 0.8}),
    "guidance": ("annealed_langevin", {"guidance": drift}),
    "clip and guidance": ("heun", {"clip": 0.8, "guidance": drift}),
    "mask": ("dpmpp_2m", MASK),
    "start_level": ("annealed_langevin", {"start_level": 4}),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(("kind", "data"), PARAMETRISATIONS)
def test_what_the_caller_adds_acts_the_same(kind, data, call):
    method, given = CALLS[call]
    expected = sampled(made("normalized", None, "sigma"), TABLES[method], **given)
    found = sampled(made(kind, data, "sigma"), TABLES[method], **given)
    assert torch.allclose(found, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(("kind", "data"), PARAMETRISATIONS)
def test_a_callback_hears_the_state_and_the_normalised_score(kind, data):
    heard = []
    sampled(made(kind, data, "sigma"), TABLES["euler"], callback=lambda *one: heard.append(one))
    assert len(heard) == len(TABLES["euler"])
    for row, x, n in heard:
        sigma = LADDER[row]
        exact = (denoised(x.double(), sigma.expand(5, 1)) - x) / sigma
        # A denoiser's answer, 6e-8 of a state of 3, is divided by σ ≥ 0.02.
        assert torch.allclose(n.double(), exact, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("call", [{}, {"clip": 0.8}, MASK], ids=["plain", "clip", "mask"])
@pytest.mark.parametrize(("kind", "data"), [("epsilon", 0.5), ("v", 1.0), ("edm", 0.5)])
def test_a_scaled_state_is_captured_as_it_is_run(recorded, kind, data, call):
    score, table = made(kind, data, "timestep"), TABLES["dpmpp_2m"]
    eager, captured = (sampled(score, table, graph=graph, **call) for graph in (False, True))
    assert torch.equal(captured, eager)
    assert recorded.captured


@pytest.mark.parametrize("condition", CONDITIONS, ids=name_of)
@pytest.mark.parametrize(("kind", "data"), PARAMETRISATIONS)
def test_training_reads_every_parametrisation_alike(kind, data, condition):
    labels = torch.arange(12)
    x = 3 * torch.randn(12, 2, generator=torch.Generator().manual_seed(0)).double()
    n = made(kind, data, condition).normalized(x, LADDER, labels)
    exact = (denoised(x, LADDER[:, None]) - x) / LADDER[:, None]
    assert torch.allclose(n, exact, atol=1e-7, rtol=1e-7)


@pytest.mark.parametrize(("kind", "data"), PARAMETRISATIONS)
def test_the_loss_of_every_parametrisation_is_the_same(kind, data):
    x = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
    plain = nf.dsm_loss(made("normalized", None, "sigma"), x, SIGMAS, seed=1)
    assert torch.allclose(nf.dsm_loss(made(kind, data, "timestep"), x, SIGMAS, seed=1), plain)


def test_a_network_in_16_bits_is_trained_on_a_scaled_input_in_16_bits():
    seen = []

    def fn(x, told):
        seen.append(x.dtype)
        return x

    x = torch.randn(12, 2).bfloat16()
    nf.Score(fn, "epsilon", "sigma", sigma_data=1.0).normalized(x, SIGMAS, torch.arange(12))
    assert seen == [torch.bfloat16]


# --- the shorthands -------------------------------------------------------------------------------

BETAS = np.linspace(1e-4, 0.02, 1000)
ALPHAS = np.cumprod(1 - BETAS)


def ddpm_network(u, t):
    """ε of the mixture, as a DDPM network gives it, for whole timesteps."""
    alpha_bar = torch.from_numpy(ALPHAS)[t.round().long()][:, None]
    sigma = ((1 - alpha_bar) / alpha_bar).sqrt()
    x = u.double() / alpha_bar.sqrt()
    return ((x - denoised(x, sigma)) / sigma).to(u.dtype)


@pytest.mark.parametrize("quantize", [False, True])
def test_ddim_is_the_euler_method_of_a_ddpm_network(quantize):
    times = np.arange(950, -1, -50)
    u = torch.randn(4, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    state = u.clone()
    for t, following in zip(times, [*times[1:], None], strict=True):
        eps = ddpm_network(state, torch.full((4,), t))
        clean = (state - math.sqrt(1 - ALPHAS[t]) * eps) / math.sqrt(ALPHAS[t])
        then = 1.0 if following is None else ALPHAS[following]
        state = math.sqrt(then) * clean + math.sqrt(1 - then) * eps
    sigmas = np.sqrt((1 - ALPHAS[times]) / ALPHAS[times])
    score = nf.Score.ddpm(ddpm_network, ALPHAS, quantize=quantize)
    sampler = nf.Sampler(score, (2,), method=euler(sigmas), graph=False)
    found = sampler(4, seed=0, initial=(u / math.sqrt(ALPHAS[times[0]])).float())
    # The first states have a size of 100, of which float32 keeps 6e-8.
    assert torch.allclose(found.double(), state, atol=3e-5, rtol=0)


def test_timesteps_count_from_the_smallest_level():
    score = nf.Score.ddpm(ddpm_network, ALPHAS)
    sigma = np.sqrt((1 - ALPHAS) / ALPHAS)
    assert torch.allclose(score.sigmas.flip(0).double(), torch.from_numpy(sigma))
    told = score.conditions(Table.of(sigma[::-1]), "cpu")
    assert told.dtype == torch.float32
    assert told.tolist() == list(range(999, -1, -1))


def test_a_level_between_two_timesteps_is_interpolated_or_rounded():
    sigma = np.sqrt((1 - ALPHAS) / ALPHAS)
    between = Table.of(np.exp(0.3 * np.log(sigma[41]) + 0.7 * np.log(sigma[40])) * np.ones(1))
    told = nf.Score.ddpm(ddpm_network, ALPHAS).conditions(between, "cpu")
    assert told.item() == pytest.approx(40.3, abs=1e-3)
    told = nf.Score.ddpm(ddpm_network, ALPHAS, quantize=True).conditions(between, "cpu")
    assert told.dtype == torch.int64
    assert told.item() == 40


def test_whole_timesteps_are_told_in_training_too():
    seen = []

    def fn(u, t):
        seen.append(t)
        return u

    score = nf.Score.ddpm(fn, ALPHAS, quantize=True)
    sigma = score.sigmas[[0, 7, 999]]
    score.normalized(torch.zeros(3, 2), sigma, torch.arange(3))
    assert seen[0].dtype == torch.int64
    assert seen[0].tolist() == [999, 992, 0]


@pytest.mark.parametrize("quantize", [False, True])
def test_levels_beyond_the_timesteps_are_refused(quantize):
    score = nf.Score.ddpm(ddpm_network, ALPHAS, quantize=quantize)
    with pytest.raises(ValueError, match=r"row 1 of the table asks for σ = 200, .* 1000 levels"):
        nf.Sampler(score, (2,), method=Table.of([100.0, 200.0]))
    with pytest.raises(ValueError, match=r"sample 1 is noised by σ = 0.001"):
        score.normalized(torch.zeros(2, 2), torch.tensor([1.0, 0.001]), torch.arange(2))


def test_a_network_with_one_timestep_is_told_that():
    score = nf.Score.ddpm(ddpm_network, [0.5])
    assert score.conditions(Table.of([1.0]), "cpu").tolist() == [0]


def test_times_of_a_continuous_vp_network_follow_from_its_betas():
    score = nf.Score.vp(lambda u, t: u, beta_min=0.2, beta_max=15.0)
    t = np.array([1.0, 0.4, 1e-3])
    alpha_bar = np.exp(-0.5 * t**2 * (15.0 - 0.2) - 0.2 * t)
    told = score.conditions(Table.of(np.sqrt((1 - alpha_bar) / alpha_bar)), "cpu")
    assert told.tolist() == pytest.approx((999 * t).tolist(), rel=1e-5)
    assert score.sigmas[0].item() == pytest.approx(math.sqrt(1 / alpha_bar[0] - 1))


def test_a_raw_edm_network_is_its_preconditioned_self():
    def raw(u, c_noise):
        return torch.tanh(u + c_noise[:, None])

    def whole(x, sigma):
        sigma, data = sigma[:, None], 0.7
        total = sigma**2 + data**2
        output = raw(x / total.sqrt(), sigma[:, 0].log() / 4)
        return data**2 / total * x + sigma * data / total.sqrt() * output

    table = euler(np.geomspace(80, 0.02, 15))
    found = sampled(nf.Score.edm(raw, 0.7), table)
    expected = sampled(nf.Score(whole, "denoiser", "sigma"), table)
    assert torch.allclose(found, expected, atol=TOLERANCE, rtol=0)


# --- networks of this package ---------------------------------------------------------------------


def network(name):
    settings = {} if name == "MLPScore" else {"channels": 1, "image_size": 8, "ngf": 4}
    torch.manual_seed(0)
    net = getattr(nf, name)(**settings, sigmas=SIGMAS).eval()
    if name == "MLPScore":
        nn.init.normal_(net.head.weight, std=0.1)
    return net


def image_states(score, net, table):
    sampler = nf.Sampler(score, net.shape, SIGMAS, table, precision="fp32", graph=False)
    # Not the default: only of its own networks does the sampler know that they do not see σ.
    x = torch.rand(2, *net.shape, generator=torch.Generator().manual_seed(0))
    return sampler(2, seed=0, initial=SIGMAS[0] * x)


@pytest.mark.parametrize("name", ["NCSN", "NCSNv2", "MLPScore"])
@pytest.mark.parametrize("kind", ["score", "normalized", "epsilon", "denoiser"])
def test_networks_of_this_package_are_any_kind_by_label(name, kind):
    net = network(name)

    def fn(x, labels):
        n, sigma = net.normalized(x, labels), net.level(labels, x)
        return {
            "score": lambda: n / sigma,
            "normalized": lambda: n,
            "epsilon": lambda: -n,
            "denoiser": lambda: x + sigma * n,
        }[kind]()

    table = annealed_langevin(SIGMAS, 1e-5, 1)
    expected = image_states(net, net, table)
    found = image_states(nf.Score(fn, kind, "label", SIGMAS), net, table)
    # An untrained network leaves states of 40, where float32 has a spacing of 4e-6.
    assert torch.allclose(found, expected, atol=5e-5, rtol=0)


OFF_LADDER = Table.of([9.0, 0.31], b=0.1)


def test_the_body_of_the_second_kind_takes_any_level():
    net = network("NCSNv2")
    expected = image_states(nf.Score(net.normalized, "normalized", "none"), net, OFF_LADDER)
    assert torch.allclose(image_states(net, net, OFF_LADDER), expected, atol=1e-5)


def foreign(x, labels):
    return -x / LADDER[labels].float()[:, None] ** 2


@pytest.mark.parametrize(("score", "shape"), [(network("NCSN"), None), (foreign, (2,))])
def test_networks_told_labels_refuse_other_levels_and_say_what_to_do(score, shape):
    message = r"row 0 .* σ = 9, .* only its 12 levels from 10 to 0.02.* quantize=True"
    with pytest.raises(ValueError, match=message):
        nf.Sampler(score, shape, SIGMAS, OFF_LADDER)


def test_quantised_labels_are_those_of_the_nearest_levels():
    seen = []

    def fn(x, labels):
        seen.append(labels.tolist())
        return -x

    score = nf.Score(fn, "normalized", "label", SIGMAS, quantize=True)
    nf.Sampler(score, (2,), method=OFF_LADDER, graph=False)(1, seed=0)
    nearest = [int((LADDER.log() - math.log(sigma)).abs().argmin()) for sigma in OFF_LADDER.sigma]
    assert seen == [[label] for label in nearest]
