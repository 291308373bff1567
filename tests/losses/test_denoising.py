"""Denoising score matching: the formula, its arguments, its minimiser, its refusals."""

import copy
import math

import pytest
import torch

import ncsn_fast as nf
from ncsn_fast import noise as noise_source
from ncsn_fast.losses.common import draw_labels

SIGMAS = nf.geometric_sigmas(5, 0.01, 10)


def data(n=6, dim=4):
    return torch.rand(n, dim, generator=torch.Generator().manual_seed(0))


def wrong_score(x, labels):
    return -x / (2 + SIGMAS[labels][:, None] ** 2)


def by_hand(x, labels, z, power=2.0):
    sigma = SIGMAS[labels][:, None]
    s = wrong_score(x + sigma * z, labels)
    return (0.5 * (s + z / sigma) ** 2).sum(1) * sigma[:, 0] ** power


@pytest.mark.parametrize("power", [1.0, 2.0, 2.5])
def test_the_loss_is_the_published_formula(power):
    x, labels = data(), torch.tensor([0, 1, 4, 7, 8, 9])
    z = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    losses = nf.dsm_loss(
        wrong_score, x, SIGMAS, labels, anneal_power=power, noise=z, reduction="none"
    )
    assert torch.allclose(losses, by_hand(x, labels, z, power), rtol=1e-5)
    mean = nf.dsm_loss(wrong_score, x, SIGMAS, labels, power, noise=z)
    assert float(mean) == pytest.approx(float(losses.mean()))


def test_noise_and_levels_are_those_of_the_seed_step_and_samples():
    x = data()
    which = {"seed": 5, "step": 17, "sample_ids": range(20, 26)}
    labels = noise_source.integers(10, stream=noise_source.LEVELS, **which)
    z = noise_source.normal((4,), stream=noise_source.PERTURB, **which)
    losses = nf.dsm_loss(wrong_score, x, SIGMAS, **which, reduction="none")
    assert torch.allclose(losses, by_hand(x, labels, z), rtol=1e-5)


def test_without_a_seed_torch_governs():
    torch.manual_seed(0)
    a, b = (float(nf.dsm_loss(wrong_score, data(), SIGMAS)) for _ in range(2))
    torch.manual_seed(0)
    assert float(nf.dsm_loss(wrong_score, data(), SIGMAS)) == a != b


@pytest.mark.parametrize("level", [0, 3, 6])
def test_its_minimiser_is_the_score_of_the_perturbed_data(level):
    """On N(0, I) the best c in s = -c·x is 1/(1 + σ²)."""
    n = 400_000
    x = torch.randn(n, 1, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    sigma = float(SIGMAS[level])
    c = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)

    def score(x, labels):
        return -c * x

    # The loss is a parabola in c: one Newton step from anywhere lands at its minimum.
    loss = nf.dsm_loss(score, x, SIGMAS, torch.full((n,), level), seed=3)
    (slope,) = torch.autograd.grad(loss, c, create_graph=True)
    (bend,) = torch.autograd.grad(slope, c)
    best = float((c - slope / bend).detach())
    # The estimate is Σ x̃z/σ / Σ x̃²; its standard error with x̃ of variance 1 + σ²:
    error = math.sqrt((1 + 2 * sigma**2) / n) / (sigma * (1 + sigma**2))
    assert best == pytest.approx(1 / (1 + sigma**2), abs=4 * error)
    assert 4 * error < 0.25 / (1 + sigma**2)


def sigma_score(x, sigma):
    return -x / (2 + sigma**2)[:, None]


ANY_SIGMA = nf.Score(sigma_score, "score", "sigma")
KEY = {"seed": 5, "step": 17, "sample_ids": range(20, 26)}


def continuous_sigmas(count=6, **key):
    """The noise levels that a network is told when σ is continuous."""
    seen = []

    def fn(x, sigma):
        seen.append(sigma)
        return -x

    score = nf.Score(fn, "score", "sigma")
    nf.dsm_loss(score, torch.zeros(count, 1), SIGMAS, continuous=True, **key)
    return seen[0]


def test_labels_drawn_ahead_are_those_of_the_loss():
    drawn = draw_labels(10, **KEY)
    given = nf.dsm_loss(wrong_score, data(), SIGMAS, drawn, **KEY, reduction="none")
    assert torch.equal(given, nf.dsm_loss(wrong_score, data(), SIGMAS, **KEY, reduction="none"))


def test_continuous_sigmas_are_log_uniform_between_the_ends_of_the_ladder():
    n = 20_000
    sigma = continuous_sigmas(n, seed=1)
    u = ((sigma.double() / 5).log() / math.log(0.01 / 5)).sort().values
    assert float(u[0]) > -1e-6
    assert float(u[-1]) < 1 + 1e-6
    steps = torch.arange(1, n + 1) / n
    assert float((u - steps).abs().max()) < 1.63 / math.sqrt(n)  # Kolmogorov-Smirnov, 1 %


