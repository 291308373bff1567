"""The YAML configurations of the official repositories, as plain values and in our terms.

NCSN v1 dumps its configuration as a Python object (``!!python/object:argparse.Namespace``). The
reader below turns such objects into the dicts, lists and words they consist of. It looks nothing
up, imports nothing and calls nothing, whatever a tag asks for.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

LARGEST_FILE = 1 << 20  # bytes; a configuration has about two thousand
CELEBA_CROP = 140
PYTHON_TAG = "tag:yaml.org,2002:python/"
V1_SAMPLING = {
    "method": "annealed_langevin",
    "step_size": 2e-5,
    "steps_per_level": 100,
    "denoise": False,
}
T = TypeVar("T")


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
        ValueError: for a file that is not YAML, not a mapping, or larger than 1 MiB.
    """
    import yaml

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no configuration file {path}")
    if path.stat().st_size > LARGEST_FILE:
        raise ValueError(f"{path} is larger than 1 MiB: that is not a configuration file")
    try:
        with open(path, encoding="utf-8") as file:
            values = yaml.load(file, Loader=_loader())
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as YAML: {error}") from error
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
    normalization = _value(config, "model", "normalization", str, "InstanceNorm++")
    if normalization != "InstanceNorm++":
        raise ValueError(
            f"the configuration asks for the normalization {normalization!r}: only "
            "'InstanceNorm++', which all published weights use, is supported"
        )
    if _value(config, "model", "spec_norm", bool, False):
        raise ValueError(
            "the configuration asks for spectral normalisation (spec_norm: true), which is not "
            "supported: no published weights use it"
        )
    dataset = _value(config, "data", "dataset", str, "")
    by_dataset = {"FFHQ": "NCSNv2Deepest", "LSUN": "NCSNv2Deeper"}
    return {
        "network": by_dataset.get(dataset, "NCSNv2") if _has_activation(config) else "NCSN",
        "channels": _value(config, "data", "channels", int),
        "image_size": _image_size(config),
        "ngf": _value(config, "model", "ngf", int),
        "activation": _value(config, "model", "nonlinearity", str, "elu").lower(),
        "rescaled": _value(config, "data", "rescaled", bool, False),
        "logit_transform": _value(config, "data", "logit_transform", bool, False),
    }


def noise_levels(config: Mapping[str, Any]) -> Tensor:
    """The noise levels (L,), float32, computed as the official code does.

    Raises:
        ValueError: for missing values or an unknown ``sigma_dist``.
    """
    first = _value(config, "model", "sigma_begin", float)
    last = _value(config, "model", "sigma_end", float)
    count = _value(config, "model", "num_classes", int)
    kind = _value(config, "model", "sigma_dist", str, "geometric")
    if not (first > 0 and last > 0 and count > 0):
        raise ValueError(
            f"sigma_begin {first:g}, sigma_end {last:g} and num_classes {count} must be positive"
        )
    if kind == "geometric":
        levels = np.exp(np.linspace(np.log(first), np.log(last), count))
    elif kind in ("uniform", "linear"):
        levels = np.linspace(first, last, count)
    else:
        raise ValueError(f"unknown sigma_dist {kind!r}: known are geometric, uniform and linear")
    return torch.from_numpy(levels.astype(np.float32))


def sampling_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of sampling: method, step_size, steps_per_level, denoise.

    A configuration of NCSN v1 has none: its code samples with step size 2e-5, 100 steps per level
    and no denoising step. A size or number of steps that the section leaves out is left out here.

    Raises:
        ValueError: for an unusable value.
    """
    if "sampling" not in config:
        return dict(V1_SAMPLING)
    steps = "nsigma" if "nsigma" in _section(config, "sampling") else "n_steps_each"
    settings = {
        "method": "consistent_annealed" if _consistent(config) else "annealed_langevin",
        "step_size": _value(config, "sampling", "step_lr", float, None),
        "steps_per_level": _value(config, "sampling", steps, int, None),
        # The configurations that do not say belong to code that always denoises.
        "denoise": _value(config, "sampling", "denoise", bool, True),
    }
    return {key: value for key, value in settings.items() if value is not None}


def _consistent(config: Mapping[str, Any]) -> bool:
    return _value(config, "sampling", "consistent", bool, False)


def training_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of training, under the names that :class:`ncsn_fast.TrainConfig` gives them.

    Raises:
        ValueError: for an unusable value, or one that our trainer does not have: another optimiser
            than Adam, weight decay, AMSGrad, two dequantisations at once.
    """
    optimizer = _value(config, "optim", "optimizer", str, "Adam")
    decay = _value(config, "optim", "weight_decay", float, 0.0)
    if optimizer != "Adam" or decay or _value(config, "optim", "amsgrad", bool, False):
        raise ValueError(
            f"the configuration trains with {optimizer}, weight_decay {decay:g} and amsgrad "
            f"{_value(config, 'optim', 'amsgrad', bool, False)}: only plain Adam is supported"
        )
    ema = _value(config, "model", "ema_rate", float, 0.999)
    return {
        "steps": _value(config, "training", "n_iters", int),
        "batch_size": _value(config, "training", "batch_size", int),
        "learning_rate": _value(config, "optim", "lr", float),
        "beta1": _value(config, "optim", "beta1", float, 0.9),
        "beta2": _value(config, "optim", "beta2", float, 0.999),
        "eps": _value(config, "optim", "eps", float, 1e-8),
        "ema": ema if _value(config, "model", "ema", bool, False) else 0.0,
        "anneal_power": _value(config, "training", "anneal_power", float, 2.0),
        "dequantize": _dequantization(config),
        "flip": _value(config, "data", "random_flip", bool, False),
        "checkpoint_every": _value(config, "training", "snapshot_freq", int, 5000),
    }


