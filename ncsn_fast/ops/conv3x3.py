"""3×3 convolutions of stride 1 by Winograd's minimal filtering, in float32 on CPUs.

    y[n, o] = b[o] + Σ_i w[o, i] ∗ x[n, i]        (torch.nn.functional.conv2d, the specification)

A tile of T×T outputs takes (T + 2)² multiplications a channel instead of 9T²: 16 instead of 36 for
T = 2, 36 instead of 144 for T = 4 (Lavin & Gray 2016, "Fast algorithms for convolutional neural
networks"). Its rounding error is that of the direct sum for T = 2 and about four times that for
T = 4. Weights are transformed first and then take (T + 2)²/9 times their memory, 1.8 or 4 times.

The gradient of the input is such a convolution too, and that of the weights is a sum over tiles
that needs as few multiplications.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ncsn_fast.device import backends
from ncsn_fast.ops.library import declare, native_kernel

TILES = (2, 4)


class Tiles(NamedTuple):
    """The sides of the tiles in which a convolution and its gradients are computed; 0 for ATen."""

    output: int
    input_gradient: int
    weight_gradient: int


def transformed(weight: Tensor, tile: int, *, flipped: bool = False) -> Tensor:
    """Weights as the filtering takes them.

    Args:
        weight: (O, I, 3, 3) float32, on a CPU where native kernels run.
        tile: 2 or 4, the side of a tile of outputs.
        flipped: those of the gradient of the input, which is such a convolution too: inputs and
            outputs change places, rows and columns their order.

    Returns:
        (O / 32, (tile + 2)², I, 32) float32, O and I rounded up to multiples of 32 and 16.
    """
    return native_kernel("conv3x3_weight")(weight.detach(), tile, flipped)


def transformed_bytes(outputs: int, inputs: int, tile: int) -> int:
    """The memory that :func:`transformed` weights of so many channels take."""
    panels, chunks = -(-outputs // 32), -(-inputs // 16)
    return 4 * (tile + 2) ** 2 * (32 * panels) * (16 * chunks)


def filtered(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    *,
    outputs: int,
    tile: int,
    padding: Sequence[int],
    dilation: Sequence[int],
    pooled: bool = False,
    activation: str | None = None,
    total: bool = True,
    overwrite: bool = False,
) -> list[Tensor]:
    """The convolution of x with :func:`transformed` weights, plus a bias and a residual.

    Args:
        x: (N, I, H, W) float32; channels_last spares a copy.
        weight: transformed with this ``tile``.
        bias: (O,) float32, or None.
        residual: of the result's shape, float32, or None.
        outputs: O.
        padding, dilation: (rows, columns), ≥ 0 and ≥ 1.
        pooled: take 2×2 means of the convolution, which has no dilation then.
        activation: a name of ``reference.ACTIVATIONS``: also return act(total).
        total: whether the sum itself is wanted beside its activation.
        overwrite: write the total over the residual, which is channels_last then.

    Returns:
        What is wanted of [total, act(total)], each (N, O, H', W') float32, channels_last, with
        H' = H + 2 (padding - dilation), half of that where pooled.
    """
    return native_kernel("conv3x3")(
        x,
        weight,
        bias,
        residual,
        outputs,
        tile,
        padding,
        dilation,
        pooled,
        activation or "",
        total,
        overwrite,
    )


def weight_gradient(
    x: Tensor,
    upstream: Tensor,
    weight: Tensor,
    *,
    tile: int,
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """The gradient of the weights, laid out as they are; the same for any number of threads.

    Args:
        x: (N, I, H, W) float32; channels_last spares a copy.
        upstream: (N, O, H', W') float32, the gradient of the result; so too.
        weight: (O, I, 3, 3) float32.
        tile: 2 or 4.
        padding, dilation: as in :func:`filtered`.
    """
    kernel = native_kernel("conv3x3_weight_gradient")
    return kernel(x, upstream, weight.detach(), tile, padding, dilation)


def aten_gradients(
    upstream: Tensor,
    x: Tensor,
    weight: Tensor,
    *,
    padding: Sequence[int],
    dilation: Sequence[int],
    wanted: Sequence[bool],
) -> list[Any]:
    """PyTorch's gradients of x, the weights and the bias, None where they are not wanted."""
    sizes = [weight.shape[0]] if wanted[2] else None
    rest: Any = sizes, [1, 1], padding, dilation, False, [0, 0], 1, wanted
    return list(torch.ops.aten.convolution_backward(upstream, x, weight, *rest))


