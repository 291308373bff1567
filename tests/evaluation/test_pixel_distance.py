from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from ncsn_fast import data
from ncsn_fast.evaluation.pixel_distance import pixel_frechet_distance


def uniform(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def with_moments(mean: torch.Tensor, covariance: torch.Tensor) -> torch.Tensor:
    """Points whose sample mean and unbiased covariance are exactly the given ones."""
    dim = len(mean)
    x = torch.cat([torch.eye(dim, dtype=torch.float64), -torch.eye(dim, dtype=torch.float64)])
    x = x * math.sqrt((2 * dim - 1) / 2)
    return mean + x @ torch.linalg.cholesky(covariance.double()).T


# --- Fréchet distance -----------------------------------------------------------------------------


def test_training_digits_are_as_far_from_the_held_out_ones_as_published() -> None:
    train, test = data.digits("train").images, data.digits("test").images
    assert pixel_frechet_distance(train, test) == pytest.approx(0.0878, abs=5e-5)


def test_noise_is_far_from_the_digits() -> None:
    distance = pixel_frechet_distance(uniform(1400, 1, 8, 8), data.digits("test").images)
    assert 9.5 < distance < 10.5


def test_frechet_of_diagonal_gaussians_is_analytic() -> None:
    mean_a = torch.tensor([0.1, 0.5, 0.2], dtype=torch.float64)
    mean_b = torch.tensor([0.4, 0.1, 0.2], dtype=torch.float64)
    variance_a, variance_b = torch.tensor([4.0, 1.0, 0.25]), torch.tensor([1.0, 1.0, 4.0])
    a = with_moments(mean_a, variance_a.diag())
    b = with_moments(mean_b, variance_b.diag())
    # ‖Δμ‖² + Σ(σ_a - σ_b)²
    expected = 0.3**2 + 0.4**2 + 1.0**2 + 0 + 1.5**2
    assert pixel_frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)


def test_frechet_of_rotated_gaussians_matches_a_matrix_square_root() -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=(500, 6)) @ rng.normal(size=(6, 6)) for _ in range(2))
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    expected = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(
        cov_a + cov_b - 2 * sqrtm(cov_a @ cov_b).real
    )
    found = pixel_frechet_distance(torch.from_numpy(a), torch.from_numpy(b))
    assert found == pytest.approx(expected, rel=1e-9)


def test_frechet_is_symmetric_and_zero_on_itself_even_where_the_covariance_is_singular() -> None:
    a, b = data.digits("train").images[:40], data.digits("test").images[:30]
    assert pixel_frechet_distance(a, b) == pytest.approx(pixel_frechet_distance(b, a), rel=1e-12)
    assert 0 <= pixel_frechet_distance(a, a) < 1e-12


def test_frechet_of_a_shift_is_its_squared_length() -> None:
    a = uniform(50, 1, 4, 4).double()
    assert pixel_frechet_distance(a, a + 0.25) == pytest.approx(16 * 0.25**2, rel=1e-10)


@pytest.mark.parametrize("rank", [784, 300])
def test_frechet_of_few_samples_of_one_gaussian_is_the_noise_of_its_moments(rank: int) -> None:
    """Two sets of n points of 28×28 values from N(0, C), λ the eigenvalues of C, rank 784 or less:

    (1/n + 1/m)·(Σ λᵢ + Σᵢⱼ λᵢλⱼ(1 + δᵢⱼ) / (2(λᵢ + λⱼ))) to first order in 1/n: of the means, and
    of the covariances by the metric of Bures (E|C̃ᵢⱼ - Cᵢⱼ|² = λᵢλⱼ(1 + δᵢⱼ)/n).
    """
    spread = torch.arange(1, 785, dtype=torch.float64) ** -0.5
    spread[rank:] = 0  # pixels that are black in all images
    random = torch.Generator().manual_seed(0)
    a, b = (
        spread * torch.randn(n, 784, generator=random, dtype=torch.float64) for n in (3000, 2000)
    )
    values = spread[:rank] ** 2
    pairs = values[:, None] * values / (2 * (values[:, None] + values))
    expected = (1 / 3000 + 1 / 2000) * float(values.sum() + pairs.sum() + pairs.trace())
    found = pixel_frechet_distance(a, b)
    assert found == pytest.approx(expected, rel=0.02)


def test_frechet_of_gaussians_of_28_by_28_values_is_analytic() -> None:
    """Σ(σ_a - σ_b)² + ‖Δμ‖², of exact moments: nothing is lost to rounding where some σ are 0."""
    sigma_a = torch.linspace(0, 1, 784, dtype=torch.float64).clamp(min=0.2) - 0.2
    sigma_b = sigma_a.flip(0)
    points = torch.cat([torch.eye(784), -torch.eye(784)]).double() * math.sqrt((2 * 784 - 1) / 2)
    found = pixel_frechet_distance(points * sigma_a, points * sigma_b + 0.01)
    expected = float((sigma_a - sigma_b).square().sum()) + 784 * 0.01**2
    assert found == pytest.approx(expected, rel=1e-11)


def test_frechet_needs_two_images() -> None:
    with pytest.raises(ValueError, match=r"b has shape \(1, 1, 8, 8\).*at least 2 images"):
        pixel_frechet_distance(uniform(2, 1, 8, 8), uniform(1, 1, 8, 8))


# --- what it refuses ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "message"),
    [
        (torch.full((3, 1, 4, 4), torch.nan), r"a holds values that are not finite"),
        (torch.full((3, 1, 4, 4), torch.inf), r"a holds values that are not finite"),
        (torch.zeros(3, 1, 4, 5), r"a holds images of shape \(1, 4, 5\) and b of \(1, 4, 4\)"),
        (torch.zeros(3, 1, 4, 4, dtype=torch.uint8), r"a has dtype torch\.uint8.*/ 255"),
        (torch.zeros(0, 1, 4, 4), r"a has shape \(0, 1, 4, 4\)"),
        (torch.zeros(4), r"a has shape \(4,\).*\(N, C, H, W\) or \(N, D\)"),
    ],
)
def test_unusable_images_are_refused(a: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pixel_frechet_distance(a, uniform(3, 1, 4, 4))


def test_the_second_set_is_checked_too() -> None:
    b = uniform(3, 1, 4, 4)
    b[2, 0, 1, 1] = torch.nan
    with pytest.raises(ValueError, match=r"b holds values that are not finite"):
        pixel_frechet_distance(uniform(3, 1, 4, 4), b)


@pytest.mark.parametrize("scale", [lambda x: 255 * x, lambda x: 2 * x - 1])
def test_images_in_another_range_are_said(
    scale: Callable[[torch.Tensor], torch.Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    images = torch.rand(5, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    pixel_frechet_distance(images, images * 1.1 - 0.05)
    assert not caplog.records
    pixel_frechet_distance(images, scale(images))
    assert "b holds values from" in caplog.text
    pixel_frechet_distance(images.flatten(1), scale(images.flatten(1)))
    assert len(caplog.records) == 1
