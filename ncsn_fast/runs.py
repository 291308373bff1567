"""Training and sampling runs in a folder: what the command line does, resumable and printless."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ncsn_fast import plots
from ncsn_fast.checkpoint import load_checkpoint
from ncsn_fast.data import digits, load_images
from ncsn_fast.engine import Sampler, SamplingInterrupted, to_images
from ncsn_fast.files import atomic_write
from ncsn_fast.levels import auto_schedule
from ncsn_fast.models import build
from ncsn_fast.models.base import ScoreNetwork
from ncsn_fast.progress import Progress
from ncsn_fast.training import TrainConfig, Trainer

Say = Callable[[str], None]

_SAVE_SECONDS = 30.0  # finished samples are on the disk after at most this time and one chunk
_GRID_IMAGES = 256
_CHAIN_IMAGES, _CHAIN_FRAMES = 36, 60


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
    net.sampling = {
        "method": "annealed_langevin",
        "step_size": schedule.step_size,
        "steps_per_level": schedule.steps_per_level,
        "denoise": True,
    }
    trainer = Trainer(net, images, config, resume=resume)
    if not resume:
        _write_json(out / "run.json", {"run": vars(run), "training": _plain(config)})
    say(f"Training {run.network} from step {trainer.step} to {config.steps} in {out}.")
    try:
        trainer.fit(progress=progress)
    finally:
        if trainer.history:
            steps, losses = zip(*trainer.history, strict=True)
            plots.save_loss_plot(out / "loss.png", steps, losses)
    return out / "model.safetensors"


def read_run(out: Path) -> tuple[TrainRun, TrainConfig]:
    """The settings of the run in a folder.

    Raises:
        ValueError: where there is no run.
    """
    path = out / "run.json"
    if not path.exists():
        raise ValueError(f"{out} holds no training run (there is no {path}): nothing to resume")
    stored = json.loads(path.read_text(encoding="utf-8"))
    return TrainRun(**stored["run"]), replace(TrainConfig(**stored["training"]), out=out)


def sample(
    checkpoint: Path,
    out: Path,
    *,
    ids: Sequence[int],
    seed: int,
    settings: dict[str, Any],
    config: Path | None,
    image_size: int | None,
    batch_size: int | str,
    gif: bool,
    device: str,
    say: Say,
    progress: bool,
) -> dict[str, Path]:
    """Sample from a checkpoint into a folder; what the folder has already is not made again.

    Args:
        checkpoint: any layout that nf.load_checkpoint knows.
        out: folder for samples.npz (images float32 (N, C, H, W) in [0, 1], sample_ids, seed,
            settings) and grid.png.
        ids: which samples of the seed.
        settings: keywords of the Sampler: step_size, steps_per_level, denoise.
        config: the official YAML of the checkpoint.
        gif: also write chain.gif.

    Returns:
        The files by name.

    Raises:
        ValueError: where the folder holds samples of other settings, or cannot be written.
        SamplingInterrupted: on Ctrl-C; finished samples are saved.
    """
    overrides: dict[str, Any] = {} if image_size is None else {"image_size": image_size}
    net = load_checkpoint(checkpoint, config=config, device=device, **overrides)
    sampler = Sampler(net, **settings)
    files = {"samples": out / "samples.npz"}
    store = _SampleStore(files["samples"], sampler, checkpoint, seed)
    wanted = store.missing(ids)
    if len(wanted) < len(ids):
        say(f"{len(ids) - len(wanted)} of {len(ids)} samples are in {store.path} already.")
    _sample_missing(sampler, net, store, wanted, batch_size, progress)
    images = store.images(ids)
    if images.ndim == 4 and images.shape[1] in (1, 3):
        files["grid"] = out / "grid.png"
        plots.save_grid(files["grid"], images[:_GRID_IMAGES])
        if gif:
            files["chain"] = out / "chain.gif"
            _draw_chain(files["chain"], sampler, net, ids[:_CHAIN_IMAGES], seed, progress)
    elif gif:
        say("No animation: that needs images of 1 or 3 channels.")
    return files


def _sample_missing(
    sampler: Sampler,
    net: ScoreNetwork,
    store: _SampleStore,
    wanted: list[int],
    batch_size: int | str,
    progress: bool,
) -> None:
    if not wanted:
        return
    chunk = sampler.chunk_size(len(wanted), batch_size)
    rows = len(sampler.table)
    with Progress(progress, rows * len(wanted)) as bar:
        for first in range(0, len(wanted), chunk):
            part = wanted[first : first + chunk]

            def show(done: int, total: int, base: int = first * rows) -> None:
                bar.back_to(base + done)

            try:
                states = sampler(
                    len(part),
                    seed=store.seed,
                    sample_ids=part,
                    batch_size=batch_size,
                    progress=show,
                )
            except SamplingInterrupted as stop:
                store.add(stop.sample_ids, to_images(net, stop.samples))
                store.write()
                raise
            store.add(part, to_images(net, states))
            store.write_now_and_then()
    store.write()


class _SampleStore:
    """samples.npz: the finished samples of one network, seed and setting, by id."""

    def __init__(self, path: Path, sampler: Sampler, checkpoint: Path, seed: int) -> None:
        self.path, self.seed = path, seed
        table = hashlib.sha256(repr(sampler.table).encode()).hexdigest()
        network = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
        self.settings = {"seed": seed, "checkpoint_sha256": network, "table_sha256": table}
        self._done: dict[int, np.ndarray] = {}
        self._written = time.monotonic()
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            self._read()
        else:
            self.write()  # an unwritable folder is found before the work, not after

    def _read(self) -> None:
        with np.load(self.path, allow_pickle=False) as stored:
            settings = json.loads(str(stored["settings"]))
            differ = [key for key in self.settings if settings.get(key) != self.settings[key]]
            if differ:
                raise ValueError(
                    f"{self.path} holds samples of other settings ({', '.join(differ)} differ): "
                    "choose another --out"
                )
            self._done = dict(zip(stored["sample_ids"].tolist(), stored["images"], strict=True))

    def missing(self, ids: Sequence[int]) -> list[int]:
        return [i for i in ids if i not in self._done]

    def images(self, ids: Sequence[int]) -> Tensor:
        return torch.from_numpy(np.stack([self._done[i] for i in ids]))

    def add(self, ids: Sequence[int], images: Tensor) -> None:
        self._done.update(zip(ids, images.cpu().numpy(), strict=True))

    def write_now_and_then(self) -> None:
        if time.monotonic() - self._written > _SAVE_SECONDS:
            self.write()

    def write(self) -> None:
        ids = sorted(self._done)
        with atomic_write(self.path) as temporary:
            np.savez(
                temporary,
                images=np.stack([self._done[i] for i in ids]) if ids else np.zeros((0,)),
                sample_ids=np.array(ids, dtype=np.int64),
                settings=np.array(json.dumps(self.settings)),
            )
        self._written = time.monotonic()


def _draw_chain(
    path: Path,
    sampler: Sampler,
    net: ScoreNetwork,
    ids: Sequence[int],
    seed: int,
    progress: bool,
) -> None:
    rows = len(sampler.table)
    every = max(1, rows // _CHAIN_FRAMES)
    _, states = sampler(len(ids), seed=seed, sample_ids=ids, every=every, progress=progress)
    plots.save_chain_gif(path, to_images(net, states), sigmas=sampler.kept_sigmas(every))


def _write_json(path: Path, value: dict[str, Any]) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _plain(config: TrainConfig) -> dict[str, Any]:
    return {key: value for key, value in vars(config).items() if key != "out"}


__all__ = ["TrainRun", "read_run", "sample", "train"]