def test_continuous_sigmas_do_not_depend_on_the_batch():
    whole = continuous_sigmas(6, **KEY)
    parts = [
        continuous_sigmas(3, **{**KEY, "sample_ids": ids}) for ids in (range(20, 23), [23, 24, 25])
    ]
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(continuous_sigmas(6, **{**KEY, "step": 18}), whole)


def test_drawn_labels_say_in_which_part_of_the_range_a_continuous_sigma_lies():
    sigma = continuous_sigmas(500, seed=1)
    part = draw_labels(10, seed=1, sample_ids=range(500))
    ends = nf.geometric_sigmas(5, 0.01, 11)
    assert bool((sigma <= ends[part] * (1 + 1e-5)).all())
    assert bool((sigma >= ends[part + 1] * (1 - 1e-5)).all())


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_the_continuous_loss_is_the_published_formula(power):
    x, sigma = data(), continuous_sigmas(**KEY)[:, None]
    z = noise_source.normal((4,), stream=noise_source.PERTURB, **KEY)
    s = sigma_score(x + sigma * z, sigma[:, 0])
    expected = (0.5 * (s + z / sigma) ** 2 * sigma**power).sum(1)
    losses = nf.dsm_loss(
        ANY_SIGMA, x, SIGMAS, anneal_power=power, **KEY, reduction="none", continuous=True
    )
    assert torch.allclose(losses, expected, rtol=1e-5)


def test_a_network_that_does_not_see_the_level_takes_continuous_sigmas():
    torch.manual_seed(0)
    net = nf.NCSNv2(channels=1, image_size=8, ngf=4, sigmas=SIGMAS)
    x = torch.rand(3, 1, 8, 8)
    losses = nf.dsm_loss(net, x, SIGMAS, seed=1, continuous=True, reduction="none")
    sigma = continuous_sigmas(3, seed=1)
    z = noise_source.normal((1, 8, 8), stream=noise_source.PERTURB, seed=1, sample_ids=range(3))
    n = net.normalized(x + sigma[:, None, None, None] * z)
    assert torch.allclose(losses, 0.5 * (n + z).square().sum((1, 2, 3)), rtol=1e-4)


def test_a_weight_takes_the_place_of_the_power_of_sigma():
    x, labels = data(), torch.tensor([0, 1, 4, 7, 8, 9])
    for power in (1.0, 2.5):
        weighted, powered = (
            nf.dsm_loss(wrong_score, x, SIGMAS, labels, seed=1, reduction="none", **how)
            for how in ({"weight": lambda sigma, p=power: sigma**p}, {"anneal_power": power})
        )
        assert torch.allclose(weighted, powered, rtol=1e-5)


def test_a_weight_is_given_the_sigma_of_each_sample():
    seen = []

    def weight(sigma):
        seen.append(sigma)
        return torch.ones_like(sigma)

    labels = torch.tensor([3, 1, 4, 7, 8, 9])
    nf.dsm_loss(wrong_score, data(), SIGMAS, labels, weight=weight)
    assert torch.equal(seen[0], SIGMAS[labels])


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"labels": torch.tensor([0, 1, 4, 7, 8, 9])},
        {"noise": torch.ones(6, 4)},
        {"anneal_power": 1.0},
        {"weight": lambda sigma: 1 + sigma},
        {"continuous": True},
        {"continuous": True, "weight": lambda sigma: 1 + sigma, "noise": torch.ones(6, 4)},
    ],
    ids=["plain", "labels", "noise", "power", "weight", "continuous", "all"],
)
def test_the_reductions_agree_and_parts_of_a_batch_add_up(how):
    net = ANY_SIGMA if how.get("continuous") else wrong_score
    each = nf.dsm_loss(net, data(), SIGMAS, **KEY, reduction="none", **how)
    assert each.shape == (6,)
    mean = nf.dsm_loss(net, data(), SIGMAS, **KEY, **how)
    values = nf.dsm_loss(net, data(), SIGMAS, **KEY, reduction="mean_values", **how)
    assert float(mean) == pytest.approx(float(each.mean()), rel=1e-6)
    assert float(values) == pytest.approx(float(each.mean()) / 4, rel=1e-6)
    parts = []
    for part in (slice(0, 2), slice(2, 6)):
        cut = {k: v[part] if isinstance(v, torch.Tensor) else v for k, v in how.items()}
        key = {**KEY, "sample_ids": KEY["sample_ids"][part]}
        parts.append(nf.dsm_loss(net, data()[part], SIGMAS, **key, reduction="none", **cut))
    assert torch.allclose(torch.cat(parts), each, rtol=1e-6)


