"""Networks that are told the class of an image: offsets of their norms, and nothing else."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from helpers.networks import error, inputs, network
from torch import Tensor, nn

import ncsn_fast as nf
from ncsn_fast.inference.prepare import prepare_for_inference
from ncsn_fast.models.base import own_network
from ncsn_fast.models.blocks import ClassInstanceNormPlus
from ncsn_fast.models.by_name import IMAGE_NETWORKS, build
from ncsn_fast.models.further_inputs import further_inputs
from ncsn_fast.models.ncsnv2 import NCSNv2
from ncsn_fast.models.score import Score

NAMES = ["T-shirt", "boot", "bag"]
NONE = len(NAMES)


def norms(net: nn.Module) -> list[ClassInstanceNormPlus]:
    return [module for module in net.modules() if isinstance(module, ClassInstanceNormPlus)]


def told(name: str = "NCSNv2", **changes: Any) -> NCSNv2:
    """A network whose classes differ, as after training."""
    net = network(name, classes=NAMES, **changes).eval()
    assert isinstance(net, NCSNv2)
    for norm in norms(net):
        nn.init.normal_(norm.embed.weight[:NONE].detach(), 0, 0.3)
    return net


def of_class(net: NCSNv2, number: int) -> NCSNv2:
    """The network without classes that has a class's γ, α, β."""
    plain = build({**net.config, "classes": ()}, net.sigmas)
    weights = {k: v for k, v in net.state_dict().items() if not k.endswith("embed.weight")}
    for place, norm in net.named_modules():
        if isinstance(norm, ClassInstanceNormPlus):
            moved = norm.embed.weight[number].chunk(3)
            for name, offset in zip(("gamma", "alpha", "beta"), moved, strict=True):
                weights[f"{place}.{name}"] = weights[f"{place}.{name}"] + offset
    plain.load_state_dict(weights)
    assert isinstance(plain, NCSNv2)
    return plain.eval()


@torch.no_grad()
@pytest.mark.parametrize("name", [n for n, kind in IMAGE_NETWORKS.items() if n != "NCSN"])
def test_a_class_moves_the_norms(name: str) -> None:
    net = told(name)
    x, _ = inputs(net, NONE + 1)
    together = net.normalized(x, classes=torch.arange(NONE + 1))
    for number in range(NONE):
        alone = of_class(net, number).normalized(x[number : number + 1])
        assert error(together[number : number + 1], alone) < 1e-6
    assert error(together[0], together[1]) > 0.01


@torch.no_grad()
def test_without_a_class_it_is_the_network_that_knows_none() -> None:
    net = told()
    plain = build({**net.config, "classes": ()}, net.sigmas).eval()
    weights = {k: v for k, v in net.state_dict().items() if not k.endswith("embed.weight")}
    plain.load_state_dict(weights)
    x, labels = inputs(net)
    assert torch.equal(net(x, labels), plain(x, labels))
    nobody = torch.full_like(labels, NONE)
    assert error(net(x, labels, nobody), plain(x, labels)) < 1e-6


@torch.no_grad()
def test_one_number_is_the_class_of_all() -> None:
    net = told()
    x, labels = inputs(net)
    assert torch.equal(net(x, labels, 1), net(x, labels, torch.full_like(labels, 1)))
    prepared = prepare_for_inference(net)
    whole = prepared.normalized(x, classes=torch.full_like(labels, 2))
    assert torch.equal(prepared.normalized(x, classes=2), whole)


def test_at_the_beginning_all_classes_are_one() -> None:
    net = network(classes=NAMES)
    x, labels = inputs(net)
    assert torch.equal(net(x, labels, labels % NONE), net(x, labels, labels * 0))


def test_the_row_of_no_class_is_never_trained() -> None:
    net = told()
    x, _ = inputs(net, 4)
    net.normalized(x, classes=torch.tensor([0, NONE, NONE, 1])).square().sum().backward()
    for norm in norms(net):
        gradient = norm.embed.weight.grad
        assert isinstance(gradient, Tensor)
        moved = gradient.abs().sum(1) > 0
        assert moved.tolist() == [True, True, False, False]


@torch.no_grad()
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_prepared_copies_are_told_classes(precision: str) -> None:
    net = told()
    x, labels = inputs(net)
    classes = torch.tensor([2, 0, NONE])
    exact = copy.deepcopy(net).double().normalized(x.double(), classes=classes)
    prepared = prepare_for_inference(net, precision)
    most = 1e-5 if precision == "fp32" else 0.05
    assert error(prepared.normalized(x, classes=classes), exact) < most
    assert error(prepared(x, labels, classes=classes), net(x, labels, classes)) < most
    for norm in norms(net):
        norm.embed.weight[2] += 0.5
    prepared.refresh()
    assert error(prepared.normalized(x, classes=classes), exact) > 0.01


def test_classes_by_name_and_number() -> None:
    net = told()
    assert [net.class_of(name) for name in ("t-shirt", "BOOT", "2", 1)] == [0, 1, 2, 1]
    assert network(classes=12).class_of("11") == 11  # type: ignore[operator]
    for wrong in ("shoe", 3, -1, ""):
        with pytest.raises(ValueError, match=r"unknown; there are T-shirt, boot, bag, or 0 to 2$"):
            net.class_of(wrong)
    with pytest.raises(ValueError, match="this network knows no classes"):
        network().class_of("boot")  # type: ignore[operator]


