"""Small networks with weights of a seed, what they are given, and how far two answers lie apart."""

from __future__ import annotations

import copy
import os
from typing import Any

import torch
from torch import Tensor, nn

from ncsn_fast.inference.prepare import PreparedNetwork
from ncsn_fast.models.base import ScoreNetwork
from ncsn_fast.models.by_name import NETWORKS, build
from ncsn_fast.models.mlp import MLPScore

SIGMAS = [3.0, 1.0, 0.3, 0.01]
IMAGE_NETWORKS = ("NCSN", "NCSNv2", "NCSNv2Deeper", "NCSNv2Deepest")


def network(
    name: str = "NCSNv2", *, seed: int = 0, sigmas: Any = SIGMAS, **changes: Any
) -> ScoreNetwork:
    size = 16 if name == "NCSNv2Deepest" else 8
    config = {"network": name, "channels": 3, "image_size": size, "ngf": 8, **changes}
    torch.manual_seed(seed)
    return build(config, sigmas)


def short(name: str, **changes: Any) -> ScoreNetwork:
    """A halving and a dilated stage only: each kind of block, in a third of the graph."""
    whole = NETWORKS[name]
    kind = type(name, (whole,), {"STAGES": whole.STAGES[1:3]})
    torch.manual_seed(0)
    return kind(**{"channels": 3, "image_size": 8, "ngf": 8, "sigmas": SIGMAS, **changes})


def points() -> ScoreNetwork:
    torch.manual_seed(0)
    net = MLPScore(hidden=8, layers=2, sigmas=SIGMAS)
    nn.init.normal_(net.head.weight)
    return net


def other_weights(net: ScoreNetwork) -> dict[str, Tensor]:
    torch.manual_seed(7)
    return {
        key: value if key == "sigmas" else value + 0.1 * torch.randn_like(value)
        for key, value in net.state_dict().items()
    }


def inputs(net: ScoreNetwork, n: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(n, *net.shape, generator=generator), torch.arange(n) % len(net.sigmas)


@torch.no_grad()
def error(found: Tensor, exact: Tensor) -> float:
    found, exact = found.double(), exact.double()
    return float((found - exact).norm() / exact.norm())


@torch.no_grad()
def assert_same(prepared: PreparedNetwork, net: ScoreNetwork) -> None:
    """The rewrites are exact: what is left is the rounding that the network itself has.

    Filtered convolutions round more, by what "fp32" allows.
    """
    x, labels = inputs(net)
    exact = copy.deepcopy(net).double().normalized(x.double(), labels)
    usual = error(net.normalized(x, labels), exact)
    assert 2 * usual + 5e-7 < 5e-6
    most = 2 * usual + 5e-7 if os.environ.get("NCSN_FAST_CONV") == "direct" else 1e-5
    assert error(prepared.normalized(x, labels), exact) < most
