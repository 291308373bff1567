"""The batches of a training run: which images, mirrored how, with which dequantisation noise.

Everything is a function of (seed, step): batch k is the same in a run that was resumed, and there
is no state of a loader to save.
"""

from __future__ import annotations

import hashlib
import logging

import numpy as np
import torch
from torch import Tensor

from ncsn_fast import noise
from ncsn_fast.data.pixels import horizontal_flip, unit_interval
from ncsn_fast.data.samples import Data, fingerprint, open_samples, place, remarks
from ncsn_fast.models.base import ScoreNetwork
from ncsn_fast.models.space import Space

_log = logging.getLogger("ncsn_fast")


class Batches:
    """An endless sequence of batches of a data set, on the network's device.

    Args:
        dataset: (N, *shape) tensor or NumPy array, which may be memory-mapped, of images in [0, 1],
            of 8-bit images (uint8, 0 to 255) or of points; or a map-style torch Dataset of such
            samples, tensors or arrays, or of (sample, label) pairs, whose labels are ignored.
        net: the network whose model space the batches are in.
        batch_size: samples per step.
        seed: of order, flips and dequantisation.
        flip: mirror every image with probability one half.
        dequantize: None, "uniform" or "gaussian"; see :meth:`Space.enter`.
        classes: (N,) whole numbers, the class of each sample, where the network knows classes; as
            many as it knows for a sample of none.
        class_dropout: share of the samples of a batch, in [0, 1), whose class is left out.
        share: the places in each batch that are asked for; None: all of them.

    Attributes:
        data: the data where they are kept: a float32 or uint8 tensor (N, *shape), or the array or
            Dataset.
        placement: where that is, and why; see :func:`ncsn_fast.data.samples.place`.
        sha256: fingerprint of the data, the same wherever they are kept. Of a Dataset of more
            than 4 GiB only of its length, shape, data type and 64 samples evenly spread over it.

    Raises:
        ValueError: for data or settings that do not fit the network.
    """

    def __init__(
        self,
        dataset: Data,
        net: ScoreNetwork,
        *,
        batch_size: int,
        seed: int,
        flip: bool = False,
        dequantize: str | None = None,
        classes: Tensor | np.ndarray | None = None,
        class_dropout: float = 0.0,
        share: range | None = None,
    ) -> None:
        self._space = Space.of(net)
        _check_settings(net, self._space, flip, dequantize)
        self.device = net.sigmas.device
        given = open_samples(dataset, net.shape)
        self._samples, self.placement = place(given, self.device)
        self.sha256 = fingerprint(self._samples, whole=given.hashed_whole)
        for remark in remarks(self._samples):
            _log.warning("%s", remark)
        if 1 < len(given) < batch_size:
            _log.warning(
                "%d samples are fewer than batch_size = %d: a step takes some of them repeatedly",
                len(given),
                batch_size,
            )
        self.data = self._samples.data
        self.batch_size, self.seed = batch_size, seed
        share = range(batch_size) if share is None else share
        self._share = torch.arange(share.start, share.stop, device="cpu")
        self._ids = self._share.to(self.device)
        self.flip, self.dequantize = flip, dequantize
        self.classes = _checked_classes(classes, net, len(given))
        self.class_dropout, self._no_class = class_dropout, len(getattr(net, "classes", ()))
        self._order: tuple[int, Tensor] = (-1, torch.empty(0))

    @property
    def identity(self) -> dict[str, object]:
        """What has to agree for batches to be the same: of the data, and of their classes."""
        if self.classes is None:
            return {"data": self.sha256}
        classes = hashlib.sha256(self.classes.numpy().tobytes()).hexdigest()
        return {"data": self.sha256, "classes": classes, "class_dropout": self.class_dropout}

    def at(self, step: int) -> tuple[Tensor, Tensor]:
        """The samples of a step in model space, (n, *shape), and their places in its batch (n,)."""
        x, ids = self._on_device(self._samples.take(self._indices(step))), self._ids
        if self.flip:
            # Step numbers from 2³¹ on, so that flips and epochs never share a draw.
            coins = noise.integers(
                2, seed=self.seed, stream=noise.SHUFFLE, sample_ids=ids, step=(1 << 31) + step
            )
            x = horizontal_flip(x, coins.bool())
        drawn = None
        if self.dequantize is not None:
            draw = noise.normal if self.dequantize == "gaussian" else noise.uniform
            drawn = draw(
                x.shape[1:], seed=self.seed, stream=noise.DEQUANTIZE, sample_ids=ids, step=step
            )
        return self._space.enter(x, dequantize=self.dequantize, noise=drawn), ids

    def classes_at(self, step: int) -> Tensor | None:
        """The classes of the samples of a step, (n,) int64, some of them left out; None where the
        network knows none."""
        if self.classes is None:
            return None
        classes = self.classes[self._indices(step)].to(self.device, non_blocking=True)
        u = noise.uniform(
            (),
            seed=self.seed,
            stream=noise.CLASSES,
            sample_ids=self._ids,
            step=step,
        )
        return torch.where(u < self.class_dropout, self._no_class, classes)

    def _indices(self, step: int) -> Tensor:
        """The indices into the data of the samples of a step."""
        return self.shuffled(step * self.batch_size + self._share)

    def _on_device(self, samples: Tensor) -> Tensor:
        """As floats on the network's device; pixels travel as they are, four times smaller."""
        if self.device.type == "cuda" and samples.device.type == "cpu":
            samples = samples.pin_memory().to(self.device, non_blocking=True)
        else:
            samples = samples.to(self.device)
        return unit_interval(samples) if samples.dtype == torch.uint8 else samples

    def shuffled(self, positions: Tensor) -> Tensor:
        """Indices into the data for positions in the endless sequence of shuffled epochs."""
        epochs, offsets = positions // len(self._samples), positions % len(self._samples)
        indices = torch.empty_like(positions)
        for epoch in epochs.unique().tolist():
            if self._order[0] != epoch:
                keys = noise.integers(
                    1 << 31,
                    seed=self.seed,
                    stream=noise.SHUFFLE,
                    sample_ids=range(len(self._samples)),
                    step=epoch,
                )
                self._order = (epoch, torch.argsort(keys, stable=True))
            inside = epochs == epoch
            indices[inside] = self._order[1][offsets[inside]]
        return indices


