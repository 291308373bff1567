"""Noise levels and the rules that choose them, against the published values."""

import math

import numpy as np
import pytest
import torch

import ncsn_fast as nf
from ncsn_fast.methods import levels

# name, values per image, σ₁, L, T, published ratio, step size by the rule
PUBLISHED = [
    ("cifar10", 3 * 32 * 32, 50, 232, 5, 1.037559, 6.18e-6),
    ("celeba", 3 * 64 * 64, 90, 500, 5, 1.018414, 3.34e-6),
    ("lsun", 3 * 128 * 128, 190, 1086, 3, 1.009122, 1.77e-6),
    ("ffhq", 3 * 256 * 256, 348, 2311, 3, 1.004537, 8.93e-7),
]
LEVELS_AT_HALF_OVERLAP = [219.25, 472.22, 1025.73, 2181.60]


@pytest.mark.parametrize(("name", "dim", "top", "count", "steps", "ratio", "step_size"), PUBLISHED)
def test_published_ladders_have_the_published_ratio_and_step_size(
    name, dim, top, count, steps, ratio, step_size
):
    sigmas = nf.geometric_sigmas(top, 0.01, count).double()
    assert float((sigmas[0] / sigmas[-1]) ** (1 / (count - 1))) == pytest.approx(ratio, abs=1e-6)
    found = levels.best_step_size((top / 0.01) ** (1 / (count - 1)), 0.01, steps)
    assert found == pytest.approx(step_size, rel=2e-3)


@pytest.mark.parametrize(
    ("preset", "count"), list(zip(PUBLISHED, LEVELS_AT_HALF_OVERLAP, strict=True))
)
def test_the_overlap_of_one_half_gives_the_published_number_of_levels(preset, count):
    _, dim, top, shipped, *_ = preset
    half = levels.num_levels_for(top, 0.01, levels.level_ratio(dim, 0.5))
    assert half == pytest.approx(count, abs=0.005)
    assert levels.num_levels_for(top, 0.01, levels.level_ratio(dim, 0.567)) == pytest.approx(
        shipped, abs=0.6
    )


def test_church_ships_another_step_size_than_the_rule_gives():
    found = levels.best_step_size((140 / 0.01) ** (1 / 787), 0.01, 4)
    assert found == pytest.approx(2.31e-6, rel=2e-3)


def test_geometric_sigmas_keep_one_ratio_and_both_ends():
    sigmas = nf.geometric_sigmas(50, 0.01, 232)
    assert sigmas.dtype == torch.float32
    assert float(sigmas[0]) == 50
    assert float(sigmas[-1]) == pytest.approx(0.01, rel=1e-7)
    ratios = sigmas[:-1] / sigmas[1:]
    assert float(ratios.max() - ratios.min()) < 1e-6


def test_the_step_size_brings_the_variance_closest_to_one():
    ratio, steps = 1.3, 5
    best = levels.best_step_size(ratio, 0.01, steps) / 1e-4

    def distance(a):
        b = 2 * a / (1 - (1 - a) ** 2)
        return np.abs((1 - a) ** (2 * steps) * (ratio**2 - b) + b - 1)

    assert distance(best) <= distance(np.linspace(1e-4, 1.999, 200_001)).min() + 1e-9


def test_the_ratio_solves_its_equation():
    g = levels.level_ratio(3072, 0.5)
    u = math.sqrt(2 * 3072) * (g - 1)
    normal = torch.distributions.Normal(
        torch.tensor(0.0, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64)
    )
    overlap = normal.cdf(torch.tensor(u + 3 * g)) - normal.cdf(torch.tensor(u - 3 * g))
    assert float(overlap) == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize(
    ("sigmas", "message"),
    [
        ([1.0, 2.0], r"sigmas\[0\] = 1 is followed by 2: noise levels descend"),
        ([1.0, 1.0], "noise levels descend"),
        ([1.0, float("nan")], r"sigmas\[1\] = nan: noise levels are finite and positive"),
        ([float("inf"), 1.0], r"sigmas\[0\] = inf"),
        ([1.0, 0.0], r"sigmas\[1\] = 0.0"),
        ([1.0, -1.0], r"sigmas\[1\] = -1.0"),
        ([], "1-D list"),
        ([[1.0]], "1-D list"),
    ],
)
def test_bad_levels_are_refused(sigmas, message):
    with pytest.raises(ValueError, match=message):
        levels.check_sigmas(sigmas)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: nf.geometric_sigmas(0.01, 50, 10), "finite sigma_max > sigma_min > 0"),
        (lambda: nf.geometric_sigmas(50, 0, 10), "finite sigma_max > sigma_min > 0"),
        (lambda: nf.geometric_sigmas(float("inf"), 1, 10), "finite sigma_max"),
        (lambda: nf.geometric_sigmas(50, 0.01, 1), "at least 2 levels"),
        (lambda: levels.check_step_size(0, 0.01), "0 < ε < 2σ_L² = 0.0002"),
        (lambda: levels.check_step_size(2.1e-4, 0.01), "every chain diverges"),
        (lambda: levels.check_step_size(float("nan"), 0.01), "step_size = nan"),
        (lambda: nf.auto_schedule(torch.rand(5, 64), steps_per_level=0), "steps_per_level = 0"),
        (lambda: nf.auto_schedule(torch.rand(5, 64), steps_per_level=2.5), "level = 2.5"),
        (lambda: nf.auto_schedule(torch.zeros(5, 64)), "all 5 data points are equal"),
        (lambda: nf.auto_schedule(torch.rand(1, 64)), "at least two"),
        (lambda: nf.auto_schedule(torch.full((5, 64), torch.nan)), "not finite"),
        (lambda: levels.level_ratio(64, 0.999), "above 0 and below 0.9973"),
        (lambda: nf.auto_schedule(torch.rand(50)), "shape of one sample"),
    ],
)
def test_settings_that_make_no_sense_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(("dimension", "ratio"), [(1, 2.0), (2, 2.0), (17, 2.0)])
def test_in_few_dimensions_levels_halve_at_most(dimension, ratio):
    assert levels.level_overlap(dimension, ratio) > 0.5
    assert levels.level_ratio(dimension) == ratio
    assert levels.level_ratio(19) < 2
    points = torch.rand(50, dimension)
    assert len(nf.auto_schedule(points, sigma_min=0.05).sigmas) > 3


