"""A training run in a folder: what ``ncsn-fast train`` does."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ncsn_fast.data.digits import digits
from ncsn_fast.data.load import load_pixels
from ncsn_fast.models.base import ScoreNetwork
from ncsn_fast.models.by_name import build
from ncsn_fast.pictures.curves import save_loss_plot
from ncsn_fast.support.files import write_text
from ncsn_fast.support.settings import settings_of
from ncsn_fast.training.config import TrainConfig, TrainRun
from ncsn_fast.training.schedule import Schedule, auto_schedule, schedule_between
from ncsn_fast.training.trainer import Trainer

Say = Callable[[str], None]
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
    values = dict(settings)
    if values["data"] != "digits":
        values["data"] = str(Path(values["data"]).resolve())

    def of(kind: type[TrainRun] | type[TrainConfig]) -> dict[str, Any]:
        return {k: values[k] for k in settings_of(kind) if values.get(k) is not None}

    return TrainRun(**of(TrainRun)), TrainConfig(**{**of(TrainConfig), "out": out})


def train(
    run: TrainRun, config: TrainConfig, *, resume: bool, device: str, say: Say, progress: bool
) -> Path:
    """Train a network in the folder ``config.out``; return the path of the trained network.

    The folder gets run.json (settings), log.jsonl, loss.png, checkpoint.safetensors (to resume)
    and model.safetensors (to sample).
    """
    assert config.out is not None, "a run needs a folder"
    out = Path(config.out)
    if resume and not (out / "checkpoint.safetensors").exists():
        say(f"The run in {out} was stopped before its first checkpoint: it begins anew.")
        resume = False
    if not resume:
        for name in ("checkpoint.safetensors", "model.safetensors"):
            if (out / name).exists():
                raise ValueError(f"{out} holds a {name} already: --resume it, or use another --out")
    images, held_out = _images(run)
    say(_told(run, config))
    found = None in (run.sigma_max, run.num_levels, run.step_size)
    run, schedule = _with_schedule(run, images, device)
    origin = "Chosen from them" if found else "As before" if resume else "As given"
    say(f"{len(images)} images of {tuple(images.shape[1:])}. {origin}: {schedule}.")
    torch.manual_seed(config.seed)  # for the initial weights; noise has its own seed
    net = _network(run, images, schedule).to(device)
    trainer = Trainer(net, images, config, resume=resume, held_out=held_out)
    # Written on resuming too: the number of steps and the learning rate may be new.
    training = {name: value for name, value in vars(config).items() if name != "out"}
    stored = {"run": vars(run), "training": training}
    write_text(out / "run.json", json.dumps(stored, indent=2) + "\n")
    if trainer.step >= config.steps:
        say(f"The run is at step {trainer.step} already: to go on give more --steps.")
    else:
        parameters = sum(parameter.numel() for parameter in net.parameters())
        say(
            f"Training {run.network} ({parameters:,} parameters) from step {trainer.step} to "
            f"{config.steps} in {out}."
        )
    try:
        trainer.fit(progress=progress)
    finally:
        if trainer.history:
            steps, losses = zip(*trainer.history, strict=True)
            save_loss_plot(out / "loss.png", steps, losses)
            say(f"The loss so far: {out / 'loss.png'}")
    return out / "model.safetensors"


def read_run(out: Path) -> tuple[TrainRun, TrainConfig]:
    """The settings of the run in a folder.

    Raises:
        ValueError: where there is no run, or its settings cannot be read.
    """
    path = out / "run.json"
    if not path.exists():
        raise ValueError(f"{out} holds no training run (there is no {path}): nothing to resume")
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        return TrainRun(**stored["run"]), TrainConfig(**stored["training"], out=out)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is damaged ({error}): write the run's settings into it again, or start anew "
            "in another folder"
        ) from error


def _images(run: TrainRun) -> tuple[np.ndarray, Tensor | None]:
    """The training images as they are stored, and those to judge samples by, if there are any.

    Raises:
        ValueError: where they are not what the run's settings are for.
    """
    held_out = None
    if run.data == "digits":
        images, held_out = digits("train").images.numpy(), digits("test").images
    else:
        if run.crop is not None and Path(run.data).is_file():
            raise ValueError(
                f"{run.data} holds images that are cut already, but the run has crop {run.crop}, "
                "which is for a folder of files: say --crop 0"
            )
        images = load_pixels(
            run.data, image_size=run.image_size, crop=run.crop, damaged=run.damaged
        )
    channels, height, width = images.shape[1:]
    wanted = f"but {f'preset {run.preset} is' if run.preset else 'the settings are'} for"
    other = "convert them" if held_out is None else "choose yours with --data FOLDER"
    if run.channels not in (None, channels):
        raise ValueError(
            f"the images of {run.data} have {channels} channel{'s' if channels > 1 else ''}, "
            f"{wanted} {run.channels}: {other}, or say --channels {channels} to train on them as "
            "they are"
        )
    if run.image_size is not None and (height, width) != (run.image_size, run.image_size):
        raise ValueError(
            f"the images of {run.data} are {height}×{width}, {wanted} {run.image_size}×"
            f"{run.image_size}: {other}, or say --image-size {min(height, width)}"
        )
    return images, held_out


def _with_schedule(run: TrainRun, images: np.ndarray, device: str) -> tuple[TrainRun, Schedule]:
    """The run with every number of its noise levels filled in, and the levels themselves.

    Numbers that were not given follow from the data by the rules of NCSNv2. run.json keeps all of
    them: when the run goes on, on another machine, they are the same to the last bit.
    """
    sigma_max, num_levels = run.sigma_max, run.num_levels
    if sigma_max is None:
        auto = auto_schedule(
            images,
            sigma_min=run.sigma_min,
            steps_per_level=run.steps_per_level,
            overlap=run.overlap,
            rescaled=run.rescaled,
            logit_transform=run.logit_transform,
            device=device,
        )
        sigma_max, num_levels = float(auto.sigmas[0]), num_levels or len(auto.sigmas)
    schedule = schedule_between(
        sigma_max,
        run.sigma_min,
        run.steps_per_level,
        dimension=math.prod(images.shape[1:]),
        overlap=run.overlap,
        num_levels=num_levels,
        step_size=run.step_size,
    )
    num_levels, step_size = len(schedule.sigmas), schedule.step_size
    run = replace(run, sigma_max=sigma_max, num_levels=num_levels, step_size=step_size)
    return run, schedule


def _network(run: TrainRun, images: np.ndarray, schedule: Schedule) -> ScoreNetwork:
    names = ("network", "ngf", "activation", "rescaled", "logit_transform")
    settings = {name: getattr(run, name) for name in names}
    settings |= {"channels": images.shape[1], "image_size": tuple(images.shape[2:])}
    net = build(settings, schedule.sigmas)
    net.sampling = {**schedule.sampling, "denoise": run.denoise}
    return net


def _told(*settings: TrainRun | TrainConfig) -> str:
    """The most important settings, and those that are not as usual, in a few lines."""
    told = []
    for part in settings:
        for field in fields(part):
            value = getattr(part, field.name)
            if field.name == "out" or (value == field.default and field.name not in _ALWAYS_TOLD):
                continue
            if isinstance(value, bool):
                told.append(f"{'' if value else 'no '}{field.name}")
            else:
                shown = f"{value:g}" if isinstance(value, float) else value
                told.append(f"{field.name} {shown}")
    return textwrap.fill(f"Settings: {', '.join(told)}.", 100, subsequent_indent="  ")


__all__ = ["SETTINGS", "from_settings", "read_run", "train"]
