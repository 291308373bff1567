"""Captured sampling: one step of a chain as one CUDA graph, replayed once per row.

Everything that differs between rows, seeds, noise levels, temperatures and methods of one family
lies in device memory that the graph reads, so that one capture serves them all. What a graph
freezes besides (shapes, dtypes, which inputs there are, numbers given by the host) is its key.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ncsn_fast import noise, ops
from ncsn_fast.device import capture, profiling
from ncsn_fast.reference import StepResult
from ncsn_fast.sampling.chain import Chain, Chunk
from ncsn_fast.sampling.step import Number, Row, Step, call_back
from ncsn_fast.support.progress import Progress

_WARM_UPS = 3


@contextmanager
def _own_casts() -> Iterator[None]:
    """What a network casts to 16 bits in a region of autocast of its own is cast anew inside.

    PyTorch keeps such casts of weights. One kept from before a capture would be frozen into the
    graph while its weight changes; one kept from a capture was never computed.
    """
    torch.clear_autocast_cache()
    try:
        yield
    finally:
        torch.clear_autocast_cache()


class CapturedLoop:
    """A chain's step on memory of its own, captured; it runs any chain of the same key.

    Attributes:
        state: what the last row left, written again by the next.
        callback: what is called after each row of the chain that it runs.
    """

    state: StepResult

    def __init__(self, chain: Chain, state: StepResult, chunk: Chunk) -> None:
        # Its functions are part of the key; what else the caller gave is not held on to.
        heard = None if chain.callback is None else _nobody
        self._chain = replace(chain, mask=None, known=None, extra={}, shared={}, callback=heard)
        self.callback = chain.callback
        # Tensors made in inference mode could not be filled outside of it.
        with torch.inference_mode(False), torch.no_grad():
            self._allocate(chain, state, chunk)
        self._step = Step(self._chain, self._chunk)
        self.fill(chain, state, chunk)
        # Not beyond the last row, which a guidance may have no numbers for.
        runs = min(_WARM_UPS, chain.steps)
        self._graph = capture.capture(self._next, chain.device, warm_ups=runs)

    def fill(self, chain: Chain, state: StepResult, chunk: Chunk) -> None:
        """Set it to the beginning of a chain, all on the device."""
        self.callback = chain.callback
        rows = len(chain.table)
        self._counter[0].fill_(chain.first_row)
        self._counter[1].fill_(chain.first_step + chain.first_row)
        self._seed.copy_(noise.seed_tensor(chain.seed, chain.device))
        self._rows[:rows].copy_(chain.rows)
        if self._conditions is not None and chain.conditions is not None:
            self._conditions[:rows].copy_(chain.conditions)
        self._numbers[:rows].copy_(chain.numbers, non_blocking=True)
        if self._clip is not None and chain.clip is not None:
            self._clip.fill_(chain.clip)
        pairs = [*zip(self.state, state, strict=True), (self._chunk.ids, chunk.ids)]
        pairs += [(self._chunk.mask, chunk.mask), (self._chunk.known, chunk.known)]
        pairs += [(self._chunk.extra[name], value) for name, value in chunk.extra.items()]
        pairs += [(self._chunk.guiding[name], value) for name, value in chunk.guiding.items()]
        for own, given in pairs:
            if isinstance(own, Tensor) and isinstance(given, Tensor):
                own.copy_(given)

    def run(self, first: int, last: int, progress: Progress | None) -> None:
        """Take the state from before row ``first`` to before row ``last``."""
        for row in range(first, last):
            before = None if self.callback is None else self.state.x.clone()
            with profiling.mark("step"):
                self._graph.replay()
            if self.callback is not None and before is not None and self._n is not None:
                call_back(self.callback, row, before, self._n.clone())
            if progress is not None:
                progress.advance(len(self._chunk.ids))

    def release(self) -> None:
        self._graph.release()

    def _allocate(self, chain: Chain, state: StepResult, chunk: Chunk) -> None:
        rows, device = capacity(chain), chain.device
        whole: dict[str, Any] = {"dtype": torch.int64, "device": device}
        self._counter = torch.zeros(2, **whole)
        self._seed, self._now = torch.zeros((), **whole), torch.zeros((), **whole)
        self._rows = chain.rows.new_zeros(rows, chain.rows.shape[1])
        self._row = torch.zeros_like(self._rows[0])
        self._numbers = torch.zeros(rows, 5, dtype=torch.float64, device=device)
        self._clip = None if chain.clip is None else torch.zeros_like(self._numbers[0, 0])
        self._conditions = self._condition = None
        if chain.conditions is not None:
            self._conditions = chain.conditions.new_zeros(rows)
            self._condition = chain.conditions.new_zeros(len(chunk.ids))
        x = _like(state.x)
        network_input = _like(state.x) if chain.scales_input else x
        self.state = StepResult(x, _like(state.history), network_input)
        self._n = None if chain.callback is None else _like(state.x)
        extra, guiding = (
            {name: _like(value) for name, value in given.items()}
            for given in (chunk.extra, chunk.guiding)
        )
        self._chunk = Chunk(
            _like(chunk.ids), slice(None), _like(chunk.mask), _like(chunk.known), extra, guiding
        )

    @_own_casts()
    def _next(self) -> None:
        """One row from the buffers, in place. Captured: it may not look at what they hold."""
        chain = self._chain
        ops.begin_step(
            self._counter,
            self._rows,
            self._conditions,
            self._row,
            self._now,
            self._condition,
            backend=chain.backend,
        )
        index = self._counter[0] - 1 if chain.explicit else 0  # begin_step has counted on
        numbers: Sequence[Number] = [0.0] * 5
        if isinstance(index, Tensor):  # else nobody asks
            numbers = self._numbers.index_select(0, index.view(1))[0].unbind()
        told = (index, self._row, self._condition, self._seed, self._now)
        row = Row(*told, self._clip, *numbers)
        _, n = self._step(row, self.state, out=self.state)
        if self._n is not None:
            self._n.copy_(n)


def capacity(chain: Chain) -> int:
    """Rows of the buffers: tables of several lengths share a graph."""
    return 1 << max(6, (len(chain.table) - 1).bit_length())


def _like(value: Any) -> Any:
    """Memory for such a value, laid out plainly; what is no tensor is kept."""
    if not isinstance(value, Tensor):
        return value
    return torch.zeros_like(value, memory_format=torch.contiguous_format)


def _nobody(row: int, x: Tensor, n: Tensor) -> None:
    """Stands in the captured chain for whoever listens to the one that runs."""


__all__ = ["CapturedLoop", "capacity"]
