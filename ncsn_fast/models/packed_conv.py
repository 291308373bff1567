"""Convolutions whose weights are packed for the CPU once, instead of at every call.

oneDNN reads weights in an order of its own, which depends on the CPU; PyTorch's convolution brings
them into it each time. The packed copy is beside the weight, from which it is made.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ncsn_fast.device import backends


class PackedConv(nn.Conv2d):
    """A convolution that runs on packed weights where it can.

    It cannot on other devices than the CPU, without oneDNN, and where autograd or torch.compile
    watches: those see PyTorch's convolution of ``weight``.
    """

    packed: Tensor | None = None

    def pack(self) -> None:
        """Pack the weight as it is now; whoever changes it has to call this again."""
        packed = None
        if _can_pack(self.weight):
            packed = torch._C._nn.mkldnn_reorder_conv2d_weight(
                self.weight.detach().to_mkldnn(), *self._geometry()
            )
        self.packed = packed  # at once: another thread may be computing

    def forward(self, x: Tensor) -> Tensor:
        """The convolution of x (N, C, H, W)."""
        packed = self.packed
        if packed is None or not backends.unwatched(x):
            return super().forward(x)
        return torch.ops.mkldnn._convolution_pointwise(
            x, packed, self.bias, *self._geometry(), "none", [], ""
        )

    def takes_along(self, x: Tensor, residual: Tensor) -> bool:
        """Whether :meth:`plus` can run: forward would use packed weights, the kinds agree."""
        return (
            self.packed is not None
            and residual.dtype == x.dtype
            and residual.is_contiguous(memory_format=torch.channels_last)
            and backends.unwatched(x, residual)
        )

    def plus(self, x: Tensor, residual: Tensor, *, overwrite: bool) -> Tensor:
        """The convolution of x plus a residual, rounded once, without a pass for the addition.

        Args:
            x: (N, C, H, W), for which :meth:`takes_along` holds.
            residual: of the result's shape.
            overwrite: write the result over the residual, which makes the addition free.
        """
        weights = self.packed, self.bias, *self._geometry(), "add", 1.0, None, [], None
        if overwrite:
            return torch.ops.mkldnn._convolution_pointwise_.binary(residual, x, *weights)
        return torch.ops.mkldnn._convolution_pointwise.binary(x, residual, *weights)

    def __getstate__(self) -> dict[str, Any]:
        # What is packed can be neither copied nor saved, and is for this CPU.
        return {**self.__dict__, "packed": self.packed is not None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        packed = state.pop("packed", False)
        super().__setstate__(state)
        if packed:
            self.pack()

    def _geometry(self) -> tuple[Any, ...]:
        return self.padding, self.stride, self.dilation, self.groups


def _can_pack(weight: Tensor) -> bool:
    """Whether this PyTorch on this CPU has packed convolutions in the weight's type."""
    if weight.device.type != "cpu" or not torch._C._get_mkldnn_enabled():
        return False
    if not hasattr(torch.ops.mkldnn, "_convolution_pointwise"):  # a build without oneDNN
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32


__all__ = ["PackedConv"]
