"""A sampling run in a folder: what ``ncsn-fast sample`` does.

samples.npz holds the finished samples by id, partial.safetensors the chains under way. What is new
is saved now and then, and the same command goes on from it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ncsn_fast.checkpoints.load_save import checkpoint_file, load_checkpoint
from ncsn_fast.models.base import ScoreNetwork
from ncsn_fast.models.space import to_images
from ncsn_fast.pictures import images as plots
from ncsn_fast.runs.sample_store import SampleStore
from ncsn_fast.sampling.chunks import SamplingInterrupted
from ncsn_fast.sampling.sampler import Sampler
from ncsn_fast.support.files import check_writable, folder_lock, remove_leftovers
from ncsn_fast.support.progress import Progress

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
        checkpoint: what nf.load_checkpoint takes.
        out: folder for samples.npz (images float32 (N, C, H, W) in [0, 1], sample_ids, settings)
            and grid.png.
        ids: which samples of the seed.
        settings: keywords of the Sampler: the method and its settings, None where not given.
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
        "checkpoint": _digest(checkpoint_file(checkpoint)),
        "network": hashlib.sha256(repr((net.config, net.sigmas.tolist())).encode()).hexdigest(),
        "table": hashlib.sha256(repr(sampler.table).encode()).hexdigest(),
    }
    with folder_lock(out, "choose another --out"):
        check_writable(out / "samples.npz")
        store = SampleStore(out, identity)
        remove_leftovers(out)
        wanted = store.missing(ids)
        if len(wanted) < len(ids):
            say(f"{len(ids) - len(wanted)} of {len(ids)} samples are in {store.path} already.")
        if wanted:
            _fill(store, sampler, net, wanted, seed, batch_size, progress)
        store.finish()  # also where a killed process had made all of them
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
    with Progress(progress, rows * len(wanted)) as bar:
        finished = 0
        for part in store.parts(wanted, sampler.chunk_size(len(wanted), batch_size)):
            begin: dict[str, Any] = {}
            if part.states is not None:
                begin = {"initial": part.states.to(sampler.device), "start_level": part.level}

            def show(done: int, total: int, base: int = finished) -> None:
                bar.back_to(base + done)

            try:
                states = sampler(
                    len(part.ids),
                    seed=seed,
                    sample_ids=part.ids,
                    batch_size=len(part.ids),
                    callback=_Keeper(store, sampler, part.ids),
                    progress=show,
                    **begin,
                )
            except SamplingInterrupted as stop:
                store.add(stop.sample_ids, to_images(net, stop.samples))
                store.finish()
                raise
            store.add(part.ids, to_images(net, states))
            store.write_now_and_then()
            finished += rows * len(part.ids)


class _Keeper:
    """Keeps the chains under way at the rows where a chain can begin: at each noise level.

    From there it can be taken up again exactly: its noise is a function of the row. (Where no row
    has a level, or all need a history, chains that were interrupted begin again.)
    """

    def __init__(self, store: SampleStore, sampler: Sampler, ids: Sequence[int]) -> None:
        self._store, self._ids = store, ids
        self._level_at = {row: level for level, row in sampler.table.beginnings.items() if row}

    def __call__(self, row: int, x: Tensor, n: Tensor) -> None:
        level = self._level_at.get(row)
        # A chunk that did not fit in memory was halved: its parts are not kept.
        if level is not None and len(x) == len(self._ids):
            self._store.keep(self._ids, x, level)


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


__all__ = ["CHAIN_FRAMES", "CHAIN_IMAGES", "sample"]
