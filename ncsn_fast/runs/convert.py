"""Checkpoints from one layout into another: what ``ncsn-fast convert`` does.

The official code loads a list of NCSN's [model, optimizer] or NCSNv2's [model, optimizer, epoch,
step, ema], and a YAML file: both are written so that it finds whatever it reads in them.
"""

from __future__ import annotations

from argparse import Namespace
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ncsn_fast.checkpoints import official_keys
from ncsn_fast.checkpoints.load_save import checkpoint_file, load, save_checkpoint
from ncsn_fast.checkpoints.official_yaml import levels_told, sampling_told
from ncsn_fast.models.base import ScoreNetwork
from ncsn_fast.models.by_name import IMAGE_NETWORKS
from ncsn_fast.support.files import atomic_write, check_writable, write_text
from ncsn_fast.training.presets import PRESETS

_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
# The data set by which the official code chooses a network, and the preset of its publication: by
# network and image size, None for all other sizes.
_ORIGINS: dict[tuple[str, int | None], tuple[str, str]] = {
    ("NCSN", 28): ("MNIST", "mnist-v1"),
    ("NCSN", None): ("CIFAR10", "cifar10-v1"),
    ("NCSNv2", 64): ("CELEBA", "celeba"),
    ("NCSNv2", None): ("CIFAR10", "cifar10"),
    ("NCSNv2Deeper", None): ("LSUN", "bedroom"),
    ("NCSNv2Deepest", None): ("FFHQ", "ffhq"),
}
_AS_PUBLISHED = ("batch_size", "checkpoint_every", "ema", "eps", "flip", "learning_rate")
_HEADER = """\
# Written by ncsn-fast convert. The network and sampling: are those of the checkpoint; optim:,
# training: and data.dataset, which a checkpoint does not tell, are as published.
"""


def convert(
    source: Path,
    target: Path,
    *,
    config: Path | None = None,
    ema: bool | None = None,
    dtype: str | None = None,
    image_size: int | None = None,
    force: bool = False,
) -> tuple[ScoreNetwork, list[Path]]:
    """Convert a checkpoint; numbers come through bit for bit, the optimiser's state does not.

    Args:
        source: any layout that load_checkpoint knows, or the name of a bundled network.
        target: a .safetensors file (a .json comes with it), or a .pth file in the layout of the
            official code (a .yml comes with it).
        config: the official YAML of ``source``.
        ema: take the averaged weights, or those as trained; None: the averaged ones where there
            are some. A .pth file of NCSNv2 holds both, where ``source`` does.
        dtype: "float16" or "bfloat16", to store a .safetensors file rounded.
        image_size: where neither ``source`` nor ``config`` says.
        force: replace files that are there.

    Returns:
        The network as converted, and the files written.

    Raises:
        ValueError: for an ending of ``target`` that is neither, files that are there already,
            averaged weights that are asked for and not there, and networks that the official code
            does not have.
    """
    official = _is_official(target, dtype)
    files = [target, target.with_suffix(".yml" if official else ".json")]
    _check_free(files, [checkpoint_file(source), config], force)
    overrides: dict[str, Any] = {} if image_size is None else {"image_size": image_size}
    net, averaged, both = load(source, config, ema=ema is not False, **overrides)
    if ema and not averaged:
        raise ValueError(
            f"{source} holds no averaged weights, or does not say that its weights are: leave "
            "ema=True (--weights ema) out to take those that are there"
        )
    if net.config.get("image_size", ()) is None:
        raise ValueError(
            f"{source} does not tell for images of which size it is: give image_size=32, or "
            "whatever it is, or the configuration file it was trained with"
        )
    if official:
        trained = load(source, config, ema=False, **overrides).net if averaged and both else net
        average = ema is not False and averaged is not False and both is not False
        _write_official(files, net, trained, average and net.config["network"] != "NCSN")
    else:
        stored = None if dtype is None else _DTYPES[dtype]
        save_checkpoint(net, target, dtype=stored, averaged=averaged)
    return net, files