@pytest.mark.parametrize(
    "how",
    [{}, {"anneal_power": 1.0}, {"weight": lambda sigma: 1 + sigma}],
    ids=["plain", "power", "weight"],
)
def test_gradients_of_the_parameters_are_those_of_the_formula_in_float64(how):
    torch.manual_seed(0)
    net = nf.MLPScore(4, 16, 2, sigmas=SIGMAS)
    torch.nn.init.normal_(net.head.weight)
    nf.dsm_loss(net, data(), SIGMAS, seed=1, **how).backward()
    exact = copy.deepcopy(net).double()
    exact.zero_grad()
    labels = draw_labels(10, seed=1, sample_ids=range(6))
    sigma = SIGMAS.double()[labels][:, None]
    z = noise_source.normal(
        (4,), stream=noise_source.PERTURB, seed=1, sample_ids=range(6), dtype=torch.float64
    )
    weight = how.get("weight", lambda sigma: sigma ** how.get("anneal_power", 2.0))
    residual = exact(data().double() + sigma * z, labels) + z / sigma
    (0.5 * weight(sigma) * residual.square()).sum(1).mean().backward()
    for found, wanted in zip(net.parameters(), exact.parameters(), strict=True):
        error = (found.grad.double() - wanted.grad).norm() / wanted.grad.norm()
        assert float(error) < 1e-5


def test_double_precision_is_kept():
    for how in ({}, {"continuous": True}):
        loss = nf.dsm_loss(ANY_SIGMA, data().double(), SIGMAS, seed=1, **how)
        assert loss.dtype == torch.float64


def test_a_network_of_ours_is_trained_through_its_normalised_output():
    torch.manual_seed(0)
    net = nf.NCSNv2(channels=1, image_size=8, ngf=4, sigmas=SIGMAS)
    x = torch.rand(3, 1, 8, 8)
    labels = torch.tensor([0, 5, 9])
    ours = nf.dsm_loss(net, x, SIGMAS, labels, seed=1)
    as_score = nf.dsm_loss(lambda x, labels: net(x, labels), x, SIGMAS, labels, seed=1)
    assert ours.item() == pytest.approx(as_score.item(), rel=1e-5)
    ours.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"labels": torch.tensor([0, 1, 2, 3, 4, 10])}, "labels from 0 to 10: levels count"),
        ({"labels": torch.tensor([0, 1])}, "needed are 6 integers"),
        ({"labels": torch.zeros(6)}, "labels are torch.float32"),
        ({"noise": torch.zeros(6, 3)}, r"noise has shape \(6, 3\) .* x has \(6, 4\)"),
        ({"noise": torch.zeros(6, 4, dtype=torch.int64)}, "give floating-point noise"),
        ({"anneal_power": float("nan")}, "anneal_power = nan"),
        ({"sample_ids": [0]}, "1 sample_ids for 6 samples"),
        ({"reduction": "sum"}, "reduction = 'sum'"),
        ({"seed": -3}, "seed = -3"),
        ({"x": torch.zeros(6, 4, dtype=torch.int64)}, "a batch of floating-point data"),
        ({"x": torch.zeros(0, 4)}, "a batch of floating-point data"),
        ({"sigmas": [0.1, 1.0]}, "noise levels descend"),
        ({"net": lambda x, labels: x[:, :1]}, r"returned \(6, 1\) on cpu; needed is \(6, 4\)"),
        ({"x": torch.zeros(6, 0)}, "a batch of floating-point data"),
        ({"continuous": True}, r"knows only the labels of its 10 levels: .* \"sigma\"\)"),
        (
            {"continuous": True, "net": nf.NCSN(channels=1, image_size=8, ngf=4, sigmas=SIGMAS)},
            "knows only the labels of its 10 levels",
        ),
        (
            {"continuous": True, "net": ANY_SIGMA, "labels": torch.zeros(6, dtype=torch.int64)},
            "give one of the two",
        ),
        ({"continuous": True, "net": ANY_SIGMA, "sigmas": [0.5]}, "give at least two"),
        ({"weight": lambda s: s, "anneal_power": 1}, "weight and anneal_power = 1 both say"),
        ({"weight": 3.0}, r"weight = 3.0: give λ as a function of σ"),
        ({"weight": lambda s: 1.0}, "weight returned float; needed is a tensor"),
        ({"weight": lambda s: s[:, None]}, r"weight returned \(6, 1\)"),
        ({"weight": lambda s: s.long()}, "weight returned torch.int64"),
        ({"weight": lambda s: 0 * s}, "weight returned 0 at σ = .*: weights are finite and pos"),
        ({"weight": lambda s: s / 0}, "weight returned inf at σ"),
        ({"weight": lambda s: s * math.nan}, "weight returned nan at σ"),
    ],
)
def test_bad_input_is_refused(keywords, message):
    given = {"net": wrong_score, "x": data(), "sigmas": SIGMAS, **keywords}
    with pytest.raises(ValueError, match=message):
        nf.dsm_loss(given.pop("net"), given.pop("x"), given.pop("sigmas"), **given)


def test_a_network_by_label_is_trained_on_its_own_levels():
    net = nf.NCSN(channels=1, image_size=8, ngf=4, sigmas=SIGMAS)
    with pytest.raises(
        ValueError, match="5 sigmas from 5 for a network whose labels count 10 levels"
    ):
        nf.dsm_loss(net, torch.rand(2, 1, 8, 8), SIGMAS[:5])
    with pytest.raises(ValueError, match=r"10 sigmas from 50 .* 10 levels from 5: train it on its"):
        nf.dsm_loss(net, torch.rand(2, 1, 8, 8), nf.geometric_sigmas(50, 0.01, 10))
