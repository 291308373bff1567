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
from functools import cache, reduce
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ncsn_fast.checkpoints.header import check_averaged, check_sizes, check_values
from ncsn_fast.checkpoints.hub import HUB, Found, located
from ncsn_fast.checkpoints.layouts import Averaged, read_contents
from ncsn_fast.checkpoints.official_yaml import Config, official_config
from ncsn_fast.checkpoints.settings import (
    OVERRIDES,
    assumed,
    levels,
    network_config,
    sampling,
)
from ncsn_fast.checkpoints.tensor_file import CheckpointError, write_tensors
from ncsn_fast.device.environment import usable
from ncsn_fast.models.base import ScoreNetwork
from ncsn_fast.models.by_name import build
from ncsn_fast.models.space import Space
from ncsn_fast.support.files import check_writable, write_text

_log = logging.getLogger("ncsn_fast")
_ASSETS = Path(__file__).parents[1] / "assets"
# The networks that come along: handwritten digits 8×8 and 28×28, and clothes 28×28.
BUNDLED = {name: _ASSETS / f"{name}_ncsnv2.safetensors" for name in ("digits", "mnist", "fashion")}
STORED = (torch.float16, torch.bfloat16)


class Loaded(NamedTuple):
    """A network from a file.

    Attributes:
        net: in eval mode.
        averaged, both: as in :class:`ncsn_fast.checkpoints.layouts.Contents`.
    """

    net: ScoreNetwork
    averaged: Averaged | None
    both: bool | None


def load_checkpoint(
    path: str | os.PathLike[str],
    config: Config | None = None,
    *,
    ema: bool = True,
    device: torch.device | str = "cpu",
    **overrides: Any,
) -> ScoreNetwork:
    """Load a score network, in eval mode, from a checkpoint of any known layout.

    The layout, the network, its width, its channels and the noise levels are found in the file
    where they are there. What weights cannot tell comes from ``overrides``, else ``config``, else
    our own file's header, which they must not contradict, else the choices of all published weights
    (ELU, data in [0, 1]; ``net.source`` says so). No code in the file is ever run.

    Args:
        path: NCSN, NCSNv2 or AdversarialConsistentScoreMatching checkpoint, a state_dict, or a
            file of :func:`save_checkpoint` or of a training run; or "digits", "mnist" or "fashion":
            a network that comes with ncsn_fast (a file of that name is "./digits"); or a folder
            with a model.safetensors, or "user/name", a network on the Hugging Face Hub, as
            ``net.push_to_hub`` saves it (a line of the log says so). What may be a file here is
            never looked for there: a Path, a name that ends like a file's, one in a folder that
            there is.
        config: the official YAML file, or its contents: a dict, or an object with attributes
            (argparse.Namespace, …), nested.
        ema: take the averaged weights where the file has them, in any of the forms that
            docs/file_format.md names; False: those as trained.
        device: where the network goes.
        overrides: image_size, activation, rescaled, logit_transform, divided (False for weights
            whose training code does not divide by σ), sigmas (for files without), and the
            sampling settings method, step_size, steps_per_level, denoise; for the hub also
            revision (a branch, a tag or a commit), token, cache_dir and local_files_only, as
            huggingface_hub takes them.

    Returns:
        The network, with ``net.sampling`` and ``net.source`` filled in: the file, or the repository
        and the commit, its layout, and which of its weights these are.

    Raises:
        FileNotFoundError: where there is no such file, and none on the hub that can be had.
        CheckpointError: for a file that is damaged, of an unknown layout, or needs more than
            tensors; for settings that are missing or contradict the weights or our own header;
            for averaged weights in a form that is not known, unless ``ema=False``.
        ValueError: for a setting that is unknown, a configuration that cannot be read, and a
            ``path`` or ``config`` of another type.
    """
    return load(path, config, ema=ema, device=device, **overrides).net


def load(
    path: str | os.PathLike[str],
    config: Config | None = None,
    *,
    ema: bool = True,
    device: torch.device | str = "cpu",
    **overrides: Any,
) -> Loaded:
    """As :func:`load_checkpoint`, and which of the file's weights the network has."""
    how = {name: overrides.pop(name) for name in HUB if name in overrides}
    unknown = sorted(set(overrides) - set(OVERRIDES))
    if unknown:
        known = ", ".join((*OVERRIDES, *HUB))
        raise ValueError(f"load_checkpoint does not know {', '.join(unknown)}: it takes {known}")
    (path, called), device = _found(path, how), usable(device)
    official = None if config is None else official_config(config)
    contents = read_contents(path, ema=ema)
    try:
        check_values(overrides, "the call")
        net_config = network_config(contents, official, overrides)
        sigmas = levels(contents, net_config, official, overrides)
        net_config.pop("num_levels", None)
        net = _rebuild(net_config, sigmas, contents.weights, device)
        net.sampling = sampling(contents, net_config, official, overrides)
        if contents.settings is None and net.config.get("image_size", ()) is None:
            raise CheckpointError(
                "the file does not tell for images of which size it is, nor for which activation "
                "and range of data: give config= (--config, the YAML file it was trained with), "
                "or image_size=32, or whatever it is"
            )
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except ValueError as error:
        raise CheckpointError(f"{path} cannot be loaded: {error}") from error
    guessed = "" if contents.settings is not None else assumed(official, overrides)
    told = (contents.place, guessed, contents.which)
    net.source = f"{called}: {', '.join(words for words in told if words)}"
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
    """The file that a path, or the name of a bundled network or of one on the hub, stands for.

    Raises:
        CheckpointError: where the bundled file is missing.
    """
    return _found(path, {}).file


