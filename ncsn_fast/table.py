"""The table of a sampler: eight numbers and a noise level a row; see ``methods/tables.py``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import pairwise
from operator import index

import numpy as np
import torch
from torch import Tensor

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

    Raises:
        ValueError: for columns of different lengths, none, values that are not finite, σ ≤ 0.
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

        Raises:
            ValueError: for columns that do not fit each other, or what is no number.
        """
        levels = np.atleast_1d(_numbers("sigma", sigma))
        if levels.ndim != 1:
            raise ValueError(f"sigma of shape {levels.shape}: give a noise level for each row")
        if w is None:
            w = _spread("b", b, levels.shape) * levels
        numbers = {"a": a, "b": b, "c": c, "d": d, "e": e, "f": f, "w": w, "c_in": c_in}
        columns = {name: _column(name, value, levels.shape) for name, value in numbers.items()}
        indices = tuple(int(i) for i in _spread("level", level, levels.shape))
        return cls(sigma=_column("sigma", levels, levels.shape), level=indices, **columns)

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
        """Whether a row reads the history."""
        return any(self.c)

    @property
    def remembers_score(self) -> bool:
        """Whether the history has the normalised score in it, where guidance cannot follow."""
        return any(self.f)

    @property
    def adds_noise(self) -> bool:
        """Whether a row adds noise."""
        return any(self.d)

    @cached_property
    def keeps_levels(self) -> bool:
        """Whether rows that add noise leave states at the next row's level, given their own: what
        is left of a state's noise and what is added are of that length, and the history has none.

        It is so of the ODE and of the reverse SDE. Langevin steps begin at a level above their own.
        """
        sigma = np.array(self.sigma)
        left = np.array(self.a) * sigma - np.array(self.b)  # of x = σz and n = -z
        remembered = np.array(self.e) * sigma - np.array(self.f)
        reread = np.array(self.c)[1:] * remembered[:-1]
        level = np.hypot(left, self.d)[:-1]
        fits = np.isclose(level, sigma[1:], rtol=1e-6, atol=0)
        fits[1:] &= np.isclose(reread[:-1], 0, atol=1e-9)
        return bool(np.all(fits | ~np.array(self.d, dtype=bool)[:-1]))

    @cached_property
    def resumptions(self) -> dict[int, int]:
        """Noise levels of the ladder and the first row of each that needs no history.

        There a chain that was interrupted can be taken up exactly.
        """
        return self._first_rows([value == 0 for value in self.c])

    @cached_property
    def _starts(self) -> dict[int, int]:
        """These, and of other levels the first row that can take its own history for that before.

        A history is h = e·x + f·n = e·(x + σn) + (f - eσ)·n: so much of the denoised state and so
        much of the score. In both rows it has to be the same of them.
        """
        columns = zip(self.e, self.f, self.sigma, strict=True)
        parts = [(e, f - e * sigma) for e, f, sigma in columns]
        near = 1e-9 * max(self.sigma)
        own = [
            any(part) and part[0] == last[0] and math.isclose(part[1], last[1], abs_tol=near)
            for last, part in pairwise(parts)
        ]
        return {**self._first_rows([False, *own]), **self.resumptions}

    def _first_rows(self, fit: Sequence[bool]) -> dict[int, int]:
        rows: dict[int, int] = {}
        for row, level in enumerate(self.level):
            if level >= 0 and fit[row]:
                rows.setdefault(level, row)
        return rows

    def begun(self, level: int) -> tuple[int, Table]:
        """The row of :meth:`start_row`, and the same rows for a chain that begins at it.

        It has no history yet. For h it takes what this row itself leaves behind, e·x + f·n, as if
        the row before had seen the same: a multistep method begins with its first order.
        """
        row = self.start_row(level)
        c = self.c[row]
        if row == 0 or c == 0:
            return row, self

        def more(column: Column, value: float) -> Column:
            return (*column[:row], column[row] + value, *column[row + 1 :])

        score = c * self.f[row]
        return row, replace(
            self,
            a=more(self.a, c * self.e[row]),
            b=more(self.b, score),
            c=more(self.c, -c),
            w=more(self.w, score * self.sigma[row]),
        )

    def start_row(self, level: int) -> int:
        """The row at which a chain from this noise level begins; level 0 means the whole table.

        Raises:
            ValueError: where there is none; the message names those that there are.
        """
        single = not getattr(level, "ndim", 0)
        truth = "bool" in str(getattr(level, "dtype", type(level)))
        try:
            whole = index(level) if single and not truth else -1
        except (TypeError, RuntimeError):
            whole = -1
        row = 0 if whole == 0 else self._starts.get(whole)
        if row is not None:
            return row
        begin = sorted(self._starts)
        if not begin:
            levels = "none of its noise levels, which have no index in the network's ladder"
        elif begin == list(range(begin[0], begin[-1] + 1)):
            levels = f"the levels {begin[0]} to {begin[-1]}"
        else:
            levels = f"the levels {', '.join(map(str, begin))}"
        raise ValueError(
            f"start_level = {level!r:.80}: this method can begin at {levels}. Elsewhere (off the "
            "ladder, or where a history of the rows before is needed) begin with a Sampler whose "
            "sigmas= start at the wished noise level"
        )

    @property
    def scales_input(self) -> bool:
        """Whether the network is shown the state scaled."""
        return any(value != 1 for value in self.c_in)

    def with_temperature(self, temperature: float) -> Table:
        """The same method with the variance of its noise multiplied by the temperature, ≥ 0.

        Raises:
            ValueError: for another number, and where the method adds no noise.
        """
        known = isinstance(temperature, (int, float, np.number)) and math.isfinite(temperature)
        if not known or temperature < 0 or isinstance(temperature, bool):
            raise ValueError(f"temperature = {temperature!r:.80}: give a number of at least 0")
        if temperature != 1 and not self.adds_noise:
            raise ValueError(
                f"temperature = {temperature}: this method adds no noise whose variance it could "
                "scale; take one that does, or temperature = 1"
            )
        return replace(self, d=tuple(value * math.sqrt(temperature) for value in self.d))

    def rows(self, device: torch.device | str, dtype: torch.dtype = torch.float32) -> Tensor:
        """(rows, 9) coefficients in the order of :data:`ncsn_fast.reference.ROW`.

        On ``device`` and of ``dtype``. The last row is followed by nothing: its next c_in is 1, its
        next σ is 0.
        """
        columns = (self.a, self.b, self.c, self.d, self.e, self.f, self.w)
        following = ((*self.c_in[1:], 1.0), (*self.sigma[1:], 0.0))
        return (
            torch.tensor((*columns, *following), dtype=torch.float64, device="cpu")
            .T.to(device, dtype)
            .contiguous()
        )


def _numbers(name: str, values: object) -> np.ndarray:
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{name} of a table is no list of numbers ({error})") from None


def _spread(name: str, values: object, shape: tuple[int, ...]) -> np.ndarray:
    given = _numbers(name, values)
    if given.shape not in ((), (1,), shape):
        raise ValueError(
            f"{name} of shape {given.shape} for {shape[0]} rows of a table: give one number for "
            "all, or one each"
        )
    return np.broadcast_to(given, shape)


def _column(name: str, values: object, shape: tuple[int, ...]) -> Column:
    return tuple(float(value) for value in _spread(name, values, shape))


__all__ = ["Column", "Table"]
