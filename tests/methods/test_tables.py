"""The methods' tables: published formulas, orders of convergence, variances, noise levels."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from method_cases import FEW_STEPS, LADDER, NOISELESS, SIGMAS, curved, run, start, table_of

import ncsn_fast as nf
from ncsn_fast.methods import tables as samplers
from ncsn_fast.methods.by_name import make_table

PUBLISHED = {  # σ₁, L, ε and r of the four published models
    "CIFAR-10": (50, 232, 6.2e-6, 0.176),
    "CelebA": (90, 500, 3.3e-6, 0.128),
    "bedroom": (190, 1086, 1.8e-6, 0.095),
    "v1": (1, 10, 2e-5, 0.316),
}


def noises(rows, x):
    generator = torch.Generator().manual_seed(3)
    return torch.randn(rows, *x.shape, dtype=torch.float64, generator=generator)


# --- Written out step by step, each from its paper.


def by_hand_consistent_annealed(x, z, levels):
    gamma, eta = levels[1] / levels[0], 8e-5 / levels[-1] ** 2
    beta = math.sqrt(1 - ((1 - eta) / gamma) ** 2)
    for i, sigma in enumerate(levels):
        s = curved(x, sigma) / sigma
        x = x + eta * sigma**2 * s
        if i < len(levels) - 1:
            x = x + beta * levels[i + 1] * z[i]
    return x + levels[-1] ** 2 * curved(x, levels[-1]) / levels[-1]


def by_hand_reverse_diffusion(x, z, levels):
    for i, (sigma, following) in enumerate(pairwise([*levels, 0.0])):
        g = math.sqrt(sigma**2 - following**2)
        x = x + g**2 * curved(x, sigma) / sigma
        if following:
            x = x + g * z[i]
    return x


def by_hand_ancestral(x, z, levels):
    for i, (sigma, following) in enumerate(pairwise([*levels, 0.0])):
        x = x + (sigma**2 - following**2) * curved(x, sigma) / sigma
        x = x + math.sqrt(following**2 * (sigma**2 - following**2) / sigma**2) * z[i]
    return x


def by_hand_predictor_corrector(x, z, levels):
    for i, (sigma, following) in enumerate(pairwise([*levels, 0.0])):
        alpha = 2 * (0.16 * sigma) ** 2
        x = x + alpha * curved(x, sigma) / sigma + math.sqrt(2 * alpha) * z[2 * i]
        g = math.sqrt(sigma**2 - following**2)
        x = x + g**2 * curved(x, sigma) / sigma + (g * z[2 * i + 1] if following else 0)
    return x


def by_hand_euler(x, z, levels):
    for sigma, following in pairwise([*levels, 0.0]):
        denoised = x + sigma * curved(x, sigma)
        x = x + (x - denoised) / sigma * (following - sigma)
    return x


def by_hand_heun(x, z, levels):
    for sigma, following in pairwise([*levels, 0.0]):
        slope = -curved(x, sigma)
        ahead = x + slope * (following - sigma)
        if following:
            ahead = x + (slope - curved(ahead, following)) / 2 * (following - sigma)
        x = ahead
    return x


def by_hand_dpmpp_2m(x, z, levels):
    old, last = None, 0.0
    for sigma, following in pairwise([*levels, 0.0]):
        denoised = x + sigma * curved(x, sigma)
        if following == 0:
            return denoised
        h = math.log(sigma / following)
        mixed = denoised
        if old is not None:
            r = last / h
            mixed = (1 + 1 / (2 * r)) * denoised - 1 / (2 * r) * old
        x = following / sigma * x - math.expm1(-h) * mixed
        old, last = denoised, h
    raise AssertionError


@pytest.mark.parametrize("spacing", ["ladder", "karras"])
@pytest.mark.parametrize("method", FEW_STEPS)
def test_a_table_equals_the_published_steps_written_out(method, spacing):
    table = table_of(method, spacing=spacing)
    levels = list(dict.fromkeys(table.sigma))
    x = start()
    z = noises(len(table), x)
    assert len(levels) == len(SIGMAS)
    expected = globals()[f"by_hand_{method}"](x, z, levels)
    assert float((run(table, x, z=z) - expected).abs().max()) < 1e-12


@pytest.mark.parametrize("per_level", [1, 3])
def test_consistent_annealed_equals_the_published_steps_written_out(per_level):
    table = table_of("consistent_annealed", steps_per_level=per_level)
    levels = table.sigma[:-1]
    assert len(levels) == 11 * per_level + 1
    assert levels == pytest.approx(np.geomspace(LADDER[0], LADDER[-1], len(levels)))
    x = start()
    z = noises(len(table), x)
    expected = by_hand_consistent_annealed(x, z, levels)
    assert float((run(table, x, z=z) - expected).abs().max()) < 1e-12
    bare = table_of("consistent_annealed", steps_per_level=per_level, denoise=False)
    assert bare == table[:-1]


def test_several_correctors_and_the_other_predictor():
    table = table_of("predictor_corrector", corrector_steps=2, predictor="ancestral")
    predictor = table_of("ancestral")
    assert table.sigma[::3] == table.sigma[1::3] == table.sigma[2::3] == predictor.sigma
    assert (table.b[2::3], table.d[2::3]) == (predictor.b, predictor.d)
    assert table.b[0] == table.b[1] == pytest.approx(2 * 0.16**2 * 5)
    assert table.d[0] == table.d[1] == pytest.approx(2 * 0.16 * 5)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_corrector_from_a_published_step_size_has_the_published_snr(name):
    first, number, step_size, snr = PUBLISHED[name]
    ladder = nf.geometric_sigmas(first, 0.01, number)
    table = samplers.predictor_corrector(ladder, step_size=step_size)
    assert table.d[0] / (2 * table.sigma[0]) == pytest.approx(snr, abs=5e-4)
    langevin = samplers.annealed_langevin(ladder, step_size, 1, denoise=False)
    assert table.b[::2] == pytest.approx(langevin.b)
    assert table.d[::2] == pytest.approx(langevin.d)


# --- Orders and variances.


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("heun", 2), ("dpmpp_2m", 2)])
@pytest.mark.parametrize("spacing", ["geometric", "karras"])
def test_the_order_of_convergence(method, order, spacing):
    # dx = -n dσ of N(0, 0.25): x is proportional to √(0.25 + σ²).
    def n(x, sigma):
        return -sigma * x / (0.25 + sigma**2)

    x = torch.ones(1, 1, dtype=torch.float64)
    exact = math.sqrt((0.25 + 0.02**2) / (0.25 + 3**2))
    numbers, errors = [40, 80, 160, 320], []
    for number in numbers:
        steps = 2 * number - 1 if method == "heun" else number
        table = make_table(
            method, torch.tensor([3, 0.02]), {"steps": steps, "spacing": spacing}, {}
        )
        # The last row, to σ = 0, is of first order in σ_L whatever the number of steps.
        errors.append(abs(float(run(table[:-1], x, n)) - exact))
    slope = np.polyfit(np.log(numbers), np.log(errors), 1)[0]
    assert slope == pytest.approx(-order, abs=0.12)


def variance_after(table, variance, start_variance):
    """Of a linear chain: the score of N(0, variance) makes x ← (a - bσ/(v + σ²))·x + d·z."""
    for sigma, a, b, d in zip(table.sigma, table.a, table.b, table.d, strict=True):
        start_variance *= (a - b * sigma / (variance + sigma**2)) ** 2
        start_variance += d**2
    return start_variance


@pytest.mark.parametrize("method", ["consistent_annealed", "ancestral"])
def test_of_a_point_the_noise_is_that_of_every_level(method):
    table = table_of(method)
    for row in range(1, len(LADDER)):
        after = variance_after(table[:row], 0.0, LADDER[0] ** 2)
        assert after == pytest.approx(table.sigma[row] ** 2, rel=1e-9)


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("annealed_langevin", {"step_size": 1e-5, "steps_per_level": 400}),
        ("consistent_annealed", {"step_size": 1e-6, "steps_per_level": 2000}),
        ("reverse_diffusion", {"steps": 3000, "spacing": "geometric"}),
        ("ancestral", {"steps": 3000, "spacing": "geometric"}),
        ("predictor_corrector", {"steps": 6000, "spacing": "geometric"}),
    ],
)
def test_stochastic_methods_reach_the_variance_of_the_data(method, settings):
    table = table_of(method, **settings)
    assert variance_after(table, 0.5, LADDER[0] ** 2 + 0.5) == pytest.approx(0.5, rel=0.02)


def test_the_engine_reaches_that_variance_too():
    score = nf.Score(lambda x, sigma: -x / (0.5 + sigma[:, None] ** 2), "score", "sigma")
    table = table_of("ancestral", steps=100, spacing="geometric")
    x = nf.Sampler(score, (4,), method=table)(4000, seed=1)
    expected = variance_after(table, 0.5, LADDER[0] ** 2 + 1 / 3)
    assert float(x.var()) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("factor", [0.999, 1.001])
@pytest.mark.parametrize("side", [-1, 1])
def test_consistent_annealed_is_valid_in_its_range_only(side, factor):
    gamma = (LADDER[-1] / LADDER[0]) ** (1 / 11)
    bound = LADDER[-1] ** 2 * (1 + side * gamma)
    if (factor > 1) == (side < 0):
        samplers.consistent_annealed(SIGMAS, factor * bound)
        return
    with pytest.raises(ValueError, match=r"σ_L²\(1-γ\) = 4.316e-05 < ε < σ_L²\(1\+γ\) = 0.0001568"):
        samplers.consistent_annealed(SIGMAS, factor * bound)


# --- Noise levels and the number of evaluations.


@pytest.mark.parametrize("method", FEW_STEPS)
@pytest.mark.parametrize("steps", [4, 5, 11, 12])
def test_steps_are_network_evaluations_at_most(method, steps):
    table = table_of(method, steps=steps)
    per_level = {"heun": 2, "predictor_corrector": 2}.get(method, 1)
    assert steps - per_level < len(table) <= steps
    assert (table.sigma[0], table.sigma[-1]) == (LADDER[0], LADDER[-1])
    assert set(table.sigma) <= set(LADDER)
    assert [LADDER[level] for level in table.level] == list(table.sigma)


@pytest.mark.parametrize("method", [*NOISELESS, "ancestral", "reverse_diffusion"])
def test_one_step_removes_all_the_noise(method):
    table = table_of(method, steps=1)
    assert (table.sigma, table.b, table.d) == ((5.0,), (5.0,), (0.0,))
    assert (table.a, table.c) == ((1.0,), (0.0,))


def test_spacings_are_what_they_are_called():
    def levels(**settings):
        return np.array(table_of("euler", steps=9, **settings).sigma)

    assert np.allclose(np.diff(levels(spacing="linear")), -4.99 / 8)
    geometric = levels(spacing="geometric")
    assert np.allclose(geometric[1:] / geometric[:-1], (0.01 / 5) ** (1 / 8))
    for rho in (3.0, 7.0):
        roots = levels(spacing="karras", rho=rho) ** (1 / rho)
        assert np.allclose(np.diff(roots, 2), 0)
    assert np.allclose(levels(spacing="karras"), levels(spacing="karras", rho=7))


def test_levels_on_the_ladder_are_counted_wherever_they_come_from():
    assert table_of("euler", spacing="geometric").level == tuple(range(12))
    assert table_of("euler", spacing="linear").level == (0, *[-1] * 10, 11)
    assert table_of("consistent_annealed", steps_per_level=2).level[:6] == (0, -1, 1, -1, 2, -1)
