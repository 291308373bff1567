"""Between images in [0, 1] and the space that a network works in, and back.

Nothing here draws random numbers: dequantisation noise comes in as an argument, from
``ncsn_fast.noise``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ncsn_fast.models.base import ScoreNetwork

NOISY = 0.005
_LOGIT_MARGIN = 1e-6
_GAUSSIAN_DEQUANTIZATION_STD = 0.01


@dataclass(frozen=True)
class Space:
    """A model space: what the states of a network are, seen from images in [0, 1].

    Attributes:
        rescaled: states are 2x - 1.
        logit_transform: states are ln(y / (1 - y)) of y = λ + (1 - 2λ)x with λ = 1e-6.

    With neither, states are images as they are.

    Raises:
        ValueError: for both.
    """

    rescaled: bool = False
    logit_transform: bool = False

    def __post_init__(self) -> None:
        if self.rescaled and self.logit_transform:
            # The published code rescales on the way in and applies the sigmoid on the way out.
            raise ValueError("rescaled and logit_transform exclude each other: set at most one")

    @classmethod
    def of(cls, net: ScoreNetwork) -> Space:
        """The space a network works in.

        Raises:
            ValueError: where the network's settings exclude each other.
        """
        return cls(bool(net.config.get("rescaled")), bool(net.config.get("logit_transform")))

    @property
    def plain(self) -> bool:
        """Whether states are images in [0, 1] as they are."""
        return not (self.rescaled or self.logit_transform)

    def enter(
        self, images: Tensor, *, dequantize: str | None = None, noise: Tensor | None = None
    ) -> Tensor:
        """States of images, which may be dequantised first.

        Uniform dequantisation is x·255/256 + u/256 with u ~ U[0, 1) (NCSN 2019 always does it);
        Gaussian is x + 0.01·z with z ~ N(0, I), which may leave [0, 1].

        Args:
            images: values in [0, 1], floating point, any shape.
            dequantize: None, "uniform" or "gaussian".
            noise: u or z, of the images' shape and device; required by ``dequantize`` and only
                then allowed.

        Returns:
            A tensor of the images' shape and dtype.

        Raises:
            ValueError: for missing or ill-shaped noise, Gaussian noise before a logit, or a data
                type that is not floating point or too coarse for the logit.
        """
        self._check_type(images)
        x = (
            images
            if dequantize is None and noise is None
            else _dequantize(images, dequantize, noise)
        )
        if self.logit_transform:
            if dequantize == "gaussian":
                raise ValueError(
                    "gaussian dequantisation leaves [0, 1], where the logit is undefined: "
                    "use dequantize='uniform' with logit_transform"
                )
            return torch.logit(_LOGIT_MARGIN + (1 - 2 * _LOGIT_MARGIN) * x)
        return 2 * x - 1 if self.rescaled else x

    def leave(self, states: Tensor) -> Tensor:
        """Images of states: ``enter`` undone, and clamped to [0, 1].

        As published, the logit is undone by the sigmoid alone, which leaves λ(1 - 2x), at most
        1e-6, in place; dequantisation is not undone.

        Args:
            states: floating point, any shape.

        Returns:
            A tensor of the states' shape and dtype, in [0, 1] (NaN stays NaN).

        Raises:
            ValueError: for a data type that is not floating point or too coarse for the logit.
        """
        self._check_type(states)
        if self.logit_transform:
            states = torch.sigmoid(states)
        elif self.rescaled:
            states = (states + 1) / 2
        return states.clamp(0, 1)

    def beyond(self, states: Tensor) -> Tensor:
        """(N,) mean squared distance from those of images in [0, 1], which differ by 1, of states
        (N, C, H, W). Above :data:`NOISY` noise can be seen, or the contrast is burnt out."""
        white, black = (float(self.enter(torch.tensor(value))) for value in (1.0, 0.0))
        distance = (states - self.enter(self.leave(states))) / (white - black)
        return distance.square().flatten(1).mean(1)

    def log_stretch(self, states: Tensor) -> Tensor:
        """ln |det ∂state/∂image| at states (N, *shape), floating point: (N,), of their dtype."""
        z = states.flatten(1)
        if self.logit_transform:  # of q = λ + (1 - 2λ)y, d logit(q)/dy = (1 - 2λ)/(q(1 - q))
            return (F.softplus(z) + F.softplus(-z) + math.log1p(-2 * _LOGIT_MARGIN)).sum(1)
        return z.new_full((len(z),), z.shape[1] * math.log(2) if self.rescaled else 0.0)

    def _check_type(self, x: Tensor) -> None:
        if not x.is_floating_point():
            raise ValueError(
                f"x has dtype {x.dtype}: give floating-point images in [0, 1], e.g. x.float() / 255"
            )
        if self.logit_transform and x.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"logit_transform needs float32 or float64, got {x.dtype}, which rounds "
                f"1 - {_LOGIT_MARGIN:g} to 1: call x.float() first"
            )


def _dequantize(x: Tensor, dequantize: str | None, noise: Tensor | None) -> Tensor:
    if dequantize not in ("uniform", "gaussian"):
        raise ValueError(
            f"dequantize is {dequantize!r}: choose 'uniform' or 'gaussian', "
            "or None and no noise to leave the images as they are"
        )
    if noise is None:
        raise ValueError(
            f"dequantize={dequantize!r} needs noise, a tensor of shape {tuple(x.shape)}: "
            f"e.g. ncsn_fast.noise.{'uniform' if dequantize == 'uniform' else 'normal'}"
        )
    if noise.shape != x.shape or noise.device != x.device:
        raise ValueError(
            f"noise is {tuple(noise.shape)} on {noise.device}, but x is {tuple(x.shape)} on "
            f"{x.device}: give one number for each value of x, on its device"
        )
    noise = noise.to(x.dtype)
    if dequantize == "uniform":
        return x * (255 / 256) + noise / 256
    return x + _GAUSSIAN_DEQUANTIZATION_STD * noise


def to_images(net: ScoreNetwork, states: Tensor) -> Tensor:
    """States of a network for people to look at.

    Args:
        net: the network they belong to.
        states: (..., *net.shape) in its model space, floating point.

    Returns:
        A tensor of the same shape: for a network of images these in [0, 1]; for a network of
        points in the plane the states themselves.
    """
    return Space.of(net).leave(states) if len(net.shape) == 3 else states


__all__ = ["Space", "to_images"]
