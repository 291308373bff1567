"""Whether a chain's states stay finite, found out without stalling the device."""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor

from ncsn_fast.reference import StepResult

# The host may be so many looks ahead of the device. It then waits for an old look while the work
# since keeps the device busy; further ahead, a failure or Ctrl-C would have to wait for it all.
_MOST_AHEAD = 2


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


__all__ = ["Finite"]
