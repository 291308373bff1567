"""Networks from files and into files.

:func:`load_checkpoint` reads what the official code of NCSN and NCSNv2 and its relatives save, and
our own files; :func:`save_checkpoint` writes ours: one safetensors file that holds the weights, the
noise levels, and all that is needed to rebuild the network and sample from it.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ncsn_fast.checkpoints.layouts import Contents, network_of, read_contents
from ncsn_fast.checkpoints.official_yaml import (
    V1_SAMPLING,
    network_settings,
    noise_levels,
    read_official_yaml,
    sampling_settings,
)
from ncsn_fast.checkpoints.tensor_file import CheckpointError, write_tensors
from ncsn_fast.models.base import ScoreNetwork
from ncsn_fast.models.by_name import build
from ncsn_fast.support.files import check_writable, write_text

_log = logging.getLogger("ncsn_fast")
BUNDLED = {"digits": Path(__file__).parents[1] / "assets" / "digits_ncsnv2.safetensors"}
STORED = (torch.float16, torch.bfloat16)
SAMPLING = ("method", "step_size", "steps_per_level", "denoise")
CHOICES = ("image_size", "activation", "rescaled", "logit_transform", "divided")
FROM_WEIGHTS = ("network", "channels", "ngf")
OVERRIDES = (*CHOICES, *FROM_WEIGHTS, "sigmas", *SAMPLING)


class Loaded(NamedTuple):
    """A network from a file.

    Attributes:
        net: in eval mode.
        averaged: whether its weights are averaged; None where the file does not say.
        both: whether the file holds weights as trained beside averaged ones.
    """

    net: ScoreNetwork
    averaged: bool | None
    both: bool


def load_checkpoint(
    path: str | os.PathLike[str],
    config: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    *,
    ema: bool = True,
    device: torch.device | str = "cpu",
    **overrides: Any,
) -> ScoreNetwork:
    """Load a score network, in eval mode, from a checkpoint of any known layout.

    The layout, the network, its width, its channels and the noise levels are found in the file
    where they are there. What weights cannot tell comes from ``overrides``, else ``config``, else
    our own file's header, else the choices of all published weights (ELU, data in [0, 1]).
    No code in the file is ever run.

    Args:
        path: NCSN, NCSNv2 or AdversarialConsistentScoreMatching checkpoint, a state_dict, or a
            file of :func:`save_checkpoint` or of a training run; or the word "digits": the network
            of handwritten digits that comes with ncsn_fast (a file of that name is "./digits").
        config: the official YAML file, or its contents as a dict.
        ema: take the averaged weights where the file has them.
        device: where the network goes.
        overrides: image_size, activation, rescaled, logit_transform, divided (False for weights
            whose training code does not divide by σ), sigmas (for files without), and the
            sampling settings method, step_size, steps_per_level, denoise.

    Returns:
        The network, with ``net.sampling`` and ``net.source`` filled in.

    Raises:
        FileNotFoundError: where there is no such file.
        CheckpointError: for a file that is damaged, of an unknown layout, or needs more than
            tensors; for settings that are missing or contradict the weights.
    """
    return load(path, config, ema=ema, device=device, **overrides).net


def load(
    path: str | os.PathLike[str],
    config: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    *,
    ema: bool = True,
    device: torch.device | str = "cpu",
    **overrides: Any,
) -> Loaded:
    """As :func:`load_checkpoint`, and which of the file's weights the network has."""
    unknown = sorted(set(overrides) - set(OVERRIDES))
    if unknown:
        raise ValueError(
            f"load_checkpoint does not know {', '.join(unknown)}: it takes {', '.join(OVERRIDES)}"
        )
    path = checkpoint_file(path)
    contents = read_contents(path, ema=ema)
    official = _official(config)
    try:
        net_config = _network_config(contents, official, overrides)
        sigmas = _levels(contents, net_config, official, overrides)
        net_config.pop("num_levels", None)
        net = _rebuild(net_config, sigmas, contents.weights, torch.device(device))
        net.sampling = _sampling(contents, net_config, official, overrides)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except ValueError as error:
        raise CheckpointError(f"{path} cannot be loaded: {error}") from error
    net.source = f"{path.name}: {contents.source}"
    if not contents.checked:
        _say_unchecked(str(path))
    return Loaded(net, contents.averaged, contents.both)


