"""The batches of a training run: which images, mirrored how, with which dequantisation noise.

Everything is a function of (seed, step): batch k is the same in a run that was resumed, and there
is no state of a loader to save.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sized
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ncsn_fast import noise
from ncsn_fast.data import data_transform, horizontal_flip
from ncsn_fast.models.base import ScoreNetwork, model_space


class Batches:
    """An endless sequence of batches from a data set held on the network's device.

    Args:
        dataset: (N, *shape) float tensor of images in [0, 1] (or points), or a torch Dataset of
            such samples or of (sample, label) pairs, whose labels are ignored.
        net: the network whose model space the batches are in.
        batch_size: samples per step.
        seed: of order, flips and dequantisation.
        flip: mirror every image with probability one half.
        dequantize: None, "uniform" or "gaussian"; see :func:`ncsn_fast.data.data_transform`.

    Attributes:
        data: (N, *shape) float32.
        sha256: fingerprint of the data.

    Raises:
        ValueError: for data or settings that do not fit the network.
    """

    def __init__(
        self,
        dataset: Tensor | Dataset[Any],
        net: ScoreNetwork,
        *,
        batch_size: int,
        seed: int,
        flip: bool = False,
        dequantize: str | None = None,
    ) -> None:
        self.rescaled, self.logit = model_space(net)
        _check_settings(net, self.logit, flip, dequantize)
        data = _preload(dataset, net)
        self.sha256 = hashlib.sha256(data.cpu().contiguous().numpy().data).hexdigest()
        self.data = data.to(net.sigmas.device)
        self.batch_size, self.seed = batch_size, seed
        self.flip, self.dequantize = flip, dequantize
        self._order: tuple[int, Tensor] = (-1, torch.empty(0))

    def at(self, step: int) -> tuple[Tensor, Tensor]:
        """The samples of a step in model space, (B, *shape), and their positions (B,)."""
        ids = torch.arange(self.batch_size, device=self.data.device)
        positions = step * self.batch_size + torch.arange(self.batch_size, device="cpu")
        x = self.data[self.shuffled(positions).to(self.data.device)]
        if self.flip:
            # Step numbers from 2³¹ on, so that flips and epochs never share a draw.
            coins = noise.integers(
                2,
                seed=self.seed,
                stream=noise.SHUFFLE,
                sample_ids=ids,
                step=(1 << 31) + step,
            )
            x = horizontal_flip(x, coins.bool())
        drawn = None
        if self.dequantize is not None:
            draw = noise.normal if self.dequantize == "gaussian" else noise.uniform
            drawn = draw(
                x.shape[1:],
                seed=self.seed,
                stream=noise.DEQUANTIZE,
                sample_ids=ids,
                step=step,
            )
        x = data_transform(
            x,
            rescaled=self.rescaled,
            logit_transform=self.logit,
            dequantize=self.dequantize,
            noise=drawn,
        )
        return x, ids

    def shuffled(self, positions: Tensor) -> Tensor:
        """Indices into the data for positions in the endless sequence of shuffled epochs."""
        epochs, offsets = positions // len(self.data), positions % len(self.data)
        indices = torch.empty_like(positions)
        for epoch in epochs.unique().tolist():
            if self._order[0] != epoch:
                keys = noise.integers(
                    1 << 31,
                    seed=self.seed,
                    stream=noise.SHUFFLE,
                    sample_ids=range(len(self.data)),
                    step=epoch,
                )
                self._order = (epoch, torch.argsort(keys, stable=True))
            inside = epochs == epoch
            indices[inside] = self._order[1][offsets[inside]]
        return indices


def _check_settings(net: ScoreNetwork, logit: bool, flip: bool, dequantize: str | None) -> None:
    """Refuse now what would fail at the first step."""
    if flip and len(net.shape) != 3:
        raise ValueError("flip mirrors images: points have no left and right")
    if dequantize not in (None, "uniform", "gaussian"):
        raise ValueError(f"dequantize = {dequantize!r}: choose 'uniform', 'gaussian' or None")
    if logit and dequantize == "gaussian":
        raise ValueError(
            "gaussian dequantisation leaves [0, 1], where the logit is undefined: use 'uniform'"
        )


def _preload(dataset: Tensor | Dataset[Any], net: ScoreNetwork) -> Tensor:
    """The whole data set as one float32 tensor that fits the network."""
    if not isinstance(dataset, Tensor):
        if not isinstance(dataset, Sized):
            raise ValueError("the data set has no length: give a tensor or a map-style Dataset")
        items = (dataset[i] for i in range(len(dataset)))
        samples = [item[0] if isinstance(item, tuple | list) else item for item in items]
        strange = next((s for s in samples if not isinstance(s, Tensor)), None)
        if strange is not None:
            raise ValueError(
                f"the data set gives {type(strange).__name__}, needed are tensors in [0, 1] (for "
                "images of PIL: torchvision.transforms.ToTensor())"
            )
        dataset = torch.stack(samples)
    if not dataset.is_floating_point() or tuple(dataset.shape[1:]) != net.shape:
        raise ValueError(
            f"the data are {dataset.dtype} of shape {tuple(dataset.shape)}; the network takes "
            f"floating-point samples of shape {net.shape}"
        )
    if len(dataset) == 0:
        raise ValueError("the data set is empty")
    if not bool(torch.isfinite(dataset).all()):
        raise ValueError("the data hold values that are not finite: clean them first")
    images = len(net.shape) == 3
    if images and not (float(dataset.min()) >= 0 and float(dataset.max()) <= 1):
        raise ValueError(
            f"the images lie in [{float(dataset.min()):g}, {float(dataset.max()):g}]: give them "
            "in [0, 1] (divide 8-bit images by 255); transforms of the network are applied later"
        )
    return dataset.float()


__all__ = ["Batches"]
