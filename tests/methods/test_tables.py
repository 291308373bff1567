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
        denoised = x + sigma**2 * s
        x = x + eta * sigma**2 * s
        if i < len(levels) - 1:
            x = x + beta * levels[i + 1] * z[i]
    return x, denoised


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
    levels = table.sigma
    assert len(levels) == 11 * per_level + 1
    assert levels == pytest.approx(np.geomspace(LADDER[0], LADDER[-1], len(levels)))
    x = start()
    z = noises(len(table), x)
    last, denoised = by_hand_consistent_annealed(x, z, levels)
    assert float((run(table, x, z=z) - denoised).abs().max()) < 1e-12
    bare = table_of("consistent_annealed", steps_per_level=per_level, denoise=False)
    assert float((run(bare, x, z=z) - last).abs().max()) < 1e-12
    assert bare[:-1] == table[:-1]


def test_consistent_annealed_on_even_levels_takes_the_ratio_of_each_step():
    even, x = torch.linspace(5, 0.5, 10), start()
    table = samplers.consistent_annealed(even, 0.2, 3)
    levels = np.linspace(5, 0.5, 28)
    assert table.sigma == pytest.approx(levels)
    assert table == samplers.consistent_annealed(even, 0.2, 3, spacing="linear")
    z = noises(len(table), x)
    expected = x
    for i, (sigma, following) in enumerate(pairwise(levels)):
        beta = math.sqrt(1 - ((1 - 0.2 / 0.25) * sigma / following) ** 2)
        expected = expected + 0.2 / 0.25 * sigma * curved(expected, sigma) + following * beta * z[i]
    expected = expected + 0.5 * curved(expected, 0.5)
    assert float((run(table, x, z=z) - expected).abs().max()) < 1e-12
    geometric = samplers.consistent_annealed(even, 0.2, 3, spacing="geometric")
    assert geometric.sigma == pytest.approx(np.geomspace(5, 0.5, 28))


def test_consistent_annealed_does_not_guess_the_levels_between_the_ends():
    with pytest.raises(ValueError, match=r'neither geometric nor evenly spaced.*give spacing="geo'):
        samplers.consistent_annealed([5, 4, 0.5], 0.2)
    with pytest.raises(ValueError, match=r"spacing = 'karras'.* 'geometric', 'linear'"):
        samplers.consistent_annealed([5, 1], 0.8, spacing="karras")


@pytest.mark.parametrize("noise_first", [False, True])
@pytest.mark.parametrize("denoise", [False, True, "last"])
def test_annealed_langevin_equals_both_published_codes_written_out(denoise, noise_first):
    step_size, steps = 2e-5, 3
    table = samplers.annealed_langevin(SIGMAS, step_size, steps, denoise, noise_first)
    x = start()
    z = noises(len(table), x)
    expected, drawn = x, iter(z)
    for sigma in LADDER:
        alpha = step_size * (sigma / LADDER[-1]) ** 2
        for _ in range(steps):
            noise = math.sqrt(2 * alpha) * next(drawn)
            if noise_first:
                expected = expected + noise
            score = curved(expected, sigma) / sigma
            denoised = expected + sigma**2 * score
            expected = expected + alpha * score + (0 if noise_first else noise)
    if denoise is True:
        expected = expected + LADDER[-1] * curved(expected, LADDER[-1])
    elif denoise == "last":
        expected = denoised
    assert float((run(table, x, z=z) - expected).abs().max()) < 1e-12
    assert len(table) == 12 * steps + (denoise is True) + noise_first


def test_noise_of_no_size_makes_the_methods_of_the_ode():
    assert table_of("ancestral", eta=0.0) == table_of("euler")
    assert table_of("dpmpp_2m", eta=0.0) == table_of("dpmpp_2m")
    assert table_of("ancestral", eta=1.0) == table_of("ancestral")


@pytest.mark.parametrize("eta", [0.3, 1.0, 5.0])
def test_of_a_point_the_noise_is_that_of_every_level_however_much_is_fresh(eta):
    for method in ("ancestral", "dpmpp_2m"):
        table = table_of(method, eta=eta)
        assert table.adds_noise
        variance = LADDER[0] ** 2
        for row, (sigma, following) in enumerate(pairwise(LADDER)):
            # Of a point n = -x/σ: in 2M both clean images are 0, and history has no part.
            d, keeps = table.d[row], table.a[row] - table.b[row] / sigma
            variance = variance * keeps**2 + d**2
            assert variance == pytest.approx(following**2, rel=1e-9)


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
    """Of a linear chain: with the score of N(0, v), n = -σ/(v + σ²)·x, a row is a matrix on the
    state and its history, and noise on the state."""
    covariance = np.diag([start_variance, 0.0])
    columns = [table.sigma, table.a, table.b, table.c, table.d, table.e, table.f]
    for sigma, a, b, c, d, e, f in zip(*columns, strict=True):
        n = -sigma / (variance + sigma**2)
        row = np.array([[a + b * n, c], [e + f * n, 0.0]])
        covariance = row @ covariance @ row.T
        covariance[0, 0] += d**2
    return covariance[0, 0]


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


