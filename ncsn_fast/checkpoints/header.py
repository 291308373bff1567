"""What a file says of its network, before the network is built.

A file with a right checksum can say anything. Its values have to be of the kinds that the format
names, and the sizes that they imply those of the weights in the file: nothing larger is allocated.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ncsn_fast.checkpoints.tensor_file import CheckpointError
from ncsn_fast.models.by_name import IMAGE_NETWORKS, NETWORKS
from ncsn_fast.models.ncsnv2 import class_names
from ncsn_fast.support.parsers import shown

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
MOST_PIXELS = 1 << 16  # of a side
MOST_STEPS = 1_000_000  # at a level


def _whole(value: Any, least: int = 1, most: int = 1 << 31) -> bool:
    return type(value) is int and least <= value <= most


def _size(value: Any) -> bool:
    sides = value if type(value) in (list, tuple) and len(value) == 2 else [value]
    return value is None or all(_whole(side, most=MOST_PIXELS) for side in sides)


def _positive(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value <= 1e300 and math.isfinite(value)


def _names(value: Any) -> bool:
    try:
        return type(value) is list and bool(class_names(value))
    except ValueError:
        return False


Kind = tuple[Callable[[Any], bool], str]
_WHOLE: Kind = (_whole, "a whole number ≥ 1")
_WORD: Kind = (lambda value: type(value) is str, "a word")
_FLAG: Kind = (lambda value: type(value) is bool, "true or false")
_IMAGES: dict[str, Kind] = {
    "channels": _WHOLE,
    "image_size": (_size, f"a whole number, or two, from 1 to {MOST_PIXELS}"),
    "ngf": _WHOLE,
    "activation": _WORD,
    "rescaled": _FLAG,
    "logit_transform": _FLAG,
    "divided": _FLAG,
    "classes": (_names, "a list of different names"),
}
_POINTS: dict[str, Kind] = {
    **dict.fromkeys(("dim", "hidden", "layers"), _WHOLE),
    "activation": _WORD,
}
_SAMPLING: dict[str, Kind] = {
    "method": _WORD,
    "step_size": (_positive, "a positive number"),
    **dict.fromkeys(
        ("steps", "steps_per_level"),
        (lambda value: _whole(value, most=MOST_STEPS), "a whole number ≥ 1"),
    ),
    "denoise": (lambda value: type(value) is bool or value == "last", "true, false or 'last'"),
    "noise_first": _FLAG,
    "spacing": _WORD,
}
_AVERAGED: Kind = (
    lambda value: type(value) is bool or value == "partly",
    "true, false or 'partly'",
)
_KINDS = {**_IMAGES, **_SAMPLING, "network": _WORD}
_OURS = frozenset(NETWORKS)  # as this package has them


def check_values(values: Mapping[str, Any], whose: str) -> None:
    """Refuse settings of a network or of sampling of another kind than they have.

    Args:
        values: by name; None: not known, where that can be.
        whose: "the call", for instance.

    Raises:
        CheckpointError
    """
    for name, value in values.items():
        _check(name, value, _KINDS.get(name), whose)


def check_averaged(metadata: Mapping[str, Any]) -> None:
    """Refuse a header that says in no known way whether its weights are averaged.

    Raises:
        CheckpointError
    """
    if "averaged" in metadata:
        _check("averaged", metadata["averaged"], _AVERAGED, "the header")


def check_header(metadata: Mapping[str, Any]) -> None:
    """Refuse values in the header of a file of ours that are not of the format's kinds.

    Raises:
        CheckpointError
    """
    config, sampling = metadata.get("config"), metadata.get("sampling")
    if not isinstance(config, dict) or config.get("network") is None:
        raise CheckpointError("the file has no configuration of a network")
    network = config["network"]
    if type(network) is not str or network not in NETWORKS:
        raise CheckpointError(
            f"its network is {shown(network)}: known are {', '.join(NETWORKS)}. Is the file of a "
            "later version? Then update ncsn_fast. Is the network your own? Put it into "
            "ncsn_fast.models.by_name.NETWORKS first"
        )
    kinds = _IMAGES if network in IMAGE_NETWORKS else _POINTS
    if network in _OURS:  # one of the caller's own, in NETWORKS, checks what it is made of itself
        for name, value in config.items():
            if name != "network":
                _check(name, value, kinds.get(name), f"the configuration of {network}", told=True)
    check_averaged(metadata)
    if sampling is None:
        return
    if not isinstance(sampling, dict):
        raise CheckpointError(f"its sampling is {shown(sampling)}, where settings are expected")
    for name, value in sampling.items():
        if value is not None and name in _SAMPLING:
            _check(name, value, _SAMPLING[name], "sampling")


def _check(name: str, value: Any, kind: Kind | None, whose: str, told: bool = False) -> None:
    if kind is None:
        if told:
            raise CheckpointError(f"{whose} has no setting {shown(name)}")
        return
    fits, expected = kind
    if not fits(value):
        raise CheckpointError(f"{name} of {whose} is {shown(value)}, where {expected} is expected")


def check_levels(sigmas: Tensor) -> None:
    """Refuse noise levels that are not floating point (L,); their values the network checks.

    Raises:
        CheckpointError
    """
    if sigmas.ndim != 1 or sigmas.dtype not in FLOATS or sigmas.layout is not torch.strided:
        raise CheckpointError(
            f"its noise levels are {sigmas.dtype} of shape {tuple(sigmas.shape)}, where (L,) "
            "numbers are expected"
        )


def check_weights(weights: Mapping[str, Tensor], size: int) -> None:
    """Refuse tensors that no weights of a network are.

    Args:
        size: of the file, in bytes.

    Raises:
        CheckpointError: for other data types and layouts than those of weights, for tensors that
            claim more bytes than the file has, and for numbers that are not finite.
    """
    claimed = 0
    for name, value in weights.items():
        if value.is_meta:
            raise CheckpointError(f"{shown(name)} lies on the device meta, which holds no values")
        if value.dtype not in FLOATS or value.layout is not torch.strided:
            told = ", ".join(str(dtype).removeprefix("torch.") for dtype in FLOATS)
            layout = "" if value.layout is torch.strided else f", {value.layout}"
            raise CheckpointError(
                f"{shown(name)} is of {value.dtype}{layout}: weights are plain tensors of {told}"
            )
        claimed += value.numel() * value.element_size()
    if claimed > size:
        raise CheckpointError(
            f"its tensors claim {claimed:,} bytes and the file has {size:,}: it is damaged"
        )
    for name, value in weights.items():
        if not bool(torch.isfinite(value).all()):
            raise CheckpointError(
                f"{shown(name)} holds NaN or infinity, as after a training that diverged: take an "
                "earlier checkpoint"
            )


def check_sizes(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    """Refuse a configuration of a larger network, or a smaller one, than the weights are of.

    Raises:
        CheckpointError
    """
    shape: tuple[int, ...]
    if config["network"] not in _OURS:
        return  # it is compared with all of its weights, once it is built without memory
    if config["network"] in IMAGE_NETWORKS:
        name, shape = "begin_conv.weight", (config.get("ngf", 0), config.get("channels", 0), 3, 3)
    else:
        name, shape = "linears.0.weight", (config.get("hidden", 128), config.get("dim", 2) + 1)
        layers = sum(bool(re.fullmatch(r"linears\.\d+\.weight", key)) for key in weights)
        if layers != config.get("layers", 3):
            raise CheckpointError(
                f"the weights are those of {layers} layers, where the settings say "
                f"{config.get('layers', 3)}"
            )
    first = weights.get(name)
    if first is None or tuple(first.shape) != shape:
        found = "missing" if first is None else tuple(first.shape)
        raise CheckpointError(
            f"the weights do not fit {config['network']}: {name} is {found}, where the settings "
            f"say {shape}"
        )
    if classes := config.get("classes", ()):
        _check_classes(weights, len(classes))


def _check_classes(weights: Mapping[str, Tensor], number: int) -> None:
    """Refuse tables of other classes than so many, and none of them, which moves nothing."""
    table = weights.get("normalizer.embed.weight")
    there = 0 if table is None or table.ndim != 2 else max(0, len(table) - 1)
    if there != number:
        raise CheckpointError(
            f"the weights are those of {there} classes, where the settings name {number}"
        )
    for name, table in weights.items():
        if name.endswith(".embed.weight") and bool(table[-1:].any()):
            raise CheckpointError(
                f"the last row of {name} is that of no class, and not zero: the weights are those "
                "of another network"
            )


__all__ = [
    "FLOATS",
    "check_averaged",
    "check_header",
    "check_levels",
    "check_sizes",
    "check_values",
    "check_weights",
]
