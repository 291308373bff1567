"""One chunk of samples going down a table: the loop itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple, NoReturn, TypeVar

import torch
from torch import Tensor

from ncsn_fast import checks, noise, ops
from ncsn_fast.noise import Word
from ncsn_fast.progress import Progress
from ncsn_fast.samplers import Table
from ncsn_fast.score import Score

# A state is checked for NaN once in so many rows, not at each: a look at a GPU's memory stalls it.
# Where the check fails the rows since the last one are run again to find the culprit, which is
# exact because noise is a function of the row.
_CHECK_EVERY = 32
_MOST_AHEAD, _AHEAD_VALUES = 64, 1 << 18

T = TypeVar("T")


class SamplingError(RuntimeError):
    """The chain left the finite numbers.

    Attributes:
        row, sigma: where it happened.
        state: (B, *shape), the last good state, before that row.
        state_ids: ids of the samples in that state.
        samples, sample_ids: (finished, *shape) and ids of the samples that were finished before.
    """

    samples: Tensor
    sample_ids: list[int]

    def __init__(self, message: str, row: int, sigma: float, state: Tensor, ids: list[int]) -> None:
        super().__init__(message, row, sigma, state, ids)  # so that it survives pickling
        self.row = row
        self.sigma = sigma
        self.state = state
        self.state_ids = ids

    def __str__(self) -> str:
        return str(self.args[0])


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
    ahead: _NoiseAhead


class _NoiseAhead:
    """The sampler's noise, made for many rows at once where samples are small.

    Making it is a hundred small operations whatever its size: for a thousand points that is more
    than the network. Large states are left to the operation itself.
    """

    def __init__(self, chain: Chain, ids: Tensor) -> None:
        self._chain, self._ids = chain, ids
        values = len(ids) * math.prod(chain.shape)
        self._count = min(_MOST_AHEAD, _AHEAD_VALUES // max(1, values))
        self._first, self._made = 0, torch.empty(0)

    def get(self, row: int) -> Tensor | None:
        if self._count < 2:
            return None
        if not self._first <= row < self._first + len(self._made):
            step = self._chain.first_step + row
            steps = min(self._count, len(self._chain.table) - row)
            self._first = row
            self._made = noise.normal(
                self._chain.shape,
                seed=self._chain.seed,
                stream=noise.SAMPLER,
                sample_ids=self._ids,
                step=torch.arange(step, step + steps, device=self._ids.device),
            )
        return self._made[row - self._first]


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
    backend: str = "torch"  # one that runs: "auto" has been resolved

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
        trajectory: Tensor | None = None,
    ) -> Tensor:
        """Take the states x (B, *shape) of these samples through all rows.

        Args:
            part: which samples of the whole batch these are, for inputs given per sample.
            trajectory: (K, B, *shape), filled with the states before the rows of ``kept_rows``.
        """
        chunk = self._chunk(ids, part)
        state = self._first_state(x, chunk)
        good, good_row = state, self.first_row
        kept = {row: i for i, row in enumerate(self.kept_rows())}
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
        return state.x

    @cached_property
    def _explicit(self) -> bool:
        """Whether somebody needs the normalised score itself between network and update."""
        return not (self.guidance is None and self.callback is None and self.clip is None)

    @cached_property
    def _folded(self) -> Table:
        """The table that takes the network's own output and scales its input."""
        return self.score.fold(self.table)

    @cached_property
    def _rows(self) -> Tensor:
        table = self._folded
        if self._explicit:  # the normalised score itself enters, only the input is the network's
            table = replace(self.table, c_in=table.c_in)
        return table.rows(self.device)

    @cached_property
    def _key(self) -> tuple[Word, Sequence[Word]]:
        """Seed and step of every row: in device memory where a kernel reads them there."""
        steps = range(self.first_step, self.first_step + len(self.table))
        if self.backend == "torch":
            return self.seed, steps
        on_device = torch.arange(steps.start, steps.stop, device=self.device)
        return noise.seed_tensor(self.seed, self.device), on_device.unbind()

    @cached_property
    def _scales_input(self) -> bool:
        return self._folded.scales_input

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
            # Expanded from one image, they would be copied at every step.
            None if self.mask is None else self.mask[part].contiguous(),
            None if self.known is None else self.known[part].contiguous(),
            {name: cut(value) for name, value in self.extra.items()},
            _NoiseAhead(self, ids),
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
        scaled = self._folded.c_in[self.first_row] * x if self._scales_input else x
        return _State(x, history, scaled)

    def _step(
        self,
        row: int,
        state: _State,
        chunk: _Chunk,
        callback: Callable[[int, Tensor, Tensor], None] | None = None,
    ) -> _State:
        """One row: the network, what the caller adds, the update."""
        condition = None if self._conditions is None else self._conditions[row]
        n = _harmless(
            "the network",
            lambda: self.score(state.network_input, condition, **chunk.extra),
            state.network_input,
        )
        guidance = None
        if self._explicit:
            n = self._normalized(row, state.x, n)
            guidance = self._drift(row, state.x, n)
        x, history, network_input = ops.sampler_update(
            state.x,
            n,
            self._rows[row],
            seed=self._key[0],
            step=self._key[1][row],
            sample_ids=chunk.ids,
            add_noise=self.table.d[row] != 0,
            z=self._noise(row, chunk),
            history=state.history,
            guidance=guidance,
            mask=chunk.mask,
            known=chunk.known,
            scale_input=self._scales_input,
            backend=self.backend,
        )
        if callback is not None:
            _harmless("callback()", lambda: callback(row, state.x, n), state.x)
        return _State(x, history, network_input)

    def _normalized(self, row: int, x: Tensor, output: Tensor) -> Tensor:
        """The normalised score from the network's output, clipped where the caller wants that."""
        sigma = self.table.sigma[row]
        p, q = (
            float(value)
            for value in self.score.coefficients(
                torch.tensor(sigma, dtype=torch.float64, device="cpu")
            )
        )
        n = q * output.float() + (p * x if p else 0.0)
        if self.clip is None:
            return n
        norm = n.flatten(1).norm(dim=1) / sigma
        factor = (self.clip / norm).clamp(max=1.0)  # a norm of 0 gives inf, which the clamp ends
        return n * factor.view(-1, *(1,) * len(self.shape))

    def _drift(self, row: int, x: Tensor, n: Tensor) -> Tensor | None:
        """What the caller's guidance adds."""
        guidance, sigma = self.guidance, self.table.sigma[row]
        if guidance is None:
            return None
        drift = _harmless("guidance()", lambda: guidance(x, n, sigma, row), x, n)
        return checks.same_shape("guidance()", drift, x.shape, x).to(x.dtype)

    def _noise(self, row: int, chunk: _Chunk) -> Tensor | None:
        """The noise of a row where it is made here: the caller's, or that of many rows at once."""
        if self.table.d[row] == 0:
            return None
        if self.noise is not None:
            z = self.noise(row)
            checks.same_shape("noise()", z, (self.n, *self.shape), z)
            return z[chunk.part].to(self.device, torch.float32)
        if self.backend != "torch":
            return None  # a kernel makes it in registers
        return chunk.ahead.get(row)

    def _explain(self, first: int, last: int, good: _State, chunk: _Chunk) -> NoReturn:
        """Run the rows of a failed stretch again, one check each, and say which one broke."""
        state = good
        for row in range(first, last):
            following = self._step(row, state, chunk)
            bad = ~torch.isfinite(following.x).flatten(1).all(1)
            if bool(bad.any()):
                which = chunk.ids[bad].tolist()
                more = " …" if len(which) > 8 else ""
                raise self._error(row, f"in sample {which[:8]}{more}", state.x, chunk)
            state = following
        # Noise of the caller's that is not a function of the row, or a network that changes.
        where = f"or in one of the rows from {first} on (a second run went well)"
        raise self._error(last - 1, where, good.x, chunk)

    def _error(self, row: int, where: str, state: Tensor, chunk: _Chunk) -> SamplingError:
        sigma, level = self.table.sigma[row], self.table.level[row]
        return SamplingError(
            f"the state is no longer finite after row {row} of {len(self.table)} (noise level "
            f"{level}, σ = {sigma:g}) {where}: the network returned NaN or infinity, or the chain "
            "diverged. The last good state is in the error's .state; look at the network's output "
            "there, or lower the step size",
            row,
            sigma,
            state,
            chunk.ids.tolist(),
        )


def _harmless(name: str, call: Callable[[], T], *tensors: Tensor) -> T:
    """What the caller's function returns, provided it has not written into the chain's tensors."""
    # Tensors of inference mode have no version to tell by.
    watched = [tensor for tensor in tensors if not tensor.is_inference()]
    before = [tensor._version for tensor in watched]
    result = call()
    if [tensor._version for tensor in watched] != before:
        raise ValueError(
            f"{name} writes into its input (an in-place operation): sampling needs the state as "
            "it was, so let it work on a copy"
        )
    return result


__all__ = ["Chain", "SamplingError"]
