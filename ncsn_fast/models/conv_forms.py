"""The forms in which a convolution runs on a CPU, and which of them is the fastest there.

Direct, as oneDNN does it with weights in an order of its own, or filtered in tiles of 2×2 or 4×4
(:mod:`ncsn_fast.ops.conv3x3`), which multiplies less and rounds more. Which is faster is measured,
once for each geometry, and with images and threads that are not the caller's: results depend
neither on how many images are beside one another nor, later, on the noise of timing.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ncsn_fast import ops
from ncsn_fast.device import measured, native
from ncsn_fast.ops import conv3x3

DIRECT = 0
NAMES = {DIRECT: "direct", 2: "F(2×2)", 4: "F(4×4)"}  # by the side of a tile
CONV = "NCSN_FAST_CONV"
_ASKED = {"direct": DIRECT, "F2": 2, "F4": 4}
# A form that rounds more is taken where it needs no more than this share of the time.
_MARGIN = 0.95
# Images that a form is timed on are as many as have so many pixels: short runs.
_PIXELS, _LARGEST_SIDE = 1024, 64
# Of the norm of a result, where that of the direct sum is 2e-7 to 5e-7.
_LARGEST_ERROR = 5e-6


class Direct:
    """oneDNN's convolution, in float32 or bfloat16, on weights that have been made ready."""

    def __init__(self, conv: nn.Conv2d, pooled: bool) -> None:
        weight, stride = conv.weight.detach(), conv.stride
        if pooled:
            weight, stride = pooled_kernel(weight), (2, 2)
        geometry: Any = conv.padding, stride, conv.dilation, conv.groups
        packed = torch._C._nn.mkldnn_reorder_conv2d_weight(weight.to_mkldnn(), *geometry)
        self._packed = packed, conv.bias, *geometry

    def __call__(
        self,
        x: Tensor,
        residual: Tensor | None = None,
        *,
        activation: str | None = None,
        total: bool = True,
        overwrite: bool = False,
    ) -> list[Tensor]:
        """The convolution of x (N, I, H, W), plus a residual of the result's shape.

        Args:
            activation: also return act(total).
            total: whether the sum itself is wanted beside its activation.
            overwrite: write the total over the residual, which is channels_last.

        Returns:
            What is wanted of [total, act(total)].
        """
        operations = torch.ops.mkldnn
        added: Any = "add", 1.0, None, [], None
        if residual is None:
            y = operations._convolution_pointwise(x, *self._packed, "none", [], "")
        elif overwrite:
            y = operations._convolution_pointwise_.binary(residual, x, *self._packed, *added)
        else:
            y = operations._convolution_pointwise.binary(x, residual, *self._packed, *added)
        if activation is None:
            return [y]
        active = ops.activate(y, activation)
        return [y, active] if total else [active]


class Filtered:
    """A 3×3 convolution of stride 1 in float32 by filtering, called as :class:`Direct` is."""

    def __init__(self, conv: nn.Conv2d, tile: int, pooled: bool) -> None:
        self._weight = conv3x3.transformed(conv.weight, tile)
        self._bias = conv.bias
        self._settings: dict[str, Any] = {
            "outputs": conv.out_channels,
            "tile": tile,
            "padding": conv.padding,
            "dilation": conv.dilation,
            "pooled": pooled,
        }

    def __call__(self, x: Tensor, residual: Tensor | None = None, **wanted: Any) -> list[Tensor]:
        return conv3x3.filtered(x, self._weight, self._bias, residual, **self._settings, **wanted)


Form = Direct | Filtered


def form_of(conv: nn.Conv2d, tile: int, pooled: bool = False) -> Form:
    """The weights of a convolution made ready for one of the forms.

    Args:
        conv: of 3×3 and stride 1 where it is filtered or pooled.
        tile: the side of its tiles, or ``DIRECT``.
        pooled: whether 2×2 means are taken of the result; no padding but 1, no dilation.
    """
    return Filtered(conv, tile, pooled) if tile else Direct(conv, pooled)


def pooled_kernel(weight: Tensor) -> Tensor:
    """The 4×4 kernel of a 3×3 convolution and the 2×2 mean behind it, (O, I, 3, 3) → (O, I, 4, 4).

    With stride 2 and padding 1 it gives at once what they give one after the other: the mean of
    the kernel at its four places.
    """
    wide = weight.float()
    kernel = wide.new_zeros(*weight.shape[:2], 4, 4)
    for row in (0, 1):
        for column in (0, 1):
            kernel[:, :, row : row + 3, column : column + 3] += wide / 4
    return kernel.to(weight.dtype)


