"""The bundled model of the digits: it is there, it is small, and it is good."""

import math

import pytest
import torch

import ncsn_fast as nf
from ncsn_fast.checkpoints.load_save import BUNDLED
from ncsn_fast.data.digits import digits
from ncsn_fast.data.pixels import eight_bits
from ncsn_fast.evaluation.classifier import load_classifier
from ncsn_fast.evaluation.neighbours import nearest, nearness
from ncsn_fast.evaluation.quality import Reference

MOST_BYTES = 4_000_000
# χ² of nine degrees of freedom exceeds this once in a hundred times.
CHI_SQUARE = 21.67
# What the bounds below let pass is what they let pass of a thousand samples, which take a minute.
SAMPLES, BOUNDS_ARE_FOR = 400, 1000
# The distance of n samples lies above that of many by 30/n (measured, n from 200 to 1,000).
FEWNESS = 30


def test_it_is_loaded_by_its_name():
    net = nf.load_checkpoint("digits")
    assert isinstance(net, nf.NCSNv2)
    assert net.shape == (1, 8, 8)
    assert all(parameter.dtype == torch.float32 for parameter in net.parameters())
    assert net.sampling["method"] == "annealed_langevin"


def test_it_is_small():
    assert BUNDLED["digits"].stat().st_size <= MOST_BYTES


@pytest.fixture(scope="module")
def sampled():
    # Seeds differ by 0.01 or so in the distance; docs/models.md has the figures of two.
    return nf.sample(nf.load_checkpoint("digits"), SAMPLES, seed=1)


@pytest.fixture(scope="module")
def quality(sampled):
    held_out = eight_bits(digits("test").images.numpy())
    return Reference(held_out, load_classifier("digits")).quality(eight_bits(sampled.numpy()))


@pytest.mark.slow
def test_its_samples_are_near_the_held_out_images(quality):
    assert quality.frechet <= 0.17 + FEWNESS * (1 / SAMPLES - 1 / BOUNDS_ARE_FOR)


@pytest.mark.slow
def test_most_of_them_are_digits_for_sure(quality):
    # Of three seeds 0.943 to 0.950, and 0.869 to 0.935; shares of 400 vary by 0.011 and 0.017.
    assert quality.confident > 0.9
    assert min(quality.precision, quality.recall) > 0.8


def chi_square(images):
    """Of the ten digits, each by its nearest training image, against those of the training."""
    train = digits("train")
    found = train.labels[nearest(images, train.images).indices[:, 0]].bincount(minlength=10)
    expected = len(images) * train.labels.bincount(minlength=10) / len(train.labels)
    return float(((found - expected).square() / expected).sum())


@pytest.mark.slow
def test_all_ten_digits_come_as_often_as_in_the_data(sampled):
    # What is wrong with the proportions adds to χ² in proportion to the number of samples.
    assert chi_square(sampled) < 9 + (CHI_SQUARE - 9) * SAMPLES / BOUNDS_ARE_FOR


def test_missing_digits_would_be_noticed():
    train = digits("train")
    assert chi_square(train.images[train.labels == 1]) > 10 * CHI_SQUARE


@pytest.mark.slow
def test_it_has_not_learned_the_training_images_by_heart(sampled):
    train = digits("train").images
    distances = [nearest(x, train).distances[:, 0] for x in (sampled, digits("test").images)]
    found = nearness(*distances)
    error_of_a_thousand = found.samples_error * math.sqrt(SAMPLES / BOUNDS_ARE_FOR)
    error = math.hypot(error_of_a_thousand, found.held_out_error)
    assert found.samples > found.held_out - 2 * error