def _found(path: str | os.PathLike[str], how: Mapping[str, Any]) -> Found:
    if not isinstance(path, (str, os.PathLike)) or not isinstance(os.fspath(path), str):
        raise ValueError(
            f"a checkpoint is given by its path, a str or a Path, not by {type(path).__name__}"
        )
    name = os.fspath(path)
    bundled = BUNDLED.get(name)
    if bundled is None:
        return located(path, how)
    if not bundled.is_file():
        raise CheckpointError(
            f"the network {name!r} that comes with ncsn_fast is missing ({bundled}): reinstall "
            f"ncsn_fast, or train one (ncsn-fast train --preset {name} --out runs/{name})"
        )
    return Found(bundled, bundled.name)


def save_checkpoint(
    net: ScoreNetwork,
    path: str | os.PathLike[str],
    *,
    extra: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
    averaged: Averaged | None = None,
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
        averaged: whether these are averaged weights (EMA), for ``net.source`` of who loads them:
            True, False, or "partly" where some have no average. None: the file does not say.

    Returns:
        The path of the safetensors file.

    Raises:
        ValueError: for something that is not one of our networks, ``extra`` that is not JSON, or
            a ``dtype`` that is none of these or too narrow for a weight, or another ``averaged``.
        ValueError, OSError: for a folder that does not exist or cannot be written to.
    """
    path, readable = write_network(net, path, extra=extra, dtype=dtype, averaged=averaged)
    write_text(path.with_suffix(".json"), readable)
    return path


def write_network(
    net: ScoreNetwork,
    path: str | os.PathLike[str],
    *,
    extra: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
    averaged: Averaged | None = None,
) -> tuple[Path, str]:
    """The first file of :func:`save_checkpoint`, and what the second, for people, holds."""
    if not isinstance(net, ScoreNetwork):
        raise ValueError(
            f"save_checkpoint takes a network of ncsn_fast, got {type(net).__name__} (of a "
            "DataParallel or compiled network give the network inside)"
        )
    if not isinstance(path, (str, os.PathLike)) or not Path(path).name:
        raise ValueError(f"path = {path!r:.80}: give the file's path, a str or a Path")
    if not isinstance(extra, (Mapping, NoneType)):
        raise ValueError(f"extra is a {type(extra).__name__}: give a dict of JSON values")
    path = Path(path)
    if path.suffix != ".safetensors":
        path = path.with_name(path.name + ".safetensors")
    check_writable(path)
    metadata: dict[str, Any] = {
        "kind": "network",
        "config": net.config,
        "sampling": net.sampling,
        "extra": dict(extra or {}),
    }
    if averaged is not None:
        metadata["averaged"] = averaged
    check_averaged(metadata)
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
    return path, json.dumps(readable, indent=2, ensure_ascii=False) + "\n"


def _rounded(weights: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    if not isinstance(dtype, torch.dtype) or dtype not in STORED:
        raise ValueError(
            f"dtype = {dtype!r:.80}: weights are stored as they are (None) or as {STORED}"
        )
    rounded = {key: value.to(dtype) for key, value in weights.items()}
    for key, value in rounded.items():
        if not bool(torch.isfinite(value).all()):
            raise ValueError(
                f"{key} has values that {dtype} cannot hold (or that are not finite): store them "
                "as torch.bfloat16, or as they are"
            )
    return rounded


def _rebuild(
    config: dict[str, Any],
    sigmas: Tensor | np.ndarray | Sequence[float],
    weights: dict[str, Tensor],
    device: torch.device,
) -> ScoreNetwork:
    # Built without memory first: weights that are about to be replaced are not worth drawing, and
    # what does not fit is refused before anything is allocated for it.
    check_sizes(config, weights)
    with torch.device("meta"):
        net = build(config, sigmas)
    Space.of(net)
    expected = {name: value.shape for name, value in net.state_dict().items() if name != "sigmas"}
    missing = [name for name in expected if name not in weights]
    unexpected = [name for name in weights if name not in expected]
    if missing or unexpected:
        raise CheckpointError(
            f"the weights do not fit {config['network']}: {_some(missing)} missing, "
            f"{_some(unexpected)} unexpected"
        )
    differ = [name for name, shape in expected.items() if weights[name].shape != shape]
    if differ:
        found, shape = tuple(weights[differ[0]].shape), tuple(expected[differ[0]])
        raise CheckpointError(
            f"the weights do not fit {config['network']}: {_some(differ)} of another shape "
            f"({found}, where it is {shape})"
        )
    # Of several data types the one that holds them all. Assigned, as to_empty() of "meta" would
    # import sympy, which takes half a second.
    dtype = reduce(torch.promote_types, {tensor.dtype for tensor in weights.values()})
    made: dict[str, Any] = {"copy": True, "memory_format": torch.contiguous_format}
    own = {name: value.to(device, dtype, **made) for name, value in weights.items()}
    net.load_state_dict(own, strict=False, assign=True)  # all but the noise levels, which it has
    return net.to(device).eval()


def _some(names: Sequence[str]) -> str:
    if not names:
        return "none"
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(name[:60] for name in names[:3]) + more


__all__ = ["checkpoint_file", "load_checkpoint", "save_checkpoint", "write_network"]
