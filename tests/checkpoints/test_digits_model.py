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


def test_it_is_loaded_by_its_name():
    net = nf.load_checkpoint("digits")
    assert isinstance(net, nf.NCSNv2)
    assert net.shape == (1, 8, 8)
    assert all(parameter.dtype == torch.float32 for parameter in net.parameters())
    assert net.sampling["method"] == "annealed_langevin"


def test_it_is_small():
    assert BUNDLED["digits"].stat().st_size <= MOST_BYTES


@pytest.fixture(scope="module")
def thousand():
    # Seeds differ by 0.01 or so in the distance; docs/training.md has the figures of two.
    return judge.quality(nf.sample(nf.load_checkpoint("digits"), 1000, seed=1))


@pytest.mark.slow
def test_its_samples_are_near_the_held_out_images(thousand):
    assert thousand.frechet <= 0.17


@pytest.mark.slow
def test_all_ten_digits_come_as_often_as_in_the_data(thousand):
    assert thousand.chi_square < CHI_SQUARE


@pytest.mark.slow
def test_it_has_not_learned_the_training_images_by_heart(thousand):
    held_out = judge.quality(digits("test").images)
    error = math.hypot(thousand.nearest_error, held_out.nearest_error)
    assert thousand.nearest > held_out.nearest - 2 * error


def test_the_judge_notices_copies_and_missing_digits():
    train = digits("train")
    copies = judge.quality(train.images[:500])
    assert copies.nearest == 0
    only_ones = judge.quality(train.images[train.labels == 1])
    assert only_ones.chi_square > 10 * CHI_SQUARE
    assert only_ones.frechet > 1
