"""The YAML configurations of the official repositories: read into our terms, and written.

NCSN v1 dumps its configuration as a Python object (``!!python/object:argparse.Namespace``). The
reader below turns such objects into the dicts, lists and words they consist of. It looks nothing
up, imports nothing and calls nothing, whatever a tag asks for.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ncsn_fast.checkpoints.official_keys import (
    number_of,
    passed_over,
    section_of,
    settings_of,
    value_of,
)
from ncsn_fast.methods.levels import MOST_LEVELS
from ncsn_fast.support import checks
from ncsn_fast.support.parsers import LARGEST_YAML, parse_yaml, read_text, shown

_log = logging.getLogger("ncsn_fast")
# A file, or its contents: dicts, or objects with attributes (argparse.Namespace, …).
Config = str | os.PathLike[str] | Mapping[str, Any] | Any
MOST_NESTED = 20
CELEBA_CROP = 140
PYTHON_TAG = "tag:yaml.org,2002:python/"
_LADDER = ("sigma_max", "sigma_min", "num_levels", "sigma_dist")
V1_SAMPLING = {
    "method": "annealed_langevin",
    "step_size": 2e-5,
    "steps_per_level": 100,
    "denoise": False,
}


def read_official_yaml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a configuration file of NCSN, NCSNv2 or their relatives as nested plain values.

    Args:
        path: a YAML file, as published or as dumped by a training run of that code; or settings
            of one of our own runs, see :func:`is_official`.

    Returns:
        A dict of dicts, lists, numbers, strings, booleans and None. Python objects become dicts of
        their attributes, tuples lists, and names of Python things strings. What a tag would call
        is not called: its arguments are returned.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: for a file that is not a mapping, or refused by
            :func:`ncsn_fast.support.parsers.parse_yaml`: no YAML, larger than 1 MiB, a bomb.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no configuration file {path}")
    values = parse_yaml(read_text(path, LARGEST_YAML), path, _loader())
    if not isinstance(values, dict):
        raise ValueError(
            f"{path} holds a {type(values).__name__}, not the sections (data:, model:, …) of an "
            "NCSN configuration or the settings (ngf: 32, …) of a training run"
        )
    return values


def _loader() -> type[Any]:
    """A SafeLoader that reads Python tags as the plain values below them."""
    import yaml

    class PlainLoader(yaml.SafeLoader):
        pass

    def plain(loader: yaml.SafeLoader, suffix: str, node: yaml.Node) -> Any:
        if isinstance(node, yaml.MappingNode):
            return loader.construct_mapping(node, deep=True)
        if isinstance(node, yaml.SequenceNode):
            return loader.construct_sequence(node, deep=True)
        assert isinstance(node, yaml.ScalarNode)
        kind, _, name = suffix.partition(":")
        if kind in ("str", "unicode") or node.value == "":
            return name or node.value  # "name:torch.float32" has its name in the tag
        tag = loader.resolve(yaml.ScalarNode, node.value, (True, False))
        return loader.construct_object(yaml.ScalarNode(tag, node.value), deep=True)

    PlainLoader.add_multi_constructor(PYTHON_TAG, plain)
    return PlainLoader


def official_config(config: Config) -> dict[str, Any]:
    """An official configuration as nested plain values; what of it nothing reads is said.

    Args:
        config: a path for :func:`read_official_yaml`, or what such a file holds: mappings, or
            objects with attributes as the official code makes (argparse.Namespace), nested.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: for something else, and for a file that cannot be read or has no such sections.
    """
    if isinstance(config, (str, os.PathLike)):
        values, what = read_official_yaml(config), str(config)
    else:
        plain = _plain(config, MOST_NESTED)
        if not isinstance(plain, dict):
            raise ValueError(
                f"config is of type {type(config).__name__}: give the path of a YAML file (a str "
                "or a Path), or what it holds, as a dict or an argparse.Namespace"
            )
        values, what = plain, "the configuration"
    if not is_official(values) and not (set(values) & {"data", "model"}):
        inner = [
            k for k, v in values.items() if isinstance(v, Mapping) and {"data", "model"} <= set(v)
        ]
        hint = f" Its section {shown(inner[0])} has them: give that one." if inner else ""
        raise ValueError(
            f"{what} has no section data: or model:, its keys are: {shown(list(values)[:8])}. An "
            f"NCSN configuration has data:, model: and others.{hint} (A run of ncsn_fast needs "
            "none: its checkpoints hold their settings.)"
        )
    say_passed_over(values, what)
    return values


def say_passed_over(config: Mapping[str, Any], what: object) -> None:
    """Log the keys of a configuration that nothing reads, as it may be a misspelt one."""
    keys = passed_over(config)
    if keys:
        more = f" and {len(keys) - 12} more" if len(keys) > 12 else ""
        _say_once(f"{what} has keys that are passed over: {', '.join(keys[:12])}{more}")


@cache
def _say_once(text: str) -> None:
    _log.warning("%s", text)


def _plain(value: Any, depth: int) -> Any:
    """Mappings and objects with attributes as dicts, sequences as lists, numbers of NumPy as such.

    Nothing of an object is called.
    """
    if depth == 0:
        raise ValueError(f"config is nested more than {MOST_NESTED} levels deep")
    if isinstance(value, (str, int, float, type(None))):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {str(key): _plain(one, depth - 1) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one, depth - 1) for one in value]
    attributes = getattr(value, "__dict__", None)
    if attributes is None or isinstance(value, type) or callable(value):
        return str(value)[:100] if isinstance(value, (torch.device, torch.dtype)) else value
    return _plain(attributes.get("_fields", attributes), depth - 1)  # ConfigDict keeps them there


def is_official(config: Mapping[str, Any]) -> bool:
    """Whether a configuration has the sections of the official ones."""
    return any(isinstance(config.get(name), Mapping) for name in ("data", "model", "training"))


def network_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """What an official configuration says about the network.

    Args:
        config: nested plain values, from :func:`read_official_yaml`.

    Returns:
        Keyword arguments of our networks (channels, image_size, ngf, activation, rescaled,
        logit_transform) and ``network``, its name. The official code chooses the network by the
        data set; a configuration without ``nonlinearity`` is one of NCSN v1, which has only ELU.

    Raises:
        ValueError: for a missing or unusable value, another normalisation than InstanceNorm++,
            or spectral normalisation.
    """
    normalization = value_of(config, "model.normalization")
    if normalization != "InstanceNorm++":
        raise ValueError(
            f"the configuration asks for the normalization {normalization!r}: only "
            "'InstanceNorm++', which all published weights use, is supported"
        )
    if value_of(config, "model.spec_norm"):
        raise ValueError(
            "the configuration asks for spectral normalisation (spec_norm: true), which is not "
            "supported: no published weights use it"
        )
    if section_of(config, "model").get("unet") not in (None, False):
        raise ValueError(
            "the configuration asks for a U-Net (model.unet: true), which is not supported: its "
            "weights are those of another network"
        )
    dataset = value_of(config, "data.dataset")
    by_dataset = {"FFHQ": "NCSNv2Deepest", "LSUN": "NCSNv2Deeper"}
    return {
        "network": by_dataset.get(dataset, "NCSNv2") if _has_activation(config) else "NCSN",
        **settings_of(config, "channels"),
        "image_size": _image_size(config),
        **settings_of(config, "ngf"),
        "activation": value_of(config, "model.nonlinearity").lower(),
        **settings_of(config, "rescaled", "logit_transform"),
    }


def noise_levels(config: Mapping[str, Any]) -> Tensor:
    """The noise levels (L,), float32, computed as the official code does.

    Raises:
        ValueError: for missing values, more levels than a ladder has, or an unknown
            ``sigma_dist``.
    """
    told = settings_of(config, *_LADDER)
    return _ladder(*told.values())


def _ladder(first: float, last: float, count: int, kind: str) -> Tensor:
    most = torch.finfo(torch.float32).max
    if not (0 < first <= most and 0 < last <= most and count > 0):
        raise ValueError(
            f"sigma_begin {first:g}, sigma_end {last:g} and num_classes {count} must be positive "
            "and finite in float32"
        )
    checks.count("num_classes", count, 1, MOST_LEVELS)
    if kind == "geometric":
        levels = np.exp(np.linspace(np.log(first), np.log(last), count))
    elif kind in ("uniform", "linear"):
        levels = np.linspace(first, last, count)
    else:
        raise ValueError(f"unknown sigma_dist {kind!r}: known are geometric, uniform and linear")
    return torch.from_numpy(levels.astype(np.float32))


def sampling_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of sampling: method, step_size, steps_per_level, denoise; for the code of
    consistent annealed sampling also noise_first or spacing, where it says them.

    A configuration of NCSN v1 has none: its code samples with step size 2e-5, 100 steps per level
    and no denoising step. A size or number of steps that the section leaves out is left out here.

    Raises:
        ValueError: for an unusable value.
    """
    if "sampling" not in config:
        return dict(V1_SAMPLING)
    consistent = value_of(config, "sampling.consistent")
    adversarial = "nsigma" in section_of(config, "sampling")  # of that code
    settings = {
        "method": "consistent_annealed" if consistent else "annealed_langevin",
        **settings_of(config, "step_size"),
        "steps_per_level": value_of(
            config, f"sampling.{'nsigma' if adversarial else 'n_steps_each'}"
        ),
        # The configurations that do not say belong to code that always denoises.
        **settings_of(config, "denoise"),
        **_other_sampling(config, consistent),
    }
    if adversarial and not consistent and settings["denoise"]:
        settings["denoise"] = "last"
    return {key: value for key, value in settings.items() if value is not None}


