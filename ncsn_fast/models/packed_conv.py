"""Convolutions whose weights are made ready for the CPU once, instead of at every call.

What is made lies beside the weight, for each form that the convolution has run in: a form of
:mod:`ncsn_fast.models.conv_forms`, the fastest for the size of the images. The gradient of the
images is such a convolution too, whose weights are made ready when it is first asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._C._functorch import peek_interpreter_stack

from ncsn_fast.device import backends
from ncsn_fast.models import conv_forms
from ncsn_fast.models.conv_forms import DIRECT, Form, Geometry
from ncsn_fast.ops import conv3x3

# What the transformed weights of a network may take, for images of one size. Those of another size
# may run in the other form: then it is up to 52/36 of this.
MOST_BYTES = 2 << 30


class PackedConv(nn.Conv2d):
    """A convolution that runs on packed weights where it can.

    It cannot on other devices than the CPU, without oneDNN, and where torch.compile or a transform
    of torch.func watches: those see PyTorch's convolution of ``weight``. So does autograd where
    it goes by strides; second derivatives, and those of weights, are PyTorch's.

    Attributes:
        pooled: whether the 2×2 means of its result are taken.
        largest_tile: that it may be filtered in, as larger ones round more; or ``DIRECT``.
        packed: the forms it has run in, by the side of their tiles; None where it cannot.
        tiles: the form chosen for each size of images that it has seen, (height, width).
    """

    pooled: bool = False
    largest_tile: int = max(conv3x3.TILES)
    packed: dict[int, Form] | None = None
    tiles: dict[tuple[int, ...], int]
    _adjoint: tuple[PackedConv, ...] = ()  # no part of the network: hidden from nn.Module

    def pack(self) -> None:
        """Pack the weight as it is now; whoever changes it has to call this again."""
        self.tiles = {}
        self._adjoint = ()
        packed = None
        padded_by_zeros = self.padding_mode == "zeros" and not isinstance(self.padding, str)
        if padded_by_zeros and can_pack(self.weight):
            packed = {
                tile: conv_forms.form_of(self, tile, self.pooled) for tile in self.packed or ()
            }
        self.packed = packed  # at once: another thread may be computing

    def tile(self, height: int, width: int) -> int:
        """The side of the tiles that images of a size are filtered in, or ``DIRECT``."""
        if self.largest_tile == DIRECT or not self._can_filter():
            return DIRECT
        return conv_forms.tile_of(self.geometry(height, width))

    def geometry(self, height: int, width: int) -> Geometry:
        """What it is for images of a size, where it can be filtered."""
        assert not isinstance(self.padding, str)
        channels, sides = (self.in_channels, self.out_channels), (height, width)
        how = self.padding, self.dilation, self.pooled, self.largest_tile
        return Geometry(channels, sides, *how)

    def transformed_bytes(self, tile: int) -> int:
        """The memory that its weights take for tiles of a side; 0 where it cannot be filtered."""
        if tile == DIRECT or not self._can_filter():
            return 0
        return conv3x3.transformed_bytes(self.out_channels, self.in_channels, tile)

    def forward(self, x: Tensor) -> Tensor:
        """The convolution of x (N, C, H, W)."""
        if self.runs_on(x):
            return self._form(x)(x)[0]
        if self.pulls(x):
            return self.watched(x, self.weight, self.bias)
        y = super().forward(x)
        return F.avg_pool2d(y, 2) if self.pooled else y

    def apart(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The convolution of x without its bias, and that."""
        y = self._conv_forward(x, self.weight, None)
        return F.avg_pool2d(y, 2) if self.pooled else y, self.bias

    def runs_on(self, x: Tensor) -> bool:
        """Whether packed weights are used for x."""
        return self.packed is not None and backends.unwatched(x) and not _transformed(x)

    def pulls(self, x: Tensor) -> bool:
        """Whether packed weights are used for x, and for its gradient, where autograd watches."""
        return (
            self.packed is not None
            and self.groups == 1
            and has_adjoint(self.kernel_size, self.stride, self._sides(), self.dilation)
            and backends.plain_call(x)
            and not _transformed(x)
            and not torch.jit.is_tracing()
        )

    def watched(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The convolution of x, for which :meth:`pulls` holds, with its gradients.

        Args:
            weight, bias: those that this one is made of, which get gradients where they want them.
        """
        return _Watched.apply(x, weight, bias, self)

    def activated(self, x: Tensor, activation: str) -> Tensor:
        """act(the convolution of x), for x that :meth:`runs_on` holds for."""
        return self._form(x)(x, activation=activation, total=False)[0]

    def takes_along(self, x: Tensor, residual: Tensor) -> bool:
        """Whether :meth:`plus` can run: forward would use packed weights, the kinds agree."""
        return (
            self.packed is not None
            and residual.dtype == x.dtype
            and backends.unwatched(x, residual)
            and not _transformed(x)
            and not _transformed(residual)
            and residual.is_contiguous(memory_format=torch.channels_last)
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
        return {**self.__dict__, "packed": self.packed is not None, "_adjoint": ()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        packed = state.pop("packed", False)
        super().__setstate__(state)
        if packed:
            self.pack()

    def _form(self, x: Tensor) -> Form:
        assert self.packed is not None
        sides = x.shape[2:]
        others = backends.wished()[0] != "torch"  # the other forms are native kernels
        tile = self.tiles.get(sides) if others else DIRECT
        if tile is None:
            tile = self.tiles[sides] = self.tile(*sides)
        form = self.packed.get(tile)
        if form is None:  # or twice, by two threads
            form = self.packed[tile] = conv_forms.form_of(self, tile, self.pooled)
        return form

    def adjoint(self) -> PackedConv:
        """The convolution that the gradient of x is, of the gradient of the result (not pooled)."""
        if not self._adjoint:  # or twice, by two threads
            # Tensors made in inference mode could not be used outside of it.
            with torch.inference_mode(False), torch.no_grad():
                settings: dict[str, Any] = {"dilation": self.dilation, "bias": False}
                settings["padding"] = padding_back(self.kernel_size, self._sides(), self.dilation)
                widths = self.out_channels, self.in_channels
                kernel: Any = self.kernel_size
                conv = PackedConv(*widths, kernel, device="meta", **settings)
                weight = self.weight.detach().transpose(0, 1).flip(2, 3)
                weight = weight.contiguous(memory_format=torch.channels_last)
                conv.weight = nn.Parameter(weight, requires_grad=False)
                conv.packed, conv.largest_tile = {}, self.largest_tile
                conv.pack()
            self._adjoint = (conv,)
        return self._adjoint[0]

    def _sides(self) -> tuple[int, ...]:
        assert not isinstance(self.padding, str)
        return self.padding

    def _can_filter(self) -> bool:
        return (
            self.weight.dtype == torch.float32
            and self.kernel_size == (3, 3)
            and self.stride == (1, 1)
            and self.groups == 1
            and not isinstance(self.padding, str)
        )


class _Watched(torch.autograd.Function):
    """A packed convolution and its gradients."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, conv: PackedConv
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.conv = conv
        return conv._form(x)(x)[0]

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        (x, weight), conv = ctx.saved_tensors, ctx.conv  # refused where one has changed since
        if conv.pooled:
            upstream = _unpooled(upstream, x)
        wanted = [_wanted(ctx, i) for i in range(3)]
        found: list[Any] = [None, None, None]
        plain = backends.plain_call(upstream) and not _transformed(upstream)
        # What was saved may be a copy, of which hooks know: of weights that were others then.
        if (
            wanted[0]
            and plain
            and not torch.is_grad_enabled()
            and weight.data_ptr() == conv.weight.data_ptr()
        ):
            found[0], wanted[0] = conv.adjoint()(upstream), False
        if any(wanted):
            how: dict[str, Any] = {"padding": conv.padding, "dilation": conv.dilation}
            rest = conv3x3.aten_gradients(upstream, x, weight, **how, wanted=wanted)
            found = [a if b is None else b for a, b in zip(found, rest, strict=True)]
        return *found, None


def _wanted(ctx: Any, index: int) -> bool:
    """Whether the gradient of an input is asked for in this pass back; autograd's functions in
    Python are told only whether it has one."""
    if not ctx.needs_input_grad[index] or torch.compiler.is_compiling():
        return ctx.needs_input_grad[index]
    try:
        return torch._C._will_engine_execute_node(ctx.next_functions[index][0])
    except RuntimeError:  # of a leaf that is asked for itself
        return True


def _transformed(x: Tensor) -> bool:
    """Whether somebody takes derivatives of x that no kernel has, or makes it of many others."""
    return peek_interpreter_stack() is not None or backends.general_obstacle(x) is not None


def _unpooled(upstream: Tensor, x: Tensor) -> Tensor:
    """The gradient of 2×2 means of images as large as x, which leave an odd side's end out."""
    wide = F.interpolate(upstream / 4, scale_factor=2)
    rows, columns = (a - b for a, b in zip(x.shape[2:], wide.shape[2:], strict=True))
    return F.pad(wide, (0, columns, 0, rows)) if rows or columns else wide


def padding_back(
    kernel: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> tuple[int, ...]:
    """The padding of the convolution that the gradient of the images is."""
    return tuple(d * (k - 1) - p for k, p, d in zip(kernel, padding, dilation, strict=True))


def has_adjoint(
    kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> bool:
    """Whether the gradient of the images is an ordinary convolution, of ungrouped ones."""
    return tuple(stride) == (1, 1) and min(padding_back(kernel, padding, dilation)) >= 0


def bound_memory(modules: Iterable[nn.Module]) -> None:
    """Let as many convolutions be filtered as transformed weights fit into ``MOST_BYTES``.

    The first of them, with what the largest tiles would need set aside for each: so it depends
    neither on what is measured nor on what is run. Their gradients take as much again, once they
    are asked for.
    """
    left = MOST_BYTES
    for module in modules:
        if isinstance(module, PackedConv):
            needed = module.transformed_bytes(module.largest_tile)
            if needed > left:
                needed, module.largest_tile = 0, DIRECT
            left -= needed


def can_pack(weight: Tensor) -> bool:
    """Whether this PyTorch on this CPU has packed convolutions in the weight's type."""
    if weight.device.type != "cpu" or not torch._C._get_mkldnn_enabled():
        return False
    if not hasattr(torch.ops.mkldnn, "_convolution_pointwise"):  # a build without oneDNN
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32


__all__ = ["MOST_BYTES", "PackedConv", "bound_memory", "can_pack", "has_adjoint"]
