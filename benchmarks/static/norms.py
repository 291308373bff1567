"""What is compiled to check InstanceNorm++: variants and budgets."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
import triton

from ncsn_fast.benchmarks.static.variants import Budget, Variant, meta
from ncsn_fast.kernels.triton import instance_norm, instance_norm_gradient, instance_norm_statistics

_SHAPE = (512, 256, 16, 16)
_SPLIT = (8, 256, 32, 32)
_SINGLE = (1, 256, 16, 16)
# Of images inside networks: a side, and the most instructions in NHWC and in NCHW. Tiles of 64
# pixels hold 49 of them, whose planes begin anywhere.
_SIDES = ((32, 15, 15), (8, 16, 24), (4, 16, 24), (7, 20, 60))


def _tile(settings: dict[str, Any]) -> int:
    """Elements of a turn of a program's loop."""
    return settings["BLOCK_PIXELS"] * settings["BLOCK_CHANNELS"] * settings["UNROLL"]


def _share(channels: int, side: int, settings: dict[str, Any]) -> float:
    """Elements of a program, on average: those that images have, whatever its tiles could hold."""
    turns = triton.cdiv(side * side, settings["BLOCK_PIXELS"] * settings["UNROLL"])
    return channels * side * side / (settings["BLOCKS"] * turns)


def _image(shape: tuple[int, ...], dtype: torch.dtype, last: bool) -> torch.Tensor:
    x = meta(*shape, dtype=dtype)
    return x.to(memory_format=torch.channels_last) if last else x


def _statistics(
    shape: tuple[int, ...] = _SHAPE,
    *,
    dtype: torch.dtype = torch.float16,
    last: bool = True,
    total: bool = False,
) -> None:
    x = _image(shape, dtype, last)
    out = meta(shape[0] * (2 * shape[1] + 2))
    both = (x, x) if total else (None, None)
    instance_norm_statistics.statistics(x, out, *both)


def _apply(
    shape: tuple[int, ...] = _SHAPE,
    *,
    dtype: torch.dtype = torch.float16,
    last: bool = True,
    rows: bool = False,
    activation: str | None = "elu",
) -> None:
    x = _image(shape, dtype, last)
    parameter = meta(shape[0], 3 * shape[1])[:, : shape[1]] if rows else meta(shape[1])
    instance_norm.apply(
        x, parameter, parameter, parameter, meta(shape[0] * (2 * shape[1] + 2)), x,
        eps=1e-5, activation=activation, fast_math=True,
    )  # fmt: skip


def _gradient(
    shape: tuple[int, ...] = _SHAPE, *, dtype: torch.dtype = torch.float16, last: bool = True
) -> None:
    samples, channels = shape[:2]
    x, parameter = _image(shape, dtype, last), meta(channels)
    instance_norm_gradient.gradient(
        x, x, parameter, parameter, parameter, meta(samples * (2 * channels + 2)), x,
        meta(samples, 3, channels),
        eps=1e-5, activation="elu", fast_math=True,
    )  # fmt: skip


def variants() -> Iterator[Variant]:
    """NHWC in float16 if not said."""
    of, share = functools.partial, functools.partial(_share, *_SHAPE[1:3])
    yield Variant("instance_norm_apply", "elu", _apply, Budget(13, lanes=8), share, everywhere=True)
    for activation in ("relu", "lrelu", "swish", None):
        call = of(_apply, activation=activation)
        budget = Budget(17 if activation == "swish" else 13, lanes=8)
        yield Variant("instance_norm_apply", activation or "none", call, budget, share)
    for name, call in (
        ("elu, a row a sample", of(_apply, rows=True)),
        ("elu, bf16", of(_apply, dtype=torch.bfloat16)),
        ("elu, fp32", of(_apply, dtype=torch.float32)),
    ):
        yield Variant("instance_norm_apply", name, call, Budget(13, lanes=8), share)
    call = of(_apply, last=False)
    yield Variant("instance_norm_apply", "elu, NCHW", call, Budget(24, None, None, 8), share)
    yield from _at_each_side("instance_norm_apply", _apply)

    kernel = "instance_norm_statistics"
    # More barriers: warps hand over their rows otherwise than ``rows_of_a_warp`` expects.
    budget = Budget(7, shared=None, barriers=12, lanes=8)
    yield Variant(kernel, "whole", _statistics, budget, _tile, loop=True, everywhere=True)
    for name, call, barriers in (
        ("split", of(_statistics, _SPLIT), 3),
        ("split, NCHW", of(_statistics, _SPLIT, last=False), 3),
        ("split, 40 x 40, NCHW", of(_statistics, (2, 256, 40, 40), last=False), 3),
        ("whole, fp32", of(_statistics, dtype=torch.float32), 16),
    ):
        yield Variant(kernel, name, call, replace(budget, barriers=barriers), _tile, loop=True)
    # Of a single image a thread has one turn of one tile, which pays for all.
    for name, last in (("single image", True), ("single image, NCHW", False)):
        call, single = of(_statistics, _SINGLE, last=last), Budget(22, 512, 3, 8)
        yield Variant(kernel, name, call, single, _tile, loop=True)
    call = of(_statistics, total=True)
    yield Variant(kernel, "of a sum", call, Budget(9, None, 12, 8), _tile, loop=True)
    yield Variant(
        "instance_norm_combine", "plain", of(_statistics, _SINGLE), Budget(None, None, 9, 1),
        None, everywhere=True,
    )  # fmt: skip
    loose = Budget(None, None, None, 1)
    yield Variant("instance_norm_coefficients", "plain", _gradient, loose, None, everywhere=True)
    ways: dict[str, Callable[[], None]] = {
        "elu": _gradient,
        "elu, bf16": of(_gradient, dtype=torch.bfloat16),
        "elu, fp32": of(_gradient, dtype=torch.float32),
        "elu, NCHW": of(_gradient, last=False),
    }
    for name, way in ways.items():
        first = name == "elu"
        summing = Budget(14, None, 7 if name == "elu, fp32" else 3, 8)
        shared = None if name == "elu, NCHW" else 0
        yield Variant("instance_norm_sums", name, way, summing, _tile, True, first)
        budget = Budget(24 if name == "elu, NCHW" else 16, shared, shared, 8)
        yield Variant("instance_norm_gradient", name, way, budget, share, False, first)
    yield from _at_each_side("instance_norm_gradient", _gradient)


def _at_each_side(kernel: str, launch: Callable[..., None]) -> Iterator[Variant]:
    """A kernel in the sizes of the networks."""
    samples, channels = _SHAPE[:2]
    for side, *most in _SIDES:
        shape, share = (samples, channels, side, side), functools.partial(_share, channels, side)
        for last, instructions in zip((True, False), most, strict=True):
            name = f"elu, {side} x {side}{'' if last else ', NCHW'}"
            exact = side % 4 == 0
            budget = Budget(instructions, None, None, 8 if last or exact else 1, exact)
            yield Variant(kernel, name, functools.partial(launch, shape, last=last), budget, share)


__all__ = ["variants"]
