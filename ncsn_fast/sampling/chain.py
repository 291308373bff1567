"""What the samples of one call have in common, and one step of theirs down the table."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from ncsn_fast import noise, ops
from ncsn_fast.device import precision, profiling
from ncsn_fast.guidance.base import Guidance
from ncsn_fast.models.score import Score
from ncsn_fast.noise import Word
from ncsn_fast.reference import StepResult, per_sample
from ncsn_fast.support import checks
from ncsn_fast.support.per_sample import cut
from ncsn_fast.table import Table

_MOST_AHEAD, _AHEAD_VALUES = 64, 1 << 18

T = TypeVar("T")
Number = float | Tensor


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


class Row(NamedTuple):
    """What one row runs with: numbers of the host or, in a captured step, of the device."""

    row: int | Tensor
    coefficients: Tensor  # (9,) float32, reference.ROW
    condition: Tensor | None  # (B,) or (), what the network is told
    seed: Word
    step: Word
    sigma: Number
    p: Number  # n = p·x + q·output
    q: Number
    clip: Number | None


class Chunk(NamedTuple):
    """What belongs to the samples of one chunk."""

    ids: Tensor
    part: slice
    mask: Tensor | None
    known: Tensor | None
    extra: dict[str, Any]
    guiding: dict[str, Tensor]  # the inputs of a Guidance
    ahead: NoiseAhead | None = None


class NoiseAhead:
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
                backend="torch",  # as the operation itself would make it
            )
        return self._made[row - self._first]


@dataclass(frozen=True)
class Chain:
    """What the samples of one call have in common; see ``Sampler.__call__`` for each.

    ``n`` is the size of the whole batch, which is run in chunks.
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
    guidance: Callable[..., Tensor] | None = None
    clip: float | None = None
    every: int | None = None
    callback: Callable[[int, Tensor, Tensor], None] | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    backend: str = "torch"  # one that runs: "auto" has been resolved
    precision: str = "fp32"  # likewise
    prepared: bool = False  # whether the network makes its own 16 bits
    call: object = field(default_factory=object)  # one for all chunks of a call

    @property
    def steps(self) -> int:
        return len(self.table) - self.first_row

    def kept_rows(self) -> list[int]:
        """Rows before which the state is kept for the trajectory; the last entry is its end."""
        if self.every is None:
            return []
        return [*range(self.first_row, len(self.table), self.every), len(self.table)]

    @contextlib.contextmanager
    def arithmetic(self) -> Iterator[None]:
        """Inside, the network computes in the chain's precision, whatever the caller's region."""
        sixteen = precision.network_dtype(self.precision) != torch.float32 and not self.prepared
        kind = self.device.type
        dtype = precision.network_dtype(self.precision) if sixteen else None
        with (
            precision.float32_mode(self.precision, self.device),
            # Cached casts of weights would be older than the weights in a captured step.
            torch.autocast(kind, dtype=dtype, enabled=sixteen, cache_enabled=False),
        ):
            yield

    @cached_property
    def explicit(self) -> bool:
        """Whether somebody needs the normalised score itself between network and update."""
        return not (self.guidance is None and self.callback is None and self.clip is None)

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
        """(rows, 9) float32, the coefficients on the device."""
        table = self._folded
        if self.explicit:  # the normalised score itself enters, only the input is the network's
            table = replace(self.table, c_in=table.c_in)
        return table.rows(self.device)

    @cached_property
    def numbers(self) -> Tensor:
        """(rows, 3) float64 on the host: σ, p and q of n = p·x + q·output."""
        sigma = torch.tensor(self.table.sigma, dtype=torch.float64, device="cpu")
        return torch.stack([sigma, *self.score.coefficients(sigma)], dim=1)

    @cached_property
    def _state_enters(self) -> bool:
        """Whether the normalised score depends on the state beside the network's output."""
        return bool(self.numbers[:, 1].any())

    @cached_property
    def _host_numbers(self) -> list[list[float]]:
        return self.numbers.tolist()

    @cached_property
    def _key(self) -> tuple[Word, Tensor | range]:
        """Seed and step of every row: in device memory where a kernel reads them there."""
        steps = range(self.first_step, self.first_step + len(self.table))
        if self.backend == "torch":
            return self.seed, steps
        on_device = torch.arange(steps.start, steps.stop, device=self.device)
        return noise.seed_tensor(self.seed, self.device), on_device

    @cached_property
    def scales_input(self) -> bool:
        return self._folded.scales_input

    @cached_property
    def conditions(self) -> Tensor | None:
        """(rows,) what the network is told in each."""
        return self.score.conditions(self.table, self.device)

    def row(self, index: int) -> Row:
        """A row with the numbers of the host."""
        seed, steps = self._key
        sigma, p, q = self._host_numbers[index]
        condition = None if self.conditions is None else self.conditions[index]
        coefficients = self.rows[index]
        return Row(index, coefficients, condition, seed, steps[index], sigma, p, q, self.clip)

    def chunk(self, ids: Tensor, part: slice) -> Chunk:
        """The inputs that belong to some of the samples."""
        guiding = {name: value.to(self.device) for name, value in self._guiding().items()}
        return Chunk(
            ids,
            part,
            # Expanded from one image, they would be copied at every step.
            None if self.mask is None else self.mask[part].contiguous(),
            None if self.known is None else self.known[part].contiguous(),
            cut(self.extra, part, self.n),
            cut(guiding, part, self.n),
            NoiseAhead(self, ids) if self.backend == "torch" and self.adds_noise else None,
        )

    def _guiding(self) -> dict[str, Tensor]:
        return self.guidance.inputs if isinstance(self.guidance, Guidance) else {}

    def first_state(self, x: Tensor, chunk: Chunk) -> StepResult:
        """The states x (B, *shape) before the chain's first row."""
        if chunk.mask is not None and chunk.known is not None:
            z = noise.normal(
                self.shape,
                seed=self.seed,
                stream=noise.KNOWN,
                sample_ids=chunk.ids,
                step=self.first_step + self.first_row,
                backend="torch" if self.backend == "torch" else "auto",
            )
            x = torch.where(chunk.mask, chunk.known + self.table.sigma[self.first_row] * z, x)
        # The network sees one layout, from the first row on and however it is run.
        x = x.contiguous()
        history = torch.zeros_like(x) if self.table.has_history else None
        return self.state(x, history, self.first_row)

    def state(self, x: Tensor, history: Tensor | None, row: int) -> StepResult:
        """A state before a row, with what the network sees of it."""
        return StepResult(x, history, self._folded.c_in[row] * x if self.scales_input else x)

    def step(
        self,
        row: Row,
        state: StepResult,
        chunk: Chunk,
        z: Tensor | None = None,
        out: StepResult | None = None,
    ) -> tuple[StepResult, Tensor]:
        """One row: the network, what the caller adds, the update.

        Nothing in it waits for the device or depends on its data, so that it can be captured.

        Args:
            z: (B, *shape), noise that is made already.
            out: the tensors to write, those of ``state`` if need be; default: new ones.

        Returns:
            The new state and what entered for n: the normalised score where the step is explicit,
            else the network's output.
        """
        with profiling.mark("network"):
            n = _harmless(
                "the network",
                lambda: self.score(state.network_input, row.condition, **chunk.extra),
                state.network_input,
            )
        guidance = None
        if self.explicit:
            n = self._normalized(row, state.x, n)
            guidance = self._drift(row, state.x, n, chunk.guiding)
        entering = n
        if guidance is not None and self.table.remembers_score:
            # The history has to have the guidance in it: n of a score that it is added to.
            entering, guidance = n + row.sigma * guidance, None
        with profiling.mark("update"):
            new = ops.sampler_update(
                state.x,
                entering,
                row.coefficients,
                seed=row.seed,
                step=row.step,
                sample_ids=chunk.ids,
                add_noise=self.adds_noise,
                z=z,
                history=state.history,
                guidance=guidance,
                mask=chunk.mask,
                known=chunk.known,
                scale_input=self.scales_input,
                out=out,
                backend=self.backend,
            )
        return new, n

    def _normalized(self, row: Row, x: Tensor, output: Tensor) -> Tensor:
        """The normalised score from the network's output, clipped where the caller wants that."""
        n = row.q * output.float()
        if self._state_enters:  # elsewhere 0·∞ would be NaN
            n = n + row.p * x
        if row.clip is None:
            return n
        # ‖s‖ = ‖n‖/σ. Products only: a GPU divides by a number of the host and by one of its own
        # differently. A norm of 0 gives inf, which the clamp ends.
        norm = n.flatten(1).norm(dim=1)
        factor = (norm.reciprocal() * (row.clip * row.sigma)).clamp(max=1.0)
        return n * per_sample(factor, n)

    def _drift(self, row: Row, x: Tensor, n: Tensor, inputs: dict[str, Tensor]) -> Tensor | None:
        """What the caller's guidance adds."""
        guidance = self.guidance
        if guidance is None:
            return None
        drift = _harmless("guidance()", lambda: guidance(x, n, row.sigma, row.row, **inputs), x, n)
        return checks.same_shape("guidance()", drift, x.shape, x).to(x.dtype)

    def eager_step(
        self,
        index: int,
        state: StepResult,
        chunk: Chunk,
        callback: Callable[[int, Tensor, Tensor], None] | None = None,
    ) -> StepResult:
        """One row, driven by the host."""
        with profiling.mark("step"):
            new, n = self.step(self.row(index), state, chunk, self._noise(index, chunk))
        if callback is not None:
            self.call_back(callback, index, state.x, n)
        return new

    def call_back(
        self, callback: Callable[[int, Tensor, Tensor], None], row: int, x: Tensor, n: Tensor
    ) -> None:
        _harmless("callback()", lambda: callback(row, x, n), x)

    def _noise(self, row: int, chunk: Chunk) -> Tensor | None:
        """The noise of a row where it is made here: the caller's, or that of many rows at once."""
        if self.noise is None:
            return None if chunk.ahead is None else chunk.ahead.get(row)
        if self.table.d[row] == 0:
            return None
        z = self.noise(row)
        checks.same_shape("noise()", z, (self.n, *self.shape), z)
        return z[chunk.part].to(self.device, torch.float32)

    def explanation(self, first: int, last: int, good: StepResult, chunk: Chunk) -> SamplingError:
        """Run the rows of a failed stretch again, one check each, to say which one broke."""
        state = good
        for row in range(first, last):
            following = self.eager_step(row, state, chunk)
            bad = ~torch.isfinite(following.x).flatten(1).all(1)
            if bool(bad.any()):
                which = chunk.ids[bad].tolist()
                more = " …" if len(which) > 8 else ""
                return self._error(row, f"in sample {which[:8]}{more}", state.x, chunk)
            state = following
        # Noise of the caller's that is not a function of the row, or a network that changes.
        where = f"or in one of the rows from {first} on (a second run went well)"
        return self._error(last - 1, where, good.x, chunk)

    def _error(self, row: int, where: str, state: Tensor, chunk: Chunk) -> SamplingError:
        sigma, level = self.table.sigma[row], self.table.level[row]
        which = f"noise level {level}, " if level >= 0 else ""
        range_ends = ', or precision="bf16": float16 ends at 65,504'
        return SamplingError(
            f"the state is no longer finite after row {row} of {len(self.table)} "
            f"({which}σ = {sigma:g}) {where}: the network returned NaN or infinity, or the chain "
            "diverged. The last good state is in the error's .state; look at the network's output "
            f"there, or try a lower step size{range_ends if self.precision == 'fp16' else ''}",
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


__all__ = ["Chain", "Chunk", "Number", "Row", "SamplingError"]
