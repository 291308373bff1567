"""Langevin steps whose size goes by the norms of noise and score, for each sample."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ncsn_fast.guidance.base import Guidance
from ncsn_fast.reference import per_sample
from ncsn_fast.support import checks
from ncsn_fast.table import Table

# Times the norm of the noise: of a shorter score a step would be of no bounded length.
_NOTHING = 1e-6


@dataclass(frozen=True, eq=False)
class NormAdaptive(Guidance):
    """The corrector of Song et al. 2021 (algorithms 4 and 5), α = 2(r·‖z‖/‖s‖)², per sample.

        sampler = nf.Sampler(net, method="predictor_corrector", snr=0.16)
        x = sampler(64, guidance=nf.guidance.NormAdaptive(sampler.table))

    A table's Langevin step has one size for all samples, x + (α/σ)·n + √(2α)·z, α = 2(r·σ)² in
    "predictor_corrector". With ρ = ‖z‖/‖n‖ it becomes

        x + ρ²·(α/σ)·n + ρ·√(2α)·z,

    a step of ρ²α = 2(r·‖z‖/‖s‖)², as s = n/σ. Other rows stay as they are, and ρ = 1 leaves all.
    In the original the norms are means over the batch, so that a sample depends on those beside it.
    A ‖n‖ below 1e-6·‖z‖ is rounding, or a network that returns 0, and leaves ρ = 1. Where ``clip``
    bounds the score, ρ is that of the whole one. Of few values norms vary much, and with them the
    law of the samples: images have enough.

    Attributes:
        table: that of the sampler; from the row on at which a chain begins it has to be the same.
        rows: a list, whether each row adapts; default: those that are Langevin steps, d² = 2·b·σ.
        together: how many samples the norms are means over, which have to be the whole batch; None:
            each sample has its own.

    Raises:
        ValueError: for a table without such a step, and for rows or a number that do not fit.
    """

    table: Table
    rows: Sequence[bool] = ()
    together: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.table, Table):
            raise ValueError(f"table is a {type(self.table).__name__}: give that of the sampler")
        given = isinstance(self.rows, (list, tuple)) and all(row in (0, 1) for row in self.rows)
        if not given:
            raise ValueError(f"rows = {self.rows!r:.80}: give a list of True and False, one a row")
        rows = [bool(row) for row in self.rows or _langevin(self.table)]
        if len(rows) != len(self.table) or not any(rows):
            raise ValueError(
                f"{sum(rows)} of {len(rows)} rows adapt, of a table of {len(self.table)}: there "
                "has to be a Langevin step, as in predictor_corrector and annealed_langevin"
            )
        object.__setattr__(self, "rows", tuple(rows))
        if self.together is not None:
            checks.count("together", self.together)

    @property
    def inputs(self) -> dict[str, Tensor]:
        return {"adapts": torch.tensor([self.rows], device="cpu")}

    def check(self, table: Table, n: int, shape: tuple[int, ...]) -> None:
        """Refuse another chain than that of its table; as of :class:`nf.Guidance`.

        Raises:
            ValueError: for another table, or another number of samples than are taken together.
        """
        rest = len(self.table) - len(table)
        # Where a chain begins later, a row with a history is another one (Table.begun).
        first = int(rest > 0 and not self.rows[rest])
        if table[first:] != self.table[rest:][first:]:
            raise ValueError(
                "NormAdaptive is made for another table: give it that of this sampler, "
                "NormAdaptive(sampler.table)"
            )
        if self.together not in (None, n):
            raise ValueError(f"norms are means over {self.together} samples, and n = {n}")

    def __call__(self, x: Tensor, n: Tensor, sigma: Any, row: Any, **inputs: Tensor) -> Tensor:
        """Refused: it is no drift, but a factor on the step.

        Raises:
            TypeError: always.
        """
        raise TypeError("NormAdaptive is no drift: give it to the sampler itself, guidance=…")

    def ratio(self, n: Tensor, z: Tensor, row: Tensor | int, adapts: Tensor) -> Tensor:
        """ρ, by which the noise is multiplied, and the score by ρ²: (B, 1, …) float32.

        Args:
            n, z: (B, *shape), the normalised score and the noise.
            row: which of ``table``, one that adapts; () int64 in a captured chain, where ρ is 1 in
                others.
            adapts: (1, rows) bool, of :attr:`inputs`.

        Raises:
            RuntimeError: for a part of the samples that are taken together.
        """
        if self.together not in (None, len(n)):
            raise RuntimeError(
                f"norms are means over {self.together} samples, of which {len(n)} are in this "
                'chunk: give batch_size="all"'
            )
        over, under = (one.flatten(1).norm(dim=1) for one in (z, n))
        if self.together is not None:
            over, under = over.mean(0, keepdim=True), under.mean(0, keepdim=True)
        found = torch.where(under > _NOTHING * over, over / under, 1.0)
        if isinstance(row, Tensor):
            known = row.view(1).clamp(min=0)  # of rows before its table a capture may be made
            found = torch.where(adapts[0].index_select(0, known), found, 1.0)
        return per_sample(found, n)


def _langevin(table: Table) -> list[bool]:
    """Which rows are Langevin steps x + (α/σ)·n + √(2α)·z."""
    columns = zip(table.a, table.b, table.c, table.d, table.sigma, strict=True)
    return [
        a == 1 and c == 0 < d and math.isclose(d**2, 2 * b * sigma, rel_tol=1e-9)
        for a, b, c, d, sigma in columns
    ]


__all__ = ["NormAdaptive"]
