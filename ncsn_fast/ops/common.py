"""What the memory-bound passes of a network share: checks and layouts."""

from __future__ import annotations

import torch
from torch import Tensor

from ncsn_fast.device import backends
from ncsn_fast.device.backends import NETWORK_TYPES
from ncsn_fast.device.memory_format import is_channels_last
from ncsn_fast.reference import ACTIVATIONS

_MOST_ELEMENTS = (1 << 31) - (1 << 16)  # of one image; see kernels/triton/common/rows.py


def check_activation(activation: str | None) -> None:
    """Refuse an activation that networks do not have."""
    if activation is not None and activation not in ACTIVATIONS:
        raise ValueError(f"activation {activation!r} is unknown; choose one of {list(ACTIVATIONS)}")


def check_images(name: str, x: Tensor) -> None:
    """Refuse what is not a batch of images."""
    if x.ndim != 4:
        raise ValueError(f"{name} has shape {tuple(x.shape)}: needed is (N, C, H, W)")


def check_kind(name: str, tensor: Tensor, x: Tensor) -> None:
    """Refuse a tensor of another dtype or device than x."""
    if tensor.dtype != x.dtype or tensor.device != x.device:
        raise ValueError(
            f"{name} is {tensor.dtype} on {tensor.device}, x {x.dtype} on {x.device}: "
            "dtype and device have to agree"
        )


def check_bias(bias: Tensor | None, x: Tensor) -> None:
    """Refuse what is no bias of a convolution whose result is x."""
    if bias is not None and (bias.shape != x.shape[1:2] or bias.device != x.device):
        raise ValueError(
            f"bias is {tuple(bias.shape)} on {bias.device}, x {tuple(x.shape)} on {x.device}: "
            "needed is a value per channel, beside it"
        )


def biased(x: Tensor, bias: Tensor | None) -> Tensor:
    """x (N, C, H, W) + a bias (C,), in x's type, where a kernel does not add it on its way."""
    return x if bias is None else (x + bias[:, None, None]).to(x.dtype)


def wants_gradient(*tensors: Tensor | None) -> bool:
    """Whether autograd keeps track of any of them."""
    given = [tensor for tensor in tensors if tensor is not None]
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given)


def obstacle(x: Tensor) -> str | None:
    """Why no kernel can take x, or None where one can."""
    if x.dtype not in NETWORK_TYPES:
        return f"kernels take float32, float16 and bfloat16, this is {x.dtype}"
    return backends.general_obstacle(x)


def image_obstacle(x: Tensor) -> str | None:
    """Why no kernel that looks at neighbouring pixels can take x, or None where one can."""
    if (elements := x.shape[1:].numel()) >= _MOST_ELEMENTS:
        return f"an image of {elements} elements; these kernels take less than {_MOST_ELEMENTS}"
    return obstacle(x)


def laid_out_like(x: Tensor, tensor: Tensor) -> Tensor:
    """The tensor in the memory format of x, which is dense; a copy only where it needs one."""
    layout = torch.channels_last if is_channels_last(x) else torch.contiguous_format
    return tensor.contiguous(memory_format=layout)


__all__ = [
    "biased",
    "check_activation",
    "check_bias",
    "check_images",
    "check_kind",
    "image_obstacle",
    "laid_out_like",
    "obstacle",
    "wants_gradient",
]
