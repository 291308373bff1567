from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from ncsn_fast import data
from ncsn_fast.evaluation import neighbours
from ncsn_fast.evaluation import pixel_distance as metrics


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
    assert metrics.pixel_frechet_distance(train, test) == pytest.approx(0.0878, abs=5e-5)


def test_noise_is_far_from_the_digits() -> None:
    distance = metrics.pixel_frechet_distance(uniform(1400, 1, 8, 8), data.digits("test").images)
    assert 9.5 < distance < 10.5


def test_frechet_of_diagonal_gaussians_is_analytic() -> None:
    mean_a = torch.tensor([0.1, 0.5, 0.2], dtype=torch.float64)
    mean_b = torch.tensor([0.4, 0.1, 0.2], dtype=torch.float64)
    variance_a, variance_b = torch.tensor([4.0, 1.0, 0.25]), torch.tensor([1.0, 1.0, 4.0])
    a = with_moments(mean_a, variance_a.diag())
    b = with_moments(mean_b, variance_b.diag())
    # ‖Δμ‖² + Σ(σ_a - σ_b)²
    expected = 0.3**2 + 0.4**2 + 1.0**2 + 0 + 1.5**2
    assert metrics.pixel_frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)


def test_frechet_of_rotated_gaussians_matches_a_matrix_square_root() -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=(500, 6)) @ rng.normal(size=(6, 6)) for _ in range(2))
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    expected = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(
        cov_a + cov_b - 2 * sqrtm(cov_a @ cov_b).real
    )
    found = metrics.pixel_frechet_distance(torch.from_numpy(a), torch.from_numpy(b))
    assert found == pytest.approx(expected, rel=1e-9)


def test_frechet_is_symmetric_and_zero_on_itself_even_where_the_covariance_is_singular() -> None:
    a, b = data.digits("train").images[:40], data.digits("test").images[:30]
    assert metrics.pixel_frechet_distance(a, b) == pytest.approx(
        metrics.pixel_frechet_distance(b, a), rel=1e-12
    )
    assert 0 <= metrics.pixel_frechet_distance(a, a) < 1e-12


def test_frechet_of_a_shift_is_its_squared_length() -> None:
    a = uniform(50, 1, 4, 4).double()
    assert metrics.pixel_frechet_distance(a, a + 0.25) == pytest.approx(16 * 0.25**2, rel=1e-10)


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
    found = metrics.pixel_frechet_distance(a, b)
    assert found == pytest.approx(expected, rel=0.02)


def test_frechet_of_gaussians_of_28_by_28_values_is_analytic() -> None:
    """Σ(σ_a - σ_b)² + ‖Δμ‖², of exact moments: nothing is lost to rounding where some σ are 0."""
    sigma_a = torch.linspace(0, 1, 784, dtype=torch.float64).clamp(min=0.2) - 0.2
    sigma_b = sigma_a.flip(0)
    points = torch.cat([torch.eye(784), -torch.eye(784)]).double() * math.sqrt((2 * 784 - 1) / 2)
    found = metrics.pixel_frechet_distance(points * sigma_a, points * sigma_b + 0.01)
    expected = float((sigma_a - sigma_b).square().sum()) + 784 * 0.01**2
    assert found == pytest.approx(expected, rel=1e-11)


def test_frechet_needs_two_images() -> None:
    with pytest.raises(ValueError, match=r"b has shape \(1, 1, 8, 8\).*at least 2 images"):
        metrics.pixel_frechet_distance(uniform(2, 1, 8, 8), uniform(1, 1, 8, 8))


# --- nearest neighbours ---------------------------------------------------------------------------


def test_nearest_distance_is_the_smallest_of_all_distances(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(neighbours, "_ROWS", 7)  # several blocks, the last ones not full
    monkeypatch.setattr(neighbours, "_COLUMNS", 9)
    a, b = uniform(20, 1, 4, 4), uniform(33, 1, 4, 4, seed=1)
    expected = [min(math.dist(x, y) for y in b.flatten(1).tolist()) for x in a.flatten(1).tolist()]
    found = metrics.nearest_distance(a, b)
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx(expected, rel=1e-12)


def test_nearest_distance_of_a_copy_is_exactly_zero_across_blocks() -> None:
    train = data.digits("train").images
    assert metrics.nearest_distance(train[-3:], train).tolist() == [0.0, 0.0, 0.0]


def test_nearest_distance_sees_tiny_differences_of_large_values() -> None:
    a = torch.full((1, 4), 1e4, dtype=torch.float64)
    assert metrics.nearest_distance(a, a + 1e-6).item() == pytest.approx(2e-6, rel=1e-4)


# --- proportions ----------------------------------------------------------------------------------


def test_proportions_of_the_training_digits_are_their_own() -> None:
    images, labels = data.digits("train")
    found = metrics.digit_proportions(images[:300], images, labels)
    torch.testing.assert_close(found, labels[:300].bincount(minlength=10).double() / 300)


def test_the_classifier_recognises_98_of_100_held_out_digits() -> None:
    images, labels = data.digits("train")
    test = data.digits("test")
    right = sum(
        metrics.digit_proportions(test.images[test.labels == digit], images, labels)[digit].item()
        * int((test.labels == digit).sum())
        for digit in range(10)
    )
    assert right / len(test.labels) == pytest.approx(0.985, abs=0.005)


def test_proportions_count_the_classes_that_are_asked_for() -> None:
    train = torch.tensor([[0.0], [1.0]])
    found = metrics.digit_proportions(
        torch.tensor([[0.1], [0.2], [0.3], [0.9]]), train, torch.tensor([2, 0]), classes=4
    )
    assert found.tolist() == [0.25, 0.0, 0.75, 0.0]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.zeros(3), r"integers of shape \(3,\).*float32"),
        (torch.zeros(2, dtype=torch.int64), r"got torch\.int64 \(2,\)"),
        (torch.tensor([0, 1, 10]), r"go from 0 to 10: allowed is 0 to 9"),
        (torch.tensor([-1, 1, 2]), r"go from -1 to 2"),
    ],
)
def test_proportions_refuse_other_labels(labels: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        metrics.digit_proportions(uniform(2, 4), uniform(3, 4), labels)


# --- what all of them refuse ----------------------------------------------------------------------


@pytest.mark.parametrize("measure", [metrics.pixel_frechet_distance, metrics.nearest_distance])
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
def test_measures_refuse_unusable_images(measure: object, a: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measure(a, uniform(3, 1, 4, 4))


def test_the_second_set_is_checked_too() -> None:
    b = uniform(3, 1, 4, 4)
    b[2, 0, 1, 1] = torch.nan
    with pytest.raises(ValueError, match=r"b holds values that are not finite"):
        metrics.nearest_distance(uniform(3, 1, 4, 4), b)


@pytest.mark.parametrize("scale", [lambda x: 255 * x, lambda x: 2 * x - 1])
def test_images_in_another_range_are_said(
    scale: Callable[[torch.Tensor], torch.Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    images = torch.rand(5, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    metrics.nearest_distance(images, images * 1.1 - 0.05)
    assert not caplog.records
    metrics.nearest_distance(images, scale(images))
    assert "b holds values from" in caplog.text
    metrics.nearest_distance(images.flatten(1), scale(images.flatten(1)))
    assert len(caplog.records) == 1