@cache
def _say_unchecked(path: str) -> None:
    """Once a process: what cannot be noticed in such a file."""
    _log.warning(
        "%s has no checksums (the legacy format of torch.save, or saved without): damage to its "
        "weights cannot be noticed. ncsn-fast convert makes a file that has one",
        path,
    )


def checkpoint_file(path: str | os.PathLike[str]) -> Path:
    """The file that a path or the name of a bundled network stands for.

    Raises:
        CheckpointError: where the bundled file is missing.
    """
    bundled = BUNDLED.get(os.fspath(path))
    if bundled is None:
        return Path(path)
    if not bundled.is_file():
        raise CheckpointError(
            f"the network {os.fspath(path)!r} that comes with ncsn_fast is missing ({bundled}): "
            "reinstall ncsn_fast, or train one (ncsn-fast train --preset digits --out runs/digits)"
        )
    return bundled


def save_checkpoint(
    net: ScoreNetwork,
    path: str | os.PathLike[str],
    *,
    extra: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
) -> Path:
    """Save a network so that :func:`load_checkpoint` needs nothing but the file.

    Writes ``<name>.safetensors`` and, for people, ``<name>.json``, each of them whole or not at
    all. Weights come back bit for bit.

    Args:
        net: one of our networks, on any device.
        path: the file; ``.safetensors`` is added where the name does not end so.
        extra: JSON values to keep with it, for instance how it was trained.
        dtype: torch.float16 or torch.bfloat16 stores the weights rounded, in half the size; they
            are loaded in the network's own data type. None stores them as they are.

    Returns:
        The path of the safetensors file.

    Raises:
        ValueError: for something that is not one of our networks, ``extra`` that is not JSON, or
            a ``dtype`` that is none of these or too narrow for a weight.
        ValueError, OSError: for a folder that does not exist or cannot be written to.
    """
    if not isinstance(net, ScoreNetwork):
        raise ValueError(
            f"save_checkpoint takes a network of ncsn_fast, got {type(net).__name__} (of a "
            "DataParallel or compiled network give the network inside)"
        )
    path = Path(path)
    if path.suffix != ".safetensors":
        path = path.with_name(path.name + ".safetensors")
    check_writable(path)
    metadata = {
        "kind": "network",
        "config": net.config,
        "sampling": net.sampling,
        "extra": dict(extra or {}),
    }
    weights = net.state_dict()
    if dtype is not None:
        metadata["dtype"] = str(next(net.parameters()).dtype).removeprefix("torch.")
        weights = _rounded(weights, dtype)
    tensors = {**weights, "sigmas": net.sigmas}
    checksum = write_tensors(path, tensors, metadata)
    readable = {
        **metadata,
        "parameters": sum(p.numel() for p in net.parameters()),
        "sigmas": net.sigmas.tolist(),
        "sha256": checksum,
    }
    text = json.dumps(readable, indent=2, ensure_ascii=False) + "\n"
    write_text(path.with_suffix(".json"), text)
    return path