def test_a_name_that_is_a_number_goes_before_the_number() -> None:
    net = network(classes=["1", "0"])
    assert isinstance(net, NCSNv2)
    assert [net.class_of("1"), net.class_of(0)] == [0, 1]


def test_config_rebuilds_it() -> None:
    net = told()
    again = build(net.config, net.sigmas)
    again.load_state_dict(net.state_dict())
    assert again.config == net.config
    assert again.config["classes"] == NAMES
    assert "classes" not in network().config


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (0, "'': a name has 1 to 100"),
        (-3, "'': a name has 1 to 100"),
        (10_001, "10,001 classes are too many: at most 10,000"),
        (True, "give their names, or how many"),
        ("boots", "give their names, or how many"),
        (["a", ""], "'': a name has 1 to 100"),
        (["a", 3], "3: a name has 1 to 100"),
        (["a", "x" * 101], "a name has 1 to 100"),
        (["bag", "Bag"], "two classes are called 'Bag'"),
    ],
)
def test_what_are_no_classes_is_refused(classes: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        network(classes=classes)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (torch.tensor([0, 1, 4]), "the network has the classes 0 to 2, and 3 for none of them"),
        (torch.tensor([-1, 1, 3]), "classes run from -1 to 3"),
        (torch.tensor([0, 1]), r"classes must have shape \(3,\)"),
        (torch.tensor([0.0, 1, 2]), "classes must be int64"),
        ([0, 1, 2], r"classes must be int64 or int32, got list: use torch.as_tensor\(classes\)"),
        (4, "the network has the classes 0 to 2, and 3 for none of them"),
        (True, "classes must be int64 or int32, got torch.bool"),
    ],
)
def test_unusable_classes_are_refused(classes: Any, message: str) -> None:
    net = told()
    with pytest.raises(ValueError, match=message):
        net.normalized(inputs(net)[0], classes=classes)


@pytest.mark.parametrize(
    "classes",
    [
        [1, 1, 1],
        ["BOOT", 1, "boot"],
        (1, 1, 1),
        np.full(3, 1, np.uint8),
        np.array(["boot"] * 3),
        range(1, 2),
        np.int64(1),
        torch.tensor([1, 1, 1], dtype=torch.uint8),
        torch.tensor(1),
        torch.tensor([1]),
        1,
        "Boot",
    ],
)
def test_classes_are_told_by_name_or_number_one_each_or_one_for_all(classes: object) -> None:
    numbers = told().numbers_of(classes, 3)
    assert numbers.dtype == torch.int64
    assert numbers.tolist() == [1, 1, 1]
    given, shared = further_inputs(told(), {"classes": classes}, None, 3)
    assert torch.equal(given["classes"], numbers)
    assert shared == {}


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (1.5, "classes = 1.5: give names or numbers from 0 on, one for all or one for each"),
        ([0.0, 1.0], "classes = .*: give names or numbers"),
        (True, "classes = True: give names or numbers"),
        ([None, 1], "classes = .None, 1.: give names or numbers"),
        (object(), "classes = <object object"),
        ("hat", "class 'hat' is unknown; there are T-shirt, boot, bag"),
        (["boot", "hat"], "class 'hat' is unknown"),
        (range(3), "give names or numbers from 0 on, one for all or one for each of 2 images"),
        ([[1], [1]], "one for each of 2 images"),
        (np.zeros((1, 1), int), "one for each of 2 images"),
        ([0, 4], "classes run from 0 to 4, but the network has the classes 0 to 2, and 3 for none"),
        (-1, "classes run from -1 to -1"),
    ],
)
def test_what_is_no_class_is_refused_before_any_work(classes: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        further_inputs(told(), {"classes": classes}, None, 2)


def test_inputs_that_a_network_does_not_have_are_named() -> None:
    for name in ("labels", "class", "y"):  # labels count noise levels, which are not the caller's
        for extra, shared in (({name: 1}, None), (None, {name: 1})):
            with pytest.raises(ValueError, match=f"NCSNv2 has no input '{name}': .* 'classes'"):
                further_inputs(told(), extra, shared, 2)
    mlp = nf.MLPScore(sigmas=[1.0, 0.1])
    with pytest.raises(
        ValueError, match=r"MLPScore has no input 'y': .* it takes no further input"
    ):
        further_inputs(mlp, {"y": 1}, None, 2)
    assert further_inputs(None, {"labels": 1}, {"y": 2}, 2) == ({"labels": 1}, {"y": 2})

    class Free(nf.MLPScore):
        def normalized(self, x: Tensor, labels: Tensor | None = None, **more: Any) -> Tensor:
            return x

    free = Free(sigmas=[1.0, 0.1])
    assert further_inputs(free, {"y": 1}, None, 2) == ({"y": 1}, {})


def test_a_network_without_classes_refuses_them() -> None:
    net = network()
    x, labels = inputs(net)
    with pytest.raises(ValueError, match="knows no classes: leave them out"):
        net(x, labels, labels)


def test_which_network_a_score_calls() -> None:
    net = told()
    assert own_network(net) is net
    assert own_network(Score(net.normalized, "normalized", "none", net.sigmas)) is net
    assert own_network(Score(net, "score", "label")) is None
    assert own_network(lambda x, labels: net(x, labels)) is None
