"""What is compiled to check the passes between convolutions: variants and budgets."""

import functools
from collections.abc import Iterator
from typing import Any

import torch

from ncsn_fast.benchmarks.static.variants import Budget, Variant, meta
from ncsn_fast.kernels.triton import max_pool5, residual_add, resize_add

_SHAPE = (8, 128, 32, 32)


def _flat(settings: dict[str, Any]) -> int:
    """Elements of a program."""
    return settings["BLOCK_SIZE"]


def _vectors(settings: dict[str, Any]) -> int:
    """Elements of a program that takes vectors of a band of rows."""
    return settings["BLOCK_SIZE"] * settings["VECTOR"] * settings.get("BAND", 1)


def _images(dtype: torch.dtype, last: bool, shape: tuple[int, ...] = _SHAPE) -> torch.Tensor:
    layout = torch.channels_last if last else torch.contiguous_format
    return meta(*shape, dtype=dtype).to(memory_format=layout)


def _residual_add(
    shape: tuple[int, ...] = _SHAPE,
    *,
    activation: str = "elu",
    dtype: torch.dtype = torch.float16,
    gradient: bool = False,
) -> None:
    x = _images(dtype, True, shape)
    launch = residual_add.residual_add_gradient if gradient else residual_add.residual_add
    launch(x, x, x, x, activation, fast_math=True)


def _max_pool5(
    *, activation: str | None = "elu", dtype: torch.dtype = torch.float16, last: bool = True
) -> None:
    x = _images(dtype, last)
    max_pool5.max_pool5(x, x if activation else None, x, activation, fast_math=True)


def _max_pool5_gradient(*, dtype: torch.dtype = torch.float16, last: bool = True) -> None:
    x = _images(dtype, last)
    max_pool5.max_pool5_gradient(x, x, x, x, x, "elu", fast_math=True)


def _resize_add(*, dtype: torch.dtype = torch.float16, last: bool = True) -> None:
    base = _images(dtype, last)
    resize_add.resize_add(_images(dtype, last, (8, 128, 16, 16)), base, base)


def _resize_gradient(*, dtype: torch.dtype = torch.float16, last: bool = True) -> None:
    gradient = _images(dtype, last, (8, 128, 16, 16))
    resize_add.resize_gradient(_images(dtype, last), gradient)


def variants() -> Iterator[Variant]:
    """NHWC in float16 if not said.

    A maximum reads each pixel ten times and a gradient 25 times, from the cache. The budgets of
    forward passes are about what an H200 issues while it moves their bytes, 7 per byte; gradients
    of maxima are beyond that.
    """
    of, bf16, fp32 = functools.partial, torch.bfloat16, torch.float32
    for activation in ("elu", "relu", "lrelu", "swish"):
        call, first = of(_residual_add, activation=activation), activation == "elu"
        yield Variant("residual_add", activation, call, Budget(18, lanes=8), _flat, False, first)
        call = of(call, gradient=True)
        budget = Budget(22, lanes=8)
        yield Variant("residual_add_gradient", activation, call, budget, _flat, False, first)
    for name, dtype in (("elu, bf16", bf16), ("elu, fp32", fp32)):
        call = of(_residual_add, dtype=dtype)
        yield Variant("residual_add", name, call, Budget(18, lanes=8), _flat)
        call = of(call, gradient=True)
        yield Variant("residual_add_gradient", name, call, Budget(22, lanes=8), _flat)
    # The first program's eight elements one by one, and all others' as ever.
    call, odd = of(_residual_add, (2, 63, 15, 17)), Budget(25, lanes=1, once=False)
    yield Variant("residual_add", "elu, odd size", call, odd, _flat)
    yield Variant("residual_add_gradient", "elu, odd size", of(call, gradient=True), odd, _flat)

    wide = functools.partial(Budget, lanes=8, once=False)
    pools: tuple[tuple[str, dict[str, Any], Budget], ...] = (
        ("elu", {}, wide(44)),
        ("none", {"activation": None}, wide(28)),
        ("elu, bf16", {"dtype": bf16}, wide(44)),
        ("elu, fp32", {"dtype": fp32}, wide(50)),
        ("none, bf16", {"activation": None, "dtype": bf16}, wide(28)),
        ("none, fp32", {"activation": None, "dtype": fp32}, wide(56)),
        ("elu, NCHW", {"last": False}, Budget(115, once=False, lanes=1)),
    )
    for name, keywords, budget in pools:
        call = of(_max_pool5, **keywords)
        yield Variant("max_pool5", name, call, budget, _vectors, False, name == "elu")
    for kernel, most in (("max_pool5_places", 125), ("max_pool5_gradient", 205)):
        yield Variant(kernel, "elu", _max_pool5_gradient, wide(most), _vectors, False, True)
        for name, dtype, lanes in (("elu, bf16", bf16, 8), ("elu, fp32", fp32, 4)):
            call = of(_max_pool5_gradient, dtype=dtype)
            yield Variant(kernel, name, call, Budget(most + 10, lanes=lanes, once=False), _vectors)
        call = of(_max_pool5_gradient, last=False)
        budget = Budget(270 if kernel == "max_pool5_gradient" else None, lanes=1, once=False)
        yield Variant(kernel, "elu, NCHW", call, budget, _vectors)

    resizes: tuple[tuple[str, dict[str, Any], Budget], ...] = (
        ("plain", {}, Budget(34, lanes=8)),
        ("bf16", {"dtype": bf16}, Budget(34, lanes=8)),
        ("fp32", {"dtype": fp32}, Budget(48, lanes=8)),
        ("NCHW", {"last": False}, Budget(lanes=1)),
    )
    for name, keywords, budget in resizes:
        call = of(_resize_add, **keywords)
        yield Variant("resize_add", name, call, budget, _vectors, False, name == "plain")
    for name, keywords, budget in resizes:
        # In two loops, whose instructions are not counted.
        call, budget = of(_resize_gradient, **keywords), Budget(lanes=budget.lanes)
        yield Variant("resize_gradient", name, call, budget, _vectors, True, name == "plain")


__all__ = ["variants"]
