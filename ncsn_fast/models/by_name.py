"""Networks by name, as configurations and checkpoints call them, and by their tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from ncsn_fast.models.base import ScoreNetwork
from ncsn_fast.models.mlp import MLPScore
from ncsn_fast.models.ncsn import NCSN
from ncsn_fast.models.ncsnv2 import NCSNv2, NCSNv2Deeper, NCSNv2Deepest, class_names
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


def network_of(weights: Mapping[str, Tensor], *, divided: bool) -> dict[str, Any]:
    """Which network the weights belong to: network, channels, ngf, and num_levels for NCSN v1.

    Args:
        weights: under the network's own names, without ``sigmas``.
        divided: whether a network of the v2 family divides by σ.

    Raises:
        ValueError: for weights of other networks, or of variants that are not supported.
    """
    if any(key.endswith("_orig") for key in weights):
        raise ValueError(
            "the weights are spectrally normalised (weight_orig), which is not supported: call "
            "torch.nn.utils.remove_spectral_norm on each layer where they were trained, and save "
            "them again"
        )
    begin = weights.get("begin_conv.weight")
    if begin is None or begin.ndim != 4:
        some = ", ".join(name[:60] for name in list(weights)[:5])
        raise ValueError(
            f"these weights do not belong to a network of the NCSN family, which has a tensor "
            f"begin_conv.weight: found {len(weights)} tensors ({some}, …)"
        )
    ngf, channels = begin.shape[:2]
    facts: dict[str, Any] = {"channels": channels, "ngf": ngf}
    _refuse_variants(weights, ngf)
    deeper = any(key.startswith("res5.") for key in weights)
    deepest = any(key.startswith("res31.") for key in weights)
    table = weights.get("normalizer.embed.weight")
    if table is not None and "normalizer.alpha" in weights:
        facts["classes"] = list(class_names(len(table) - 1))  # the last row is that of none
    elif table is not None:
        if deeper:
            raise ValueError("the weights are those of NCSNdeeper, which is not supported")
        return {**facts, "network": "NCSN", "num_levels": table.shape[0]}
    network = "NCSNv2Deepest" if deepest else "NCSNv2Deeper" if deeper else "NCSNv2"
    return {**facts, "network": network, "divided": divided}


def _refuse_variants(weights: Mapping[str, Tensor], ngf: int) -> None:
    table = weights.get("normalizer.embed.weight")
    plus = "normalizer.alpha" in weights
    if table is not None:
        plus = table.ndim == 2 and table.shape[1] == 3 * ngf
    if not plus or (table is None and "normalizer.gamma" not in weights):
        raise ValueError(
            "the weights belong to another normalisation than InstanceNorm++, which is the only "
            "one supported"
        )
    last = "res5" if "res5.0.conv2.conv.weight" in weights else "res4"
    if f"{last}.0.conv2.conv.weight" in weights:
        raise ValueError(
            "the weights belong to a network without dilations (--no_dilation), which is not "
            "supported"
        )


__all__ = ["IMAGE_NETWORKS", "NETWORKS", "build", "network_of"]
