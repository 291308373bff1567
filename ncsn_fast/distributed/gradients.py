"""Gradients added up over the processes of a run."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ncsn_fast.distributed.group import Group

_ALIGNED = 64  # elements, so that each gradient begins where kernels can read it in wide steps


class GradientSum:
    """The sum of the gradients of all processes, in one flat buffer for each type of number.

    One message is the fastest where all gradients are there before the first is sent; several
    smaller ones would gain where a backward pass sends them while it goes on, which one that is
    captured as a graph does not.

    Args:
        parameters: those that are trained, on one device.
        group: the processes.
    """

    def __init__(self, parameters: Sequence[Tensor], group: Group) -> None:
        self._parameters, self._group = list(parameters), group
        self._buffers: list[Tensor] = []
        self._places: dict[Tensor, Tensor] = {}
        for dtype in sorted({p.dtype for p in self._parameters}, key=str):
            of = [p for p in self._parameters if p.dtype == dtype]
            sizes = [-(-p.numel() // _ALIGNED) * _ALIGNED for p in of]
            buffer = torch.zeros(sum(sizes), dtype=dtype, device=of[0].device)
            for parameter, piece in zip(of, buffer.split(sizes), strict=True):
                # In the parameter's memory format, as the optimiser reads both side by side.
                self._places[parameter] = piece.as_strided(
                    parameter.shape, parameter.stride(), piece.storage_offset()
                )
            self._buffers.append(buffer)

    def gather(self) -> None:
        """Move the gradients that this process has found into the buffers; they stay there.

        A parameter that has none counts as one with zeros, and keeps none.
        """
        found = [p for p in self._parameters if p.grad is not None]
        places = [self._places[p] for p in found]
        if missing := [self._places[p] for p in self._parameters if p.grad is None]:
            torch._foreach_zero_(missing)
        torch._foreach_copy_(places, [p.grad for p in found if p.grad is not None])
        for parameter, place in zip(found, places, strict=True):
            parameter.grad = place

    def add_up(self) -> None:
        """Add those of the other processes."""
        for buffer in self._buffers:
            self._group.add_up(buffer)


__all__ = ["GradientSum"]
