"""The blocks of the NCSN family: residual blocks, refine blocks, InstanceNorm++.

NCSNv2 and NCSN v1 share them. v1 gives each block a ``norm`` that reads the noise level, puts a
norm before every convolution of its refine blocks and pools by the mean; v2 has no norms there and
pools by the maximum. Modules are named and created in the order of the official networks, so that
their state_dict and the parameter numbers of their optimiser state fit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ncsn_fast import ops
from ncsn_fast.models.packed_conv import PackedConv
from ncsn_fast.models.trained_conv import TrainedConv
from ncsn_fast.ops.residual_add import Sum

Norm = Callable[[int], nn.Module]


def conv3x3(inputs: int, outputs: int, *, dilation: int = 1, bias: bool = True) -> nn.Conv2d:
    """A 3×3 convolution that keeps the image size."""
    return TrainedConv(inputs, outputs, 3, padding=dilation, dilation=dilation, bias=bias)


def _near_one(values: Tensor) -> Tensor:
    """The tensor, filled with N(1, 0.02²). On "meta", where networks are built to be loaded,
    ``normal_`` would import all of torch._dynamo, which takes longer than torch itself."""
    return values if values.is_meta else values.normal_(1, 0.02)


class _InstanceNormPlus(nn.Module):
    """InstanceNorm++ of x (N, C, H, W) with the γ, α, β of each sample's noise level."""

    def affine(self, labels: Tensor | None) -> tuple[Tensor, ...]:
        """γ, α, β: (C,) for all samples, or (N, C)."""
        raise NotImplementedError

    def forward(
        self,
        x: Tensor,
        labels: Tensor | None,
        activation: str | None = None,
        statistics: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> Tensor:
        """x (N, C, H, W), or x + ``bias`` (C,), normalised, at the levels ``labels`` (N,), and
        activated.

        ``statistics`` of x, (2NC + 2N,) float32, spare reading it once more.
        """
        gamma, alpha, beta = self.affine(labels)
        return ops.instance_norm_plus(
            x, gamma, alpha, beta, activation=activation, statistics=statistics, bias=bias
        )


class InstanceNormPlus(_InstanceNormPlus):
    """InstanceNorm++ with one α, γ, β per channel (NCSNv2); it ignores the labels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(_near_one(torch.empty(channels)))
        self.gamma = nn.Parameter(_near_one(torch.empty(channels)))
        self.beta = nn.Parameter(torch.zeros(channels))

    def affine(self, labels: Tensor | None) -> tuple[Tensor, ...]:
        return self.gamma, self.alpha, self.beta


class ConditionalInstanceNormPlus(_InstanceNormPlus):
    """InstanceNorm++ whose γ, α, β are a row of a table per noise level (NCSN v1)."""

    def __init__(self, channels: int, num_levels: int) -> None:
        super().__init__()
        table = torch.zeros(num_levels, 3 * channels)
        _near_one(table[:, : 2 * channels])
        self.embed = nn.Embedding.from_pretrained(table, freeze=False)

    def affine(self, labels: Tensor | None) -> tuple[Tensor, ...]:
        return self.embed(labels).chunk(3, dim=1)


class ClassInstanceNormPlus(InstanceNormPlus):
    """InstanceNorm++ whose γ, α, β are moved by a row of a table per class.

    Its "labels" are classes; those that count behind the last class, and None, move nothing: the
    norm is then :class:`InstanceNormPlus`, with the same parameters.
    """

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__(channels)
        table = torch.zeros(num_classes + 1, 3 * channels)
        self.embed = nn.Embedding.from_pretrained(table, freeze=False, padding_idx=num_classes)

    def affine(self, labels: Tensor | None) -> tuple[Tensor, ...]:
        common = super().affine(labels)
        if labels is None:
            return common
        moved = self.embed(labels).chunk(3, dim=1)
        return tuple(own + offset for own, offset in zip(common, moved, strict=True))


class PooledConv(nn.Module):
    """A convolution and a 2×2 mean, which halves the image."""

    def __init__(self, inputs: int, outputs: int, kernel_size: int) -> None:
        super().__init__()
        self.conv = TrainedConv(inputs, outputs, kernel_size, padding=kernel_size // 2)

    def forward(self, x: Tensor) -> Tensor:
        # A 1×1 convolution commutes with the mean and then sees a quarter of the pixels.
        if self.conv.kernel_size == (1, 1):
            return self.conv(F.avg_pool2d(x, 2))
        return F.avg_pool2d(self.conv(x), 2)


def _apart(conv: nn.Module, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """A convolution of x, and its bias where that is left to whoever goes over the result next.

    PyTorch gives cuDNN no bias: it adds it in a pass of its own. Where weights are packed it costs
    nothing, and a network that is trained needs its gradient.
    """
    if isinstance(conv, nn.Sequential):  # what is prepared, of a convolution and a mean
        conv = conv[0]
    elif isinstance(conv, PooledConv) and conv.conv.kernel_size == (1, 1):
        conv, x = conv.conv, F.avg_pool2d(x, 2)
    if not isinstance(conv, PackedConv) or conv.packed is not None:
        return conv(x), None
    return conv.apart(x)


class ResidualBlock(nn.Module):
    """norm → act → conv → norm → act → conv, plus the block's input.

    Args:
        inputs, outputs: channels; only a block with a shortcut may change them.
        norm: makes a norm for a number of channels.
        pool: halve the image.
        dilation: of the 3×3 convolutions.
        shortcut: send the input through a convolution of its own.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        norm: Norm,
        activation: str,
        *,
        pool: bool = False,
        dilation: int = 1,
        shortcut: bool = False,
    ) -> None:
        super().__init__()

        def out(kernel_size: int) -> nn.Module:
            if pool:
                return PooledConv(inputs, outputs, kernel_size)
            return conv3x3(inputs, outputs, dilation=dilation)

        self.activation = activation
        self.conv1 = conv3x3(inputs, inputs, dilation=dilation)
        self.normalize2 = norm(inputs)
        self.conv2 = out(3)
        self.shortcut = out(1) if shortcut else None
        self.normalize1 = norm(inputs)

    def forward(self, x: Tensor, labels: Tensor | None, statistics: Tensor | None = None) -> Sum:
        """x (N, inputs, H, W) → a total (N, outputs, H, W), halved by ``pool``, for a norm."""
        h, bias = _apart(self.conv1, self.normalize1(x, labels, self.activation, statistics))
        h = self.normalize2(h, labels, self.activation, bias=bias)
        if self.shortcut is None:
            return _add(self.conv2, h, x, "norm")
        residual, bias = _apart(self.shortcut, x)
        return _add(self.conv2, h, residual, "norm", own=True, bias=bias)


