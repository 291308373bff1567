"""A sampling run in a folder, of one process or many: what ``ncsn-fast sample`` does."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from ncsn_fast.checkpoints.load_save import checkpoint_file, load_checkpoint
from ncsn_fast.checkpoints.official_yaml import read_official_yaml
from ncsn_fast.checkpoints.tensor_file import check_is_file
from ncsn_fast.data.pixels import unit_interval
from ncsn_fast.distributed.ranks import ALONE, Ranks
from ncsn_fast.methods.by_name import ANNEALED_LANGEVIN, check_taken, used_settings
from ncsn_fast.methods.spacings import noise_levels
from ncsn_fast.models.base import ScoreNetwork
from ncsn_fast.models.space import NOISY, Space, to_images
from ncsn_fast.pictures import images as plots
from ncsn_fast.pictures.chain import FORMATS as ANIMATIONS
from ncsn_fast.pictures.chain import check_chain_path, save_chain
from ncsn_fast.runs.report import in_words, machine_facts, network_facts, told
from ncsn_fast.runs.samples.classes import Classes
from ncsn_fast.runs.samples.facts import about, command_words, identity_of, other_machine
from ncsn_fast.runs.samples.manifest import NAME as MANIFEST
from ncsn_fast.runs.samples.ranges import number
from ncsn_fast.runs.samples.shards import FOLDER
from ncsn_fast.runs.samples.store import SampleStore
from ncsn_fast.runs.samples.stored import WHOLE
from ncsn_fast.runs.samples.under_way import Part, Shard
from ncsn_fast.sampling.divergence import SamplingError
from ncsn_fast.sampling.sampler import Sampler
from ncsn_fast.support.files import (
    check_writable,
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
    batch_size: int | None,
    layout: Mapping[str, Any] = MappingProxyType({}),
    place: Ranks = ALONE,
    part_only: bool = False,
    animate: str | None,
    device: str,
    say: Callable[[str], None],
    progress: bool,
) -> dict[str, Any]:
    """Sample from a checkpoint into a folder; what the folder has already is not made again, and
    what other processes are making there neither.

    Args:
        checkpoint: what nf.load_checkpoint takes.
        out: folder for manifest.json, grid.png, and samples.npz (images float32 (N, C, H, W) in
            [0, 1], sample_ids, settings), or, where there are many, shards/.
        ids: which samples of the seed: neighbours.
        settings: keywords of the Sampler: the method and its settings, None where not given.
        labels: classes by name or number, "none" for none of them, "all" for each: image i is of
            entry i modulo their number. Nothing: "all", where the network knows classes.
        guidance: the scale of classifier-free guidance towards them; None and 1: as trained.
        config: the official YAML of the checkpoint.
        batch_size: how many are computed at once; None: as in the folder, or as is best.
        layout: how they are stored: format, dtype and shard of :class:`Layout`; None or left out:
            as in the folder, or as usual.
        place: which process of how many this is: which shards it begins with.
        part_only: make no other shards than these.
        animate: also write the first chains as an animation, chain.gif, chain.webp or chain.mp4:
            its ending.

    Returns:
        The report, as docs/use.md describes it; its files are paths.

    Raises:
        ValueError, OSError: for settings that cannot be had, a folder that holds something else or
            cannot be written, and a disk without room; as far as can be before the network is read.
        SamplingInterrupted: on Ctrl-C; what is done is saved.
    """
    _check(checkpoint, config, settings)
    if animate is not None:
        check_chain_path(out / f"chain.{animate}")
    overrides: dict[str, Any] = {} if image_size is None else {"image_size": image_size}
    with folder_lock(out, "choose another --out", shared=True):
        check_writable(out / MANIFEST)
        _check_pictures(out)
        net = load_checkpoint(checkpoint, config=config, device=device, **overrides)
        classes = Classes(net, labels, guidance)
        sampler = Sampler(classes.score, **settings)
        facts, used = network_facts(net), _used(net, sampler, settings) | classes.told()
        say(f"{told(facts)}\n{_told_settings(used, ids)}")
        identity = identity_of(seed, checkpoint, net, sampler) | classes.told()
        machine = machine_facts(sampler.device)
        options = {"config": config, "image_size": image_size, **settings}
        command = command_words(checkpoint, seed, classes.words, guidance, **options)
        store = SampleStore(
            out,
            identity,
            (ids[0], ids[-1] + 1),
            net.shape,
            {**layout, "chunk": batch_size},
            sampler.chunk_size,
            about(used, machine, command),
            set(sampler.table.resumptions),
            classes.numbers,
        )
        _tell_of_before(store, len(ids), out, machine, say)
        started = time.monotonic()
        with store.kept():  # also where a killed process had made all of them
            made = _fill(store, place, part_only, sampler, net, classes, seed, say, progress)
        seconds = time.monotonic() - started
        files = {"manifest": out / MANIFEST}
        # Of the processes of torchrun one is enough; of the parts of a job any may be the last.
        with store.finished(wait=place.is_first or part_only) as whole:
            files |= _pictures(store, ids, out, whole, say)
        if animate is not None and "grid" in files and (place.is_first or part_only):
            frames, sigmas = _chain(sampler, net, classes, ids, seed, say, progress)
            files["chain"] = out / f"chain.{animate}"
            with store.alone():
                save_chain(files["chain"], frames, sigmas)
    return {
        "checkpoint": {"file": checkpoint_file(checkpoint), "sha256": identity["checkpoint"]}
        | facts,
        "settings": used,
        "seed": seed,
        "sample_ids": {"first": ids[0], "number": len(ids), "made_now": made},
        "layout": asdict(store.manifest.layout),
        "files": files,
        "seconds": round(seconds, 3),
        "samples_per_second": round(made / seconds, 3) if made else None,
        "precision": identity["precision"],
        "convolutions": identity["convolutions"],
        **machine,
    }


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
    """Refuse to replace pictures of others: ours come after the samples."""
    for name in ("grid.png", *(f"chain.{ending}" for ending in ANIMATIONS)):
        if (out / name).exists() and not any((out / own).exists() for own in (MANIFEST, WHOLE)):
            raise ValueError(
                f"{out / name} is there already, and no {MANIFEST} of what it may be: choose "
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


def _told_settings(used: dict[str, Any], ids: Sequence[int]) -> str:
    told = {"the command": "given", "the checkpoint": "checkpoint"}
    words = [f"{in_words(used[key])} (from {who})" for who, key in told.items() if used[key]]
    labels, guidance = used["labels"], used["guidance"]
    shown = [labels[i % len(labels)] for i in ids[: len(labels)]] if labels else []
    of = f" of {', '.join(shown[:12])}{' …' if shown[12:] else ''}" if shown else ""
    of += "" if guidance is None else f", guided by {guidance:g},"
    return (
        f"Sampling{of} by {'; '.join([used['method'], *words])}: "
        f"{used['network_evaluations']:,} network evaluations an image"
    )


def _tell_of_before(
    store: SampleStore, wanted: int, out: Path, machine: dict[str, Any], say: Callable[[str], None]
) -> None:
    there, begun = wanted - number(store.missing()), store.is_begun()
    if there or begun:
        more = ", others are begun" if begun else ""
        say(f"{there:,} of {wanted:,} samples are in {out} already{more}.")
    if differing := other_machine(store.manifest.about, machine):
        say(f"They were begun elsewhere ({differing}), by which images may differ by rounding.")


def _fill(
    store: SampleStore,
    place: Ranks,
    part_only: bool,
    sampler: Sampler,
    net: ScoreNetwork,
    classes: Classes,
    seed: int,
    say: Callable[[str], None],
    progress: bool,
) -> int:
    """Make the shards that are missing and that nobody else makes; how many samples that were."""
    rows, wanted, made = len(sampler.table), number(store.missing()), 0
    noisy = torch.zeros((), dtype=torch.int64, device=sampler.device)  # read when all are made
    with Progress(progress, rows * wanted) as bar:
        for shard in store.shards(place, part_only=part_only):
            others = wanted - number(store.unmade())
            if shard.done:
                bar.found(rows * shard.done)
            while not shard.is_done:
                part = shard.part()
                done = rows * (others + shard.done)
                try:
                    states = _run(store, shard, part, sampler, classes, seed, bar, done)
                except SamplingError:
                    shard.chain = None  # it would only break again
                    raise
                store.add(shard, to_images(net, states))
                made += len(part.ids)
                if len(net.shape) == 3:
                    noisy += (Space.of(net).beyond(states) > NOISY).sum()
    if noisy:
        say(
            f"{int(noisy):,} of these {made:,} images are noisy or burnt out, as they leave the "
            "range of images: take more steps, or guide less."
        )
    return made


def _run(
    store: SampleStore,
    shard: Shard,
    part: Part,
    sampler: Sampler,
    classes: Classes,
    seed: int,
    bar: Progress,
    done: int,
) -> Tensor:
    """The states (N, *shape) in which the chains of a part end."""
    begin: dict[str, Any] = {}
    if part.states is not None:
        begin = {"initial": part.states.to(sampler.device), "start_level": part.level}
        before = sampler.table.start_row(part.level) * len(part.ids)
        bar.found(before)
        done += before
    # What needs no history can be taken up again exactly: the noise is a function of the row.
    # (Where no row has a level, or all need a history, what was interrupted begins again.)
    level_at = {row: level for level, row in sampler.table.resumptions.items() if row and level}

    def keep(row: int, x: Tensor, n: Tensor) -> None:
        # A chunk that did not fit in memory was halved: its parts are not kept.
        if row in level_at and len(x) == len(part.ids):
            store.keep(shard, x, level_at[row])

    return sampler(
        len(part.ids),
        seed=seed,
        sample_ids=part.ids,
        batch_size=len(part.ids),
        callback=keep,
        progress=lambda now, _: bar.back_to(done + now),
        extra=classes.extra(part.ids),
        **begin,
    )


def _pictures(
    store: SampleStore, ids: Sequence[int], out: Path, all_there: bool, say: Callable[[str], None]
) -> dict[str, Path]:
    """Where the samples are, and a picture of the first, where all are there."""
    whole = store.stored.whole
    files = {"samples": whole} if whole.exists() else {}
    files |= {"shards": out / FOLDER} if (out / FOLDER).exists() else {}
    if not all_there:
        left = number(store.missing())
        say(f"{left:,} samples are missing: other processes make them, or this command again.")
        return files
    shape = store.manifest.layout.shape
    if len(shape) != 3:
        say("No pictures: the samples are points.")
        return files
    if shape[0] not in (1, 3):
        say(f"The pictures show the {shape[0]} channels side by side.")
    images = store.stored.images(ids[:GRID_IMAGES])
    if images.dtype == torch.uint8:
        images = unit_interval(images)
    files["grid"] = out / "grid.png"
    plots.save_grid(files["grid"], plots.visible(images))
    return files


def _chain(
    sampler: Sampler,
    net: ScoreNetwork,
    classes: Classes,
    ids: Sequence[int],
    seed: int,
    say: Callable[[str], None],
    progress: bool,
) -> tuple[Tensor, list[float]]:
    """The first chains, which are run again, as frames of images, and the noise level of each."""
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
    return frames, sampler.kept_sigmas(every)


__all__ = ["ANIMATIONS", "CHAIN_FRAMES", "CHAIN_IMAGES", "sample"]
