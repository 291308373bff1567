"""A network's layers, rewritten so that they run fast: the copy that ``prepare.py`` fills."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._C._functorch import peek_interpreter_stack
from torch.autograd import forward_ad

from ncsn_fast.models.base import ScoreNetwork
from ncsn_fast.models.blocks import PooledConv, ResidualBlock
from ncsn_fast.models.packed_conv import PackedConv, bound_memory
from ncsn_fast.models.refinenet import RefineNet

_Conv = TypeVar("_Conv", bound=nn.Conv2d)


def rewritten(source: ScoreNetwork, dtype: torch.dtype) -> ScoreNetwork:
    """A rewritten copy whose tensors have the names of the source's, but not yet their values.

    ``dtype`` is that of the weights of all convolutions but the first.
    """
    network = copy.deepcopy(source).float().eval()
    if isinstance(network, RefineNet):
        first = _empty(FirstConv, network.begin_conv, 3)
        first.result = dtype
        network.begin_conv = first
        for module in list(network.modules()):
            if isinstance(module, ResidualBlock) and isinstance(module.conv2, PooledConv):
                module.conv2 = nn.Sequential(OrderedDict(conv=_pooled(module.conv2.conv)))
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                if module is not first:
                    module.__class__ = PackedConv
                    module.to(dtype)
                module.weight.data = module.weight.data.to(memory_format=torch.channels_last)
        # They see the image and the finest noise on it: a third of what rounding does to the score
        # at σ = 0.01 would be theirs.
        for module in (first, *getattr(network, network.STAGES[0].residual)[0].modules()):
            if isinstance(module, PackedConv):
                module.largest_tile = 2
        bound_memory(network.modules())
    return network.requires_grad_(False)


def _pooled(conv: nn.Conv2d) -> PackedConv:
    """A convolution and the mean behind it at once: packed as that, or one of stride 2."""
    if conv.weight.device.type != "cpu":
        return _empty(PackedConv, conv, 4, stride=2)
    new = _empty(PackedConv, conv, 3)
    new.pooled = True
    return new


def _empty(kind: type[_Conv], like: nn.Conv2d, kernel_size: int, stride: int = 1) -> _Conv:
    """A convolution in another one's place. Drawing weights would disturb torch's generator; its
    own ``skip_init`` draws none either, but imports sympy, which takes half a second."""
    conv = kind(like.in_channels, like.out_channels, kernel_size, stride, padding=1, device="meta")
    empty = {name: like.weight.new_empty(own.shape) for name, own in conv.named_parameters()}
    conv.load_state_dict(empty, assign=True)
    return conv


class FirstConv(PackedConv):
    """The convolution that sees the image: in float32, with what it sees in the type ``result``."""

    result: torch.dtype

    def forward(self, x: Tensor) -> Tensor:
        if peek_interpreter_stack() is not None:  # of whose tensors the layout is not known
            return super().forward(x).to(self.result)
        how: dict[str, Any] = {"dtype": self.result, "memory_format": torch.channels_last}
        watched = torch.compiler.is_compiling() or (torch.is_grad_enabled() and x.requires_grad)
        watched = watched or forward_ad.unpack_dual(x).tangent is not None
        if watched or self.runs_on(x):  # who watches takes no tensor that is written
            return super().forward(x).to(**how)
        y, bias = self.apart(x)
        if bias is None:
            return y.to(**how)
        return torch.add(y, bias[:, None, None], out=torch.empty_like(y, **how))  # in one pass


__all__ = ["rewritten"]