class RCU(nn.Module):
    """Residual convolution units: ``blocks`` times (two act → conv, plus the unit's input).

    It takes and returns what it adds up together with what follows: act(total), or the statistics
    for a norm.
    """

    STAGES = 2

    def __init__(self, channels: int, blocks: int, norm: Norm | None, activation: str) -> None:
        super().__init__()
        self.activation = activation
        self.blocks = blocks
        self.normed = norm is not None
        for block in range(1, blocks + 1):
            for stage in range(1, self.STAGES + 1):
                if norm is not None:
                    self.add_module(f"{block}_{stage}_norm", norm(channels))
                self.add_module(f"{block}_{stage}_conv", conv3x3(channels, channels, bias=False))

    def forward(
        self, x: Sum, labels: Tensor | None, then: str | None = None, *, own: bool = False
    ) -> Sum:
        """Totals (N, C, H, W) → the same; ``then`` follows: an activation, "norm", or neither.

        ``own`` says that nobody else reads x.total, which may then be overwritten.
        """
        between = "norm" if self.normed else self.activation
        for block in range(1, self.blocks + 1):
            h = self._activated(block, 1, x.total, labels, x.active, x.statistics)
            for stage in range(2, self.STAGES + 1):
                h = self._next(block, stage, h, labels)
            last = then if block == self.blocks else between
            x = _add(self._conv(block, self.STAGES), h, x.total, last, own=own or block > 1)
        return x

    def _conv(self, block: int, stage: int) -> nn.Module:
        return getattr(self, f"{block}_{stage}_conv")

    def _next(self, block: int, stage: int, h: Tensor, labels: Tensor | None) -> Tensor:
        """What the convolution of a stage sees, from what that of the stage before saw."""
        conv = self._conv(block, stage - 1)
        if not self.normed and isinstance(conv, PackedConv) and conv.runs_on(h):
            return conv.activated(h, self.activation)
        return self._activated(block, stage, conv(h), labels)

    def _activated(
        self,
        block: int,
        stage: int,
        h: Tensor,
        labels: Tensor | None,
        active: Tensor | None = None,
        statistics: Tensor | None = None,
    ) -> Tensor:
        if self.normed:
            norm = getattr(self, f"{block}_{stage}_norm")
            active = norm(h, labels, self.activation, statistics)
        elif active is None:
            active = ops.activate(h, self.activation)
        return active


def _add(
    conv: nn.Module,
    h: Tensor,
    residual: Tensor,
    then: str | None,
    *,
    own: bool = False,
    bias: Tensor | None = None,
) -> Sum:
    """conv(h) + residual + bias, and what the operation that follows needs of it.

    ``own`` says that nobody else reads the residual, which may then be overwritten.
    """
    activation = None if then == "norm" else then
    if bias is not None or not isinstance(conv, PackedConv) or not conv.takes_along(h, residual):
        h, other = _apart(conv, h)
        return ops.residual_add(
            h,
            residual,
            bias=_both(bias, other),
            activation=activation,
            statistics=then == "norm",
        )
    total, *active = conv.plus(h, residual, activation=activation, overwrite=own)
    return Sum(total, active[0] if active else None, None)


