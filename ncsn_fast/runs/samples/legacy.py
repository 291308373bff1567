"""Folders of earlier versions: samples.npz, part_*.npz and partial.safetensors, no manifest."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ncsn_fast.checkpoints.tensor_file import read_tensors
from ncsn_fast.runs.samples import shards
from ncsn_fast.runs.samples.manifest import (
    DTYPES,
    FORMATS,
    Manifest,
    OtherSamplesError,
    check_identity,
)
from ncsn_fast.runs.samples.stored import WHOLE, reading
from ncsn_fast.support.array_parsers import open_npz
from ncsn_fast.support.files import atomic_write

_log = logging.getLogger("ncsn_fast")
_PARTS, _CHAINS = "part_" + 6 * "[0-9]" + ".npz", "partial.safetensors"


def wish(folder: Path, wished: Mapping[str, Any]) -> dict[str, Any]:
    """How to go on with samples that are there without a manifest, which may have been lost.

    Raises:
        OtherSamplesError: where another form is wished.
        ValueError: for a samples.npz that is damaged.
    """
    there = _form(folder)
    differ = [k for k, value in there.items() if wished.get(k) not in (None, value)]
    if differ:
        raise OtherSamplesError(
            f"{folder} holds samples that are stored otherwise ("
            f"{'; '.join(f'{k} is {there[k]} there, here {wished[k]}' for k in differ)}): leave "
            "that out, or choose another --out"
        )
    return {**wished, **there}


def _form(folder: Path) -> dict[str, str]:
    """The format and dtype of what is there; nothing where there is nothing."""
    for format_ in FORMATS:
        files = [*shards.present(folder, format_).values()]
        if format_ == "npz":
            files += [path for path in (folder / WHOLE, *folder.glob(_PARTS)) if path.exists()]
        if files and format_ != "npz":
            return {"format": format_, "dtype": "uint8"}
        if files:
            with reading(files[0]), open_npz(files[0]) as stored:
                dtype = str(stored["images"].dtype)
            return {"format": format_} | ({"dtype": dtype} if dtype in DTYPES else {})
    return {}


def take_in(folder: Path, manifest: Manifest) -> None:
    """Put the parts that a killed process left into samples.npz. Its chains begin again.

    Raises:
        ValueError: for files that are damaged, or of other settings.
    """
    parts, chains = sorted(folder.glob(_PARTS)), folder / _CHAINS
    if parts:
        images: dict[int, np.ndarray] = {}
        whole = folder / WHOLE
        for path in ([whole] if whole.exists() else []) + parts:
            with reading(path):
                images.update(zip(*shards.read_npz(path, manifest), strict=True))
        ids = np.sort(np.fromiter(images, np.int64))
        with atomic_write(whole) as temporary:
            shards.write_npz(temporary, ids, np.stack([images[i] for i in ids]), manifest.identity)
        for path in parts:
            path.unlink()
    if chains.exists():
        with reading(chains):
            check_identity(chains, read_tensors(chains)[1]["identity"], manifest.identity)
        _log.warning("%s is of an earlier version: its chains begin again", chains)
        chains.unlink()


__all__ = ["take_in", "wish"]
