"""The settings of a training run: from options to run.json, and back."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from ncsn_fast.checkpoints.load_save import BUNDLED
from ncsn_fast.data.labels import names_array
from ncsn_fast.support.files import sha256_of_values, write_text
from ncsn_fast.support.parsers import read_json
from ncsn_fast.support.settings import settings_of
from ncsn_fast.training.config import TrainConfig, TrainRun

SETTINGS_FILE = "run.json"
_ALWAYS_TOLD = {
    "data",
    "network",
    "ngf",
    "steps",
    "batch_size",
    "learning_rate",
    "ema",
    "precision",
}
FROM_DATA = ("sigma_max", "num_levels", "step_size")  # from the data, where they are not given
_PLACES = ("data", "labels", "held_out", "inception", "pretrained")
# Settings of a run that say how its images are read.
LOADING = ("image_size", "crop", "damaged", "key", "layout", "values")
# Every setting of a run that users are asked for, by name.
SETTINGS = {
    name: setting
    for kind in (TrainRun, TrainConfig)
    for name, setting in settings_of(kind).items()
    if setting.group
}


def from_settings(settings: Mapping[str, Any], out: Path) -> tuple[TrainRun, TrainConfig]:
    """A run and its training from one dict of settings; what belongs to neither is passed over.

    What is None is left to the defaults.

    Raises:
        ValueError: for settings out of range.
    """
    data = str(settings.get("data") or "digits")
    values = {**settings, **placed({k: settings[k] for k in _PLACES if settings.get(k)}, data)}

    def of(kind: type[TrainRun] | type[TrainConfig]) -> dict[str, Any]:
        return {k: values[k] for k in settings_of(kind) if values.get(k) is not None}

    return TrainRun(**of(TrainRun)), TrainConfig(**{**of(TrainConfig), "out": out})


def is_same(asked: TrainRun | TrainConfig, there: TrainRun | TrainConfig) -> bool:
    """Whether a run has the settings that are asked for; those that follow from the data or the
    machine were filled in when it began."""
    found = {"precision"} if getattr(asked, "precision", None) == "auto" else set()
    found |= {name for name in FROM_DATA if getattr(asked, name, 0) is None}
    return all(
        value == getattr(there, name)
        for name, value in vars(asked).items()
        if name not in {"out", *found}
    )


def stored(run: TrainRun, config: TrainConfig) -> dict[str, Any]:
    """The settings as run.json has them."""
    training = {name: value for name, value in vars(config).items() if name != "out"}
    return {"run": vars(run), "training": training}


def write_run(out: Path, run: TrainRun, config: TrainConfig) -> None:
    """Write run.json, with its checksum."""
    kept = stored(run, config)
    kept["sha256"] = sha256_of_values(kept)
    write_text(out / SETTINGS_FILE, json.dumps(kept, indent=2) + "\n")


def read_run(out: Path) -> tuple[TrainRun, TrainConfig]:
    """The settings of the run in a folder.

    Raises:
        ValueError: where there is no run, or its settings cannot be read or were altered.
    """
    path = out / SETTINGS_FILE
    if not path.exists():
        raise ValueError(f"{out} holds no training run (there is no {path}): nothing to resume")
    try:
        stored = read_json(path)
        checksum = stored.pop("sha256", None)  # older versions wrote none
        if set(stored) != {"run", "training"}:
            raise KeyError(f"it holds {', '.join(sorted(stored))}")
        run, config = TrainRun(**stored["run"]), TrainConfig(**stored["training"], out=out)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is damaged ({error}): write the run's settings into it again, or start anew "
            "in another folder"
        ) from error
    if checksum not in (None, sha256_of_values(stored)):
        raise ValueError(
            f"{path} is damaged or was altered: its settings do not match its checksum. If you "
            'changed them and they are right, remove the line "sha256" and the comma before it'
        )
    return run, config


def placed(places: dict[str, Any], data: str) -> dict[str, Any]:
    """Where data lie, whatever folder the next process starts in; words and keys of ``data`` stay.

    Raises:
        ValueError: for labels that could be a key of an .npz and a file.
    """
    labels = places.get("labels")
    words: dict[str, set[str]] = {
        "labels": {labels} if labels and names_array(labels, Path(data)) else set(),
        "pretrained": set(BUNDLED),
    }
    # A link keeps its name: labels are found beside images by it.
    return {
        k: str(Path(v).absolute()) if Path(v).exists() and v not in words.get(k, {"digits"}) else v
        for k, v in places.items()
    }


def chosen(*settings: TrainRun | TrainConfig) -> dict[str, Any]:
    """The most important settings, and those that are not as usual, by name."""
    return {
        field.name: getattr(part, field.name)
        for part in settings
        for field in fields(part)
        if field.name != "out"
        and (field.name in _ALWAYS_TOLD or getattr(part, field.name) != field.default)
    }


def told(*settings: TrainRun | TrainConfig) -> str:
    """These settings in a few lines."""
    told = []
    for name, value in chosen(*settings).items():
        if isinstance(value, bool):
            told.append(f"{'' if value else 'no '}{name}")
        else:
            told.append(f"{name} {f'{value:g}' if isinstance(value, float) else value}")
    text = f"Settings: {', '.join(told)}."
    # A path is one word, hyphens and all: people copy it.
    return textwrap.fill(
        text, 100, subsequent_indent="  ", break_on_hyphens=False, break_long_words=False
    )


__all__ = [
    "FROM_DATA",
    "LOADING",
    "SETTINGS",
    "SETTINGS_FILE",
    "chosen",
    "from_settings",
    "is_same",
    "placed",
    "read_run",
    "stored",
    "told",
    "write_run",
]
