"""A sampling run in a folder: what ``ncsn-fast sample`` does.

samples.npz holds the finished samples by id, partial.safetensors the chains under way. What is new
is saved now and then, and the same command goes on from it.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ncsn_fast.checkpoints.load_save import checkpoint_file, load_checkpoint
from ncsn_fast.checkpoints.official_yaml import read_official_yaml
from ncsn_fast.checkpoints.tensor_file import check_is_file
from ncsn_fast.guidance.classifier_free import guided
from ncsn_fast.methods.by_name import ANNEALED_LANGEVIN, check_taken, used_settings
from ncsn_fast.methods.spacings import noise_levels
from ncsn_fast.models.base import ScoreNetwork
from ncsn_fast.models.ncsnv2 import NCSNv2
from ncsn_fast.models.score import Score
from ncsn_fast.models.space import to_images
from ncsn_fast.pictures import images as plots
from ncsn_fast.runs.report import in_words, machine_facts, network_facts, told
from ncsn_fast.runs.sample_store import SampleStore
from ncsn_fast.sampling.chunks import SamplingInterrupted
from ncsn_fast.sampling.divergence import SamplingError
from ncsn_fast.sampling.sampler import Sampler
from ncsn_fast.support.files import (
    check_space,
    check_writable,
    remove_leftovers,
    sha256_of,
)
from ncsn_fast.support.locks import folder_lock
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
    labels: Sequence[str] = (),
    guidance: float | None = None,
    config: Path | None,
    image_size: int | None,
    batch_size: int | str,
    gif: bool,
    device: str,
    say: Callable[[str], None],
    progress: bool,
) -> dict[str, Any]:
    """Sample from a checkpoint into a folder; what the folder has already is not made again.

    Args:
        checkpoint: what nf.load_checkpoint takes.
        out: folder for samples.npz (images float32 (N, C, H, W) in [0, 1], sample_ids, settings)
            and grid.png.
        ids: which samples of the seed.
        settings: keywords of the Sampler: the method and its settings, None where not given.
        labels: classes by name or number, "none" for none of them, "all" for each: image i is of
            entry i modulo their number. None at all: of no class.
        guidance: the scale of classifier-free guidance towards them; None and 1: as trained.
        config: the official YAML of the checkpoint.
        gif: also write chain.gif.

    Returns:
        The report, as docs/use.md describes it; its files are paths.

    Raises:
        ValueError, OSError: for settings that cannot be had, a folder that holds something else or
            cannot be written, and a disk without room; as far as can be before the network is read.
        SamplingInterrupted: on Ctrl-C; what is done is saved.
    """
    _check(checkpoint, config, settings)
    overrides: dict[str, Any] = {} if image_size is None else {"image_size": image_size}
    with folder_lock(out, "choose another --out"):
        check_writable(out / "samples.npz")
        _check_pictures(out)
        net = load_checkpoint(checkpoint, config=config, device=device, **overrides)
        classes = Classes(net, labels, guidance)
        sampler = Sampler(classes.score, **settings)
        facts, used = network_facts(net), _used(net, sampler, settings) | classes.told()
        say(f"{told(facts)}\n{_told_settings(used)}")
        identity = _identity(seed, checkpoint, net, sampler) | classes.told()
        store = SampleStore(out, identity, net.shape, set(sampler.table.beginnings))
        remove_leftovers(out)
        wanted = store.missing(ids)
        # The samples and those before them, each in one file.
        check_space(out, 2 * 4 * math.prod(net.shape) * (len(store) + len(wanted)), "the samples")
        if len(wanted) < len(ids):
            say(f"{len(ids) - len(wanted)} of {len(ids)} samples are in {store.path} already.")
        started = time.monotonic()
        with store.kept():  # also where a killed process had made all of them
            if wanted:
                _fill(store, sampler, net, classes, wanted, seed, batch_size, progress)
        seconds = time.monotonic() - started
        files = _pictures(store.images(ids), out, say)
        if gif and "grid" in files:
            files["chain"] = _chain(out, sampler, net, classes, ids, seed, say, progress)
    return {
        "checkpoint": {"file": checkpoint_file(checkpoint), "sha256": identity["checkpoint"]}
        | facts,
        "settings": used,
        "seed": seed,
        "sample_ids": {"first": ids[0], "number": len(ids), "made_now": len(wanted)},
        "files": files,
        "seconds": round(seconds, 3),
        "samples_per_second": round(len(wanted) / seconds, 3) if wanted else None,
        "precision": identity["precision"],
        "convolutions": identity["convolutions"],
        **machine_facts(sampler.device),
    }


class Classes:
    """Of which classes the images of a run are, and what is run for them.

    Attributes:
        score: the network, guided where that is asked for.

    Raises:
        ValueError: for classes that the network does not know, and for guidance without classes.
    """

    score: ScoreNetwork | Score

    def __init__(self, net: ScoreNetwork, labels: Sequence[str], guidance: float | None) -> None:
        self._names: tuple[str, ...] = getattr(net, "classes", ())
        self._device, self._guidance = net.sigmas.device, guidance
        self._numbers: list[int] = []
        if not self._names and (labels or guidance is not None):
            asked = f"label {labels[0]!r:.80}" if labels else f"guidance = {guidance:g}"
            raise ValueError(f"{asked}: this network knows no classes")
        for label in labels:
            assert isinstance(net, NCSNv2)
            self._numbers += self._meant(net, label)
        if guidance is not None and not any(n < len(self._names) for n in self._numbers):
            raise ValueError(f"guidance = {guidance:g} goes towards a class: say which (label)")
        self.score = net if guidance is None else guided(net, guidance)

    def _meant(self, net: NCSNv2, label: str) -> Sequence[int]:
        """The classes that a label stands for, as their numbers."""
        words = {"all": range(len(self._names)), "none": [len(self._names)]}
        if (word := label.lower()) not in words:
            return [net.class_of(label)]
        if word in map(str.lower, self._names):
            raise ValueError(
                f"label {label!r}: a class of this network is called so, and {word} stands for "
                f"{'each class' if word == 'all' else 'no class'} too: give the number of the "
                f"class, {net.class_of(word)}"
            )
        return words[word]

    def told(self) -> dict[str, Any]:
        """As the report and the identity of samples have them."""
        names = [*self._names, "none"]
        return {"labels": [names[n] for n in self._numbers] or None, "guidance": self._guidance}

    def extra(self, ids: Sequence[int]) -> dict[str, Tensor]:
        """The network's further input for images of these ids."""
        if not self._numbers:
            return {}
        numbers = [self._numbers[i % len(self._numbers)] for i in ids]
        return {"classes": torch.tensor(numbers, device=self._device)}


