"""The bundled model of the digits: it is there, it is small, and it is good."""

import math

import pytest
import torch

import ncsn_fast as nf
from ncsn_fast.benchmarks.studies import digits as judge
from ncsn_fast.checkpoints.load_save import BUNDLED
from ncsn_fast.data.digits import digits

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
    # Seeds differ by 0.01 or so in the distance; docs/training.md has the figures of two.
    return judge.quality(nf.sample(nf.load_checkpoint("digits"), SAMPLES, seed=1))


@pytest.mark.slow
def test_its_samples_are_near_the_held_out_images(sampled):
    assert sampled.frechet <= 0.17 + FEWNESS * (1 / SAMPLES - 1 / BOUNDS_ARE_FOR)


@pytest.mark.slow
def test_all_ten_digits_come_as_often_as_in_the_data(sampled):
    # What is wrong with the proportions adds to χ² in proportion to the number of samples.
    assert sampled.chi_square < 9 + (CHI_SQUARE - 9) * SAMPLES / BOUNDS_ARE_FOR


@pytest.mark.slow
def test_it_has_not_learned_the_training_images_by_heart(sampled):
    held_out = judge.quality(digits("test").images)
    error_of_a_thousand = sampled.nearest_error * math.sqrt(SAMPLES / BOUNDS_ARE_FOR)
    error = math.hypot(error_of_a_thousand, held_out.nearest_error)
    assert sampled.nearest > held_out.nearest - 2 * error


def test_the_judge_notices_copies_and_missing_digits():
    train = digits("train")
    copies = judge.quality(train.images[:500])
    assert copies.nearest == 0
    only_ones = judge.quality(train.images[train.labels == 1])
    assert only_ones.chi_square > 10 * CHI_SQUARE
    assert only_ones.frechet > 1
