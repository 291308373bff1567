"""Captured sampling: one step of a chain as one CUDA graph, replayed once per row.

Everything that differs between rows, seeds, noise levels, temperatures and methods of one family
lies in device memory that the graph reads, so that one capture serves them all. What a graph
freezes besides (shapes, dtypes, which inputs there are, numbers given by the host) is its key.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ncsn_fast import noise, ops
from ncsn_fast.device import capture, profiling
from ncsn_fast.device.capture import Captured
from ncsn_fast.models.prepare import PreparedNetwork
from ncsn_fast.reference import StepResult
from ncsn_fast.sampling.chain import Chain, Chunk, Number, Row
from ncsn_fast.support.progress import Progress

_log = logging.getLogger("ncsn_fast")


_WARM_UPS = 3


# Rows per replay of a second graph, where more than one is to come before the host has to act.
ROWS_PER_REPLAY = 1


# What a graph may freeze: values that cannot change without becoming others.
_FROZEN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)


@contextmanager
def _own_casts() -> Iterator[None]:
    """Weights are cast to 16 bits anew: inside a region of autocast of the network's own, casts
    would be taken from before a capture, to grow old, or left behind by one that did no work."""
    torch.clear_autocast_cache()
    try:
        yield
    finally:
        torch.clear_autocast_cache()


class CapturedLoop:
    """A chain's step on memory of its own, captured; it runs any chain of the same key.

    Attributes:
        state: what the last row left, written again by the next.
        weights: what its network computes with; see :func:`_weights`.
        lasting: whether it may serve later calls.
        callback: what is called after each row of the chain that it runs.
    """

    state: StepResult

    def __init__(self, chain: Chain, state: StepResult, chunk: Chunk) -> None:
        self.lasting = _lasting(chain)
        # Its functions are part of the key; what else the caller gave is not held on to.
        heard = None if chain.callback is None else _nobody
        self._chain = replace(chain, mask=None, known=None, extra={}, callback=heard)
        self.callback = chain.callback
        # Tensors made in inference mode could not be filled outside of it.
        with torch.inference_mode(False), torch.no_grad():
            self._allocate(chain, state, chunk)
        self.fill(chain, state, chunk)
        self._graphs: dict[int, Captured] = {}
        try:
            # Not beyond the last row, which a guidance may have no numbers for.
            runs = min(_WARM_UPS, chain.steps)
            self._graphs[1] = capture.capture(self._step, chain.device, warm_ups=runs)
            if ROWS_PER_REPLAY > 1:
                several = self._several(ROWS_PER_REPLAY)
                self._graphs[ROWS_PER_REPLAY] = capture.capture(several, chain.device, warm_ups=0)
        except BaseException:
            self.release()
            raise
        self.weights = _weights(chain)  # some are made in the first run

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
        row, samples = first, len(self._chunk.ids)
        while row < last:
            several = self.callback is None and last - row >= ROWS_PER_REPLAY
            rows = ROWS_PER_REPLAY if several else 1
            before = None if self.callback is None else self.state.x.clone()
            with profiling.mark("step"):
                self._graphs[rows].replay()
            if self.callback is not None and before is not None and self._n is not None:
                self._chain.call_back(self.callback, row, before, self._n.clone())
            row += rows
            if progress is not None:
                progress.advance(rows * samples)

    def release(self) -> None:
        for graph in self._graphs.values():
            graph.release()

    def _allocate(self, chain: Chain, state: StepResult, chunk: Chunk) -> None:
        rows, device = _capacity(chain), chain.device
        whole: dict[str, Any] = {"dtype": torch.int64, "device": device}
        self._counter = torch.zeros(2, **whole)
        self._seed, self._now = torch.zeros((), **whole), torch.zeros((), **whole)
        self._rows = chain.rows.new_zeros(rows, chain.rows.shape[1])
        self._row = torch.zeros_like(self._rows[0])
        self._numbers = torch.zeros(rows, 3, dtype=torch.float64, device=device)
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
    def _step(self) -> None:
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
        sigma: Number = 0.0
        p: Number = 0.0
        q: Number = 0.0
        if isinstance(index, Tensor):  # else nobody asks
            sigma, p, q = self._numbers.index_select(0, index.view(1))[0].unbind()
        row = Row(index, self._row, self._condition, self._seed, self._now, sigma, p, q, self._clip)
        _, n = chain.step(row, self.state, self._chunk, out=self.state)
        if self._n is not None:
            self._n.copy_(n)

    def _several(self, rows: int) -> Callable[[], None]:
        def steps() -> None:
            for _ in range(rows):
                self._step()

        return steps


def _owner(chain: Chain) -> Any:
    return getattr(chain.score.fn, "__self__", chain.score.fn)


def _lasting(chain: Chain) -> bool:
    """Whether :func:`_weights` sees all that a step computes with."""
    return chain.guidance is None and isinstance(_owner(chain), (PreparedNetwork, nn.Module))


def _weights(chain: Chain) -> Hashable:
    """What the network computes with, as far as it shows: with other tensors or numbers it needs
    another capture, and where it may hide some, in each call."""
    owner = _owner(chain)
    seen: Hashable = None
    if isinstance(owner, PreparedNetwork):
        seen = owner.generation
    elif isinstance(owner, nn.Module):
        seen = tuple(_attributes(owner))
    return seen, None if _lasting(chain) else chain.call


def _attributes(network: nn.Module) -> Iterator[Hashable]:
    for part in network.modules():
        for value in (*part._parameters.values(), *part._buffers.values(), *vars(part).values()):
            if isinstance(value, Tensor):
                yield id(value), _place(value), value.dtype, value.shape
            elif isinstance(value, _FROZEN):
                yield type(value), value


def _place(tensor: Tensor) -> Hashable:
    try:
        return tensor.data_ptr(), tensor.stride()
    except RuntimeError:  # a sparse one is made of others
        return None


def _capacity(chain: Chain) -> int:
    """Rows of the buffers: tables of several lengths share a graph."""
    return 1 << max(6, (len(chain.table) - 1).bit_length())


def _like(value: Any) -> Any:
    """Memory for such a value, laid out plainly; what is no tensor is kept."""
    if not isinstance(value, Tensor):
        return value
    return torch.zeros_like(value, memory_format=torch.contiguous_format)


def _nobody(row: int, x: Tensor, n: Tensor) -> None:
    """Stands in the captured chain for whoever listens to the one that runs."""


__all__ = ["ROWS_PER_REPLAY", "CapturedLoop"]