def _checked_classes(
    classes: Tensor | np.ndarray | None, net: ScoreNetwork, number: int
) -> Tensor | None:
    """The class of each sample (N,) int64 on the CPU, or None where the network knows none."""
    known = getattr(net, "classes", ())
    if classes is None:
        if known:
            raise ValueError(
                f"the network knows {len(known)} classes: give classes, the class of each sample"
            )
        return None
    if not known:
        raise ValueError("classes are given, but the network knows none: NCSNv2(classes=...)")
    found = classes.detach().cpu().numpy() if isinstance(classes, Tensor) else np.asarray(classes)
    if found.dtype.kind not in "iu" or found.shape != (number,):
        raise ValueError(
            f"classes are {found.dtype} of shape {found.shape}: needed are {number:,} whole "
            "numbers, the class of each sample"
        )
    low, high = int(found.min()), int(found.max())
    if low < 0 or high > len(known):
        raise ValueError(
            f"classes run from {low} to {high}: the network knows 0 to {len(known) - 1}, and "
            f"{len(known)} says that a sample has none"
        )
    if low > 0 and high == len(known):
        _log.warning(
            "classes run from %d to %d, but the first one is 0, and %d says that a sample has "
            "none: were they counted from 1?",
            low,
            high,
            high,
        )
    return torch.from_numpy(found.astype(np.int64))


def _check_settings(net: ScoreNetwork, space: Space, flip: bool, dequantize: str | None) -> None:
    """Refuse now what would fail at the first step."""
    if flip and len(net.shape) != 3:
        raise ValueError("flip mirrors images: points have no left and right")
    if dequantize not in (None, "uniform", "gaussian"):
        raise ValueError(f"dequantize = {dequantize!r}: choose 'uniform', 'gaussian' or None")
    if space.logit_transform and dequantize == "gaussian":
        raise ValueError(
            "gaussian dequantisation leaves [0, 1], where the logit is undefined: use 'uniform'"
        )


__all__ = ["Batches"]
