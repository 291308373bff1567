"""A chain that leaves the finite numbers: found without stalling the device, and explained."""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor

from ncsn_fast.reference import StepResult
from ncsn_fast.sampling.chain import Chain, Chunk
from ncsn_fast.sampling.step import EagerStep

# The host may be so many looks ahead of the device. It then waits for an old look while the work
# since keeps the device busy; further ahead, a failure or Ctrl-C would have to wait for it all.
_MOST_AHEAD = 2


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


class Finite:
    """Keeps the last state that was finite, on the device and by its own decision.

    Args:
        state: the first state, known to be good.
        row: the row that it stands before.
    """

    def __init__(self, state: StepResult, row: int) -> None:
        device = state.x.device
        self._good = [tensor.clone() for tensor in (state.x, state.history) if tensor is not None]
        self._ok = torch.ones((), dtype=torch.bool, device=device)
        self._row = torch.full((), row, dtype=torch.int64, device=device)
        self._looks: deque[tuple[torch.cuda.Event, Tensor]] = deque()

    def look(self, state: StepResult, row: int) -> bool:
        """Note how the state before a row is; False once a failure is known.

        A CPU knows at once, a GPU two looks later.
        """
        self._ok.logical_and_(torch.isfinite(state.x).all())
        for good, now in zip(self._good, (state.x, state.history), strict=False):
            if now is not None:
                torch.where(self._ok, now, good, out=good)
        self._row.copy_(torch.where(self._ok, row, self._row))
        if self._ok.device.type == "cpu":
            return bool(self._ok)
        return self._ok.device.type != "cuda" or self._earlier_look()

    def failure(self) -> tuple[int, Tensor, Tensor | None] | None:
        """The last good row, state and history if a later state was not finite; waits for that."""
        if bool(self._ok):
            return None
        return int(self._row), self._good[0], self._good[1] if len(self._good) > 1 else None

    def _earlier_look(self) -> bool:
        flag = torch.empty((), dtype=torch.bool, device="cpu", pin_memory=True)
        flag.copy_(self._ok, non_blocking=True)
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self._ok.device))
        self._looks.append((event, flag))
        if len(self._looks) <= _MOST_AHEAD:
            return True
        event, flag = self._looks.popleft()
        event.synchronize()
        return bool(flag)


def explanation(
    chain: Chain, chunk: Chunk, good: StepResult, first: int, last: int
) -> SamplingError:
    """Run the rows of a failed stretch again, one check each, to say which one broke.

    Args:
        good: the last good state of the chunk's samples.
        first, last: the row that it stands before, and the row before which a state was not finite.
    """
    state, step = good, EagerStep(chain, chunk)
    for row in range(first, last):
        following = step.run(row, state)
        bad = ~torch.isfinite(following.x).flatten(1).all(1)
        if bool(bad.any()):
            which = chunk.ids[bad].tolist()
            more = " …" if len(which) > 8 else ""
            return _error(chain, chunk, row, f"in sample {which[:8]}{more}", state.x)
        state = following
    # Noise of the caller's that is not a function of the row, or a network that changes.
    where = f"or in one of the rows from {first} on (a second run went well)"
    return _error(chain, chunk, last - 1, where, good.x)


def _error(chain: Chain, chunk: Chunk, row: int, where: str, state: Tensor) -> SamplingError:
    sigma, level = chain.table.sigma[row], chain.table.level[row]
    which = f"noise level {level}, " if level >= 0 else ""
    # Of a network of this package it is known.
    reading = "" if chain.prepared else f"; of the network: {chain.score.reading}"
    steered = "" if chain.guidance is None else " or the guidance"
    range_ends = ', or precision="bf16": float16 ends at 65,504'
    return SamplingError(
        f"the state is no longer finite after row {row} of {len(chain.table)} "
        f"({which}σ = {sigma:g}) {where}: the network{steered} returned NaN or infinity, or the "
        "chain diverged. The last good state is in the error's .state; look at the outputs "
        f"there, or try a lower step size{range_ends if chain.precision == 'fp16' else ''}"
        f"{reading}",
        row,
        sigma,
        state,
        chunk.ids.tolist(),
    )


__all__ = ["Finite", "SamplingError", "explanation"]
