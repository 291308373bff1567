"""What linear operators have in common: constants, adjoints, norms, and one after another.

Complex quantities are two real channels, real and imaginary part, so that white noise of variance
s² in every real number is complex noise of power N₀ = 2s². With the inner product ⟨x, y⟩ = Σ x·y of
such real numbers the adjoint, ⟨Ax, y⟩ = ⟨x, A*y⟩, is the conjugate transpose Aᴴ.

Operators compute in the dtype and on the device of what they are given. Nothing in them waits for
a device, so that they run inside a captured chain. What they are made of, and what they are given,
may be NumPy arrays too; they return tensors. What they are made of is copied, so that an operator
stays what it was made of.

What they are made of may differ from sample to sample: masks, kernels, matrices, coils and pilots
with one dimension more, of n entries, in front. Such an operator is for n samples, and guidance
cuts it into chunks together with them. A first dimension of 1 is for any number of samples.
"""

from __future__ import annotations

import copy
import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from ncsn_fast.reference import per_sample as along
from ncsn_fast.support import checks
from ncsn_fast.support.per_sample import cut

_log = logging.getLogger("ncsn_fast")
Same = TypeVar("Same", bound="Operator")
Array = Tensor | np.ndarray | Sequence[object]
_POWER_ITERATIONS = 60
# How many values of samples and measurements the norm is found for at a time.
_NORM_VALUES = 1 << 24
# How far an operator may be off being one: untold, as TF32 is, and told, as products of 16 bits.
_OFF, _ROUGH = 1e-3, 3e-2
# Of an adjoint, which some only approximate: projectors of tomography and their back projectors.
_UNMATCHED = 0.1
_TOLD = "%s.%s to %.1g only: what is solved by it, as in mmps and exact, is as exact as that"
_EACH = "what an operator has for each sample is named in per_sample"


