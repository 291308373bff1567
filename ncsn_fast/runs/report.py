"""What runs report, as JSON values and in words: a network, and what it ran on."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ncsn_fast.device.environment import environment
from ncsn_fast.models.base import ScoreNetwork
from ncsn_fast.support.parsers import read_json


def network_facts(net: ScoreNetwork) -> dict[str, Any]:
    """What was loaded, or made: where from, which weights, for what, and how it is sampled."""
    return {
        "source": net.source,
        "network": net.config["network"],
        "shape": list(net.shape),
        "classes": list(getattr(net, "classes", ())) or None,
        "parameters": sum(parameter.numel() for parameter in net.parameters()),
        "levels": {
            "number": len(net.sigmas),
            "largest": float(net.sigmas[0]),
            "smallest": float(net.sigmas[-1]),
        },
        "sampling": net.sampling,
    }


def told(facts: Mapping[str, Any]) -> str:
    """These facts in two lines."""
    levels, names = facts["levels"], facts["classes"] or []
    some = f"{', '.join(names[:12])}{' …' if names[12:] else ''}"
    classes = f", classes: {len(names)} ({some})" if names else ""
    return (
        f"{facts['source']}\n"
        f"{facts['network']} {'×'.join(map(str, facts['shape']))}{classes}, {levels['number']} "
        f"noise levels from {levels['largest']:.4g} to {levels['smallest']:.4g}"
    )


def in_words(settings: Mapping[str, Any]) -> str:
    """Settings by their names, those that are None left out; a method comes without its name."""
    words = []
    for name, value in settings.items():
        if value is None:
            continue
        if isinstance(value, bool):
            words.append(name if value else f"no {name}")
        else:
            shown = f"{value:g}" if isinstance(value, float) else str(value)
            words.append(shown if name == "method" else f"{name} {shown}")
    return ", ".join(words)


def machine_facts(device: torch.device | str) -> dict[str, Any]:
    """What the work ran on: the device, its name, and the versions of what takes part."""
    device = torch.device(device)
    found = environment(device)
    return {
        "device": str(device),
        "device_name": found.pop("device"),
        "versions": {
            "ncsn_fast": importlib.metadata.version("ncsn_fast"),
            **found,
            "numpy": np.__version__,
        },
    }


def check_own(files: Sequence[Path], keys: Iterable[str], owner: str) -> None:
    """Refuse to replace files of others: the first of ours is a JSON file with these keys.

    Raises:
        ValueError: naming the file that is there.
    """
    there = [path for path in files if path.exists()]
    if there and not _has_keys(files[0], set(keys)):
        raise ValueError(
            f"{there[0]} is there already and not of {owner}: move it, or choose another --out"
        )


def _has_keys(path: Path, keys: set[str]) -> bool:
    try:
        values = read_json(path)
    except (OSError, ValueError):
        return False
    return isinstance(values, dict) and keys <= set(values)


__all__ = ["check_own", "in_words", "machine_facts", "network_facts", "told"]
