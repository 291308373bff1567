"""The networks of 28×28 that come along: they are there, small, and know their classes."""

import pytest
import torch

import ncsn_fast as nf
from ncsn_fast.checkpoints.load_save import BUNDLED
from ncsn_fast.evaluation.classifier import load_classifier

MOST_BYTES = 4_000_000
CLOTHES = "T-shirt,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Boot"
CLASSES = {"mnist": tuple("0123456789"), "fashion": tuple(CLOTHES.split(","))}
# Of 60 samples of asked classes the share that the classifier finds to be of them: chance gives
# 0.10 ± 0.04, and docs/models.md has the figures of a thousand, which lie well above.
LEAST = {"mnist": 0.83, "fashion": 0.65}


@pytest.mark.parametrize("name", CLASSES)
def test_it_is_loaded_by_its_name(name):
    net = nf.load_checkpoint(name)
    assert isinstance(net, nf.NCSNv2)
    assert net.shape == (1, 28, 28)
    assert net.classes == CLASSES[name]
    assert len(nf.Sampler(net).table) == net.sampling["steps"] == 20
    assert BUNDLED[name].stat().st_size <= MOST_BYTES


def test_the_data_of_each_are_named_beside_it():
    text = (BUNDLED["mnist"].parent / "NETWORKS.md").read_text(encoding="utf-8")
    assert all(f"`{path.name}`" in text for path in BUNDLED.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSES)
def test_it_draws_the_classes_that_it_is_asked_for(name):
    asked = torch.arange(10).repeat(6)
    images = nf.sample(nf.load_checkpoint(name), 60, seed=1, extra={"classes": asked})
    with torch.no_grad():
        found = load_classifier(name)(images).argmax(1)
    assert (found == asked).float().mean() >= LEAST[name]