def _both(bias: Tensor | None, other: Tensor | None) -> Tensor | None:
    """The sum of two biases, each of which may have been added already."""
    if bias is None or other is None:
        return other if bias is None else bias
    return bias + other


class CRP(nn.Module):
    """Chained residual pooling: a 5×5 pool → conv chain whose links are added to the input."""

    LINKS = 2

    def __init__(self, channels: int, norm: Norm | None, activation: str) -> None:
        super().__init__()
        self.activation = activation
        self.convs = nn.ModuleList(
            conv3x3(channels, channels, bias=False) for _ in range(self.LINKS)
        )
        self.norms = _norms(norm, [channels] * self.LINKS)

    def forward(self, x: Tensor, labels: Tensor | None) -> Sum:
        """x (N, C, H, W) → a total of its shape, and what the units that follow need of it."""
        if self.norms is None:
            x, path = ops.max_pool5(x, activation=self.activation)
        else:
            x = ops.activate(x, self.activation)
            path = _mean_pool5(self.norms[0](x, labels))
        for link in range(1, self.LINKS):
            path = self.convs[link - 1](path)
            x = ops.residual_add(path, x).total
            if self.norms is None:
                _, path = ops.max_pool5(path)
            else:
                path = _mean_pool5(self.norms[link](path, labels))
        # Units of residual convolutions follow.
        then = self.activation if self.norms is None else "norm"
        return _add(self.convs[-1], path, x, then, own=True)


def _norms(norm: Norm | None, widths: Sequence[int]) -> nn.ModuleList | None:
    """A norm for each of these numbers of channels, in NCSN v1."""
    return None if norm is None else nn.ModuleList(norm(width) for width in widths)


def _mean_pool5(x: Tensor) -> Tensor:
    """The mean of each 5×5 neighbourhood, zeros outside of the image counted; v1's pooling."""
    return F.avg_pool2d(x, 5, stride=1, padding=2)


class MSF(nn.Module):
    """Multi-scale fusion: the sum of a convolution of each input, resized to the first one's."""

    def __init__(self, inputs: Sequence[int], outputs: int, norm: Norm | None) -> None:
        super().__init__()
        self.convs = nn.ModuleList(conv3x3(width, outputs) for width in inputs)
        self.norms = _norms(norm, inputs)

    def forward(self, xs: Sequence[Tensor], labels: Tensor | None) -> Tensor:
        """Inputs (N, C_i, H_i, W_i) → (N, outputs, H, W) of the first one's size."""
        total: Tensor | None = None
        bias: Tensor | None = None
        for i, x in enumerate(xs):
            h, own = _apart(self.convs[i], x if self.norms is None else self.norms[i](x, labels))
            bias = _both(bias, own)
            if total is None:
                total = h
            else:
                total, bias = ops.resize_add(h, total, bias=bias), None
        assert total is not None
        assert bias is None  # there are several inputs
        return total


class RefineBlock(nn.Module):
    """Brings a coarse path and the skip of a finer stage together: RCU → MSF → CRP → RCU.

    Args:
        inputs: channels of each input; the first one has the output's image size.
        outputs: channels of the output.
        norm: makes the norms of NCSN v1; None for NCSNv2, which has none here.
        last: three instead of one output unit.
    """

    def __init__(
        self,
        inputs: Sequence[int],
        outputs: int,
        norm: Norm | None,
        activation: str,
        *,
        last: bool = False,
    ) -> None:
        super().__init__()
        self.adapt_convs = nn.ModuleList(RCU(width, 2, norm, activation) for width in inputs)
        self.output_convs = RCU(outputs, 3 if last else 1, norm, activation)
        self.msf = MSF(inputs, outputs, norm) if len(inputs) > 1 else None
        self.crp = CRP(outputs, norm, activation)

    def forward(self, xs: Sequence[Sum], labels: Tensor | None, then: str | None = None) -> Sum:
        """Totals (N, C_i, H_i, W_i) → (N, outputs, H, W); ``then`` follows: an activation, "norm",
        or neither."""
        hs = [rcu(x, labels).total for rcu, x in zip(self.adapt_convs, xs, strict=True)]
        h = hs[0] if self.msf is None else self.msf(hs, labels)
        return self.output_convs(self.crp(h, labels), labels, then, own=True)


__all__ = [
    "CRP",
    "RCU",
    "ClassInstanceNormPlus",
    "ConditionalInstanceNormPlus",
    "InstanceNormPlus",
    "Norm",
    "PooledConv",
    "RefineBlock",
    "ResidualBlock",
]
