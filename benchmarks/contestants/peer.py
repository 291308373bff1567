"""A checkout of the official NCSNv2 repository as a contestant.

Its networks are imported from where they lie, built with the settings of one of ours and given its
weights. Nothing of it is copied into this package.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from torch import nn

from ncsn_fast.models.base import ScoreNetwork
from ncsn_fast.models.ncsnv2 import NCSNv2, NCSNv2Deeper, NCSNv2Deepest

_NAMES: dict[type[ScoreNetwork], str] = {
    NCSNv2: "NCSNv2",
    NCSNv2Deeper: "NCSNv2Deeper",
    NCSNv2Deepest: "NCSNv2Deepest",
}


def takes(net: ScoreNetwork) -> bool:
    """Whether the checkout has a network like this one."""
    return type(net) in _NAMES


def check(path: str) -> None:
    """Refuse a folder that is no checkout of github.com/ermongroup/ncsnv2.

    Raises:
        ValueError: naming the file that is missing.
    """
    for name in ("models/__init__.py", "models/ncsnv2.py", "models/layers.py"):
        if not (Path(path) / name).is_file():
            raise ValueError(
                f"--peer {path}: {name} is missing there. Give a checkout of the official "
                "repository: git clone https://github.com/ermongroup/ncsnv2"
            )


def network(path: str, net: ScoreNetwork) -> nn.Module:
    """The checkout's network with the weights of ours.

    Raises:
        ValueError: where it cannot be imported or does not fit, with the reason.
    """
    check(path)
    folder = str(Path(path).resolve())
    sys.path.insert(0, folder)
    try:
        found = getattr(importlib.import_module("models.ncsnv2"), _NAMES[type(net)])
        made: nn.Module = found(_settings(net))
        made.load_state_dict(net.state_dict())
    except (ImportError, AttributeError, RuntimeError) as error:
        raise ValueError(
            f"the networks in {folder} cannot be used ({type(error).__name__}: {error})"
        ) from error
    finally:
        sys.path.remove(folder)
    return made.to(net.sigmas.device).eval().requires_grad_(False)


def _settings(net: ScoreNetwork) -> SimpleNamespace:
    """The settings that its networks read."""
    config: dict[str, Any] = net.config
    data = {"logit_transform", "rescaled", "channels", "image_size"}
    model = {
        "ngf": config["ngf"],
        "nonlinearity": config["activation"],
        "normalization": "InstanceNorm++",
        "sigma_dist": "geometric",
        "sigma_begin": float(net.sigmas[0]),
        "sigma_end": float(net.sigmas[-1]),
        "num_classes": len(net.sigmas),
    }
    return SimpleNamespace(
        data=SimpleNamespace(**{name: config[name] for name in data}),
        model=SimpleNamespace(**model),
        device=net.sigmas.device,
    )


__all__ = ["check", "network", "takes"]
