"""What has been used can be copied and pickled, and gives the same images."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

import ncsn_fast as nf

WAYS = [copy.copy, copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))]


@pytest.mark.parametrize("way", WAYS, ids=["copy", "deepcopy", "pickle"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_used_sampler_and_a_prepared_network_survive(way, precision):
    torch.manual_seed(0)
    net = nf.NCSNv2(channels=1, image_size=8, ngf=4, sigmas=nf.geometric_sigmas(5, 0.01, 6)).eval()
    sampler = nf.Sampler(net, method="dpmpp_2m", steps=4, precision=precision)
    expected = sampler(2, seed=0)
    assert torch.equal(way(sampler)(2, seed=0), expected)
    prepared, x = nf.prepare_for_inference(net, precision), torch.rand(2, 1, 8, 8)
    before = prepared.normalized(x)
    with torch.no_grad():
        net.end_conv.weight.mul_(2)
    other = way(prepared)
    assert torch.equal(other.normalized(x), before)
    other.refresh()
    assert torch.equal(prepared.normalized(x), before)


@pytest.mark.parametrize("way", WAYS, ids=["copy", "deepcopy", "pickle"])
def test_a_trainer_says_that_it_is_not_copied(way):
    net = nf.MLPScore(sigmas=[1.0, 0.1], hidden=4)
    trainer = nf.Trainer(net, torch.rand(8, 2), nf.TrainConfig(steps=1, batch_size=2))
    with pytest.raises(TypeError, match=r"not copied or pickled.*resume=True"):
        way(trainer)