def _empty(
    x: Tensor, weight: Tensor, _: Any, padding: Sequence[int], dilation: Sequence[int], *__: Any
) -> Tensor:
    sides = (n + 2 * (p - d) for n, p, d in zip(x.shape[2:], padding, dilation, strict=True))
    y = x.new_empty(x.shape[0], weight.shape[0], *sides)
    return y.contiguous(memory_format=torch.channels_last)


def _launch(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    padding: Sequence[int],
    dilation: Sequence[int],
    tiles: Sequence[int],
) -> Tensor:
    outputs, tile = len(weight), tiles[0]
    if not tile:
        y = F.conv2d(x, weight, bias, padding=tuple(padding), dilation=tuple(dilation))
        return y.contiguous(memory_format=torch.channels_last)
    settings: Any = {"outputs": outputs, "tile": tile, "padding": padding, "dilation": dilation}
    return filtered(x, transformed(weight, tile), bias, **settings)[0]


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _, *ctx.how = inputs
    ctx.save_for_backward(x, weight)


def _backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    (x, weight), (padding, dilation, tiles) = ctx.saved_tensors, ctx.how
    how: dict[str, Any] = {"padding": padding, "dilation": dilation}
    wanted = ctx.needs_input_grad[:3]
    plain = backends.plain_call(upstream) and not backends.general_obstacle(upstream)
    if torch.is_grad_enabled() or not plain:
        return *aten_gradients(upstream, x, weight, **how, wanted=wanted), None, None, None
    _, back, sums = tiles
    by_aten = wanted[0] and not back, wanted[1] and not sums, False
    found: list[Any] = [None, None, None]
    if any(by_aten):
        found = aten_gradients(upstream, x, weight, **how, wanted=by_aten)
    if wanted[0] and back:
        ready = transformed(weight, back, flipped=True)
        how_back: Any = {"outputs": x.shape[1], "tile": back, "dilation": dilation}
        how_back["padding"] = [2 * d - p for d, p in zip(dilation, padding, strict=True)]
        (found[0],) = filtered(upstream, ready, None, **how_back)
    if wanted[1] and sums:
        found[1] = weight_gradient(x, upstream, weight, tile=sums, **how)
    if wanted[2]:
        found[2] = upstream.sum((0, 2, 3))
    return *found, None, None, None


_pick = declare(
    "conv3x3(Tensor x, Tensor weight, Tensor? bias, int[] padding, int[] dilation, int[] tiles) "
    "-> Tensor",
    _launch,
    _empty,
    backward=_backward,
    save=_save,
)


def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    padding: Sequence[int],
    dilation: Sequence[int],
    tiles: Tiles,
) -> Tensor:
    """The convolution with its gradients, of which second ones are PyTorch's.

    Only x and the weights are kept for them; the weights are transformed at each call.

    Args:
        x: (N, I, H, W) float32 on a CPU where native kernels run; channels_last spares copies.
        weight: (O, I, 3, 3) float32, in any memory format.
        bias: (O,) float32, or None.
        padding, dilation: (rows, columns), ≥ 0 and ≥ 1; where the gradient of the input is
            filtered, the padding is at most twice the dilation.
        tiles: how each of the three is computed.

    Returns:
        (N, O, H', W') float32, channels_last.
    """
    given = x, weight, *(() if bias is None else (bias,))
    return _pick(*given)(x, weight, bias, padding, dilation, tiles)


__all__ = [
    "TILES",
    "Tiles",
    "aten_gradients",
    "convolution",
    "filtered",
    "transformed",
    "transformed_bytes",
    "weight_gradient",
]
