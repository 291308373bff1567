"""Networks by name, as configurations and checkpoints call them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from ncsn_fast.models.base import ScoreNetwork
from ncsn_fast.models.mlp import MLPScore
from ncsn_fast.models.ncsn import NCSN
from ncsn_fast.models.ncsnv2 import NCSNv2, NCSNv2Deeper, NCSNv2Deepest
from ncsn_fast.models.refinenet import RefineNet

# Those that a training run of images can take.
IMAGE_NETWORKS: dict[str, type[RefineNet]] = {
    network.__name__: network for network in (NCSN, NCSNv2, NCSNv2Deeper, NCSNv2Deepest)
}
NETWORKS: dict[str, type[ScoreNetwork]] = {**IMAGE_NETWORKS, "MLPScore": MLPScore}


def build(config: dict[str, Any], sigmas: Tensor | np.ndarray | Sequence[float]) -> ScoreNetwork:
    """A new network from ``net.config`` and noise levels, with fresh weights.

    Args:
        config: ``{"network": name, ...}`` with the network's keyword arguments but ``sigmas``.
        sigmas: (L,) noise levels, finite, positive, descending.

    Raises:
        ValueError: for an unknown network or arguments it does not take.
    """
    arguments = dict(config)
    name = arguments.pop("network", None)
    if name not in NETWORKS:
        raise ValueError(f"unknown network {name!r}: choose one of {', '.join(NETWORKS)}")
    try:
        return NETWORKS[name](sigmas=sigmas, **arguments)
    except TypeError as error:
        raise ValueError(f"{name} cannot be built from {arguments}: {error}") from error


__all__ = ["IMAGE_NETWORKS", "NETWORKS", "build"]
