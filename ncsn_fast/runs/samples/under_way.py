"""A shard under way: its finished images, the chains after them, and what is saved of both."""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ncsn_fast.checkpoints.tensor_file import read_tensors, write_tensors
from ncsn_fast.runs.samples.manifest import Layout, Manifest, check_identity
from ncsn_fast.runs.samples.ranges import Range
from ncsn_fast.runs.samples.shards import check_images
from ncsn_fast.runs.samples.stored import reading
from ncsn_fast.support.parsers import shown


class Part(NamedTuple):
    """Samples to be made together: from the start, or from these states at this noise level."""

    ids: range
    states: Tensor | None = None
    level: int = 0


class Shard:
    """A range of ids that this process has taken.

    Attributes:
        images: (N, *shape), of which the first ``copied`` are there, and ``done`` are finished.
        saved: how many are in a file.
        chain: the noise level that the chains after these are about to begin, and their states.
        lock: what the process has it by.
    """

    def __init__(self, ids: Range, layout: Layout) -> None:
        self.ids, self.done, self.copied, self.saved = ids, 0, 0, 0
        self.images = np.empty((ids[1] - ids[0], *layout.shape), layout.dtype)
        self.chain: tuple[int, Tensor] | None = None
        self.lock = contextlib.ExitStack()
        self._chunk = layout.chunk

    @property
    def is_done(self) -> bool:
        return self.done == len(self.images)

    def part(self) -> Part:
        """What is to be made next."""
        first = self.ids[0] + self.done
        ids = range(first, min(first + self._chunk, self.ids[1]))
        return Part(ids) if self.chain is None else Part(ids, self.chain[1], self.chain[0])

    def save(self, path: Path, manifest: Manifest) -> None:
        """Write what there is of it, where something is new.

        Raises:
            OSError, ValueError: where it cannot be written.
        """
        if self.copied == self.saved and self.chain is None:
            return
        tensors, level = {"images": torch.from_numpy(self.images[: self.copied])}, None
        if self.chain is not None and self.copied == self.done:
            level, tensors["states"] = self.chain
        told = {"identity": manifest.identity, "ids": list(self.ids), "level": level}
        write_tensors(path, tensors, told | {"chunk": manifest.layout.chunk})
        self.saved = self.copied

    def take_up(self, path: Path, manifest: Manifest, levels: Collection[int]) -> None:
        """Go on with what a process before has saved of it, if there is a file.

        Args:
            levels: the noise levels at which a chain can be taken up.

        Raises:
            ValueError: for a file that is damaged, or of other contents.
        """
        if not path.exists():
            return
        layout = manifest.layout
        with reading(path):
            tensors, metadata = read_tensors(path)
            check_identity(path, metadata["identity"], manifest.identity)
            if metadata["ids"] != list(self.ids) or metadata["chunk"] != layout.chunk:
                raise ValueError("it is of other ids or chunks")
            images, level = tensors["images"].numpy(), metadata["level"]
            done = len(images)
            check_images(images, done, layout.shape, layout.dtype)
            if done > len(self.images) or (done % layout.chunk and done < len(self.images)):
                raise ValueError(f"{done} samples are no whole chunks of it")
            self.images[:done] = images
            self.done = self.copied = self.saved = done
            if level is not None:
                states = tensors["states"]
                check_images(states.numpy(), len(self.part().ids), layout.shape, "float32")
                if type(level) is not int or level not in levels:
                    raise ValueError(f"no chain can be taken up at level {shown(level)}")
                self.chain = level, states


__all__ = ["Part", "Shard"]
