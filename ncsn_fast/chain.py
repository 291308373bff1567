"""One chunk of samples going down a table: the loop itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ncsn_fast import noise, ops
from ncsn_fast.progress import Progress
from ncsn_fast.samplers import Table
from ncsn_fast.score import Score

# A state is checked for NaN once in so many rows, not at each: a look at a GPU's memory stalls it.
# Where the check fails the rows since the last one are run again to find the culprit, which is
# exact because noise is a function of the row.
_CHECK_EVERY = 32


class SamplingError(RuntimeError):
    """The chain left the finite numbers.

    Attributes:
        row, sigma: where it happened.
        state: (B, *shape), the last good state, before that row.
        sample_ids: ids of the samples in that state.
    """

    def __init__(self, message: str, row: int, sigma: float, state: Tensor, ids: Tensor) -> None:
        super().__init__(message)
        self.row = row
        self.sigma = sigma
        self.state = state
        self.sample_ids = ids.tolist()


class ChainResult(NamedTuple):
    x: Tensor  # (B, *shape)
    trajectory: Tensor | None  # (K, B, *shape) on the CPU


class _State(NamedTuple):
    x: Tensor
    history: Tensor | None
    network_input: Tensor


class _Chunk(NamedTuple):
    """What belongs to the samples of one chunk."""

    ids: Tensor
    part: slice
    mask: Tensor | None
    known: Tensor | None
    extra: dict[str, Any]


@dataclass(frozen=True)
class Chain:
    """What the samples of one call have in common; see ``Sampler.__call__`` for each.

    ``n`` is the size of the whole batch, of which ``run`` takes one chunk at a time.
    """

    score: Score
    table: Table
    shape: tuple[int, ...]
    device: torch.device
    seed: int
    n: int
    first_row: int = 0
    first_step: int = 0
    noise: Callable[[int], Tensor] | None = None
    mask: Tensor | None = None
    known: Tensor | None = None
    guidance: Callable[[Tensor, Tensor, float, int], Tensor] | None = None
    clip: float | None = None
    every: int | None = None
    callback: Callable[[int, Tensor, Tensor], None] | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    backend: str = "auto"

    @property
    def steps(self) -> int:
        return len(self.table) - self.first_row

    def kept_rows(self) -> list[int]:
        """Rows before which the state is kept for the trajectory; the last entry is its end."""
        if self.every is None:
            return []
        return [*range(self.first_row, len(self.table), self.every), len(self.table)]

    @torch.no_grad()
    def run(
        self,
        x: Tensor,
        ids: Tensor,
        part: slice = slice(None),
        progress: Progress | None = None,
    ) -> ChainResult:
        """Take the states x (B, *shape) of these samples through all rows.

        Args:
            part: which samples of the whole batch these are, for inputs given per sample.
        """
        chunk = self._chunk(ids, part)
        state = self._first_state(x, chunk)
        good, good_row = state, self.first_row
        kept = {row: i for i, row in enumerate(self.kept_rows())}
        trajectory = torch.empty(len(kept), *x.shape) if kept else None
        for row in range(self.first_row, len(self.table)):
            if trajectory is not None and row in kept:
                trajectory[kept[row]] = state.x
            state = self._step(row, state, chunk, self.callback)
            if (row + 1 - self.first_row) % _CHECK_EVERY == 0 or row + 1 == len(self.table):
                if not bool(torch.isfinite(state.x).all()):
                    self._explain(good_row, row + 1, good, chunk)
                good, good_row = state, row + 1
            if progress is not None:
                progress.advance(len(ids))
        if trajectory is not None:
            trajectory[-1] = state.x
        return ChainResult(state.x, trajectory)

    @cached_property
    def _explicit(self) -> bool:
        """Whether somebody needs the normalised score itself between network and update."""
        return bool(self.guidance or self.callback or self.clip)

    @cached_property
    def _rows(self) -> Tensor:
        table = self.table if self._explicit else self.score.fold(self.table)
        return table.rows(self.device)

    @cached_property
    def _conditions(self) -> Tensor | None:
        return self.score.conditions(self.table, self.device)

    def _chunk(self, ids: Tensor, part: slice) -> _Chunk:
        def cut(value: Any) -> Any:
            # Inputs without one entry per sample (a guidance scale, a shared image) go to each.
            per_sample = isinstance(value, Tensor) and value.shape[:1] == (self.n,)
            return value[part] if per_sample else value

        return _Chunk(
            ids,
            part,
            None if self.mask is None else self.mask[part],
            None if self.known is None else self.known[part],
            {name: cut(value) for name, value in self.extra.items()},
        )

    def _first_state(self, x: Tensor, chunk: _Chunk) -> _State:
        if chunk.mask is not None and chunk.known is not None:
            z = noise.normal(
                self.shape,
                seed=self.seed,
                stream=noise.KNOWN,
                sample_ids=chunk.ids,
                step=self.first_step + self.first_row,
            )
            x = torch.where(chunk.mask, chunk.known + self.table.sigma[self.first_row] * z, x)
        history = torch.zeros_like(x) if self.table.has_history else None
        return _State(x, history, self.table.c_in[self.first_row] * x)

    def _step(
        self,
        row: int,
        state: _State,
        chunk: _Chunk,
        callback: Callable[[int, Tensor, Tensor], None] | None = None,
    ) -> _State:
        """One row: the network, what the caller adds, the update."""
        condition = None if self._conditions is None else self._conditions[row]
        n = self.score(state.network_input, condition, **chunk.extra)
        guidance = None
        if self._explicit:
            n = self._normalized(row, state.x, n)
            if self.guidance is not None:
                guidance = self.guidance(state.x, n, self.table.sigma[row], row)
                _check_shape("guidance", guidance, state.x.shape)
        x, history, network_input = ops.sampler_update(
            state.x,
            n,
            self._rows[row],
            seed=self.seed,
            step=self.first_step + row,
            sample_ids=chunk.ids,
            add_noise=self.table.d[row] != 0,
            z=self._replaced_noise(row, chunk.part),
            history=state.history,
            guidance=guidance,
            mask=chunk.mask,
            known=chunk.known,
            scale_input=self.table.scales_input,
            backend=self.backend,
        )
        if callback is not None:
            callback(row, state.x, n)
        return _State(x, history, network_input)

    def _normalized(self, row: int, x: Tensor, output: Tensor) -> Tensor:
        """The normalised score from the network's output, clipped where the caller wants that."""
        sigma = self.table.sigma[row]
        p, q = (
            float(value)
            for value in self.score.coefficients(torch.tensor(sigma, dtype=torch.float64))
        )
        n = q * output.float() + (p * x if p else 0.0)
        if self.clip is None:
            return n
        norm = n.flatten(1).norm(dim=1) / sigma
        factor = (self.clip / norm).clamp(max=1.0)  # a norm of 0 gives inf, which the clamp ends
        return n * factor.view(-1, *(1,) * len(self.shape))

    def _replaced_noise(self, row: int, part: slice) -> Tensor | None:
        if self.noise is None or self.table.d[row] == 0:
            return None
        z = self.noise(row)
        _check_shape("noise", z, torch.Size((self.n, *self.shape)))
        return z[part].to(self.device, torch.float32)

    def _explain(self, first: int, last: int, state: _State, chunk: _Chunk) -> None:
        """Run the rows of a failed stretch again, one check each, and say which one broke."""
        for row in range(first, last):
            following = self._step(row, state, chunk)
            bad = ~torch.isfinite(following.x).flatten(1).all(1)
            if bool(bad.any()) or row == last - 1:
                sigma, level = self.table.sigma[row], self.table.level[row]
                which = chunk.ids[bad].tolist()
                raise SamplingError(
                    f"the state is no longer finite after row {row} of {len(self.table)} (noise "
                    f"level {level}, σ = {sigma:g}) in sample {which[:8]}"
                    f"{' …' if len(which) > 8 else ''}: the network returned NaN or infinity, or "
                    "the chain diverged. The state before that row is in the error's .state; look "
                    "at the network's output there, or lower the step size",
                    row,
                    sigma,
                    state.x,
                    chunk.ids,
                )
            state = following


def _check_shape(name: str, value: Tensor, shape: torch.Size) -> None:
    if value.shape != shape:
        raise ValueError(f"{name}() returned shape {tuple(value.shape)}; needed is {tuple(shape)}")


__all__ = ["Chain", "ChainResult", "SamplingError"]
