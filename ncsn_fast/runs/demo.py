"""The demo: a score network trained on handwritten digits for a minute, sampled and judged."""

from __future__ import annotations

import json
import platform
import time
import timeit
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ncsn_fast.checkpoints.load_save import BUNDLED, load_checkpoint, save_checkpoint
from ncsn_fast.data.digits import digits
from ncsn_fast.evaluation.pixel_distance import pixel_frechet_distance
from ncsn_fast.losses.denoising import dsm_loss
from ncsn_fast.models.base import ScoreNetwork
from ncsn_fast.models.ncsnv2 import NCSNv2
from ncsn_fast.models.space import to_images
from ncsn_fast.pictures import images as plots
from ncsn_fast.pictures.chain import save_chain
from ncsn_fast.pictures.curves import save_loss_plot
from ncsn_fast.runs.report import check_own
from ncsn_fast.runs.sample import CHAIN_FRAMES, CHAIN_IMAGES
from ncsn_fast.sampling.sampler import Sampler, sample
from ncsn_fast.support.files import check_writable, remove_leftovers, write_text
from ncsn_fast.support.locks import folder_lock
from ncsn_fast.support.progress import Bar
from ncsn_fast.training.config import TrainConfig
from ncsn_fast.training.samples import in_turn
from ncsn_fast.training.schedule import Schedule, auto_schedule
from ncsn_fast.training.trainer import Trainer

MAX_SAMPLES = 400
Say = Callable[[str], None]
# Chosen for the quality that one minute on two cores buys: a narrow network that sees many batches.
_NGF, _BATCH_SIZE, _LEARNING_RATE, _EMA = 16, 64, 2e-3, 0.99
_STEPS_PER_LEVEL = 10
_SHOWN = 64  # images of each network that comes along


@dataclass(frozen=True)
class DemoResult:
    """Where the demo's files are, what it measured, and what it drew."""

    files: dict[str, Path]
    metrics: dict[str, Any]
    images: Tensor  # the generated ones, (N, 1, 8, 8) in [0, 1]


def run(
    out: Path,
    *,
    seconds: float = 60.0,
    samples: int = MAX_SAMPLES,
    seed: int = 0,
    device: str = "cpu",
    say: Say,
    progress: bool = True,
) -> DemoResult:
    """Train, sample, compare; write pictures and figures into a folder.

    Args:
        out: the folder; made where it does not exist, files of an earlier demo are replaced.
        seconds: training time.
        samples: images to generate, 4 to 400.
        seed: of weights, training and sampling.
        device: where to run.
        say: takes one line of text for the user.
        progress: whether to show bars.

    Raises:
        ValueError: for settings out of range, or a folder that cannot be written, holds something
            else, or that another process is writing to.
    """
    if not 4 <= samples <= MAX_SAMPLES:
        raise ValueError(f"samples = {samples}: the demo draws 4 to {MAX_SAMPLES} images")
    with folder_lock(out, "choose another with --out"):
        files = _files(out)
        remove_leftovers(out)
        return _run(files, seconds, samples, seed, device, say, progress)