def test_the_nearest_level_is_that_in_the_logarithm_and_the_first_of_two():
    ladder = torch.tensor([8.0, 2.0, 0.5, 0.1], dtype=torch.float64)
    sigma = torch.tensor([[100.0, 4.5, 3.5], [1.0, 0.5, 0.01]], dtype=torch.float64)
    nearest, gap = levels.nearest_level(sigma, ladder)
    assert nearest.tolist() == [[0, 0, 1], [1, 2, 3]]
    torch.testing.assert_close(gap, (sigma / ladder[nearest]).log().abs())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("number", [1, 2, 7, 40])
def test_the_nearest_level_is_that_of_all_pairs_in_any_order(number, dtype):
    random = torch.Generator().manual_seed(number)
    ladder = torch.rand(number, generator=random, dtype=dtype).mul(5).exp()
    twice = torch.cat([ladder, ladder.flip(0)])[torch.randperm(2 * number, generator=random)]
    sigma = torch.rand(50, 2, generator=random, dtype=dtype).mul(7).sub(1).exp()
    sigma[0], sigma[1] = ladder[0], (ladder[0] * ladder[-1]).sqrt()
    gap, nearest = (sigma.log()[..., None] - twice.log()).abs().min(-1)
    found = levels.nearest_level(sigma.T, twice)
    assert torch.equal(found[0], nearest.T)
    assert torch.equal(found[1], gap.T)
    assert levels.nearest_level(sigma[3, 1], twice)[0] == nearest[3, 1]


@pytest.mark.parametrize(
    ("sigmas", "message"),
    [
        ([1.0, 2.0, 3.0], r"is followed by 2: .* \(these ascend: reverse the list\)"),
        ([3.0, 1.0, 2.0], r"sigmas\[1\] = 1 is followed by 2: .* \(sort the list\)"),
        ([3.0, 3.0, 1.0], r"sigmas\[0\] = sigmas\[1\] = 3: .*leave repeated ones out"),
        ([3.0, 1.0, 1.0], r"sigmas\[1\] = sigmas\[2\] = 1: .* steps_per_level"),
        ([1.0, 1.0], r"sigmas\[0\] = sigmas\[1\] = 1: "),
        ([1.0 + 1e-9, 1.0], r"sigmas\[0\] = sigmas\[1\] = 1 in float32, which ladders are kept in"),
        ([1.0, 1e-50], r"sigmas\[1\] = 1e-50: .* in float32"),
        ([2.0, 1.0, 0.0], r"sigmas\[2\] = 0.0: .*leave the 0 at the end out"),
        ([2.0, 0.0, 1.0], r"sigmas\[1\] = 0.0: noise levels are finite and positive$"),
        ([2.0, -1.0], r"sigmas\[1\] = -1.0: noise levels are finite and positive$"),
        ([float("nan"), 1.0], r"sigmas\[0\] = nan"),
        ([float("inf"), 1.0], r"sigmas\[0\] = inf: noise levels are finite and positive$"),
        ([[2.0, 1.0]], r"shape \(1, 2\).* give a 1-D list"),
        ([], r"shape \(0,\)"),
        (2.0, r"shape \(\)"),
        (["2", "b"], "no list of numbers"),
        ([2.0, [1.0]], "no list of numbers"),
        (None, r"sigmas"),
        (np.array([2 + 1j, 1]), r"sigmas"),
        (torch.tensor([2 + 1j, 1]), r"they are torch.complex64"),
        (torch.tensor([True]), r"they are torch.bool"),
        (torch.ones(2, device="meta"), "sigmas"),
        ({"a": 1}, "no list of numbers"),
        (len, "no list of numbers"),
    ],
)
def test_of_a_ladder_it_is_said_what_is_wrong_with_which_level(sigmas, message):
    with pytest.raises(ValueError, match=message) as refused:
        levels.check_sigmas(sigmas)
    assert len(str(refused.value)) < 400


def test_one_level_is_a_ladder():
    assert levels.check_sigmas([2.0]).tolist() == [2.0]
