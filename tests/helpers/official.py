"""Networks as the official code has them: its names of tensors and attributes, the computation of
ours, in a class that ours know nothing of."""

from __future__ import annotations

from typing import Any

import torch
from helpers import networks
from torch import Tensor, nn

ACTIVATIONS = {
    "elu": nn.ELU,
    "relu": nn.ReLU,
    "lrelu": lambda: nn.LeakyReLU(negative_slope=0.2),
    "swish": lambda: lambda x: x * torch.sigmoid(x),  # a function there
}


class Official(nn.Module):
    """The parts of one of our networks, without the network; it counts its calls."""

    def __init__(self, name: str = "NCSNv2", **settings: Any) -> None:
        super().__init__()
        ours = networks.network(name, **settings).eval()
        self.behind = [ours]  # in a list, it is no part of this module
        for part, module in ours.named_children():
            self.add_module(part, module)
        self.act = ACTIVATIONS[ours.activation]()
        self.rescaled, self.logit_transform = ours.rescaled, ours.logit_transform
        if name != "NCSN":
            self.register_buffer("sigmas", ours.sigmas.clone())
        self.calls = 0

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        self.calls += 1
        output = self.behind[0].body(x, y)
        if "sigmas" not in self._buffers:
            return output
        return output / self.sigmas[y].view(-1, 1, 1, 1)


class Louder(Official):
    """What looks like one, and is not: its scores are longer."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return super().forward(x, y) * 1.001
