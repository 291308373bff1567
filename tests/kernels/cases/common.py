"""What the tests of all kernels share: ways to run a case, guarded tensors, the tolerance.

A kernel is held to the specification in float64: its error may be twice that of the specification
in the kernel's own types, plus a little.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from ncsn_fast import noise
from ncsn_fast.device import native

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
NATIVE_DTYPES = (torch.float32, torch.bfloat16)
ALLOWED = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1e-2}
# The error of a normal that is made with the approximate functions of a GPU.
FAST_MATH_LIMIT = 2e-5

SEED = (1 << 64) - 0x123456789  # beyond int64: its tensor holds a negative number
STEP = (1 << 31) + 5  # beyond int32
COEFFICIENTS = (0.9, 0.3, -0.2, 0.7, 0.1, 0.4, 0.25, 0.5, 0.6)  # in the order of reference.ROW
GUARD = 64  # elements; a multiple of 16 bytes, so that what lies behind it is aligned
UNALIGNED = 65

# Of Triton's kernels, as tests/conftest.py has it: without a GPU its interpreter runs them.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@dataclass(frozen=True)
class Way:
    """Whose kernels run a case, and how.

    Attributes:
        backend: "triton" or "cpp".
        device: where the tensors are.
        fast_math: whether Triton's kernels use the approximate functions of a GPU.
        capability: of the CPU, for which the native kernels are compiled.
    """

    backend: str
    device: str = "cpu"
    fast_math: bool = False
    capability: str = ""

    def __str__(self) -> str:
        if self.backend == "cpp":
            return self.capability
        if self.device == "cpu":
            return "interpreter"
        return "gpu_fast" if self.fast_math else "gpu_exact"

    @property
    def is_native(self) -> bool:
        return self.backend == "cpp"

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        return NATIVE_DTYPES if self.is_native else DTYPES

    def stored(self, values: Tensor, dtype: torch.dtype) -> Tensor:
        """float32 values as these kernels store them."""
        return values.to(dtype) if self.is_native else stored(values, dtype)

    @property
    def marks(self) -> tuple[pytest.MarkDecorator, ...]:
        if self.is_native:
            return (pytest.mark.native,)
        if find_spec("triton") is None:
            return (pytest.mark.skip(reason="Triton is not installed"),)
        if self.device == "cuda":
            return (pytest.mark.gpu,)
        return (pytest.mark.skipif(not INTERPRETED, reason="a GPU runs what is compiled for it"),)


TRITON_WAYS = (
    Way("triton"),
    Way("triton", "cuda", fast_math=True),
    Way("triton", "cuda", fast_math=False),
)
NATIVE_WAYS = tuple(
    Way("cpp", capability=capability)
    for capability in (() if native.missing() else native.ops().capability("")[1:])
)
WAYS = TRITON_WAYS + NATIVE_WAYS


def on_every_way(cases: Callable[[Way], Iterable[Any]], ways: Iterable[Way] = WAYS) -> Any:
    """A mark: run a test of (way, case) for each case of each way."""
    found = [
        pytest.param(way, case, id=f"{way}-{case}", marks=way.marks)
        for way in ways
        for case in cases(way)
    ]
    return pytest.mark.parametrize(("way", "case"), found, indirect=["way"])


def _each(ways: Iterable[Way]) -> Any:
    found = [pytest.param(way, id=str(way), marks=way.marks) for way in ways]
    return pytest.mark.parametrize("way", found, indirect=True)


every_way = _each(WAYS)
every_triton_way = _each(TRITON_WAYS)
every_native_way = _each(NATIVE_WAYS)
# What a public operation runs: on a GPU with its approximate functions, on a CPU the most capable.
every_backend = _each((*TRITON_WAYS[:2], *NATIVE_WAYS[:1]))


class Buffers:
    """Tensors between guard zones of NaN, in which stray reads and writes leave their mark.

    A value read from outside spoils a result; one written outside is found by :meth:`check`.
    """

    def __init__(self, device: str, guard: int = GUARD) -> None:
        self.device, self.guard = device, guard
        self._buffers: list[Tensor] = []
        self._inputs: list[tuple[Tensor, Tensor]] = []

    def output(self, shape: Iterable[int], dtype: torch.dtype, last: bool = False) -> Tensor:
        """A tensor to be written, full of NaN (-1 for integers)."""
        shape = tuple(shape)
        size, poison = math.prod(shape), math.nan if dtype.is_floating_point else -1
        buffer = torch.full((size + 2 * self.guard,), poison, dtype=dtype, device=self.device)
        self._buffers.append(buffer)
        inside = buffer[self.guard : self.guard + size]
        if not last:
            return inside.view(shape)
        n, c, h, w = shape
        return inside.view(n, h, w, c).permute(0, 3, 1, 2)

    def input(self, values: Tensor, last: bool = False) -> Tensor:
        """A tensor with these values, to be read only."""
        tensor = self.output(values.shape, values.dtype, last)
        self._inputs.append((tensor.copy_(values), values))
        return tensor

    def check(self) -> None:
        """Assert that nothing but outputs has been written."""
        for buffer in self._buffers:
            zones = torch.cat([buffer[: self.guard], buffer[len(buffer) - self.guard :]])
            floating = zones.is_floating_point()
            untouched = zones.isnan() if floating else zones == torch.full_like(zones, -1)
            assert untouched.all(), "a guard zone was written"
        for tensor, values in self._inputs:
            found = tensor.cpu()
            same = (found == values) | (found.isnan() & values.isnan())
            assert same.all(), "an input was written"


def laid(tensor: Tensor, last: bool) -> Tensor:
    """The tensor in channels_last, or contiguous."""
    return tensor.contiguous(memory_format=torch.channels_last) if last else tensor.contiguous()


def draw(
    shape: Iterable[int], dtype: torch.dtype = torch.float32, last: bool = False, seed: int = 0
) -> Tensor:
    """Normals in memory of a format, on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    return laid(torch.randn(tuple(shape), generator=generator).to(dtype), last)