def _write_official(
    files: list[Path], net: ScoreNetwork, trained: ScoreNetwork, averaged: bool
) -> None:
    """The weights and the configuration, as the official code reads them."""
    told = official_config(net, averaged=averaged)
    states = _states(net, trained, told)
    with atomic_write(files[0]) as temporary:
        torch.save(states, temporary)
    write_text(files[1], _HEADER + _yaml(told, net))


def _is_official(target: Path, dtype: str | None) -> bool:
    """What the ending of a file asks for."""
    if target.suffix not in (".pth", ".safetensors"):
        raise ValueError(
            f"{target} ends in {target.suffix or 'nothing'}: give a name ending in .safetensors "
            "(ours) or .pth (for the official code)"
        )
    if target.suffix == ".pth" and dtype is not None:
        raise ValueError("dtype is for .safetensors files: the official code reads float32")
    return target.suffix == ".pth"


def official_config(net: ScoreNetwork, *, averaged: bool = True) -> dict[str, Any]:
    """The configuration with which the official code rebuilds a network and samples from it.

    Args:
        net: NCSN, or one of the NCSNv2 family.
        averaged: whether the checkpoint holds averaged weights besides those as trained.

    Raises:
        ValueError: for what the official code does not have: other networks, classes, images that
            are not square, levels that are neither geometric nor evenly spaced; in NCSN an
            activation but ELU, or rescaled data.
    """
    name = net.config["network"]
    if name not in IMAGE_NETWORKS:
        raise ValueError(f"the official code has no {name}: it has {', '.join(IMAGE_NETWORKS)}")
    if net.config.get("classes"):
        raise ValueError("the official code has no classes: keep the network as .safetensors")
    _, height, width = net.shape
    rescaled = net.config["rescaled"]
    plain = not rescaled and net.config["activation"] == "elu"
    if height != width or (name == "NCSN" and not plain):
        raise ValueError(
            "the official code has square images, and in NCSN only ELU and data in [0, 1]: this is "
            f"{name} for {height}×{width}, {net.config['activation']}, rescaled: {rescaled}"
        )
    dataset, preset = _ORIGINS.get((name, height)) or _ORIGINS[name, None]
    published = PRESETS[preset]
    settings = {
        **{one: getattr(published, one) for one in _AS_PUBLISHED},
        **net.config,
        **levels_told(net.sigmas, uniform=not net.sees_sigma),
        **({} if net.sampling is None else sampling_told(net.sampling)),
        **({"category": "bedroom"} if name == "NCSNv2Deeper" else {}),
        "dataset": dataset,
        "steps": published.steps + 1,
        "beta1": 0.9,
        "anneal_power": 2.0,
        "averaged": averaged,
    }
    return official_keys.written(settings, version=1 if name == "NCSN" else 2)


def _states(net: ScoreNetwork, trained: ScoreNetwork, config: Mapping[str, Any]) -> list[Any]:
    """What the official code saves, with an optimiser that has not begun."""
    version_1 = net.config["network"] == "NCSN"
    model = net if version_1 else trained
    weights = OrderedDict((f"module.{key}", value) for key, value in model.state_dict().items())
    adam = torch.optim.Adam(model.parameters(), lr=config["optim"]["lr"])
    if version_1:
        return [weights, adam.state_dict()]
    states = [weights, adam.state_dict(), 0, 0]  # epoch and step
    if config["model"]["ema"]:
        states.append({name: parameter.data for name, parameter in net.named_parameters()})
    return states


def _yaml(config: Mapping[str, Any], net: ScoreNetwork) -> str:
    import yaml

    if net.config["network"] != "NCSN":
        return yaml.safe_dump(dict(config), sort_keys=False)
    # NCSN's code saves its configuration so, and reads nothing else when it samples.
    sections = {name: Namespace(**values) for name, values in config.items()}
    return yaml.dump(Namespace(**sections), default_flow_style=False)


def _check_free(files: list[Path], inputs: list[Path | None], force: bool) -> None:
    """Refuse now files that cannot be written, or would replace others."""
    taken = {path.resolve() for path in inputs if path is not None}
    for file in files:
        if file.resolve() in taken:
            raise ValueError(f"{file} would replace what is converted: choose another name")
        if file.exists() and not force:
            raise ValueError(f"{file} is there already: choose another name, or --force")
        check_writable(file)


__all__ = ["convert", "official_config"]
