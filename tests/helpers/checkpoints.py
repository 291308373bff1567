"""Small networks and damaged files for the tests of checkpoints."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from helpers import networks
from helpers.golden import geometric
from torch import Tensor

from ncsn_fast.models.base import ScoreNetwork

LEVELS = geometric(20.0, 0.01, 7)
SAMPLING = {
    "method": "annealed_langevin",
    "step_size": 6.2e-6,
    "steps_per_level": 5,
    "denoise": True,
}
CONFIG: dict[str, Any] = {
    "data": {"dataset": "CIFAR10", "image_size": 8, "channels": 2, "rescaled": True},
    "model": {
        "sigma_begin": 20,
        "sigma_end": 0.01,
        "num_classes": 7,
        "nonlinearity": "relu",
        "ngf": 4,
        "normalization": "InstanceNorm++",
    },
    "sampling": {"step_lr": 6.2e-6, "n_steps_each": 5, "denoise": True},
}


def network(name: str = "NCSNv2", seed: int = 0, **changes: Any) -> ScoreNetwork:
    settings = {"channels": 2, "ngf": 4, **changes}
    return networks.network(name, seed=seed, sigmas=LEVELS, **settings).eval()


def weights_of(net: ScoreNetwork, prefix: str = "module.") -> OrderedDict[str, Tensor]:
    return OrderedDict((prefix + k, v.clone()) for k, v in net.state_dict().items())


def average_of(net: ScoreNetwork) -> dict[str, Tensor]:
    return {k: v.detach().clone() for k, v in net.named_parameters()}


def assert_same_weights(net: ScoreNetwork, other: ScoreNetwork) -> None:
    expected = other.state_dict()
    assert list(net.state_dict()) == list(expected)
    for key, value in net.state_dict().items():
        assert torch.equal(value, expected[key]), key


def kept(part: float) -> Callable[[bytes], bytes]:
    """The first ``part`` of a file."""
    return lambda data: data[: int(len(data) * part)]


def flipped(part: float) -> Callable[[bytes], bytes]:
    """A file with one bit changed at ``part`` of its length."""

    def change(data: bytes) -> bytes:
        damaged = bytearray(data)
        damaged[int(len(data) * part)] ^= 4
        return bytes(damaged)

    return change
