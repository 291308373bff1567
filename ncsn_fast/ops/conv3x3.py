"""3×3 convolutions of stride 1 by Winograd's minimal filtering, in float32 on CPUs.

    y[n, o] = b[o] + Σ_i w[o, i] ∗ x[n, i]        (torch.nn.functional.conv2d, the specification)

A tile of T×T outputs takes (T + 2)² multiplications a channel instead of 9T²: 16 instead of 36 for
T = 2, 36 instead of 144 for T = 4 (Lavin & Gray 2016, "Fast algorithms for convolutional neural
networks"). Its rounding error is that of the direct sum for T = 2 and about four times that for
T = 4. Weights are transformed first and then take (T + 2)²/9 times their memory, 1.8 or 4 times.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ncsn_fast.ops.library import native_kernel

TILES = (2, 4)


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


__all__ = ["TILES", "filtered", "transformed", "transformed_bytes"]
