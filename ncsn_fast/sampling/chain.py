"""What the samples of one call have in common, and what belongs to those of one chunk."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ncsn_fast.guidance.base import Guidance, NetworkGuidance
from ncsn_fast.models.score import Score
from ncsn_fast.reference import StepResult
from ncsn_fast.support.per_sample import cut
from ncsn_fast.table import Table

Callback = Callable[[int, Tensor, Tensor], object]
Drift = Callable[..., Tensor]
Noise = Callable[[int], Tensor]


class Chunk(NamedTuple):
    """What belongs to the B samples of one chunk."""

    ids: Tensor  # (B,) int64, on the chain's device
    part: slice  # which of the batch they are
    mask: Tensor | None  # (B, *shape) bool
    known: Tensor | None  # (B, *shape) float32
    extra: dict[str, Any]  # inputs of the network; tensors (B, …) where they come one per sample
    guiding: dict[str, Tensor]  # inputs of a Guidance, (B, …) or (1, …)


@dataclass(frozen=True)
class Chain:
    """What the samples of one call have in common; see ``Sampler.__call__`` for what it takes.

    Attributes:
        score: the network that is run.
        table: of R rows.
        shape: of one sample.
        device: where the states are.
        seed: in [0, 2⁶⁴).
        n: the size of the whole batch, which is run in chunks.
        first_row: the row at which it begins, 0 … R - 1.
        first_step: the step of row 0 in the noise.
        noise: row → (n, *shape), in the place of the engine's noise.
        mask, known: (n, *shape) bool and float32 on the device, or neither.
        guidance: (x, n, σ, row) → (B, *shape).
        clip: largest norm of the score.
        holds_noise: whether states are brought to the noise level of each row.
        every: which states are kept; None: none.
        callback: hears (row, x, n) after every row.
        extra: further inputs of the network, one per sample where they are as long as the batch.
        shared: those that all samples get as they are.
        backend: of the update; one that runs, "auto" has been resolved.
        precision: what the network computes in; likewise.
        prepared: whether the network makes its own 16 bits.
        whole: whether the batch is one chunk, or refused where that does not fit in memory.
        call: the same object in all chains of a call, and in no other.
    """

    score: Score
    table: Table
    shape: tuple[int, ...]
    device: torch.device
    seed: int
    n: int
    first_row: int = 0
    first_step: int = 0
    noise: Noise | None = None
    mask: Tensor | None = None
    known: Tensor | None = None
    guidance: Drift | None = None
    clip: float | None = None
    holds_noise: bool = False
    every: int | None = None
    callback: Callback | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    shared: Mapping[str, Any] = field(default_factory=dict)
    backend: str = "torch"
    precision: str = "fp32"
    prepared: bool = False
    whole: bool = False
    call: object = field(default_factory=object)

    @property
    def steps(self) -> int:
        return len(self.table) - self.first_row

    def kept_rows(self) -> list[int]:
        """Rows before which the state is kept for the trajectory; the last entry is its end."""
        if self.every is None:
            return []
        return [*range(self.first_row, len(self.table), self.every), len(self.table)]

    @cached_property
    def explicit(self) -> bool:
        """Whether somebody needs the normalised score itself between network and update."""
        given = (self.guidance, self.callback, self.clip)
        return self.holds_noise or any(one is not None for one in given)

    @cached_property
    def differentiates(self) -> bool:
        """Whether the guidance needs the derivative of the network."""
        return isinstance(self.guidance, NetworkGuidance) and self.guidance.differentiates

    @cached_property
    def adds_noise(self) -> bool:
        """Whether steps add the engine's noise: all of them, if any, so that one launch fits."""
        return self.noise is None and any(self.table.d)

    @cached_property
    def _folded(self) -> Table:
        """The table that takes the network's own output and scales its input."""
        return self.score.fold(self.table)

    @cached_property
    def rows(self) -> Tensor:
        """(R, 9) float32 on the device, the coefficients in the order of ``reference.ROW``."""
        table = self._folded
        if self.explicit:  # the normalised score itself enters, only the input is the network's
            table = replace(self.table, c_in=table.c_in)
        return table.rows(self.device)

    @cached_property
    def numbers(self) -> Tensor:
        """(R, 5) float64 on the host: σ, p and q of n = p·x + q·output, c_in of the network's input
        c_in·x, and the weight w of the guidance."""
        told = (self.table.sigma, self._folded.c_in, self.table.w)
        sigma, c_in, w = torch.tensor(told, dtype=torch.float64, device="cpu")
        return torch.stack([sigma, *self.score.coefficients(sigma), c_in, w], dim=1)

    @cached_property
    def state_enters(self) -> bool:
        """Whether the normalised score depends on the state beside the network's output."""
        return bool(self.numbers[:, 1].any())

    @cached_property
    def conditions(self) -> Tensor | None:
        """(R,) on the device, what the network is told in each row; None where it is told nothing.

        σ and what is made of it are float32, labels int64.
        """
        return self.score.conditions(self.table, self.device)

    @cached_property
    def scales_input(self) -> bool:
        return self._folded.scales_input

    def state(self, x: Tensor, history: Tensor | None, row: int) -> StepResult:
        """States x (B, *shape) before a row, with what the network sees of them."""
        return StepResult(x, history, self._folded.c_in[row] * x if self.scales_input else x)

    def chunk(self, ids: Tensor, part: slice) -> Chunk:
        """The inputs of some of the samples: their ids (B,), and which of the batch they are."""
        given = self.guidance.inputs if isinstance(self.guidance, Guidance) else {}
        guiding = cut(given, part, self.n)
        return Chunk(
            ids,
            part,
            # Expanded from one image, they would be copied at every step.
            None if self.mask is None else self.mask[part].contiguous(),
            None if self.known is None else self.known[part].contiguous(),
            {**cut(self.extra, part, self.n), **self.shared},
            {name: value.to(self.device) for name, value in guiding.items()},
        )


__all__ = ["Callback", "Chain", "Chunk", "Drift", "Noise"]
