"""Moments gathered in pieces are those of the whole; the distance of Gaussians is SciPy's."""

import numpy as np
import pytest
import torch
from helpers.threads import in_threads
from scipy.linalg import sqrtm

from ncsn_fast.evaluation.moments import Moments, frechet_distance, gaussian


def points(number, dim=6, seed=0, offset=0.0):
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.normal(size=(number, dim)) @ rng.normal(size=(dim, dim)) + offset)


@pytest.mark.parametrize("sizes", [[50], [1] * 50, [1, 30, 19], [49, 1]])
def test_pieces_add_up_to_the_whole(sizes):
    x = points(50, offset=3.0)
    first, *others = (Moments.of(piece) for piece in x.split(sizes))
    found = sum(others, start=first)
    assert found.count == 50
    np.testing.assert_allclose(found.mean, x.numpy().mean(0), rtol=1e-13)
    np.testing.assert_allclose(found.covariance, np.cov(x.numpy().T), rtol=1e-11)


def test_far_from_0_no_digits_are_lost():
    near, far = (points(400), points(400, offset=1e6))
    found = Moments.of(far[:7]) + Moments.of(far[7:])
    expected = Moments.of(near).covariance
    # The points themselves are rounded to 1e-10 there.
    np.testing.assert_allclose(found.covariance, expected, atol=1e-8)


def test_float32_points_are_summed_in_float64():
    x = points(1000).float()
    assert Moments.of(x).scatter.dtype == torch.float64
    expected = np.cov(x.double().numpy().T)
    np.testing.assert_allclose(Moments.of(x).covariance, expected, rtol=1e-11)


def test_the_distance_is_that_of_a_matrix_square_root():
    a, b = Moments.of(points(300, 40)), Moments.of(points(200, 40, seed=1, offset=0.3))
    c, d = a.covariance.numpy(), b.covariance.numpy()
    apart = (a.mean - b.mean).numpy()
    expected = apart @ apart + np.trace(c + d - 2 * sqrtm(c @ d).real)
    found = frechet_distance(gaussian(a.mean, a.covariance), gaussian(b.mean, b.covariance))
    assert found == pytest.approx(expected, rel=1e-9)


def test_a_singular_covariance_costs_nothing():
    """Of diagonal Gaussians the distance is known: ‖Δμ‖² + Σ(σ_a - σ_b)²."""
    zero = torch.zeros(3, dtype=torch.float64)
    a = gaussian(zero, torch.tensor([4.0, 0, 0], dtype=torch.float64).diag())
    b = gaussian(zero + 0.5, torch.tensor([1.0, 0, 9], dtype=torch.float64).diag())
    assert frechet_distance(a, b) == pytest.approx(3 * 0.25 + 1 + 9, rel=1e-12)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("parts", [[50], [20, 30], [1, 48, 1], [25, 0, 25]])
def test_those_of_several_processes_are_those_of_all_points(parts):
    """Also far from 0, and where one of them has no points."""
    x = points(50, offset=1e3)
    pieces = x.split(parts)

    def work(group):
        own = pieces[group.ranks.rank]
        if len(own):
            return Moments.of(own).over(group)
        some = Moments.of(x[:1])
        return Moments(0, 0 * some.mean, 0 * some.scatter).over(group)

    for found in in_threads(len(parts), work):
        assert found.count == 50
        np.testing.assert_allclose(found.mean, x.numpy().mean(0), rtol=1e-13)
        np.testing.assert_allclose(found.covariance, np.cov(x.numpy().T), rtol=1e-9)