def _other_sampling(config: Mapping[str, Any], consistent: bool) -> dict[str, Any]:
    """What AdversarialConsistentScoreMatching's code does otherwise when it is told so."""
    spacing, trained = value_of(config, "sampling.sigma_dist"), value_of(config, "model.sigma_dist")
    other = spacing is not None and spacing != trained
    if consistent:  # where noise_first is not read
        return {"spacing": spacing} if other else {}
    if other:
        raise ValueError(
            f"the configuration samples on {shown(spacing)} noise levels (sampling.sigma_dist), "
            f"where the network was trained on {trained} ones, which is not supported. Leave "
            "sampling.sigma_dist out to sample on those of the network"
        )
    return {"noise_first": True} if value_of(config, "sampling.noise_first") else {}


def training_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of training, under the names that :class:`ncsn_fast.TrainConfig` gives them.

    Raises:
        ValueError: for an unusable value, or one that our trainer does not have: another optimiser
            than Adam, weight decay, AMSGrad, another objective than denoising score matching,
            two dequantisations at once.
    """
    algorithm = value_of(config, "training.algo")
    if algorithm != "dsm":
        raise ValueError(
            f"the configuration trains by {shown(algorithm)} (training.algo): only 'dsm', "
            "denoising score matching, is supported"
        )
    optimizer, decay, amsgrad = (
        value_of(config, f"optim.{key}") for key in ("optimizer", "weight_decay", "amsgrad")
    )
    if optimizer != "Adam" or decay or amsgrad:
        raise ValueError(
            f"the configuration trains with {optimizer}, weight_decay {decay:g} and amsgrad "
            f"{amsgrad}: only plain Adam is supported"
        )
    ema = value_of(config, "model.ema_rate")
    return {
        **settings_of(config, "steps", "batch_size", "learning_rate", "beta1", "beta2", "eps"),
        "ema": ema if value_of(config, "model.ema") else 0.0,
        **settings_of(config, "anneal_power"),
        "dequantize": _dequantization(config),
        **settings_of(config, "flip", "checkpoint_every"),
    }


def run_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Everything a training run needs, under the names of the options of ``ncsn-fast train``.

    Raises:
        ValueError: for an unusable value, or one that our training does not have: those of
            :func:`training_settings`, images that are not square, noise levels that are not
            geometric, consistent annealed sampling.
    """
    say_passed_over(config, "the configuration")
    network, sampling = network_settings(config), sampling_settings(config)
    size = network["image_size"]
    levels = value_of(config, "model.sigma_dist")
    consistent = sampling.pop("method") != "annealed_langevin"
    if consistent or levels != "geometric":
        raise ValueError(
            f"the configuration has sampling.consistent: {consistent} and "
            f"model.sigma_dist: {levels}: networks are trained for annealed Langevin dynamics "
            "(consistent: false) on geometric noise levels"
        )
    if isinstance(size, list):
        raise ValueError(f"data.image_size is {size}, where one side of square images is expected")
    if sampling.pop("noise_first", False) or sampling["denoise"] == "last":
        _log.warning(
            "the configuration's noise_first and denoised images of the last step are left out: "
            "the network is to be sampled by the usual Langevin steps, and denoised after them"
        )
        sampling["denoise"] = True
    settings = {
        **network,
        **dict.fromkeys(("step_size", "crop")),
        **sampling,
        **training_settings(config),
        **settings_of(config, *_LADDER[:3]),
        "ema_warmup": False,
    }
    if value_of(config, "data.dataset") == "CELEBA":
        settings["crop"] = CELEBA_CROP  # written into the official code
    return settings


