"""Convolutions whose outputs and gradients are filtered on a CPU, where that is faster.

Weights change at each step, so they are transformed each time, see ``ops/conv3x3.py``.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ncsn_fast.device import backends
from ncsn_fast.device.memory_format import is_channels_last
from ncsn_fast.models.conv_forms import DIRECT, Geometry, asked, gradient_tile_of, tile_of
from ncsn_fast.models.packed_conv import can_pack
from ncsn_fast.ops import conv3x3
from ncsn_fast.ops.conv3x3 import Tiles

# Of a batch: fewer do not earn back that weights are transformed for them.
FEWEST_PIXELS = 256


class TrainedConv(nn.Conv2d):
    """A convolution that is filtered where autograd needs its gradients, in float32 on a CPU.

    Elsewhere it is PyTorch's: without gradients, under autocast, torch.compile, torch.jit.trace
    and the transforms of torch.func, in other memory formats than channels_last, and where the
    backend "torch" is asked for.
    """

    def forward(self, x: Tensor) -> Tensor:
        """The convolution of x (N, C, H, W)."""
        if not self._may_filter(x):
            return super().forward(x)
        tiles = self.tiles(x.shape)
        if not any(tiles):
            return super().forward(x)
        assert not isinstance(self.padding, str)
        how = {"padding": self.padding, "dilation": self.dilation}
        return conv3x3.convolution(x, self.weight, self.bias, **how, tiles=tiles)

    def tiles(self, shape: Sequence[int]) -> Tiles:
        """The forms of a batch (N, C, H, W), of its gradient and of that of the weights."""
        samples, _, *sides = shape
        filtered = (
            samples * sides[0] * sides[1] >= FEWEST_PIXELS
            and self.kernel_size == (3, 3)
            and self.stride == (1, 1)
            and self.groups == 1
            and self.padding_mode == "zeros"
            and not isinstance(self.padding, str)
        )
        if not filtered:
            return Tiles(DIRECT, DIRECT, DIRECT)
        widths = self.in_channels, self.out_channels
        return _tiles(widths, tuple(sides), self.padding, self.dilation, asked())

    def _may_filter(self, x: Tensor) -> bool:
        if not torch.is_grad_enabled() or not backends.plain_call(x) or torch.jit.is_tracing():
            return False
        given = (x, self.weight) if self.bias is None else (x, self.weight, self.bias)
        return (
            any(tensor.requires_grad for tensor in given)
            and all(_can_be_read(tensor) for tensor in given)
            and is_channels_last(x)
            and not torch.is_autocast_enabled("cpu")
            and backends.wished()[0] != "torch"
            and can_pack(self.weight)
        )


def _can_be_read(tensor: Tensor) -> bool:
    kinds = type(tensor) in (Tensor, nn.Parameter), tensor.dtype == torch.float32
    return all(kinds) and tensor.device.type == "cpu" and not backends.general_obstacle(tensor)


@functools.cache  # the store of decisions takes a small convolution's time
def _tiles(
    widths: tuple[int, int],
    sides: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    form: str,
) -> Tiles:
    """As it is decided with NCSN_FAST_CONV = ``form``."""
    forward = Geometry(widths, sides, padding, dilation)
    sides_back = tuple(n + 2 * (p - d) for n, p, d in zip(sides, padding, dilation, strict=True))
    padding_back = tuple(2 * d - p for p, d in zip(padding, dilation, strict=True))
    if min(sides_back) < 1 or min(padding_back) < 0:
        return Tiles(DIRECT, DIRECT, DIRECT)
    back = Geometry(widths[::-1], sides_back, padding_back, dilation)
    return Tiles(tile_of(forward), tile_of(back), gradient_tile_of(forward))


def forms(network: nn.Module, shape: Sequence[int]) -> dict[str, Tiles]:
    """In which forms a network's convolutions run in training, by their names.

    Args:
        network: is called once, without gradients, as network(x, labels).
        shape: (N, C, H, W) of a batch, or of the part of one that is computed at once.
    """
    found: dict[str, Tiles] = {}
    names = {module: name for name, module in network.named_modules()}

    def note(module: TrainedConv, inputs: tuple[Tensor]) -> None:
        found[names[module]] = module.tiles((shape[0], *inputs[0].shape[1:]))

    convs = [module for module in names if isinstance(module, TrainedConv)]
    hooks = [conv.register_forward_pre_hook(note) for conv in convs]
    try:
        with torch.no_grad():
            weight = next(network.parameters())
            x = torch.zeros(1, *shape[1:], dtype=weight.dtype, device=weight.device)
            network(x, torch.zeros(1, dtype=torch.int64, device=weight.device))
    finally:
        for hook in hooks:
            hook.remove()
    return found


__all__ = ["FEWEST_PIXELS", "TrainedConv", "forms"]
