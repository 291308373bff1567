"""What a training run keeps in its folder, and how it is taken up again."""

from __future__ import annotations

import errno
import json
import math
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ncsn_fast.checkpoints.load_save import save_checkpoint
from ncsn_fast.checkpoints.tensor_file import CheckpointError, read_tensors, write_tensors
from ncsn_fast.support.files import check_writable

if TYPE_CHECKING:
    from ncsn_fast.training.trainer import Trainer

CHECKPOINT, MODEL, BEST = "checkpoint.safetensors", "model.safetensors", "best.safetensors"
# A run may be resumed with other values of these: they do not change what a step computes, but for
# the learning rate, without which a run that diverged could not be saved.
_FREE_ON_RESUME = {
    "steps",
    "learning_rate",
    "accumulate",
    "out",
    "log_every",
    "checkpoint_every",
    "keep_every",
    "sample_every",
    "samples",
    "tensorboard",
    "max_seconds",
    "graph",
}
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def save(trainer: Trainer, out: Path) -> None:
    """Write the model of this step where it is to be kept, checkpoint.safetensors, and
    model.safetensors.

    In this order, since of a process killed in between a checkpoint can make the model anew, while
    a model alone could be neither resumed nor begun again; and nothing makes a kept one anew.
    """
    trainer.average.sampling = trainer.net.sampling
    keep_every = trainer.config.keep_every
    if keep_every is not None and trainer.step and trainer.step % keep_every == 0:
        save_checkpoint(trainer.average, out / f"model_{trainer.step:07d}.safetensors")
    sums = trainer.sums
    tensors = {f"model.{k}": v for k, v in trainer.net.state_dict().items()}
    if trainer.average is not trainer.net:
        tensors |= {f"ema.{k}": v for k, v in trainer.average.state_dict().items()}
    for name, parameter in trainer.net.named_parameters():
        state = trainer.optimizer.state.get(parameter, {})
        tensors |= {f"optimizer.{key}.{name}": value for key, value in state.items()}
    tensors |= {"sigmas": trainer.net.sigmas, "loss_sum": sums.sum, "level_sums": sums.levels}
    write_tensors(out / CHECKPOINT, tensors, _metadata(trainer))
    save_checkpoint(trainer.average, out / MODEL)


def _metadata(trainer: Trainer) -> dict[str, Any]:
    return {
        "kind": "training",
        "config": trainer.net.config,
        "sampling": trainer.net.sampling,
        "step": trainer.step,
        "loss_since": trainer.sums.since,
        "scaler": trainer.scaler.state_dict(),
        "training": identity(trainer),
    }


def restore(trainer: Trainer, out: Path) -> None:
    """Take over weights, optimiser, sums, step and log of the checkpoint of this run.

    Raises:
        ValueError: where there is none, or it belongs to other settings, data or a network.
    """
    path = out / CHECKPOINT
    if not path.exists():
        raise ValueError(f"there is no {path} to resume from: start anew without resume (--resume)")
    tensors, metadata = read_tensors(path)
    if metadata.get("kind") != "training":
        raise CheckpointError(f"{path} is not a training checkpoint: it cannot be resumed")
    _check_same_run(trainer, path, tensors, metadata)
    _check_folder(trainer, out)
    trainer.net.load_state_dict(_with_prefix(tensors, "model."))
    trainer.net.sigmas.copy_(tensors["sigmas"])
    trainer.average.sigmas.copy_(tensors["sigmas"])
    if trainer.average is not trainer.net:
        trainer.average.load_state_dict(_with_prefix(tensors, "ema."))
    for name, parameter in trainer.net.named_parameters():
        moments = {
            key: tensors[f"optimizer.{key}.{name}"]
            for key in _MOMENTS
            if f"optimizer.{key}.{name}" in tensors
        }
        if moments:
            trainer.optimizer.state[parameter] = _beside(parameter, moments)
    trainer.step = metadata["step"]
    trainer.sums.since = metadata["loss_since"]
    trainer.sums.sum.copy_(tensors["loss_sum"])
    trainer.sums.levels.copy_(tensors["level_sums"])
    if metadata["scaler"]:
        trainer.scaler.load_state_dict(metadata["scaler"])
    trainer.log.read(trainer.step)


def identity(trainer: Trainer) -> dict[str, Any]:
    """What has to agree for a resumed run to continue this one."""
    settings = {k: v for k, v in asdict(trainer.config).items() if k not in _FREE_ON_RESUME}
    return {**settings, "data": trainer.batches.sha256}


def begin(trainer: Trainer, out: Path) -> None:
    """Make the folder of a new run.

    Raises:
        ValueError: where it holds another run, or cannot be made.
        OSError: where it cannot be written, or its disk is too full for the run's files.
    """
    for path in (out / CHECKPOINT, out / MODEL):
        if path.exists():
            raise ValueError(
                f"{out} holds a trained network already ({path.name}): resume the run "
                "(resume=True, --resume), or choose another folder"
            )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot make the folder {out}: {error}; choose another") from error
    _check_folder(trainer, out)


def _check_folder(trainer: Trainer, out: Path) -> None:
    """Refuse now what could not be saved later."""
    json.dumps(_metadata(trainer))
    check_writable(out / CHECKPOINT)
    weights = sum(value.numel() * value.element_size() for value in trainer.net.parameters())
    # Weights, average and two moments; the model; the best; and each file beside its successor.
    copies = 2 * (4 + 1 + 1)
    if trainer.config.keep_every is not None:
        copies += math.ceil(trainer.config.steps / trainer.config.keep_every)
    needed, free = copies * weights, shutil.disk_usage(out).free
    if free < needed:
        raise OSError(
            errno.ENOSPC,
            f"{out} has {free / 1e6:,.0f} MB of disk left and the files of this run take up to "
            f"{needed / 1e6:,.0f} MB: make room, or choose another folder",
        )


def _check_same_run(
    trainer: Trainer, path: Path, tensors: dict[str, Tensor], metadata: dict[str, Any]
) -> None:
    there, here = metadata["training"], identity(trainer)
    differ = {k: (there.get(k), here[k]) for k in here if there.get(k) != here[k]}
    if metadata["config"] != trainer.net.config:
        differ["network"] = (metadata["config"], trainer.net.config)
    # Levels chosen from the data on another machine may differ in their last bit.
    sigmas = trainer.net.sigmas.cpu()
    same = len(tensors["sigmas"]) == len(sigmas)
    if not same or not torch.allclose(tensors["sigmas"], sigmas, rtol=1e-5, atol=0):
        differ["noise levels"] = (tensors["sigmas"].tolist(), trainer.net.sigmas.tolist())
    if differ:
        told = "; ".join(f"{k}: {a} there, {b} here" for k, (a, b) in differ.items())
        raise ValueError(f"{path} belongs to another run ({told}): use the same settings")


def _beside(parameter: Tensor, moments: dict[str, Tensor]) -> dict[str, Tensor]:
    """Adam's state of a parameter, on its device and in its memory format."""
    return {
        key: value.to(parameter.device)
        if key == "step"
        else torch.empty_like(parameter, requires_grad=False).copy_(value)
        for key, value in moments.items()
    }


def _with_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


__all__ = ["BEST", "CHECKPOINT", "MODEL", "begin", "identity", "restore", "save"]