def _run(
    files: dict[str, Path],
    seconds: float,
    samples: int,
    seed: int,
    device: str,
    say: Say,
    progress: bool,
) -> DemoResult:
    train, held_out = digits("train").images, digits("test").images
    schedule = auto_schedule(train, steps_per_level=_STEPS_PER_LEVEL)
    say(f"{len(train)} handwritten digits of 8×8 pixels. Chosen from them: {schedule}.")

    trainer = _trained(schedule, train, seconds, seed, device, say, progress)
    drawn = _drawn(trainer.average, samples, seed, say, progress)
    metrics = _metrics(drawn.images, train, held_out, seed) | {
        "training_steps": trainer.step,
        "training_seconds": seconds,
        "training_precision": trainer.config.precision,
        "final_loss": trainer.history[-1][1],
        "network_evaluations": drawn.evaluations,
        "seed": seed,
        "device": device,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    # First, as it says whose the files are.
    write_text(files["metrics"], json.dumps(metrics, indent=2) + "\n")
    save_checkpoint(trainer.average, files["model"], averaged=trainer.average is not trainer.net)
    (title, images), *others = _of_bundled(seed, say, device).items()  # the digits are the first
    panels = {
        f"trained for {seconds:g} s": drawn.images,
        title: images,
        "real (held out)": held_out,
    }
    panels |= dict(others)
    plots.save_panels(files["samples"], panels, per_row=3)
    save_chain(files["chain"], drawn.frames, sigmas=drawn.sigmas)
    steps, losses = zip(*trainer.history, strict=True)
    save_loss_plot(files["loss"], steps, losses)
    return DemoResult(files, metrics, drawn.images)


def _trained(
    schedule: Schedule,
    train: Tensor,
    seconds: float,
    seed: int,
    device: str,
    say: Say,
    progress: bool,
) -> Trainer:
    """A trainer that has trained for so long."""
    torch.manual_seed(seed)  # for the initial weights; noise has its own seed
    net = NCSNv2(channels=1, image_size=8, ngf=_NGF, sigmas=schedule.sigmas)
    layout: dict[str, Any] = {"memory_format": torch.channels_last}  # unknown to torch's type hints
    net.to(device, **layout)
    net.sampling = schedule.sampling
    parameters = sum(parameter.numel() for parameter in net.parameters())
    say(f"Training NCSNv2 ({parameters:,} parameters) for {seconds:g} seconds.")
    trainer = Trainer(net, train, _settings(seconds, seed))
    with _best_threads(net, train[:_BATCH_SIZE]):
        trainer.fit(progress=_clock(seconds) if progress else None)
    return trainer


class _Drawn(NamedTuple):
    """Generated images, and how they came about."""

    images: Tensor  # (N, 1, 8, 8) in [0, 1], on the CPU
    frames: Tensor  # (K, n, 1, 8, 8), the first n chains at K rows
    sigmas: Sequence[float]  # of those rows
    evaluations: int  # of the network, for each image


def _drawn(net: ScoreNetwork, samples: int, seed: int, say: Say, progress: bool) -> _Drawn:
    """So many images, and frames of the first chains."""
    sampler = Sampler(net)
    rows = len(sampler.table)
    say(f"Sampling {samples} images by annealed Langevin dynamics ({rows} network evaluations).")
    every = max(1, rows // CHAIN_FRAMES)
    states, trajectory = sampler(samples, seed=seed, every=every, progress=progress)
    frames = to_images(net, trajectory[:, :CHAIN_IMAGES])
    return _Drawn(to_images(net, states).cpu(), frames, sampler.kept_sigmas(every), rows)


def _of_bundled(seed: int, say: Say, device: str) -> dict[str, Tensor]:
    """Images of the networks that come along, by their titles; of each class in its turn."""
    say(f"Sampling from the networks that come along: {', '.join(BUNDLED)}.")
    networks = {name: load_checkpoint(name, device=device) for name in BUNDLED}
    return {
        f"comes along: {name}": sample(net, _SHOWN, seed=seed, extra=in_turn(net, _SHOWN)).cpu()
        for name, net in networks.items()
    }


def _files(out: Path) -> dict[str, Path]:
    for name in ("run.json", "checkpoint.safetensors"):
        if (out / name).exists():
            raise ValueError(f"{out} holds a training run ({name}): choose another with --out")
    check_writable(out / "metrics.json")
    names = {
        "samples": "samples.png",
        "chain": "chain.gif",
        "loss": "loss.png",
        "metrics": "metrics.json",
        "model": "model.safetensors",
    }
    files = {key: out / name for key, name in names.items()}
    keys = ("pixel_frechet_distance_to_held_out", "training_steps")
    check_own([files["metrics"], *files.values()], keys, "ncsn-fast demo")
    return files


def _settings(seconds: float, seed: int) -> TrainConfig:
    return TrainConfig(
        steps=1_000_000,
        max_seconds=seconds,
        batch_size=_BATCH_SIZE,
        learning_rate=_LEARNING_RATE,
        precision="auto",
        ema=_EMA,
        ema_warmup=True,
        seed=seed,
        log_every=1,
    )


@contextmanager
def _best_threads(net: NCSNv2, images: Tensor) -> Iterator[None]:
    """One thread or all of them, whichever takes this network's training step faster just now.

    The network is tiny: where other programs use the machine, threads wait for each other longer
    than they work.
    """
    every = torch.get_num_threads()

    def seconds(threads: int) -> float:
        torch.set_num_threads(threads)
        return min(timeit.repeat(step, number=1, repeat=4))

    def step() -> None:
        dsm_loss(net, images.to(net.sigmas.device), net.sigmas, seed=0).backward()
        net.zero_grad()

    torch.set_num_threads(min((every, 1), key=seconds))
    try:
        yield
    finally:
        torch.set_num_threads(every)


def _metrics(images: Tensor, train: Tensor, held_out: Tensor, seed: int) -> dict[str, Any]:
    """The distance of the generated images beside that of equally many real ones and of noise."""
    n = len(images)
    noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(seed))
    sets = {"generated": images, "training_images": train[:n], "noise": noise}
    return {
        "pixel_frechet_distance_to_held_out": {
            name: round(pixel_frechet_distance(some, held_out), 4) for name, some in sets.items()
        },
        "images_compared": n,
        "held_out_images": len(held_out),
    }


def _clock(seconds: float) -> Callable[[int, int], None]:
    """A progress function that shows the time of a training that is limited by time."""
    whole = round(seconds)
    bar = Bar(total=whole, unit="second", bar_format="{l_bar}{bar}| {n}/{total} s {postfix}")
    started = time.monotonic()

    def show(step: int, total: int) -> None:
        bar.note(f"step {step}")
        bar.to(min(whole, round(time.monotonic() - started)))

    return show


__all__ = ["MAX_SAMPLES", "DemoResult", "run"]
