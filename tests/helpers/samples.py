"""Samples in a folder, made by no network: what the tests of their store and its commands share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ncsn_fast.distributed.ranks import ALONE, Ranks
from ncsn_fast.runs.samples.ranges import Range
from ncsn_fast.runs.samples.store import SampleStore
from ncsn_fast.runs.samples.under_way import Shard

IDENTITY: dict[str, Any] = {"seed": 0}
SHAPE, LEVELS = (1, 2, 2), (0, 2, 5)


def store_in(
    folder: Path,
    ids: Range = (0, 10),
    identity: dict[str, Any] = IDENTITY,
    shape: tuple[int, ...] = SHAPE,
    **wished: Any,
) -> SampleStore:
    """A store of shards of 4 and chunks of 2, where nothing else is wished."""
    folder.mkdir(exist_ok=True)
    return SampleStore(
        folder,
        identity,
        ids,
        shape,
        {"shard": 4, **wished},
        lambda shard: min(2, shard),
        {"command": ["ncsn-fast", "sample", "net"]},
        LEVELS,
        lambda ids: [i % 3 for i in ids],
    )


def images_of(ids: Sequence[int], shape: tuple[int, ...] = SHAPE) -> Tensor:
    """Of each id an image of its own, in steps of 1/255, so that it is the same as uint8."""
    return torch.stack([torch.full(shape, i % 256 / 255) for i in ids])


def fill(store: SampleStore, shard: Shard) -> None:
    """Make what is missing of a shard."""
    while not shard.is_done:
        store.add(shard, images_of(shard.part().ids, store.manifest.layout.shape))


def filled(store: SampleStore, place: Ranks = ALONE, *, part_only: bool = False) -> list[Range]:
    """Make all that is missing; the ranges in which that was done."""
    made = []
    with store.kept():
        for shard in store.shards(place, part_only=part_only):
            made.append(shard.ids)
            fill(store, shard)
    return made


def finish(store: SampleStore) -> bool:
    with store.finished() as whole:
        return whole


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(paths)}