def _check(checkpoint: Path, config: Path | None, settings: dict[str, Any]) -> None:
    """Refuse what can be refused without the network, which may take long to read."""
    check_is_file(checkpoint_file(checkpoint))
    if config is not None:
        read_official_yaml(config)
    if settings.get("method") is not None:
        check_taken(settings["method"], _of_the_method(settings))
    spaced = {name: settings[name] for name in ("spacing", "rho") if settings.get(name) is not None}
    noise_levels((1.0, 0.5), **spaced)


def _check_pictures(out: Path) -> None:
    """Refuse to replace pictures of others: ours come after samples.npz."""
    for name in ("grid.png", "chain.gif"):
        if (out / name).exists() and not (out / "samples.npz").exists():
            raise ValueError(
                f"{out / name} is there already, and no samples.npz that it may be of: choose "
                "another --out"
            )


def _used(net: ScoreNetwork, sampler: Sampler, settings: dict[str, Any]) -> dict[str, Any]:
    """The method and its settings, by where they come from."""
    stored = net.sampling or {}
    method = settings.get("method") or stored.get("method", ANNEALED_LANGEVIN)
    return {
        "method": method,
        **used_settings(method, _of_the_method(settings), stored),
        "network_evaluations": len(sampler.table),
        "hold_noise": sampler.hold_noise,
    }


def _of_the_method(settings: dict[str, Any]) -> dict[str, Any]:
    """The keywords of the Sampler that are settings of its method."""
    return {k: v for k, v in settings.items() if k not in ("method", "hold_noise")}


def _told_settings(used: dict[str, Any]) -> str:
    told = {"the command": "given", "the checkpoint": "checkpoint"}
    words = [f"{in_words(used[key])} (from {who})" for who, key in told.items() if used[key]]
    labels, guidance = used["labels"], used["guidance"]
    of = "" if labels is None else f" of {', '.join(labels[:12])}{' …' if labels[12:] else ''}"
    of += "" if guidance is None else f", guided by {guidance:g},"
    return (
        f"Sampling{of} by {'; '.join([used['method'], *words])}: "
        f"{used['network_evaluations']:,} network evaluations an image"
    )


def _identity(
    seed: int, checkpoint: Path, net: ScoreNetwork, sampler: Sampler
) -> dict[str, int | str]:
    """What samples have to agree in to be of one set. Neither the device nor how many are made at
    once is in it: they change an image by rounding."""
    run = f"{sampler.table!r}{' held' if sampler.hold_noise else ''}"
    return {
        "seed": seed,
        "checkpoint": sha256_of(checkpoint_file(checkpoint)),
        "network": hashlib.sha256(repr((net.config, net.sigmas.tolist())).encode()).hexdigest(),
        "table": hashlib.sha256(run.encode()).hexdigest(),
        "precision": sampler.precision,
        "convolutions": sampler.convolutions,
    }


def _fill(
    store: SampleStore,
    sampler: Sampler,
    net: ScoreNetwork,
    classes: Classes,
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
                    extra=classes.extra(part.ids),
                    **begin,
                )
            except (SamplingError, SamplingInterrupted) as stop:
                store.add(stop.sample_ids, to_images(net, stop.samples))
                if isinstance(stop, SamplingError):
                    store.forget_chains()  # they would only break again
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


def _pictures(images: Tensor, out: Path, say: Callable[[str], None]) -> dict[str, Path]:
    files = {"samples": out / "samples.npz"}
    if images.ndim != 4:
        say("No pictures: the samples are points.")
        return files
    if images.shape[1] not in (1, 3):
        say(f"The pictures show the {images.shape[1]} channels side by side.")
    files["grid"] = out / "grid.png"
    plots.save_grid(files["grid"], plots.visible(images[:GRID_IMAGES]))
    return files


def _chain(
    out: Path,
    sampler: Sampler,
    net: ScoreNetwork,
    classes: Classes,
    ids: Sequence[int],
    seed: int,
    say: Callable[[str], None],
    progress: bool,
) -> Path:
    """The animation of the first chains, which are run again for it."""
    shown = ids[:CHAIN_IMAGES]
    every = max(1, len(sampler.table) // CHAIN_FRAMES)
    say(f"Running {len(shown)} of the chains again for the animation.")
    _, states = sampler(
        len(shown),
        seed=seed,
        sample_ids=shown,
        every=every,
        progress=progress,
        extra=classes.extra(shown),
    )
    frames = plots.visible(to_images(net, states).flatten(0, 1)).unflatten(0, states.shape[:2])
    plots.save_chain_gif(out / "chain.gif", frames, sampler.kept_sigmas(every))
    return out / "chain.gif"


__all__ = ["CHAIN_FRAMES", "CHAIN_IMAGES", "sample"]
