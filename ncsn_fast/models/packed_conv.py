"""Convolutions whose weights are made ready for the CPU once, instead of at every call.

What is made lies beside the weight, for each form that the convolution has run in: a form of
:mod:`ncsn_fast.models.conv_forms`, the fastest for the size of the images.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ncsn_fast.device import backends
from ncsn_fast.models import conv_forms
from ncsn_fast.models.conv_forms import DIRECT, Form, Geometry
from ncsn_fast.ops import conv3x3


class PackedConv(nn.Conv2d):
    """A convolution that runs on packed weights where it can.

    It cannot on other devices than the CPU, without oneDNN, and where autograd or torch.compile
    watches: those see PyTorch's convolution of ``weight``.

    Attributes:
        pooled: whether the 2×2 means of its result are taken.
        largest_tile: that it may be filtered in; larger ones round more.
        packed: the forms it has run in, by the side of their tiles; None where it cannot.
    """

    pooled: bool = False
    largest_tile: int = max(conv3x3.TILES)
    packed: dict[int, Form] | None = None
    _tiles: dict[tuple[int, ...], int]  # by the sides of the images

    def pack(self) -> None:
        """Pack the weight as it is now; whoever changes it has to call this again."""
        self._tiles = {}
        packed = None
        if _can_pack(self.weight):
            packed = {
                tile: conv_forms.form_of(self, tile, self.pooled) for tile in self.packed or ()
            }
        self.packed = packed  # at once: another thread may be computing

    def tile(self, height: int, width: int) -> int:
        """The side of the tiles that images of a size are filtered in, or ``DIRECT``."""
        if not self._can_filter() or isinstance(self.padding, str):
            return DIRECT
        channels, sides = (self.in_channels, self.out_channels), (height, width)
        how = self.padding, self.dilation, self.pooled, self.largest_tile
        return conv_forms.tile_of(Geometry(channels, sides, *how))

    def forward(self, x: Tensor) -> Tensor:
        """The convolution of x (N, C, H, W)."""
        if self.runs_on(x):
            return self._form(x)(x)[0]
        y = super().forward(x)
        return F.avg_pool2d(y, 2) if self.pooled else y

    def runs_on(self, x: Tensor) -> bool:
        """Whether packed weights are used for x."""
        return self.packed is not None and backends.unwatched(x)

    def activated(self, x: Tensor, activation: str) -> Tensor:
        """act(the convolution of x), for x that :meth:`runs_on` holds for."""
        return self._form(x)(x, activation=activation, total=False)[0]

    def takes_along(self, x: Tensor, residual: Tensor) -> bool:
        """Whether :meth:`plus` can run: forward would use packed weights, the kinds agree."""
        return (
            self.packed is not None
            and residual.dtype == x.dtype
            and residual.is_contiguous(memory_format=torch.channels_last)
            and backends.unwatched(x, residual)
        )

    def plus(
        self, x: Tensor, residual: Tensor, *, activation: str | None, overwrite: bool
    ) -> list[Tensor]:
        """The convolution of x plus a residual, rounded once, without a pass for the addition.

        Args:
            x: (N, C, H, W), for which :meth:`takes_along` holds.
            residual: of the result's shape.
            activation: also return act(total).
            overwrite: write the result over the residual, which makes the addition free.
        """
        return self._form(x)(x, residual, activation=activation, overwrite=overwrite)

    def __getstate__(self) -> dict[str, Any]:
        # What is packed can be neither copied nor saved, and is for this CPU.
        return {**self.__dict__, "packed": self.packed is not None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        packed = state.pop("packed", False)
        super().__setstate__(state)
        if packed:
            self.pack()

    def _form(self, x: Tensor) -> Form:
        assert self.packed is not None
        sides = x.shape[2:]
        tile = self._tiles.get(sides)
        if tile is None:
            tile = self._tiles[sides] = self.tile(*sides)
        if backends.wished()[0] == "torch":  # whose forms are native kernels
            tile = DIRECT
        form = self.packed.get(tile)
        if form is None:  # or twice, by two threads
            form = self.packed[tile] = conv_forms.form_of(self, tile, self.pooled)
        return form

    def _can_filter(self) -> bool:
        return (
            self.weight.dtype == torch.float32
            and self.kernel_size == (3, 3)
            and self.stride == (1, 1)
            and self.groups == 1
        )


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