def poisoned(
    shape: Iterable[int], dtype: torch.dtype = torch.float32, last: bool = False
) -> Tensor:
    """NaN everywhere, to be written over."""
    return laid(torch.full(tuple(shape), math.nan, dtype=dtype), last)


def sample_ids(count: int) -> Tensor:
    """Ids all over [0, 2⁴⁸), the last one first."""
    return (torch.arange(count) * 70_368_744_177_667 + (1 << 48) - 1) % (1 << 48)


def normal(shape: Iterable[int], stream: int, step: int, dtype: torch.dtype) -> Tensor:
    """The specified noise of a batch that :func:`which_noise` names to a kernel."""
    count, *sample = shape
    which = {"seed": SEED, "stream": stream, "step": step, "sample_ids": sample_ids(count)}
    return noise.normal(sample, **which, dtype=dtype)


def stored(values: Tensor, dtype: torch.dtype) -> Tensor:
    """float32 values as a kernel stores them: Triton's interpreter does not round to bfloat16."""
    if INTERPRETED and dtype == torch.bfloat16:
        values = (values.view(torch.int32) & ~0xFFFF).view(torch.float32)
    return values.to(dtype)


def assert_close(found: Tensor, exact: Tensor, plain: Tensor, slack: float = 0.0) -> None:
    """Assert that an error stays within what the kernel's types explain.

    Args:
        found: the kernel's result.
        exact: that of the specification in float64.
        plain: that of the specification in the types of the kernel.
        slack: what the result owes to approximate mathematics.
    """
    assert plain.dtype == found.dtype
    assert found.shape == exact.shape
    error = (found.cpu().double() - exact).abs().max()
    limit = 2 * (plain.double() - exact).abs().max() + ALLOWED[found.dtype] + slack
    assert error <= limit, f"error {error:.3g}, allowed {limit:.3g}"


def name(dtype: torch.dtype, last: bool) -> str:
    return str(dtype).removeprefix("torch.") + ("_last" if last else "")


def check_operator(name: str, *arguments: Any) -> None:
    """Assert that torch.ops.ncsn_fast.NAME is all that PyTorch asks of an operator."""
    results = opcheck(getattr(torch.ops.ncsn_fast, name).default, arguments)
    assert set(results.values()) == {"SUCCESS"}
