"""Folders of earlier versions: samples.npz, part_*.npz and partial.safetensors, no manifest."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ncsn_fast.checkpoints.tensor_file import read_tensors
from ncsn_fast.runs.samples import shards
from ncsn_fast.runs.samples.manifest import Manifest, OtherSamplesError, check_identity
from ncsn_fast.runs.samples.stored import WHOLE, reading
from ncsn_fast.support.files import atomic_write

_log = logging.getLogger("ncsn_fast")
_PARTS, _CHAINS = "part_" + 6 * "[0-9]" + ".npz", "partial.safetensors"


def check_wish(folder: Path, wished: Mapping[str, Any]) -> None:
    """Refuse to go on in another form than that of samples that are there without a manifest.

    Raises:
        OtherSamplesError: naming it.
    """
    of_old = {"format": "npz", "dtype": "float32"}
    differ = [k for k, value in of_old.items() if wished.get(k) not in (None, value)]
    if differ and any(path.exists() for path in (folder / WHOLE, *folder.glob(_PARTS))):
        raise OtherSamplesError(
            f"{folder} holds samples that are stored otherwise ("
            f"{'; '.join(f'{k} is {of_old[k]} there, here {wished[k]}' for k in differ)}): leave "
            "that out, or choose another --out"
        )


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


__all__ = ["check_wish", "take_in"]
