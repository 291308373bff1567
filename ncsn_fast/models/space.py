"""Between images in [0, 1] and a network's model space, and back; flips; 8-bit pixels.

Nothing here draws random numbers: dequantisation noise and flips come in as arguments, from
``ncsn_fast.noise``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ncsn_fast.models.base import ScoreNetwork

_LOGIT_MARGIN = 1e-6


_GAUSSIAN_DEQUANTIZATION_STD = 0.01


def data_transform(
    x: Tensor,
    *,
    rescaled: bool = False,
    logit_transform: bool = False,
    dequantize: str | None = None,
    noise: Tensor | None = None,
) -> Tensor:
    """Map images to model space: dequantise, then optionally rescale or take the logit.

    - uniform dequantisation: x·255/256 + u/256, u ~ U[0, 1) (NCSN 2019 always does it);
      Gaussian: x + 0.01·z, z ~ N(0, I), which may leave [0, 1];
    - ``rescaled``: 2x - 1;
    - ``logit_transform``: ln(y / (1 - y)) of y = λ + (1 - 2λ)x with λ = 1e-6.

    Args:
        x: images with values in [0, 1], floating point, any shape.
        rescaled, logit_transform: settings of the network; at most one of them.
        dequantize: None, "uniform" or "gaussian".
        noise: u or z, of x's shape and device; required by ``dequantize`` and only then allowed.

    Returns:
        A tensor of x's shape and dtype.

    Raises:
        ValueError: for settings that exclude each other, missing or ill-shaped noise, or a data
            type too coarse for the logit.
    """
    _check_transform(x, rescaled, logit_transform)
    x = x if dequantize is None and noise is None else _dequantize(x, dequantize, noise)
    if logit_transform:
        if dequantize == "gaussian":
            raise ValueError(
                "gaussian dequantisation leaves [0, 1], where the logit is undefined: "
                "use dequantize='uniform' with logit_transform"
            )
        return torch.logit(_LOGIT_MARGIN + (1 - 2 * _LOGIT_MARGIN) * x)
    return 2 * x - 1 if rescaled else x


def inverse_data_transform(
    x: Tensor, *, rescaled: bool = False, logit_transform: bool = False
) -> Tensor:
    """Map model space to images: undo ``data_transform`` and clamp to [0, 1].

    As published, the logit is undone by the sigmoid alone, which leaves λ(1 - 2x), at most 1e-6,
    in place; dequantisation is not undone.

    Args:
        x: states in model space, floating point, any shape.
        rescaled, logit_transform: settings of the network; at most one of them.

    Returns:
        A tensor of x's shape and dtype, in [0, 1] (NaN stays NaN).

    Raises:
        ValueError: if both settings are given, x is not floating point, or its type is too coarse.
    """
    _check_transform(x, rescaled, logit_transform)
    if logit_transform:
        x = torch.sigmoid(x)
    elif rescaled:
        x = (x + 1) / 2
    return x.clamp(0, 1)


def _check_transform(x: Tensor, rescaled: bool, logit_transform: bool) -> None:
    if not x.is_floating_point():
        raise ValueError(
            f"x has dtype {x.dtype}: give floating-point images in [0, 1], e.g. x.float() / 255"
        )
    if rescaled and logit_transform:
        # The published code rescales on the way in and applies the sigmoid on the way out.
        raise ValueError("rescaled and logit_transform exclude each other: set at most one")
    if logit_transform and x.dtype not in (torch.float32, torch.float64):
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


def model_space(net: ScoreNetwork) -> tuple[bool, bool]:
    """(rescaled, logit_transform): how the space a network works in differs from [0, 1]."""
    return bool(net.config.get("rescaled")), bool(net.config.get("logit_transform"))


def to_images(net: ScoreNetwork, states: Tensor) -> Tensor:
    """Model-space states of a network as images in [0, 1]; points in the plane stay as they are."""
    if len(net.shape) != 3:
        return states
    rescaled, logit = model_space(net)
    return inverse_data_transform(states, rescaled=rescaled, logit_transform=logit)


__all__ = ["data_transform", "inverse_data_transform", "model_space", "to_images"]
