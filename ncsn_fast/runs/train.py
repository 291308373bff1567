"""A training run in a folder: what ``ncsn-fast train`` does."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ncsn_fast.data.labels import Classes
from ncsn_fast.data.load import labelled_pixels_of, pixels_of
from ncsn_fast.distributed.group import Group, join
from ncsn_fast.distributed.ranks import from_environment
from ncsn_fast.evaluation.inception.figures import Fid
from ncsn_fast.models.base import ScoreNetwork
from ncsn_fast.models.by_name import IMAGE_NETWORKS, build
from ncsn_fast.models.ncsnv2 import class_names
from ncsn_fast.pictures.curves import save_loss_plot
from ncsn_fast.runs.report import machine_facts
from ncsn_fast.runs.training.judge import HeldOut, fid_of, held_out_of, number_of
from ncsn_fast.runs.training.page import NAME as PAGE
from ncsn_fast.runs.training.page import TrainingPage
from ncsn_fast.runs.training.pretrained import begin_from, pretrained_of
from ncsn_fast.runs.training.settings import (
    FROM_DATA,
    LOADING,
    SETTINGS_FILE,
    chosen,
    is_same,
    placed,
    read_run,
    stored,
    told,
    write_run,
)
from ncsn_fast.support.files import check_writable
from ncsn_fast.support.locks import folder_lock
from ncsn_fast.support.settings import settings_of
from ncsn_fast.training.config import TrainConfig, TrainRun
from ncsn_fast.training.log import warned
from ncsn_fast.training.schedule import Schedule, auto_schedule, schedule_between
from ncsn_fast.training.state import CHECKPOINT, check_new
from ncsn_fast.training.trainer import Trainer

Say = Callable[[str], None]
Show = Callable[[Path], None]
_PLOT = "loss.png"
_FILES = {
    "model": "model.safetensors",
    "best": "best.safetensors",
    "checkpoint": "checkpoint.safetensors",
    "settings": "run.json",
    "log": "log.jsonl",
    "levels": "levels.json",
    "loss": "loss.png",
    "page": PAGE,
    "samples": "samples",
}


def _show_nothing(page: Path) -> None:
    """Nobody watches."""


def train(
    run: TrainRun,
    config: TrainConfig,
    *,
    device: str,
    say: Say,
    progress: bool,
    show: Show = _show_nothing,
) -> dict[str, Any]:
    """Train a network in the folder ``config.out``; return the report, as docs/use.md describes it.

    The folder gets run.json (settings), log.jsonl, loss.png, checkpoint.safetensors (to resume)
    and model.safetensors (to sample). Whatever is refused leaves it as it was. Below torchrun,
    which starts a command anew when a process was lost, a run of these very settings goes on.

    Args:
        show: given the page of the run once it is there.

    Raises:
        ValueError: for a folder that holds a run or that another process is writing to, and for
            data that do not fit the settings.
        OSError: for a folder that cannot be written, or a disk without room for the run.
        OtherProcessError: of several processes in those that did not refuse or fail themselves.
    """
    assert config.out is not None, "a run needs a folder"
    out = Path(config.out)

    def begin() -> tuple[TrainRun, TrainConfig, bool]:
        if from_environment().started and (out / SETTINGS_FILE).exists():
            of_run, of_config = read_run(out)
            if is_same(run, of_run) and is_same(config, of_config):
                return of_run, of_config, _goes_on(out, say)
        check_new(out)
        _check_apart(run, out)
        return run, config, False

    return _in_folder(out, begin, "choose another --out", device, say, progress, show)


def resume(
    out: Path,
    changes: Mapping[str, Any],
    *,
    device: str,
    say: Say,
    progress: bool,
    show: Show = _show_nothing,
) -> dict[str, Any]:
    """Go on with the run in a folder; return the report, as :func:`train` does.

    Args:
        changes: settings that are new, of those that may be (``SETTINGS[name].free``): places too,
            where the same images and labels lie elsewhere by now.

    Raises:
        ValueError, OSError, OtherProcessError: as :func:`train`, and where there is no run, it is
            damaged, or the data are not those of the run.
    """
    if not out.is_dir():
        raise ValueError(f"{out} holds no training run (there is no folder): nothing to resume")

    def begin() -> tuple[TrainRun, TrainConfig, bool]:
        run, config = read_run(out)
        of_run: dict[str, Any] = {k: v for k, v in changes.items() if k in settings_of(TrainRun)}
        of_run = placed(of_run, of_run.get("data", run.data))
        run = replace(run, **of_run)
        if "data" not in changes and run.data != "digits" and not Path(run.data).exists():
            raise ValueError(
                f"the data of the run in {out} are no longer in {run.data}: where they were moved, "
                "say their new place with --data"
            )
        config = replace(config, **{k: v for k, v in changes.items() if k not in of_run})
        return run, config, _goes_on(out, say)

    return _in_folder(out, begin, "resume another run", device, say, progress, show)


def _goes_on(out: Path, say: Say) -> bool:
    """Whether the run in a folder has a checkpoint to go on from."""
    if (out / CHECKPOINT).exists():
        return True
    check_new(out, begun=True)
    say(f"The run in {out} was stopped before its first checkpoint: it begins anew.")
    return False


def _check_apart(run: TrainRun, out: Path) -> None:
    """Refuse a folder among the images: those that the run draws would be taken for data.

    Raises:
        ValueError: naming both.
    """
    places = {} if run.data == "digits" else {run.data: "trained on"}
    if run.held_out is not None:
        places.setdefault(run.held_out, "compared with")
    for place, use in places.items():
        if out.resolve().is_relative_to(Path(place).resolve()):
            raise ValueError(
                f"{out} lies in the folder of the images, {place}, and what the run draws would "
                f"be {use} too: choose another --out"
            )


def _in_folder(
    out: Path,
    begin: Callable[[], tuple[TrainRun, TrainConfig, bool]],
    otherwise: str,
    device: str,
    say: Say,
    progress: bool,
    show: Show,
) -> dict[str, Any]:
    """Train in a folder whose lock the first process holds, and where it says with what."""
    group = join(from_environment(), device)
    with contextlib.ExitStack() as stack:

        def begin_locked() -> tuple[TrainRun, TrainConfig, bool]:
            stack.enter_context(folder_lock(out, otherwise))
            return begin()

        run, config, goes_on = group.from_first(begin_locked)
        return _train(group, run, config, goes_on, device, say, progress, show)


def _train(
    group: Group,
    run: TrainRun,
    config: TrainConfig,
    goes_on: bool,
    device: str,
    say: Say,
    progress: bool,
    show: Show,
) -> dict[str, Any]:
    """Begin the run or go on with it, in a folder whose lock is held."""
    out = Path(str(config.out))
    images, classes, held_out = group.first_alone(lambda: _checked_images(run, config, out))
    pretrained = None if goes_on else group.first_alone(lambda: pretrained_of(run, images.shape[1]))
    judges: list[Tensor | Fid | None] = [held_out if isinstance(held_out, Tensor) else None]
    if run.inception is not None:  # samples are the first process's alone
        group.from_first(lambda: judges.append(fid_of(run, held_out, config, device, say)))
    say(told(run, config))
    found = None in [getattr(run, name) for name in FROM_DATA]
    run, schedule = group.from_first(lambda: _with_schedule(run, images, device))
    origin = "Chosen from them" if found else "As before" if goes_on else "As given"
    kinds = "" if classes is None else f" in {len(classes.names)} classes"
    say(f"{len(images)} images of {tuple(images.shape[1:])}{kinds}. {origin}: {schedule}.")
    if run.values == "signed":
        say("They are (x + 1) / 2 of the values x: of samples of this network take 2 * images - 1.")
    torch.manual_seed(config.seed)  # for the initial weights; noise has its own seed
    net = _network(run, images, classes, schedule)
    if pretrained is not None:
        begin_from(net, pretrained)
    del pretrained  # the run may last for days, and needs the memory
    net.to(device)
    trainer = Trainer(
        net,
        images,
        config,
        classes=None if classes is None else classes.indices,
        resume=goes_on,
        held_out=judges[-1],
        locked=True,
    )
    config = trainer.config  # of a precision by name: it is the run's on every machine
    # On resuming too: the number of steps may be new.
    group.from_first(lambda: write_run(out, run, config))
    if trainer.step >= config.steps:
        say(f"The run is at step {trainer.step} already: to go on give more --steps.")
    else:
        parameters = sum(parameter.numel() for parameter in net.parameters())
        together = "" if group.is_alone else f" with {group.ranks.size} processes"
        say(
            f"Training {run.network} ({parameters:,} parameters) in {config.precision}{together} "
            f"from step {trainer.step} to {config.steps} in {out}."
        )
    with contextlib.ExitStack() as stack:
        if group.ranks.is_first:
            stack.enter_context(_shown(trainer, chosen(run, config), device, say, show))
        trainer.fit(progress=progress)
    data = {"source": run.data, "images": len(images), "shape": list(images.shape[1:])}
    return {
        "settings": stored(run, config),
        "data": data | {"held_out": number_of(held_out)},
        "schedule": {
            "sigmas": schedule.sigmas.tolist(),
            "step_size": schedule.step_size,
            "steps_per_level": schedule.steps_per_level,
            "warnings": list(schedule.warnings),
        },
        **_result(trainer, out),
        **machine_facts(device),
    }


def _checked_images(
    run: TrainRun, config: TrainConfig, out: Path
) -> tuple[np.ndarray, Classes | None, HeldOut]:
    """:func:`_images`, once what would fail at the end is refused."""
    for name in (SETTINGS_FILE, _PLOT, PAGE):
        check_writable(out / name)
    for name in ("held_out", "inception"):
        if getattr(run, name) is not None and config.sample_every is None:
            raise ValueError(
                f"{name} = {getattr(run, name)} judges the samples that are drawn while the "
                "network is trained, and none are: say how often, such as sample_every=1000, or "
                "leave it out"
            )
    return _images(run)


def _result(trainer: Trainer, out: Path) -> dict[str, Any]:
    """What a run has come to, and its files."""
    log = trainer.log
    best = min(log.distances, key=lambda pair: pair[1], default=None)
    return {
        "steps": trainer.step,
        "final_loss": log.losses[-1][1] if log.losses else None,
        "measure": log.measure,
        "distances": [{"step": step, "distance": distance} for step, distance in log.distances],
        "best": None if best is None else {"step": best[0], "distance": best[1]},
        "files": {name: out / file for name, file in _FILES.items() if (out / file).exists()},
    }


@contextlib.contextmanager
def _shown(
    trainer: Trainer, settings: Mapping[str, Any], device: str, say: Say, show: Show
) -> Iterator[None]:
    """Show the run as a page while it goes on, and in the end the loss as a picture too."""
    out, machine = Path(str(trainer.out)), machine_facts(device)
    page = TrainingPage(
        trainer, settings, f"{machine['device_name']}, torch {machine['versions']['torch']}"
    )
    page.write(going_on=trainer.step < trainer.config.steps)
    say(f"To watch it: {out / PAGE}")
    show(out / PAGE)
    trainer.log.on_entry = page.update
    try:
        yield
    finally:
        page.write()
        _plot(trainer, out, say)


def _plot(trainer: Trainer, out: Path, say: Say) -> None:
    """The loss so far as a picture; where that fails, it hides nothing that matters more."""
    if not trainer.history:
        return
    steps, losses = zip(*trainer.history, strict=True)
    with warned("the picture of the loss"):
        save_loss_plot(out / _PLOT, steps, losses)
        say(f"The loss so far: {out / _PLOT}")


def _images(run: TrainRun) -> tuple[np.ndarray, Classes | None, HeldOut]:
    """The training images as they are stored, their classes where the run is about them, and what
    samples are judged by, if there is anything.

    Raises:
        ValueError: where they are not what the run's settings are for.
    """
    if run.crop is not None and Path(run.data).is_file():
        raise ValueError(
            f"{run.data} holds images that are cut already, but the run has crop {run.crop}, "
            "which is for a folder of files: say --crop 0"
        )
    loading = {name: getattr(run, name) for name in LOADING}
    if run.conditional:
        images, classes = _labelled(run, loading)
    else:
        images, classes = pixels_of(run.data, **loading), None
    held_out = held_out_of(run, loading)
    channels, height, width = images.shape[1:]
    wanted = f"but {f'preset {run.preset} is' if run.preset else 'the settings are'} for"
    other = "convert them" if run.data != "digits" else "choose yours with --data FOLDER"
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
    IMAGE_NETWORKS[run.network].check_sides(height, width)  # before all of them are compared
    return images, classes, held_out


def _labelled(run: TrainRun, loading: dict[str, Any]) -> tuple[np.ndarray, Classes]:
    """The images of a conditional run and their classes, by the names that it gives them."""
    images, found = labelled_pixels_of(run.data, run.labels, **loading)
    if found is None:
        raise ValueError(
            f"{run.data} does not say the classes of its images, which a conditional run needs: "
            "give their file with --labels, or a folder with a subfolder for each class"
        )
    names = found.names
    if run.class_names is not None:
        names = tuple(name.strip() for name in run.class_names.split(","))
    if len(names) != len(found.names):
        raise ValueError(
            f"class_names names {len(names)} classes, and there are {len(found.names)}: "
            f"{', '.join(found.names[:20])}"
        )
    # Refused now what a network could not be told, before the images are compared.
    return images, Classes(found.indices, class_names(names))


def _with_schedule(run: TrainRun, images: np.ndarray, device: str) -> tuple[TrainRun, Schedule]:
    """The run with every number of its noise levels filled in, and the levels themselves.

    Numbers that were not given follow from the data by the rules of NCSNv2. run.json keeps all of
    them: when the run goes on, on another machine, they are the same to the last bit.
    """
    sigma_max, num_levels = run.sigma_max, run.num_levels
    if sigma_max is None:
        if len(images) < 2:
            raise ValueError(
                f"{run.data} holds 1 image: noise levels come from distances between images; of "
                "one give the largest level yourself, such as sigma_max=10"
            )
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


def _network(
    run: TrainRun, images: np.ndarray, classes: Classes | None, schedule: Schedule
) -> ScoreNetwork:
    names = ("network", "ngf", "activation", "rescaled", "logit_transform")
    settings = {name: getattr(run, name) for name in names}
    settings |= {"channels": images.shape[1], "image_size": tuple(images.shape[2:])}
    settings |= {} if classes is None else {"classes": classes.names}
    net = build(settings, schedule.sigmas)
    net.sampling = {**schedule.sampling, "denoise": run.denoise}
    return net


__all__ = ["resume", "train"]
