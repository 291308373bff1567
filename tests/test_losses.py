"""Denoising score matching: the formula, its arguments, its minimiser, its refusals."""

import math

import pytest
import torch

import ncsn_fast as nf
from ncsn_fast import noise as noise_source

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


def test_a_batch_may_be_accumulated_in_parts():
    x = data()
    whole = nf.dsm_loss(wrong_score, x, SIGMAS, seed=1, step=2, reduction="none")
    parts = [
        nf.dsm_loss(
            wrong_score,
            x[i : i + 2],
            SIGMAS,
            seed=1,
            step=2,
            sample_ids=range(i, i + 2),
            reduction="none",
        )
        for i in (0, 2, 4)
    ]
    assert torch.allclose(torch.cat(parts), whole, rtol=1e-6)


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