def _rounded(weights: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    if dtype not in STORED:
        raise ValueError(f"dtype = {dtype}: weights are stored as they are (None) or as {STORED}")
    rounded = {key: value.to(dtype) for key, value in weights.items()}
    for key, value in rounded.items():
        if not bool(torch.isfinite(value).all()):
            raise ValueError(
                f"{key} has values that {dtype} cannot hold (or that are not finite): store them "
                "as torch.bfloat16, or as they are"
            )
    return rounded


def _official(
    config: str | os.PathLike[str] | Mapping[str, Any] | None,
) -> Mapping[str, Any] | None:
    if config is None or isinstance(config, Mapping):
        return config
    return read_official_yaml(config)


def _network_config(
    contents: Contents, official: Mapping[str, Any] | None, overrides: Mapping[str, Any]
) -> dict[str, Any]:
    """Keyword arguments of the network, and ``num_levels`` where the weights fix it."""
    if contents.settings is not None:
        found = dict(contents.settings["config"])
        defaults: dict[str, Any] = {}
    else:
        divided = overrides.get("divided", contents.sigmas is not None)
        found = network_of(contents.weights, divided=divided)
        defaults = {"image_size": None}
    if contents.sigmas is not None:
        found.setdefault("num_levels", len(contents.sigmas))
    told = {} if official is None else network_settings(official)
    told.pop("network", None)  # guessed there, known here
    levels = _told_levels(official)
    if levels is not None:
        told["num_levels"] = len(levels)
    _agree(found, told, "the configuration")
    _agree(found, overrides, "the call")
    choices = {k: told[k] for k in CHOICES if k in told}
    choices |= {k: overrides[k] for k in CHOICES if k in overrides}
    if found["network"] == "NCSN" and choices.pop("divided", True) is False:
        raise CheckpointError("divided=False is for networks of the v2 family, this is NCSN")
    return {**defaults, **found, **choices}


def _told_levels(official: Mapping[str, Any] | None) -> Tensor | None:
    """The noise levels of the configuration, where it names any: some leave them to the weights."""
    if official is None or "sigma_begin" not in official["model"]:
        return None
    return noise_levels(official)


def _agree(found: Mapping[str, Any], told: Mapping[str, Any], who: str) -> None:
    names = {"network": "network", "channels": "channels", "ngf": "ngf (width)"}
    for key, name in {**names, "num_levels": "number of noise levels"}.items():
        if key in found and key in told and found[key] != told[key]:
            raise CheckpointError(
                f"the {name} of the weights is {found[key]}, but {who} says {told[key]}: use the "
                "configuration these weights were trained with"
            )


def _levels(
    contents: Contents,
    net_config: Mapping[str, Any],
    official: Mapping[str, Any] | None,
    overrides: Mapping[str, Any],
) -> Tensor | np.ndarray | Sequence[float]:
    told = _told_levels(official)
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
            "the file does not hold the noise levels. Give config= (the YAML file it was trained "
            "with) or sigmas= (for NCSN v1 usually geometric_sigmas(1.0, 0.01, 10)). For averaged "
            "weights saved alone from an NCSNv2 network say divided=True too"
        )
    needed = net_config.get("num_levels")
    if needed is not None and len(sigmas) != needed:
        raise CheckpointError(
            f"the weights have {needed} noise levels, but {len(sigmas)} are given"
        )
    return sigmas


def _sampling(
    contents: Contents,
    net_config: Mapping[str, Any],
    official: Mapping[str, Any] | None,
    overrides: Mapping[str, Any],
) -> dict[str, Any] | None:
    known: Mapping[str, Any] | None = None
    if contents.settings is not None:
        known = contents.settings.get("sampling")
    elif net_config["network"] == "NCSN":
        known = V1_SAMPLING
    if official is not None and ("sampling" in official or net_config["network"] == "NCSN"):
        known = sampling_settings(official)
    given = {key: overrides[key] for key in SAMPLING if key in overrides}
    if known is None and not given:
        return None
    if known is not None and given.get("method", known.get("method")) != known.get("method"):
        known = None  # the settings of one method mean something else to another
    return {"method": "annealed_langevin", **(known or {}), **given}


def _rebuild(
    config: dict[str, Any],
    sigmas: Tensor | np.ndarray | Sequence[float],
    weights: dict[str, Tensor],
    device: torch.device,
) -> ScoreNetwork:
    # Built without memory first: weights that are about to be replaced are not worth drawing.
    with torch.device("meta"):
        net = build(config, sigmas)
    dtypes = {tensor.dtype for tensor in weights.values() if tensor.is_floating_point()}
    if len(dtypes) == 1:
        net.to(dtypes.pop())
    net.to_empty(device=device)
    try:
        missing, unexpected = net.load_state_dict(weights, strict=False)
    except RuntimeError as error:  # torch lists the tensors whose shapes differ
        raise CheckpointError(f"the weights do not fit {config['network']}: {error}") from error
    missing = [key for key in missing if key != "sigmas"]
    if missing or unexpected:
        raise CheckpointError(
            f"the weights do not fit {config['network']}: {_some(missing)} missing, "
            f"{_some(unexpected)} unexpected"
        )
    return net.eval()


def _some(names: Sequence[str]) -> str:
    if not names:
        return "none"
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


__all__ = ["checkpoint_file", "load_checkpoint", "save_checkpoint"]
