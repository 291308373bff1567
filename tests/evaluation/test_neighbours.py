"""Nearest neighbours against all distances, and what they say of copies."""

from __future__ import annotations

import pytest
import torch

from ncsn_fast.evaluation import neighbours
from ncsn_fast.evaluation.neighbours import nearest, nearness, within


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "_ROWS", 7)
    monkeypatch.setattr(neighbours, "_COLUMNS", 5)


def points(number: int, *shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(number, *shape, generator=torch.Generator().manual_seed(seed))


def all_distances(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    difference = a.double().flatten(1)[:, None] - b.double().flatten(1)[None]
    return difference.square().sum(-1).sqrt()


@pytest.mark.parametrize("k", [1, 3, 8])
def test_the_nearest_are_those_of_all_distances(k: int) -> None:
    a, b = points(20, 3, 4), points(33, 3, 4, seed=1)
    expected = all_distances(a, b).sort(dim=1)
    found = nearest(a, b, k)
    torch.testing.assert_close(found.distances, expected.values[:, :k])
    assert torch.equal(found.indices, expected.indices[:, :k])


def test_a_point_is_not_its_own_neighbour_where_others_are_asked_for() -> None:
    a = points(23, 4)
    a[5] = a[17]  # but a copy of it is
    expected = all_distances(a, a).fill_diagonal_(torch.inf).sort(dim=1)
    found = nearest(a, a, 2, others=True)
    torch.testing.assert_close(found.distances, expected.values[:, :2])
    assert found.distances[5, 0] == found.distances[17, 0] == 0
    assert (found.indices[5, 0], found.indices[17, 0]) == (17, 5)


def test_pixels_of_8_bits_are_compared_exactly() -> None:
    a = torch.randint(0, 256, (9, 1, 28, 28), generator=torch.Generator().manual_seed(0))
    b = torch.cat([a.roll(1, 0), a]).to(torch.uint8)
    b[0, 0, 3, 3] ^= 1
    found = nearest(b[:1], b[1:])
    assert found.distances.tolist() == [[1.0]]
    assert nearest(a.to(torch.uint8), b[9:]).distances.eq(0).all()


def test_far_from_the_origin_no_digits_are_lost() -> None:
    a = points(10, 6).double()
    near = nearest(a + 1e6, a.flip(0) + 1e6 + 1e-4)
    torch.testing.assert_close(near.distances[:, 0], torch.full((10,), 6**0.5 * 1e-4).double())
    assert near.indices[:, 0].tolist() == list(range(9, -1, -1))


def test_an_edge_is_within() -> None:
    b = points(12, 4)
    edge = nearest(b, b, 3, others=True)
    # Alone with its ball, each point's third neighbour is on the edge.
    for j in range(12):
        inside = within(b, b[j : j + 1], edge.distances[j, -1:])
        assert sorted(inside.nonzero()[:, 0].tolist()) == sorted([j, *edge.indices[j].tolist()])


def test_within_is_a_comparison_of_all_distances() -> None:
    a, b = points(31, 5), points(18, 5, seed=1)
    radii = torch.linspace(0, 2.5, 18, dtype=torch.float64)
    expected = (all_distances(a, b) <= radii).any(1)
    assert 5 < int(expected.sum()) < 26
    assert torch.equal(within(a, b, radii), expected)


def test_progress_counts_the_points() -> None:
    seen: list[tuple[int, int]] = []
    nearest(points(16, 2), points(9, 2), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(7, 16), (14, 16), (16, 16)]


def test_samples_like_held_out_images_are_as_near() -> None:
    train, a, b = (points(400, 8, seed=seed) for seed in range(3))
    distances = [nearest(some, train).distances[:, 0] for some in (a, b)]
    found = nearness(*distances)
    assert abs(found.samples - found.held_out) < 3 * (found.samples_error + found.held_out_error)
    assert found.near < 0.03
    assert found.held_out == pytest.approx(float(distances[1].mean()))
    assert found.smallest == float(distances[0].min())


def test_copies_of_training_images_are_near() -> None:
    train, held_out = points(400, 8), points(300, 8, seed=1)
    samples = points(200, 8, seed=2)
    samples[:50] = train[:50] + 1e-3
    found = nearness(
        nearest(samples, train).distances[:, 0], nearest(held_out, train).distances[:, 0]
    )
    assert 0.25 <= found.near < 0.29
    assert found.smallest == pytest.approx(8**0.5 * 1e-3, rel=1e-3)
    assert found.copies == 0
    samples[:20] = train[:20]
    copied = nearest(samples, train).distances[:, 0]
    assert nearness(copied, copied).copies == nearness(copied, copied).held_out_copies == 0.1
