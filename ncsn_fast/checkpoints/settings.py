"""Which settings a network from a file gets: those that weights, file, configuration and call say.

What two of them say of one thing has to agree. Only how to sample is a choice of the caller's, and
what weights cannot tell: there the call comes before the configuration, which is said.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ncsn_fast.checkpoints.layouts import Contents
from ncsn_fast.checkpoints.official_yaml import (
    V1_SAMPLING,
    network_settings,
    noise_levels,
    sampling_settings,
)
from ncsn_fast.checkpoints.tensor_file import CheckpointError
from ncsn_fast.models.by_name import network_of

_log = logging.getLogger("ncsn_fast")
SAMPLING = ("method", "step_size", "steps_per_level", "denoise")
CHOICES = ("image_size", "activation", "rescaled", "logit_transform", "divided")
FROM_WEIGHTS = ("network", "channels", "ngf")
OVERRIDES = (*CHOICES, *FROM_WEIGHTS, "sigmas", *SAMPLING)
_WORDS = {"ngf": "ngf (width)", "num_levels": "number of noise levels"}
_OTHER_SIZE = (
    "leave it out. Samples of another size are drawn by nf.Sampler(net, shape=(channels, height, "
    "width)), though the network has not seen such images"
)


def network_config(
    contents: Contents, official: Mapping[str, Any] | None, overrides: Mapping[str, Any]
) -> dict[str, Any]:
    """Keyword arguments of the network, and ``num_levels`` where the weights fix it.

    Raises:
        CheckpointError, ValueError: where two sayings differ, or one that is needed is missing.
    """
    told = {} if official is None else network_settings(official)
    told.pop("network", None)  # guessed there, known here
    levels = told_levels(official)
    if levels is not None:
        told["num_levels"] = len(levels)
    if contents.settings is not None:
        found = dict(contents.settings["config"])
    else:
        divided = overrides.get("divided", contents.sigmas is not None)
        found = network_of(contents.weights, divided=divided)
    if contents.sigmas is not None:
        found.setdefault("num_levels", len(contents.sigmas))
    _agree(found, told, "the configuration", contents)
    _agree(found, overrides, "the call", contents)
    replaced = [
        f"{key} {told[key]!r} by {overrides[key]!r}"
        for key in CHOICES
        if key in told and key in overrides and _plain(told[key]) != _plain(overrides[key])
    ]
    if replaced:
        _log.warning("the call replaces settings of the configuration: %s", ", ".join(replaced))
    choices = {k: told[k] for k in CHOICES if k in told}
    choices |= {k: overrides[k] for k in CHOICES if k in overrides}
    if found["network"] == "NCSN" and choices.pop("divided", True) is False:
        raise CheckpointError("divided=False is for networks of the v2 family, this is NCSN")
    defaults = {"image_size": None} if contents.settings is None else {}
    return {**defaults, **found, **choices}


def assumed(official: object, overrides: Mapping[str, Any]) -> str:
    """In words, what is taken of a file's network that neither file nor caller says."""
    if official is not None:
        return ""
    open_ = [] if "activation" in overrides else ["ELU"]
    if not {"rescaled", "logit_transform"} & set(overrides):
        open_.append("data in [0, 1]")
    return f"{' and '.join(open_)} assumed" if open_ else ""


def told_levels(official: Mapping[str, Any] | None) -> Tensor | None:
    """The noise levels of the configuration, where it names any: some leave them to the weights."""
    if official is None or "sigma_begin" not in official["model"]:
        return None
    return noise_levels(official)


def levels(
    contents: Contents,
    config: Mapping[str, Any],
    official: Mapping[str, Any] | None,
    overrides: Mapping[str, Any],
) -> Tensor | np.ndarray | Sequence[float]:
    """The noise levels, of the file, the call or the configuration.

    Raises:
        CheckpointError: for none, and for those that contradict the weights.
    """
    told = told_levels(official)
    if contents.sigmas is not None:
        held = contents.sigmas
        if "sigmas" in overrides:
            raise CheckpointError(
                f"the file holds its own noise levels ({len(held)} from {held[0]:g} to "
                f"{held[-1]:g}): give sigmas= to the sampler where others are wanted"
            )
        if told is not None and not torch.allclose(told, held.float().cpu(), rtol=1e-3, atol=0):
            raise CheckpointError(
                f"the noise levels of the weights run from {held[0]:g} to {held[-1]:g}, but the "
                f"configuration says {told[0]:g} to {told[-1]:g}: use the configuration these "
                "weights were trained with"
            )
        return held
    sigmas = overrides.get("sigmas", told)
    if sigmas is None:
        raise CheckpointError(
            "the file does not hold the noise levels. Give config= (--config, the YAML file it was "
            "trained with) or, from Python, sigmas= (for NCSN v1 usually "
            "geometric_sigmas(1.0, 0.01, 10)). For averaged weights saved alone from an NCSNv2 "
            "network say divided=True too"
        )
    needed = config.get("num_levels")
    if needed is not None and len(sigmas) != needed:
        raise CheckpointError(
            f"the weights have {needed} noise levels, but {len(sigmas)} are given"
        )
    return sigmas


def sampling(
    contents: Contents,
    config: Mapping[str, Any],
    official: Mapping[str, Any] | None,
    overrides: Mapping[str, Any],
) -> dict[str, Any] | None:
    """How to sample: what the call says, else the configuration, else the file."""
    known: Mapping[str, Any] | None = None
    if contents.settings is not None:
        known = contents.settings.get("sampling")
    elif config["network"] == "NCSN":
        known = V1_SAMPLING
    if official is not None and ("sampling" in official or config["network"] == "NCSN"):
        known = sampling_settings(official)
    given = {key: overrides[key] for key in SAMPLING if key in overrides}
    if known is None and not given:
        return None
    if known is not None and given.get("method", known.get("method")) != known.get("method"):
        known = None  # the settings of one method mean something else to another
    return {"method": "annealed_langevin", **(known or {}), **given}


def _agree(found: Mapping[str, Any], told: Mapping[str, Any], who: str, contents: Contents) -> None:
    """Refuse what contradicts the weights, or the header of a file of ours."""
    for key in (*FROM_WEIGHTS, "num_levels"):
        if key in found and key in told and found[key] != told[key]:
            raise CheckpointError(
                f"the {_WORDS.get(key, key)} of the weights is {found[key]}, but {who} says "
                f"{told[key]}: use the configuration these weights were trained with"
            )
    for key in CHOICES if contents.settings is not None else ():
        known, said = found.get(key), told.get(key)
        if known is None or said is None or _plain(known) == _plain(said):
            continue
        raise CheckpointError(
            f"the file says that its network has {key} {known!r}, but {who} says {said!r}: "
            f"{_OTHER_SIZE if key == 'image_size' else 'leave it out'}"
        )


def _plain(value: Any) -> Any:
    """A setting in the one form that all its forms are compared in."""
    if isinstance(value, str):
        return value.lower()
    if isinstance(value, Sequence):
        sides = list(value)
        return sides[0] if len(sides) == 2 and sides[0] == sides[1] else sides
    return value


__all__ = ["OVERRIDES", "assumed", "levels", "network_config", "sampling"]