@pytest.mark.parametrize(
    ("steps", "ancestral", "second_order"), [(20, 0.73, 1.03), (40, 0.86, 1.01)]
)
def test_second_order_keeps_the_variance_that_ancestral_steps_lose(steps, ancestral, second_order):
    """An ancestral step takes the denoised image for the image, and leaves out its variance; the
    shares are those of docs/methods.md."""

    def kept(method, **settings):
        table = table_of(method, steps=steps, spacing="geometric", **settings)
        return variance_after(table, 0.5, LADDER[0] ** 2 + 0.5) / 0.5

    assert kept("ancestral") == pytest.approx(ancestral, abs=0.006)
    assert kept("dpmpp_2m", eta=1.0) == pytest.approx(second_order, abs=0.006)


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


# --- Ladders that are not geometric.

BETAS = np.linspace(1e-4, 0.02, 1000)
ALPHAS = np.cumprod(1 - BETAS)
ANGLES = np.cos((np.arange(1001) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
COSINE = np.cumprod(1 - np.minimum(1 - ANGLES[1:] / ANGLES[:-1], 0.999))
TIMES = torch.linspace(1, 1e-3, 1000, dtype=torch.float64)
NOT_GEOMETRIC = {
    "DDPM": torch.from_numpy(np.sqrt((1 - ALPHAS) / ALPHAS)[::-1].copy()),
    "cosine": torch.from_numpy(np.sqrt((1 - COSINE) / COSINE)[::-1].copy()),
    "VP": torch.expm1(19.9 / 2 * TIMES**2 + 0.1 * TIMES).sqrt(),
    "even": torch.linspace(50, 0.01, 232),
}


def spread(table, deviation=0.2):
    """The standard deviation that the exact network of N(½, deviation²) ends with."""
    variance = deviation**2
    x = torch.full((1, 1), math.sqrt(variance + table.sigma[0] ** 2), dtype=torch.float64)
    return float(run(table, x, lambda x, sigma: -sigma * x / (variance + sigma**2)))


@pytest.mark.parametrize("name", NOT_GEOMETRIC)
def test_more_steps_on_a_ladder_that_is_not_geometric_are_better(name):
    ladder = NOT_GEOMETRIC[name]
    tables = [make_table("dpmpp_2m", ladder, {"steps": n}, {}) for n in (10, 20, 50, 200)]
    assert [len(table) for table in tables] == [10, 20, 50, 200]
    errors = [abs(spread(table) - 0.2) for table in tables]
    assert errors == pytest.approx([0.003, 0.003, 0.001, 0.0], abs=3e-3)
    assert errors[0] > errors[2]


@pytest.mark.parametrize("name", ["DDPM", "cosine", "VP"])
def test_a_network_that_knows_its_levels_only_visits_those_nearest_to_geometric_ones(name):
    ladder = NOT_GEOMETRIC[name]
    for steps in (1, 2, 10, 20, 50, 1000):
        table = make_table("dpmpp_2m", ladder, {"steps": steps}, {}, only_levels=True)
        assert len(set(table.sigma)) == steps
        assert min(table.level) == 0
        assert -1 not in table.level
        if 10 <= steps <= 50:
            assert spread(table) == pytest.approx(0.2, abs=6e-3)
    with pytest.raises(ValueError, match=r"1001 noise levels wanted, but .* has 1000"):
        make_table("dpmpp_2m", ladder, {"steps": 1001}, {}, only_levels=True)


def test_on_a_geometric_ladder_automatic_spacing_is_the_ladder_bit_for_bit():
    rounded = [1, 0.6, 0.36, 0.22, 0.13, 0.077, 0.046, 0.028, 0.017, 0.01]
    for ladder in (SIGMAS, nf.geometric_sigmas(50, 0.01, 232), torch.tensor(rounded), [5.0, 1.0]):
        sigmas = torch.as_tensor(ladder)
        for steps in range(1, len(sigmas) + 1):
            expected = make_table("euler", sigmas, {"steps": steps, "spacing": "ladder"}, {})
            for only_levels in (False, True):
                assert make_table("euler", sigmas, {"steps": steps}, {}, only_levels) == expected


def test_without_a_number_of_steps_every_level_is_visited_as_it_is_given():
    for ladder in NOT_GEOMETRIC.values():
        table = make_table("dpmpp_2m", ladder, {}, {})
        assert table.sigma == tuple(ladder.float().double().tolist())


def test_rho_without_the_spacing_that_it_belongs_to_is_refused():
    with pytest.raises(ValueError, match=r"rho = 5.0 has no effect .* 'ladder': give spacing="):
        make_table("euler", SIGMAS, {"steps": 4, "rho": 5.0}, {})