class Operator(ABC):
    """A linear operator. One of your own is a class with ``forward`` and ``adjoint``.

    ``A @ B`` is A after B, x ↦ A(B x).

    Args:
        shape: shape of one sample x.
        measured: shape of one measurement A x.
        per_sample: names of the constants that have one entry for each sample, (n, …), or a single
            one for all, (1, …).
        constants: tensors, or arrays, that the operator is made of; they are copied, and
            :meth:`constant` hands them out.

    Attributes:
        shape, measured: as given.

    Raises:
        ValueError: for no shapes, values that are not finite, a name in ``per_sample`` that no
            constant has, and constants for different numbers of samples.
    """

    _verified = False

    def __init__(
        self,
        shape: Iterable[int],
        measured: Iterable[int],
        *,
        per_sample: Iterable[str] = (),
        **constants: Array,
    ) -> None:
        self.shape = checks.sample_shape(shape)
        self.measured = checks.sample_shape(measured)
        self._given = {name: kept(name, value) for name, value in constants.items()}
        for name, value in self._given.items():
            if not bool(torch.isfinite(value).all()):
                raise ValueError(
                    f"{name} of {type(self).__name__} holds values that are not finite"
                )
        self._per_sample = tuple(per_sample)
        known = list(self._given)
        if isinstance(per_sample, str) or not all(name in known for name in self._per_sample):
            raise ValueError(
                f"per_sample = {per_sample!r:.80} of {type(self).__name__}: give a list of names, "
                f"out of {known}"
            )
        self._moved: dict[tuple[str, torch.device, torch.dtype], Tensor] = {}
        for name, value in self.inputs.items():
            if not value.ndim or not len(value):
                raise ValueError(
                    f"{name} of {type(self).__name__} has shape {tuple(value.shape)}: give (n, …), "
                    "an entry for each sample, or (1, …) for all"
                )
        lengths = {name: len(value) for name, value in self.inputs.items()}
        if len(set(lengths.values()) - {1}) > 1:
            raise ValueError(
                f"what {type(self).__name__} is made of is for different numbers of samples, "
                f"{lengths}: give n entries each, or one for all"
            )

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """A x: (N, *shape) → (N, *measured)."""

    @abstractmethod
    def adjoint(self, y: Tensor) -> Tensor:
        """A* y: (N, *measured) → (N, *shape)."""

    def __matmul__(self, other: Operator) -> Operator:
        return Composed(self, other) if isinstance(other, Operator) else NotImplemented

    @property
    def inputs(self) -> dict[str, Tensor]:
        """What differs from sample to sample: by name (n, …), or (1, …) for all, as given."""
        return {name: self._given[name] for name in self._per_sample}

    @property
    def samples(self) -> int:
        """How many samples it is for; 1: any number."""
        return max((len(value) for value in self.inputs.values()), default=1)

    def of(self: Same, inputs: Mapping[str, Tensor]) -> Same:
        """The operator of some of the samples, whose part of :attr:`inputs` is given."""
        part = copy.copy(self)
        part._given = {**self._given, **inputs}
        return part

    def constant(self, name: str, like: Tensor) -> Tensor:
        """The tensor ``name`` of the operator as ``like`` is, of any shape: its device, real dtype.

        What all samples share is moved there once: a copy from the host would end the capture of a
        chain. What differs guidance has moved, with a chunk. ValueError for a name it has not.
        """
        if name not in self._given:
            raise ValueError(
                f"{type(self).__name__} has no constant {name!r:.80}: it has {list(self._given)}"
            )
        given = self._given[name]
        dtype = like.dtype.to_complex() if given.is_complex() else like.dtype
        if name in self._per_sample:
            return given.to(like.device, dtype)
        key = name, like.device, dtype
        if key not in self._moved:
            with torch.inference_mode(False):
                self._moved[key] = given.to(like.device, dtype)
        return self._moved[key]

    def norm(self, device: torch.device | str = "cpu") -> float:
        """‖A‖, the largest singular value (of all samples'), by power iteration in float64.

        It approaches the norm from below and is exact to a fraction of a percent unless many
        singular values crowd below the largest, where the difference matters least.

        Raises:
            ValueError: as :meth:`verify`, which comes first.
        """
        self.verify(device)
        generator = torch.Generator("cpu").manual_seed(0)
        shape = (1, *self.shape)
        x = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu").to(device)
        size = max(1, _NORM_VALUES // (math.prod(self.shape) + math.prod(self.measured)))
        parts = [slice(i, i + size) for i in range(0, self.samples, size)]
        return math.sqrt(max(self._squared_norm(x, part) for part in parts))

    def _squared_norm(self, x: Tensor, part: slice) -> float:
        """Of some of the samples the largest ‖A‖², from x (1, *shape)."""
        inputs = cut(self.inputs, part, self.samples)
        operator = self.of({name: _double(value, x.device) for name, value in inputs.items()})
        x = x.expand(operator.samples, *self.shape)
        length, tiny = along(x.flatten(1).norm(dim=1), x), torch.finfo(x.dtype).tiny
        with torch.no_grad():
            for _ in range(_POWER_ITERATIONS):
                x = operator.adjoint(operator.forward(x / length))
                length = along(x.flatten(1).norm(dim=1), x)
                largest = float(length.max())
                if largest == 0:
                    break
                length = length.clamp(min=tiny)
        return largest

    def verify(self, device: torch.device | str = "cpu") -> None:
        """Ask forward and adjoint for what makes a linear operator, of random numbers.

        They are called six times, with two samples at most, in float32, as chains are. A guidance
        does it when it is made of an operator, and :meth:`norm`; what has passed once passes.

        A constant that differs from sample to sample, but is not named in ``per_sample``, shows
        where another number of samples fails; not where its entries are as many as the values of a
        sample, and broadcast along these.

        Args:
            device: where.

        Raises:
            ValueError: unless A(x + 2x') = A x + 2A x' to 3 hundredths, ⟨A x, y⟩ = ⟨x, A*y⟩ to a
                tenth (beyond a thousandth a line of the log says so), and a sample alone has the
                measurement that it has beside another, as exactly as A is linear.
        """
        if self._verified:
            return
        both, last = (
            self if self.samples == 1 else self.of(cut(self.inputs, part, self.samples))
            for part in (slice(0, 2), slice(1, 2))
        )
        generator = torch.Generator("cpu").manual_seed(0)
        shapes = self.shape, self.shape, self.measured
        x, step, y = (
            torch.randn((2, *one), generator=generator, device="cpu").to(device) for one in shapes
        )
        name = type(self).__name__
        with torch.no_grad(), as_given(x):
            found, other, total = (
                both._asked("forward", one, self.measured) for one in (x, step, x + 2 * step)
            )
            linear = total, found + 2 * other, _lengths(found) + 2 * _lengths(other)
            if _far(*linear, _ROUGH):
                raise ValueError(
                    f"{name}.forward is not linear: A(x + 2x') is not A x + 2A x'. What is not "
                    "linear is nf.guidance.Nonlinear(function, shape, measured), for dps, mmps and "
                    "the others of nf.guidance"
                )
            most = _ROUGH if _far(*linear) else _OFF
            if most > _OFF:
                off = float((_lengths(linear[0] - linear[1]) / linear[2]).max())
                _log.warning(_TOLD, name, "forward is linear", off)
            last._alone("forward", x, found, most)
            # Mostly A x, along which a wrong factor shows in any number of dimensions.
            y = _of_length_1(y) / 2 + _of_length_1(found).to(y)
            back = both._asked("adjoint", y, self.shape)
            left, right = ((one * two).flatten(1).sum(1) for one, two in ((found, y), (x, back)))
            rounding = 1e-6 * _lengths(x) * _lengths(back)

            def apart(most: float) -> bool:
                lengths = _lengths(found) + rounding / most
                return _far(left[:, None], right[:, None], lengths, most)

            if apart(_UNMATCHED):
                raise ValueError(
                    f"{name}.adjoint is not the adjoint of its forward: ⟨A x, y⟩ is "
                    f"{float(left[0]):.6g}, ⟨x, A*y⟩ {float(right[0]):.6g}. It is the transpose of "
                    "the matrix, of complex channels the conjugate transpose, and no inverse"
                )
            if apart(_OFF):
                off = float(((left - right).abs() / _lengths(found)).max())
                _log.warning(_TOLD, name, "adjoint is the adjoint of its forward", off)
            last._alone("adjoint", y, back, most)
        self._verified = True

    def _alone(self, name: str, given: Tensor, beside: Tensor, most: float) -> None:
        """Refuse to make another thing of the last sample than was made of it beside another."""
        alone = self._asked(name, given[1:], tuple(beside.shape[1:]))
        if _far(alone, beside[1:], _lengths(alone), most):
            raise ValueError(
                f"{type(self).__name__}.{name} of a sample alone is not that of it beside another: "
                f"{_EACH}"
            )

    def _asked(self, name: str, given: Tensor, shape: tuple[int, ...]) -> Tensor:
        """What forward or adjoint makes of some samples, in float64."""
        called = f"{type(self).__name__}.{name}"
        try:
            found = getattr(self, name)(given)
            return checks.same_shape(called, found, (len(given), *shape), given).double()
        except Exception as error:
            raise ValueError(
                f"{called} of {len(given)} samples on {given.device} fails: {error} ({_EACH}; one "
                "that runs on a GPU alone wants its measurement y there)"
            ) from error

    def check(self, name: str, given: Array, shape: tuple[int, ...]) -> Tensor:
        """What forward or adjoint is ``given`` as ``name``, (N, *shape) real numbers, as a tensor.

        Raises:
            ValueError: for another shape or dtype, and for another N than of an operator that
                differs from sample to sample.
        """
        if not isinstance(given, Tensor):
            given = checks.tensor(f"what {type(self).__name__}.{name} was given", given)
        if not given.is_floating_point():
            raise ValueError(
                f"{type(self).__name__}.{name} was given {given.dtype}: give real floating-point "
                "numbers; complex ones are two channels, torch.stack([z.real, z.imag], 1)"
            )
        if given.shape[1:] != shape:
            raise ValueError(
                f"{type(self).__name__}.{name} was given shape {tuple(given.shape)}; needed is "
                f"(N, {', '.join(map(str, shape))})"
            )
        if self.samples not in (1, len(given)):
            raise ValueError(
                f"{type(self).__name__}.{name} was given {len(given)} samples; it has "
                f"{', '.join(self.inputs)} of {self.samples}: give as many, in their order"
            )
        return given


class Composed(Operator):
    """One operator after another, x ↦ A(B x): what ``A @ B`` makes.

    Args:
        outer: A.
        inner: B, which measures what A takes.
    """

    def __init__(self, outer: Operator, inner: Operator) -> None:
        self.outer, self.inner = outer, inner
        if outer.shape != inner.measured:
            raise ValueError(
                f"{type(outer).__name__} takes {outer.shape}, {type(inner).__name__} measures "
                f"{inner.measured}: A @ B is x ↦ A(B x)"
            )
        super().__init__(inner.shape, outer.measured)

    @property
    def inputs(self) -> dict[str, Tensor]:
        parts = {"outer": self.outer, "inner": self.inner}
        return {f"{p}.{name}": v for p, one in parts.items() for name, v in one.inputs.items()}

    def of(self, inputs: Mapping[str, Tensor]) -> Composed:
        part = copy.copy(self)
        part.outer = self.outer.of(under("outer.", inputs))
        part.inner = self.inner.of(under("inner.", inputs))
        return part

    def forward(self, x: Tensor) -> Tensor:
        return self.outer.forward(self.inner.forward(self.check("forward", x, self.shape)))

    def adjoint(self, y: Tensor) -> Tensor:
        return self.inner.adjoint(self.outer.adjoint(self.check("adjoint", y, self.measured)))


def under(prefix: str, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those whose names begin with a prefix, without it."""
    return {k.removeprefix(prefix): v for k, v in inputs.items() if k.startswith(prefix)}


def kept(name: str, value: Array | float) -> Tensor:
    """A copy as a tensor, which a derivative can be taken through whatever mode it is made in."""
    with torch.inference_mode(False):
        tensor = checks.tensor(name, value)
        return tensor.clone() if isinstance(value, Tensor) else tensor


def array(name: str, value: Array | float) -> Tensor:
    """What an operator is made of, as a tensor with at least one value."""
    tensor = checks.tensor(name, value)
    if not tensor.numel():
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}: it holds nothing")
    return tensor


def as_given(x: Tensor) -> torch.autocast:
    """Inside, products are made in the type of x, also where the caller has autocast on."""
    return torch.autocast(x.device.type, enabled=False)


def as_complex(channels: Tensor, dim: int) -> Tensor:
    """Real and imaginary part, entries 0 and 1 of a dimension, as complex numbers.

    Raises:
        ValueError: for numbers of 16 bits.
    """
    if channels.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"an operator of complex numbers was given {channels.dtype}: give float32 or float64 "
            "(.float())"
        )
    return torch.complex(channels.select(dim, 0), channels.select(dim, 1))


def as_channels(z: Tensor, dim: int) -> Tensor:
    """The way back."""
    return torch.stack([z.real, z.imag], dim)


def real(name: str, values: Tensor) -> Tensor:
    """Values as they are; refuses complex ones."""
    if values.is_complex():
        raise ValueError(f"{name} is {values.dtype}: give real numbers")
    return values


def broadcast(name: str, values: Tensor, shape: tuple[int, ...]) -> bool:
    """Whether there are values for each sample: (n, …), with a dimension more than ``shape``.

    Raises:
        ValueError: for complex ones, and those that do not broadcast to (n, *shape).
    """
    each = real(name, values).ndim == len(shape) + 1
    try:
        values.expand((len(values), *shape) if each else shape)
    except RuntimeError:
        raise ValueError(
            f"{name} has shape {tuple(values.shape)}, which does not broadcast to {tuple(shape)}, "
            "nor to n of these"
        ) from None
    return each


def zeros_and_ones(mask: Tensor, shape: tuple[int, ...]) -> bool:
    """As :func:`broadcast`, for a mask.

    Raises:
        ValueError: for other values too.
    """
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise ValueError("mask holds values other than 0 and 1 (1: measured)")
    return broadcast("mask", mask, shape)


def _lengths(values: Tensor) -> Tensor:
    """Of each sample, (N,)."""
    return values.flatten(1).norm(dim=1)


def _of_length_1(values: Tensor) -> Tensor:
    """Each sample divided by its length, unless that is 0."""
    return values / along(_lengths(values).clamp(min=torch.finfo(values.dtype).tiny), values)


def _far(found: Tensor, expected: Tensor, lengths: Tensor, most: float = _OFF) -> bool:
    """Whether a sample is further off than operators are, of lengths (N,); also where it is NaN."""
    return not bool((_lengths(found - expected) <= most * lengths).all())


def _double(value: Tensor, device: torch.device) -> Tensor:
    return value.to(device, torch.complex128 if value.is_complex() else torch.float64)


__all__ = [
    "Array",
    "Composed",
    "Operator",
    "array",
    "as_channels",
    "as_complex",
    "as_given",
    "broadcast",
    "kept",
    "real",
    "under",
    "zeros_and_ones",
]
