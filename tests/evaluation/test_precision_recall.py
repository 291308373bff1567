"""Precision and recall: by their definition, and of sets that are known."""

from __future__ import annotations

import math

import pytest
import torch

from ncsn_fast.evaluation.precision_recall import Manifold, precision_recall


def points(number: int, dim: int, seed: int) -> torch.Tensor:
    return torch.randn(number, dim, generator=torch.Generator().manual_seed(seed))


def by_definition(real: torch.Tensor, generated: torch.Tensor, k: int) -> tuple[float, float]:
    """Equations 1 and 2, point by point."""

    def covered(one: torch.Tensor, by: torch.Tensor) -> float:
        by_list, number = by.double().tolist(), 0
        radii = [sorted(math.dist(p, q) for q in by_list)[k] for p in by_list]
        for point in one.double().tolist():
            number += any(math.dist(point, q) <= r for q, r in zip(by_list, radii, strict=True))
        return number / len(one)

    return covered(generated, real), covered(real, generated)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_they_are_what_the_paper_defines(k: int) -> None:
    real, generated = points(60, 6, 0), 1.2 * points(45, 6, 1) + 0.3
    expected = by_definition(real, generated, k)
    assert 0 < expected[0] < 1
    assert 0 < expected[1] < 1
    assert precision_recall(real, generated, k) == pytest.approx(expected, abs=1e-15)


def test_a_set_covers_itself() -> None:
    real = points(50, 10, 0)
    assert precision_recall(real, real) == (1, 1)
    assert precision_recall(real, real.flip(0)) == (1, 1)


def test_sets_that_are_far_apart_cover_nothing() -> None:
    real = points(50, 3, 0)
    assert precision_recall(real, real + 100) == (0, 0)


def test_one_of_two_clusters_has_precision_and_half_the_recall() -> None:
    """Samples of a model that has lost a mode are right, and half of the real points are missed."""
    clusters = points(400, 2, 0)
    clusters[200:] += 50
    found = precision_recall(clusters, points(200, 2, 1))
    assert found.precision > 0.95
    assert found.recall == pytest.approx(0.5, abs=0.03)
    other = precision_recall(points(200, 2, 1), clusters)
    assert other == (found.recall, found.precision)


def test_more_spread_than_the_data_costs_precision_and_less_costs_recall() -> None:
    real = points(300, 8, 0)
    wide, narrow = (precision_recall(real, scale * points(300, 8, 1)) for scale in (2.0, 0.5))
    assert wide.precision < 0.4 < 0.9 < wide.recall
    assert narrow.recall < 0.4 < 0.9 < narrow.precision


def test_equal_points_cover_only_themselves() -> None:
    blank = torch.zeros(10, 4)
    assert precision_recall(blank, blank) == (1, 1)
    assert precision_recall(blank, blank + 1e-3) == (0, 0)


@pytest.mark.parametrize("k", [0, -1, 1.5])
def test_a_k_that_is_none_is_refused(k: object) -> None:
    with pytest.raises(ValueError, match="k = "):
        Manifold(points(9, 2, 0), k)  # type: ignore[arg-type]


def test_too_few_points_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(3, 2\): needed are more than k = 3"):
        Manifold(points(3, 2, 0))


def test_different_features_are_refused() -> None:
    with pytest.raises(ValueError, match=r"points of shape \(3,\).*of \(2,\)"):
        precision_recall(points(9, 2, 0), points(9, 3, 0))
