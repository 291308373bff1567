"""All figures of a set of images are those of the functions that measure them."""

from __future__ import annotations

import pytest
import torch

from ncsn_fast.evaluation import quality
from ncsn_fast.evaluation.classifier import Classifier
from ncsn_fast.evaluation.features import seen
from ncsn_fast.evaluation.pixel_distance import pixel_frechet_distance
from ncsn_fast.evaluation.precision_recall import precision_recall
from ncsn_fast.evaluation.proportions import compare_counts
from ncsn_fast.evaluation.quality import Reference


def images(number: int, seed: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (number, 1, 8, 8), generator=random, dtype=torch.uint8)


def test_without_a_classifier_all_is_of_pixels() -> None:
    real, samples = images(40, 0), images(30, 1)
    found = Reference(real).quality(samples)
    assert found.images == 30
    assert found.frechet == pixel_frechet_distance(samples / 255, real / 255)
    assert (found.precision, found.recall) == precision_recall(real, samples)
    assert (found.confident, found.counts, found.proportions) == (None, None, None)


def test_with_a_classifier_it_is_of_what_that_sees() -> None:
    torch.manual_seed(0)
    net = Classifier((1, 8, 8), ["a", "b", "c"]).eval()
    real, samples = images(40, 0), images(30, 1)
    found = Reference(real, net).quality(samples)
    one, other = seen(net, samples), seen(net, real)
    assert (found.precision, found.recall) == precision_recall(other.features, one.features)
    assert found.counts == one.counts.tolist()
    assert found.proportions == compare_counts(one.counts, other.counts)
    assert found.confident == one.confident


def test_images_of_many_values_have_no_frechet_distance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality, "MOST_VALUES", 63)
    found = Reference(images(20, 0)).quality(images(20, 1))
    assert found.frechet is None
    assert 0 <= found.precision <= 1
