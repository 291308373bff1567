"""What every score network shares: noise levels, the score, the settings that rebuild it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ncsn_fast.methods.levels import check_sigmas
from ncsn_fast.reference import ACTIVATIONS, per_sample


def activation_name(name: str) -> str:
    """The activation called ``name`` in the official configurations, in lower case.

    Raises:
        ValueError: for a name that is not in ``ACTIVATIONS``.
    """
    lower = name.lower() if isinstance(name, str) else name
    if lower not in ACTIVATIONS:
        raise ValueError(f"unknown activation {name!r}: choose one of {', '.join(ACTIVATIONS)}")
    return lower


class ScoreNetwork(nn.Module, ABC):
    """A network s(x, σ_i) for all noise levels i.

    Attributes:
        sigmas: (L,) float32 buffer, descending; float32 whatever precision the weights have.
        sampling: settings that suit these weights, or None: a dict with the keys ``method``,
            ``step_size``, ``steps_per_level`` and ``denoise``.
        source: where the weights were loaded from, in words, or None.
        sees_sigma: True where the body depends on the noise level.
        keeps_sigmas: whether the state_dict of such a network holds its noise levels.
    """

    sees_sigma: bool = False
    keeps_sigmas: bool = True
    sigmas: Tensor
    sampling: dict[str, Any] | None
    source: str | None

    def __init__(self, sigmas: Tensor | np.ndarray | Sequence[float]) -> None:
        super().__init__()
        with torch.device("cpu"):  # real values even while the network is built on "meta"
            levels = check_sigmas(sigmas).clone()
        self.register_buffer("sigmas", levels, persistent=self.keeps_sigmas)
        self.sampling = None
        self.source = None

    @property
    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Plain JSON values that rebuild the network (all but the noise levels and weights)."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample."""

    @abstractmethod
    def normalized(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """The normalised score σ·s(x, σ), of x's shape.

        Args:
            x: (N, *shape), in model space.
            labels: (N,) integers, 0 to L - 1; None where the body does not see the noise level.

        Raises:
            ValueError: for x or labels of another shape, and where labels are needed.
        """

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        """The score s(x, σ) = ∇ log p_σ(x), of x's shape.

        Args:
            x: (N, *shape), in model space.
            labels: (N,) integers, 0 to L - 1: the noise level of each sample.

        Raises:
            ValueError: for x or labels of another shape, or labels out of range.
        """
        n = self.normalized(x, labels)
        return n / self.level(labels, x)

    def level(self, labels: Tensor, x: Tensor) -> Tensor:
        """σ of each sample of x, float32, of shape (N, 1, …) to broadcast with x."""
        check_labels(labels, len(x), len(self.sigmas))
        return per_sample(self.sigmas[labels], x)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ScoreNetwork:
        before = self.sigmas
        super()._apply(fn, recurse)
        # σ = 0.01 has no exact half-precision value, and to_empty() would leave noise levels that
        # no state_dict restores: they keep their values and move only between devices.
        if not before.is_meta:
            self.sigmas = before.to(self.sigmas.device)
        return self


def check_labels(labels: Tensor, batch: int, num_levels: int) -> None:
    """Refuse labels that are not (batch,) integers from 0 to L - 1.

    Raises:
        ValueError: naming what was given. The values are checked on the CPU only: reading those on
            a device would stop the host until the device has caught up.
    """
    if labels.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"labels must be int64 or int32, got {labels.dtype}: use labels.long()")
    if labels.shape != (batch,):
        raise ValueError(f"labels must have shape ({batch},), got {tuple(labels.shape)}")
    if labels.device.type != "cpu" or torch.compiler.is_compiling() or labels.numel() == 0:
        return
    low, high = (int(v) for v in labels.aminmax())
    if low < 0 or high >= num_levels:
        raise ValueError(
            f"labels run from {low} to {high}, but the network has the {num_levels} noise levels "
            f"0 to {num_levels - 1}"
        )


class evaluating:
    """The network in evaluation mode while it samples, as it was afterwards."""

    def __init__(self, module: nn.Module | None) -> None:
        self._training = [] if module is None else [m for m in module.modules() if m.training]

    def __enter__(self) -> None:
        for module in self._training:
            module.training = False

    def __exit__(self, *_: object) -> None:
        for module in self._training:
            module.training = True


__all__ = ["ScoreNetwork", "activation_name", "check_labels", "evaluating"]
