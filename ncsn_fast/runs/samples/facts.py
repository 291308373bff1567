"""What samples are of, and what else is to be known of them: identity, command and machine."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ncsn_fast.checkpoints.load_save import checkpoint_file
from ncsn_fast.models.base import ScoreNetwork
from ncsn_fast.sampling.sampler import Sampler
from ncsn_fast.support.files import sha256_of


def identity_of(
    seed: int, checkpoint: Path, net: ScoreNetwork, sampler: Sampler
) -> dict[str, int | str]:
    """What samples have to agree in to be of one set. Neither the device nor how many are made at
    once is in it: they change an image by rounding."""
    run = f"{sampler.table!r}{' held' if sampler.hold_noise else ''}"
    return {
        "seed": seed,
        "checkpoint": sha256_of(checkpoint_file(checkpoint)),
        "network": hashlib.sha256(repr((net.config, net.sigmas.tolist())).encode()).hexdigest(),
        "table": hashlib.sha256(run.encode()).hexdigest(),
        "precision": sampler.precision,
        "convolutions": sampler.convolutions,
    }


def command_words(
    checkpoint: Path, seed: int, labels: Sequence[str], guidance: float | None, **options: Any
) -> list[str]:
    """The words of the command that makes such samples, but for their ids, layout and folder."""
    words = ["ncsn-fast", "sample", str(checkpoint), "--seed", str(seed)]
    options = {"label": ",".join(labels) or None, "guidance": guidance, **options}
    for name, value in options.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{'' if value else 'no-'}{flag}")
        elif value is not None:
            words += [f"--{flag}", str(value)]
    return words


def about(
    used: Mapping[str, Any], machine: Mapping[str, Any], command: Sequence[str]
) -> dict[str, Any]:
    """What the manifest says of samples besides what they have to agree in."""
    kept = {name: used[name] for name in ("method", "network_evaluations", "hold_noise")}
    return {**kept, **_of_machine(machine), "command": list(command)}


def other_machine(there: Mapping[str, Any], machine: Mapping[str, Any]) -> str:
    """How the machine that samples were begun on was another one, or nothing."""
    here = _of_machine(machine)
    differ = [f"{name} {there[name]}" for name in here if there.get(name, here[name]) != here[name]]
    return ", ".join(differ)


def _of_machine(machine: Mapping[str, Any]) -> dict[str, Any]:
    """What an image may depend on by rounding."""
    versions = machine["versions"]
    return {"device": machine["device"].partition(":")[0]} | {
        name: versions[name] for name in ("ncsn_fast", "torch", "triton") if name in versions
    }


__all__ = ["about", "command_words", "identity_of", "other_machine"]