def levels_told(sigmas: Tensor, *, uniform: bool) -> dict[str, Any]:
    """Settings from which :func:`noise_levels` makes these levels.

    Args:
        sigmas: (L,) noise levels, descending.
        uniform: whether evenly spaced ones will do too, as in NCSNv2.

    Raises:
        ValueError: for levels that the official code does not have.
    """
    sigmas = sigmas.cpu()
    first, last = (float(str(np.float32(sigma))) for sigma in (sigmas[0], sigmas[-1]))
    for kind in ("geometric", "uniform") if uniform else ("geometric",):
        told = (first, last, len(sigmas), kind)
        if torch.allclose(_ladder(*told), sigmas, rtol=1e-5, atol=0):
            return dict(zip(_LADDER, told, strict=True))
    raise ValueError(
        f"the {len(sigmas)} noise levels from {first:g} to {last:g} are not geometric, and the "
        "official code knows no other (in NCSNv2 evenly spaced ones): keep the network as "
        ".safetensors"
    )


def sampling_told(sampling: Mapping[str, Any]) -> dict[str, Any]:
    """Settings from which :func:`sampling_settings` makes these; NCSN's code has its own.

    Raises:
        ValueError: for a method that the official code does not have.
    """
    method, steps = sampling["method"], sampling.get("steps_per_level")
    denoise, first = sampling.get("denoise", True), sampling.get("noise_first", False)
    if method == "consistent_annealed":
        told = {"consistent": True, "nsigma": steps}
        told |= {"spacing": sampling["spacing"]} if "spacing" in sampling else {}
    elif method != "annealed_langevin":
        raise ValueError(f"the official code has no sampling method {method!r}")
    elif denoise == "last" or first:
        told = {"nsigma": steps, "noise_first": first}
    else:
        told = {"steps_per_level": steps}
    return {"step_size": sampling.get("step_size"), **told, "denoise": bool(denoise)}


def _dequantization(config: Mapping[str, Any]) -> str | None:
    # The code of NCSN v1 has no flags for this: it always adds uniform noise.
    uniform = value_of(config, "data.uniform_dequantization", not _has_activation(config))
    gaussian = value_of(config, "data.gaussian_dequantization")
    if uniform and gaussian:
        raise ValueError("uniform_dequantization and gaussian_dequantization exclude one another")
    return "uniform" if uniform else "gaussian" if gaussian else None


def _has_activation(config: Mapping[str, Any]) -> bool:
    return "nonlinearity" in section_of(config, "model")


def _image_size(config: Mapping[str, Any]) -> int | list[int]:
    size = section_of(config, "data").get("image_size")
    if isinstance(size, list):
        return [number_of(side, int, "data.image_size") for side in size]
    return value_of(config, "data.image_size")


__all__ = [
    "V1_SAMPLING",
    "Config",
    "is_official",
    "levels_told",
    "network_settings",
    "noise_levels",
    "official_config",
    "read_official_yaml",
    "run_settings",
    "sampling_settings",
    "sampling_told",
    "say_passed_over",
    "training_settings",
]