class Geometry(NamedTuple):
    """A 3×3 convolution of stride 1, of images of one size."""

    channels: tuple[int, ...]  # of the inputs, of the outputs
    sides: tuple[int, ...]  # height and width
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    pooled: bool = False  # whether 2×2 means are taken of the result
    largest: int = max(conv3x3.TILES)  # tile that may be taken

    def __str__(self) -> str:
        sides, padding, dilation = ("×".join(map(str, pair)) for pair in self[1:4])
        text = f"{'→'.join(map(str, self.channels))}, {sides}, padding {padding}"
        text += f", dilation {dilation}" + ", pooled" * self.pooled
        return text + f", tiles up to {self.largest}" * (self.largest < max(conv3x3.TILES))

    def part(self) -> Geometry:
        """Of larger images a part, which is as good to be timed."""
        return self._replace(sides=tuple(min(side, _LARGEST_SIDE) for side in self.sides))


def asked() -> str:
    """What NCSN_FAST_CONV says, "auto" where that is nothing.

    Raises:
        ValueError: where it is none of "auto", "direct", "F2" and "F4".
    """
    form = os.environ.get(CONV) or "auto"
    if form != "auto" and form not in _ASKED:
        allowed = ("auto", *_ASKED)
        raise ValueError(f"{CONV} = {form!r:.80} is unknown; choose one of {allowed}")
    return form


def tile_of(geometry: Geometry) -> int:
    """The side of the tiles that a convolution runs in, or ``DIRECT``; raises what asked does."""
    return _decided("convolution", geometry, _forms)


def gradient_tile_of(geometry: Geometry) -> int:
    """That in which the gradient of its weights is taken; see :func:`tile_of`."""
    return _decided("weight_gradient", geometry, _gradients)


_Example = tuple[dict[int, Any], Tensor]  # forms by their tiles, and images that they take


def _decided(kind: str, geometry: Geometry, example: Callable[[Geometry], _Example]) -> int:
    form = asked()
    if native.missing() is not None:
        return DIRECT
    if form != "auto":
        return min(_ASKED[form], geometry.largest)
    part = geometry.part()
    return measured.decided(kind, str(part), lambda: _fastest(*example(part)), NAMES.__contains__)


@torch.inference_mode()
def _fastest(forms: dict[int, Any], x: Tensor) -> int:
    """The fastest of the forms that are exact enough; those that round more come later."""
    expected = forms[DIRECT](x)[0]
    largest = _LARGEST_ERROR * expected.norm()
    exact = {tile: f for tile, f in forms.items() if (f(x)[0] - expected).norm() <= largest}
    times, best = _times(exact, x), DIRECT
    for tile in times:
        if times[tile] < _MARGIN * times[best]:
            best = tile
    return best


@torch.inference_mode()
def _forms(geometry: Geometry) -> _Example:
    conv, x = example(geometry)
    return {tile: form_of(conv, tile, geometry.pooled) for tile in _tiles(geometry)}, x


@torch.inference_mode()
def _gradients(geometry: Geometry) -> _Example:
    conv, x = example(geometry)
    how: dict[str, Any] = {"padding": geometry.padding, "dilation": geometry.dilation}
    upstream = conv(x).normal_(generator=torch.Generator().manual_seed(1))

    def gradient(x: Tensor, tile: int) -> list[Tensor]:
        if tile:
            return [conv3x3.weight_gradient(x, upstream, conv.weight, tile=tile, **how)]
        wanted = False, True, False
        return conv3x3.aten_gradients(upstream, x, conv.weight, **how, wanted=wanted)[1:2]

    return {tile: functools.partial(gradient, tile=tile) for tile in _tiles(geometry)}, x


def _tiles(geometry: Geometry) -> list[int]:
    return [tile for tile in (DIRECT, *conv3x3.TILES) if tile <= geometry.largest]


def example(geometry: Geometry) -> tuple[nn.Conv2d, Tensor]:
    """A float32 convolution without a bias and images for it to be timed on, channels_last."""
    (inputs, outputs), sides, padding, dilation, *_ = geometry
    draw = torch.Generator().manual_seed(0)
    settings: dict[str, Any] = {"padding": padding, "dilation": dilation, "bias": False}
    numbers: dict[str, Any] = {"device": "cpu", "dtype": torch.float32}  # whatever the defaults are
    conv = nn.Conv2d(inputs, outputs, 3, device="meta", **settings)
    conv.weight = nn.Parameter(torch.randn(conv.weight.shape, generator=draw, **numbers))
    samples = max(1, _PIXELS // math.prod(sides))
    x = torch.randn(samples, inputs, *sides, generator=draw, **numbers)
    layout: dict[str, Any] = {"memory_format": torch.channels_last}  # unknown to torch's type hints
    return conv.to(**layout), x.to(**layout)


def _times(forms: dict[int, Any], x: Tensor) -> dict[int, float]:
    return measured.times({tile: functools.partial(form, x) for tile, form in forms.items()})


__all__ = [
    "CONV",
    "DIRECT",
    "NAMES",
    "Direct",
    "Filtered",
    "Form",
    "Geometry",
    "asked",
    "example",
    "form_of",
    "gradient_tile_of",
    "pooled_kernel",
    "tile_of",
]
