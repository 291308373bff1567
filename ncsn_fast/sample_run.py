"""A sampling run in a folder: what ``ncsn-fast sample`` does.

samples.npz holds the finished samples by id, partial.safetensors the chains under way: both are
written now and then, and the same command goes on from them.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ncsn_fast import plots
from ncsn_fast.checkpoint import CheckpointError, load_checkpoint, read_tensors, write_tensors
from ncsn_fast.data import READ_ERRORS
from ncsn_fast.engine import Sampler, SamplingInterrupted, to_images
from ncsn_fast.files import atomic_write, check_writable, folder_lock
from ncsn_fast.models.base import ScoreNetwork
from ncsn_fast.progress import Progress

SAVE_SECONDS = 30.0  # at most this much work is lost when the process is killed
GRID_IMAGES = 256
CHAIN_IMAGES, CHAIN_FRAMES = 36, 60


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
    say: Callable[[str], None],
    progress: bool,
) -> dict[str, Path]:
    """Sample from a checkpoint into a folder; what the folder has already is not made again.

    Args:
        checkpoint: any layout that nf.load_checkpoint knows.
        out: folder for samples.npz (images float32 (N, C, H, W) in [0, 1], sample_ids, settings)
            and grid.png.
        ids: which samples of the seed.
        settings: keywords of the Sampler: step_size, steps_per_level, denoise.
        config: the official YAML of the checkpoint.
        gif: also write chain.gif.

    Returns:
        The files by name.

    Raises:
        ValueError: where the folder holds samples of other settings, or cannot be written.
        SamplingInterrupted: on Ctrl-C; what is done is saved.
    """
    overrides: dict[str, Any] = {} if image_size is None else {"image_size": image_size}
    net = load_checkpoint(checkpoint, config=config, device=device, **overrides)
    sampler = Sampler(net, **settings)
    identity = {
        "seed": seed,
        "checkpoint": _digest(checkpoint),
        "network": hashlib.sha256(repr((net.config, net.sigmas.tolist())).encode()).hexdigest(),
        "table": hashlib.sha256(repr(sampler.table).encode()).hexdigest(),
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot make the folder {out}: {error}; choose another --out") from error
    check_writable(out / "samples.npz")
    with folder_lock(out):
        store = SampleStore(out, identity)
        wanted = store.missing(ids)
        if len(wanted) < len(ids):
            say(f"{len(ids) - len(wanted)} of {len(ids)} samples are in {store.path} already.")
        if wanted:
            _fill(store, sampler, net, wanted, seed, batch_size, progress)
        return _draw(store.images(ids), out, sampler, net, ids, seed, gif, say, progress)


def _fill(
    store: SampleStore,
    sampler: Sampler,
    net: ScoreNetwork,
    wanted: list[int],
    seed: int,
    batch_size: int | str,
    progress: bool,
) -> None:
    """Make the missing samples, first those whose chains are under way."""
    rows = len(sampler.table)
    started = store.started(wanted)
    chunk = sampler.chunk_size(len(wanted), batch_size)
    with Progress(progress, rows * len(wanted)) as bar:
        done = 0
        while wanted:
            part = wanted[:chunk] if started is None else started[0]
            begin: dict[str, Any] = {}
            if started is not None:
                begin = {"initial": started[1].to(sampler.device), "start_level": started[2]}
            started = None

            def show(rows_done: int, total: int, base: int = done) -> None:
                bar.back_to(base + rows_done)

            try:
                states = sampler(
                    len(part),
                    seed=seed,
                    sample_ids=part,
                    batch_size=len(part),
                    callback=_Keeper(store, sampler, part),
                    progress=show,
                    **begin,
                )
            except SamplingInterrupted as stop:
                store.add(stop.sample_ids, to_images(net, stop.samples))
                store.write()
                raise
            store.add(part, to_images(net, states))
            store.write_now_and_then()
            wanted = [i for i in wanted if i not in set(part)]
            done += rows * len(part)
    store.write()


class _Keeper:
    """Keeps the chains under way at the beginning of each noise level.

    From there a chain can be taken up again exactly: its noise is a function of the row. (Methods
    with a history could not; they begin again.)
    """

    def __init__(self, store: SampleStore, sampler: Sampler, part: Sequence[int]) -> None:
        self._store, self._part, self._table = store, part, sampler.table

    def __call__(self, row: int, x: Tensor, n: Tensor) -> None:
        level = self._table.level
        fresh = row == 0 or level[row] != level[row - 1]
        # A chunk that did not fit in memory was halved: its parts are not kept.
        if fresh and level[row] > 0 and len(x) == len(self._part) and not self._table.has_history:
            self._store.keep(self._part, x, level[row])


class SampleStore:
    """Finished samples and chains under way of one network, seed and setting."""

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        self.path, self.partial = folder / "samples.npz", folder / "partial.safetensors"
        self.identity = identity
        self._done: dict[int, np.ndarray] = {}
        self._under_way: tuple[Sequence[int], Tensor, int] | None = None
        self._written = time.monotonic()
        if self.path.exists():
            self._read()

    def _read(self) -> None:
        try:
            with np.load(self.path, allow_pickle=False) as stored:
                identity = json.loads(str(stored["settings"]))
                ids, images = stored["sample_ids"].tolist(), stored["images"]
        except READ_ERRORS as error:
            raise ValueError(
                f"{self.path} is damaged or not of ncsn-fast sample ({type(error).__name__}): "
                "remove it, or choose another --out"
            ) from error
        differ = [key for key in self.identity if identity.get(key) != self.identity[key]]
        if differ:
            raise ValueError(
                f"{self.path} holds samples of other settings ({', '.join(differ)} differ): "
                "choose another --out"
            )
        self._done = dict(zip(ids, images, strict=True))

    def missing(self, ids: Sequence[int]) -> list[int]:
        return [i for i in ids if i not in self._done]

    def images(self, ids: Sequence[int]) -> Tensor:
        return torch.from_numpy(np.stack([self._done[i] for i in ids]))

    def started(self, wanted: Sequence[int]) -> tuple[list[int], Tensor, int] | None:
        """(ids, states, level) of chains under way that are wanted, if there are any."""
        try:
            tensors, metadata = read_tensors(self.partial)
        except (FileNotFoundError, CheckpointError):
            return None
        if metadata["identity"] != self.identity or not set(metadata["ids"]) <= set(wanted):
            return None
        return metadata["ids"], tensors["states"], metadata["level"]

    def add(self, ids: Sequence[int], images: Tensor) -> None:
        self._done.update(zip(ids, images.cpu().numpy(), strict=True))
        if self._under_way is not None and set(self._under_way[0]) <= set(ids):
            self._under_way = None

    def keep(self, ids: Sequence[int], states: Tensor, level: int) -> None:
        """Note where chains are; written with the next save."""
        self._under_way = (ids, states, level)
        self.write_now_and_then()

    def write_now_and_then(self) -> None:
        if time.monotonic() - self._written > SAVE_SECONDS:
            self.write()

    def write(self) -> None:
        if self._done:
            ids = sorted(self._done)
            with atomic_write(self.path) as temporary:
                np.savez(
                    temporary,
                    images=np.stack([self._done[i] for i in ids]),
                    sample_ids=np.array(ids, dtype=np.int64),
                    settings=np.array(json.dumps(self.identity)),
                )
        if self._under_way is None:
            self.partial.unlink(missing_ok=True)
        else:
            under_way, states, level = self._under_way
            metadata = {"identity": self.identity, "ids": list(under_way), "level": level}
            write_tensors(self.partial, {"states": states}, metadata)
        self._written = time.monotonic()


def _draw(
    images: Tensor,
    out: Path,
    sampler: Sampler,
    net: ScoreNetwork,
    ids: Sequence[int],
    seed: int,
    gif: bool,
    say: Callable[[str], None],
    progress: bool,
) -> dict[str, Path]:
    files = {"samples": out / "samples.npz"}
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        say("No pictures: they need images of 1 or 3 channels.")
        return files
    files["grid"] = out / "grid.png"
    plots.save_grid(files["grid"], images[:GRID_IMAGES])
    if gif:
        files["chain"] = out / "chain.gif"
        shown = ids[:CHAIN_IMAGES]
        every = max(1, len(sampler.table) // CHAIN_FRAMES)
        say(f"Running {len(shown)} of the chains again for the animation.")
        _, states = sampler(len(shown), seed=seed, sample_ids=shown, every=every, progress=progress)
        plots.save_chain_gif(files["chain"], to_images(net, states), sampler.kept_sigmas(every))
    return files


def _digest(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


__all__ = ["CHAIN_FRAMES", "CHAIN_IMAGES", "SampleStore", "sample"]