def run_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Everything a training run needs, under the names of the options of ``ncsn-fast train``.

    Raises:
        ValueError: for an unusable value, or one that our training does not have: those of
            :func:`training_settings`, images that are not square, noise levels that are not
            geometric, consistent annealed sampling.
    """
    network, sampling = network_settings(config), sampling_settings(config)
    size = network["image_size"]
    levels = _value(config, "model", "sigma_dist", str, "geometric")
    if sampling.pop("method") != "annealed_langevin" or levels != "geometric":
        raise ValueError(
            f"the configuration has sampling.consistent: {_consistent(config)} and "
            f"model.sigma_dist: {levels}: networks are trained for annealed Langevin dynamics "
            "(consistent: false) on geometric noise levels"
        )
    if isinstance(size, list):
        raise ValueError(f"data.image_size is {size}, where one side of square images is expected")
    settings = {
        **network,
        **dict.fromkeys(("step_size", "crop")),
        **sampling,
        **training_settings(config),
        "sigma_max": _value(config, "model", "sigma_begin", float),
        "sigma_min": _value(config, "model", "sigma_end", float),
        "num_levels": _value(config, "model", "num_classes", int),
        "ema_warmup": False,
    }
    if _value(config, "data", "dataset", str, "") == "CELEBA":
        settings["crop"] = CELEBA_CROP  # written into the official code
    return settings


def _dequantization(config: Mapping[str, Any]) -> str | None:
    # The code of NCSN v1 has no flags for this: it always adds uniform noise.
    uniform = _value(config, "data", "uniform_dequantization", bool, not _has_activation(config))
    gaussian = _value(config, "data", "gaussian_dequantization", bool, False)
    if uniform and gaussian:
        raise ValueError("uniform_dequantization and gaussian_dequantization exclude one another")
    return "uniform" if uniform else "gaussian" if gaussian else None


def _has_activation(config: Mapping[str, Any]) -> bool:
    return "nonlinearity" in _section(config, "model")


def _image_size(config: Mapping[str, Any]) -> int | list[int]:
    size = _section(config, "data").get("image_size")
    if isinstance(size, list):
        return [_number(side, int, "data.image_size") for side in size]
    return _value(config, "data", "image_size", int)


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = config.get(name)
    if not isinstance(section, Mapping):
        raise ValueError(
            f"the configuration has no section {name!r}, its keys are: "
            f"{', '.join(map(str, config)) or 'none'}. An NCSN configuration has data:, model: "
            "and others"
        )
    return section


_REQUIRED: Any = object()


def _value(
    config: Mapping[str, Any],
    section: str,
    key: str,
    kind: type[T],
    default: Any = _REQUIRED,
) -> T:
    """The value ``section.key`` as a ``kind``: int, float, bool or str."""
    if default is not _REQUIRED and section not in config:
        return default
    value = _section(config, section).get(key)
    if value is None:
        if default is _REQUIRED:
            raise ValueError(f"the configuration has no value {section}.{key}")
        return default
    name = f"{section}.{key}"
    if kind in (bool, str):
        if type(value) is not kind:
            raise ValueError(f"{name} is {value!r}, where a {_kind_name(kind)} is expected")
        return value
    return _number(value, kind, name)


def _number(value: Any, kind: type[T], name: str) -> T:
    # YAML 1.1 reads 1e-5 (no point) as a string.
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            number = float(value)
            if np.isfinite(number) and (kind is float or number.is_integer()):
                return cast(T, int(number) if kind is int else number)
        except ValueError:
            pass
    raise ValueError(f"{name} is {value!r}, where a {_kind_name(kind)} is expected")


def _kind_name(kind: type) -> str:
    names: dict[Any, str] = {int: "whole number", float: "number", bool: "true or false"}
    return names.get(kind, "word")


__all__ = [
    "V1_SAMPLING",
    "is_official",
    "network_settings",
    "noise_levels",
    "read_official_yaml",
    "run_settings",
    "sampling_settings",
    "training_settings",
]
