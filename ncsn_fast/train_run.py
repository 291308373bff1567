"""A training run in a folder: what ``ncsn-fast train`` does."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ncsn_fast import plots
from ncsn_fast.data import digits, load_images
from ncsn_fast.files import atomic_write
from ncsn_fast.levels import auto_schedule
from ncsn_fast.models import build
from ncsn_fast.training import TrainConfig, Trainer

Say = Callable[[str], None]


@dataclass(frozen=True)
class TrainRun:
    """A training run as run.json keeps it, so that resuming needs no more than the folder.

    Attributes:
        data: "digits", an array file or a folder of images.
        network: name of one of our networks.
        ngf: its width F.
        activation: its activation.
        sigma_min: smallest noise level.
        steps_per_level: T of the sampler.
        overlap: C of the rule for the number of levels; lower gives fewer.
    """

    data: str = "digits"
    network: str = "NCSNv2"
    ngf: int = 32
    activation: str = "elu"
    sigma_min: float = 0.01
    steps_per_level: int = 5
    overlap: float = 0.5


def train(
    run: TrainRun, config: TrainConfig, *, resume: bool, device: str, say: Say, progress: bool
) -> Path:
    """Train a network in the folder ``config.out``; return the path of the trained network.

    Noise levels and step size are chosen from the data. The folder gets run.json (settings),
    log.jsonl, loss.png, checkpoint.safetensors (to resume) and model.safetensors (to sample).
    """
    assert config.out is not None, "a run needs a folder"
    out = Path(config.out)
    if not resume:
        for name in ("checkpoint.safetensors", "model.safetensors"):
            if (out / name).exists():
                raise ValueError(f"{out} holds a {name} already: --resume it, or use another --out")
    images = digits("train").images if run.data == "digits" else load_images(run.data)
    schedule = auto_schedule(
        images,
        sigma_min=run.sigma_min,
        steps_per_level=run.steps_per_level,
        overlap=run.overlap,
    )
    say(f"{len(images)} images of {tuple(images.shape[1:])}. Chosen from them: {schedule}.")
    torch.manual_seed(config.seed)  # for the initial weights; noise has its own seed
    settings = {
        "network": run.network,
        "channels": images.shape[1],
        "image_size": tuple(images.shape[2:]),
        "ngf": run.ngf,
        "activation": run.activation,
    }
    net = build(settings, schedule.sigmas).to(device)
    net.sampling = schedule.sampling
    trainer = Trainer(net, images, config, resume=resume)
    # Written on resuming too: the number of steps and the learning rate may be new.
    _write_json(out / "run.json", {"run": vars(run), "training": _plain(config)})
    if trainer.step >= config.steps:
        say(f"The run is at step {trainer.step} already: to go on give more --steps.")
    else:
        say(f"Training {run.network} from step {trainer.step} to {config.steps} in {out}.")
    try:
        trainer.fit(progress=progress)
    finally:
        if trainer.history:
            steps, losses = zip(*trainer.history, strict=True)
            plots.save_loss_plot(out / "loss.png", steps, losses)
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


def _write_json(path: Path, value: dict[str, Any]) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _plain(config: TrainConfig) -> dict[str, Any]:
    return {key: value for key, value in vars(config).items() if key != "out"}


__all__ = ["TrainRun", "read_run", "train"]
