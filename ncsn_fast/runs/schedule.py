"""Noise levels for a data set, in a folder: what ``ncsn-fast schedule`` does."""

from __future__ import annotations

import json
import logging
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ncsn_fast.data.load import pixels_of
from ncsn_fast.data.samples import open_samples, remarks
from ncsn_fast.models.ncsnv2 import NCSNv2
from ncsn_fast.runs.report import check_own, machine_facts
from ncsn_fast.support.files import check_writable, remove_leftovers, write_text
from ncsn_fast.support.locks import folder_lock
from ncsn_fast.training.schedule import Schedule, auto_schedule
from ncsn_fast.training.schedule_figure import save_schedule

_log = logging.getLogger("ncsn_fast")


def schedule(
    data: str,
    out: Path,
    *,
    loading: dict[str, Any],
    space: dict[str, Any],
    settings: dict[str, Any],
    device: str,
    say: Callable[[str], None],
    progress: bool,
) -> dict[str, Any]:
    """Choose noise levels and step size for a data set; write schedule.json and schedule.png.

    Args:
        data: "digits", or what ``load_pixels`` reads.
        out: folder of the two files; made if need be.
        loading: keywords of ``load_pixels``.
        space: ``rescaled`` and ``logit_transform`` of the network.
        settings: further keywords of ``auto_schedule``.
        device: where distances are computed.

    Returns:
        The report: what schedule.json holds, and the files by name.

    Raises:
        ValueError, OSError: for data or settings that ``load_pixels`` or ``auto_schedule`` refuse,
            or a folder that cannot be written.
    """
    if loading["values"] == "signed" and not space["rescaled"]:
        raise ValueError(
            "values='signed' is for a network that sees them as they are: add rescaled=True"
        )
    files = {"settings": out / "schedule.json", "picture": out / "schedule.png"}
    with folder_lock(out, "choose another --out"):  # who is refused leaves no folder behind
        check_own(list(files.values()), ("sigmas", "step_size", "train"), "ncsn-fast schedule")
        for path in files.values():
            check_writable(path)
        remove_leftovers(out)
        say(f"Reading {data}")
        images = pixels_of(data, **loading)
        if len(images) < 2:
            raise ValueError(
                f"{data} holds 1 image: noise levels come from distances between images"
            )
        if data == "digits" and loading["image_size"] not in (None, images.shape[-1]):
            raise ValueError(
                f"the digits are 8×8: image_size={loading['image_size']} is not for them"
            )
        NCSNv2.check_sides(*images.shape[2:])  # what it cannot halve no other network can
        for remark in remarks(open_samples(images, images.shape[1:])):
            _log.warning("%s", remark)
        say(f"{len(images):,} images of {tuple(images.shape[1:])}; comparing them")
        chosen = auto_schedule(images, **space, **settings, device=device, progress=progress)
        assert chosen.distances is not None
        say(f"Chosen: {chosen}.")
        say(f"  largest level: {chosen.distances}")
        calls = len(chosen.sigmas) * chosen.steps_per_level
        say(f"  one sample: {calls:,} network evaluations by annealed Langevin dynamics")
        command = _training(data, chosen, settings["sigma_min"], loading, space)
        report = _plain(data, chosen, command)
        write_text(files["settings"], json.dumps(report, indent=2) + "\n")
        save_schedule(files["picture"], chosen)
        say(f"To train with these levels:\n  {command}")
        return {**report, "shape": list(images.shape[1:]), "files": files, **machine_facts(device)}


def _training(
    data: str, chosen: Schedule, sigma_min: float, loading: dict[str, Any], space: dict[str, bool]
) -> str:
    """The command that trains with exactly these numbers."""
    assert chosen.distances is not None
    usual = (("damaged", "refuse"), ("values", "unit"))
    options = [item for item in loading.items() if item not in usual]
    # In full: the levels between the ends would differ in their last bits.
    options += [("sigma_max", repr(chosen.distances.largest)), ("sigma_min", repr(sigma_min))]
    options += [("num_levels", len(chosen.sigmas)), ("step_size", repr(chosen.step_size))]
    options += [("steps_per_level", chosen.steps_per_level)]
    words = ["ncsn-fast", "train", "--data", data]
    for name, value in options:
        if value is not None:
            words += [_flag(name), str(value)]
    words += [_flag(name) for name, wanted in space.items() if wanted]
    return shlex.join([*words, "--out", "runs/mine"])


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _plain(data: str, chosen: Schedule, command: str) -> dict[str, Any]:
    found = chosen.distances
    assert found is not None
    return {
        "data": data,
        "sigmas": chosen.sigmas.tolist(),
        "step_size": chosen.step_size,
        "steps_per_level": chosen.steps_per_level,
        "largest_distance": found.largest,
        "between": list(found.pair),
        "points": found.points,
        "of": found.of,
        "exact": found.exact,
        "statement": str(found),
        "warnings": list(chosen.warnings),
        "train": command,
    }


__all__ = ["schedule"]
