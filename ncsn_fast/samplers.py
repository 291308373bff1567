"""A sampler is a table: every method on score models is two lines, run once per row.

    x ← a·x + b·n + c·h + d·z + w·g        z ~ N(0, I);  g = optional guidance drift
    h ← e·x_old + f·n                      one history buffer, for multistep methods

where n = σ·s(x, σ) is the normalised score at the row's noise level and the network is shown
c_in·x. A method is a pure function that returns such a table, computed in float64 on the host; the
engine runs any of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ncsn_fast.checks import count
from ncsn_fast.levels import check_sigmas, check_step_size

Column = tuple[float, ...]


@dataclass(frozen=True)
class Table:
    """One entry a row in every column; frozen, comparable, printable.

    Attributes:
        sigma: noise level at which the network is evaluated.
        a, b, c, d, w: weights of the state, the normalised score, the history, the noise and the
            guidance drift in the new state.
        e, f: weights of the old state and the normalised score in the new history.
        c_in: factor on the state on its way into the network.
        level: index of sigma in the ladder of noise levels, -1 where it is not on it.
    """

    sigma: Column
    a: Column
    b: Column
    c: Column
    d: Column
    e: Column
    f: Column
    w: Column
    c_in: Column
    level: tuple[int, ...]

    def __post_init__(self) -> None:
        lengths = {field.name: len(getattr(self, field.name)) for field in fields(self)}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"the columns of a table have one length, got {lengths}")
        if not self.sigma:
            raise ValueError("a table needs at least one row")
        for name in lengths:
            if not all(math.isfinite(value) for value in getattr(self, name)):
                raise ValueError(f"column {name} of the table holds values that are not finite")
        if min(self.sigma) <= 0:
            raise ValueError(f"sigma = {min(self.sigma)} in a table: noise levels are positive")

    @classmethod
    def of(
        cls,
        sigma: Sequence[float] | np.ndarray,
        *,
        a: float | Sequence[float] | np.ndarray = 1.0,
        b: float | Sequence[float] | np.ndarray = 0.0,
        c: float | Sequence[float] | np.ndarray = 0.0,
        d: float | Sequence[float] | np.ndarray = 0.0,
        e: float | Sequence[float] | np.ndarray = 0.0,
        f: float | Sequence[float] | np.ndarray = 0.0,
        w: float | Sequence[float] | np.ndarray | None = None,
        c_in: float | Sequence[float] | np.ndarray = 1.0,
        level: int | Sequence[int] | np.ndarray = -1,
    ) -> Table:
        """A table from arrays or numbers; a number fills its column.

        Where w is not given it is b·σ: the guidance drift then acts as a term added to the score.
        """
        levels = np.atleast_1d(np.asarray(sigma, dtype=np.float64))
        if w is None:
            w = np.asarray(b, dtype=np.float64) * levels
        numbers = {"a": a, "b": b, "c": c, "d": d, "e": e, "f": f, "w": w, "c_in": c_in}
        columns = {name: _column(value, levels.shape) for name, value in numbers.items()}
        indices = tuple(int(i) for i in np.broadcast_to(level, levels.shape))
        return cls(sigma=_column(levels, levels.shape), level=indices, **columns)

    def __len__(self) -> int:
        return len(self.sigma)

    def __add__(self, other: Table) -> Table:
        """The rows of both tables, one after the other."""
        return Table(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __getitem__(self, rows: slice) -> Table:
        return Table(*(getattr(self, f.name)[rows] for f in fields(self)))

    def __str__(self) -> str:
        names = [field.name for field in fields(self)]
        rows = list(zip(*(getattr(self, name) for name in names), strict=True))
        lines = ["  row " + "".join(f"{name:>12}" for name in names)]
        shown = (
            range(len(rows)) if len(rows) <= 12 else (*range(6), *range(len(rows) - 5, len(rows)))
        )
        for i in shown:
            if i and i - 1 not in shown:
                lines.append("   …")
            lines.append(f"{i:5d} " + "".join(f"{value:12.5g}" for value in rows[i]))
        return "\n".join(lines)

    @property
    def has_history(self) -> bool:
        return any(self.c)

    @property
    def scales_input(self) -> bool:
        return any(value != 1 for value in self.c_in)

    def with_temperature(self, temperature: float) -> Table:
        """The same method with the variance of its noise multiplied by the temperature."""
        if not (math.isfinite(temperature) and temperature >= 0):
            raise ValueError(f"temperature = {temperature}: give a number of at least 0")
        return replace(self, d=tuple(value * math.sqrt(temperature) for value in self.d))

    def rows(self, device: torch.device | str, dtype: torch.dtype = torch.float32) -> Tensor:
        """(rows, 9) coefficients in the order of :data:`ncsn_fast.reference.ROW`.

        The last row is followed by nothing: its next c_in is 1, its next σ is 0.
        """
        columns = (self.a, self.b, self.c, self.d, self.e, self.f, self.w)
        following = ((*self.c_in[1:], 1.0), (*self.sigma[1:], 0.0))
        return (
            torch.tensor((*columns, *following), dtype=torch.float64, device="cpu")
            .T.to(device, dtype)
            .contiguous()
        )


def langevin(step_size: float, steps: int) -> Table:
    """Plain Langevin dynamics x ← x + α·s + √(2α)·z; σ is 1, so the score is the normalised one.

    (Some texts write α/2 and √α for what is called α and √(2α) here, as in the published code.)

    Args:
        step_size: α > 0.
        steps: how many.
    """
    if not (math.isfinite(step_size) and step_size > 0):
        raise ValueError(f"step_size = {step_size}: Langevin dynamics needs a finite α > 0")
    return Table.of(np.ones(count("steps", steps)), b=step_size, d=math.sqrt(2 * step_size))


def annealed_langevin(
    sigmas: Sequence[float] | np.ndarray | Tensor,
    step_size: float,
    steps_per_level: int,
    denoise: bool = True,
) -> Table:
    """Annealed Langevin dynamics (Song & Ermon 2019, algorithm 1, as in the published code).

    At level i, T times, with α_i = ε(σ_i/σ_L)²:  x ← x + (α_i/σ_i)·n + √(2α_i)·z.
    At the end, where ``denoise`` is set (2020):  x ← x + σ_L·n.

    Args:
        sigmas: (L,) noise levels, descending.
        step_size: ε, with 0 < ε < 2σ_L².
        steps_per_level: T.
        denoise: whether the last row removes the noise of the smallest level.
    """
    ladder = check_sigmas(sigmas).double().numpy()
    steps_per_level = count("steps_per_level", steps_per_level)
    check_step_size(step_size, float(ladder[-1]))
    levels = np.repeat(np.arange(len(ladder)), steps_per_level)
    sigma = ladder[levels]
    alpha = step_size * (sigma / ladder[-1]) ** 2
    table = Table.of(sigma, b=alpha / sigma, d=np.sqrt(2 * alpha), level=levels)
    if not denoise:
        return table
    return table + Table.of(ladder[-1:], b=ladder[-1], level=len(ladder) - 1)


class Method(NamedTuple):
    """A method that nf.Sampler knows by name.

    ``table`` is called with the noise levels and those settings of the sampler that it names.
    """

    table: Callable[..., Table]
    uniform_start: bool = False  # from U[0, 1) as published, not from that plus σ₁ noise


METHODS = {"annealed_langevin": Method(annealed_langevin, uniform_start=True)}


def _column(values: float | Sequence[float] | np.ndarray, shape: tuple[int, ...]) -> Column:
    wide = np.broadcast_to(np.asarray(values, dtype=np.float64), shape)
    return tuple(float(value) for value in wide)


__all__ = ["METHODS", "Method", "Table", "annealed_langevin", "langevin"]
