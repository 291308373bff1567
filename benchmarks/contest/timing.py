"""Times of calls: by the device's own clock, as quantiles, contestants in turns."""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

Call = Callable[[], object]
K = TypeVar("K", bound=Hashable)
_SHORT = 1e-3  # s; several calls to a measurement where one is shorter, at most so many:
_MOST_CALLS, _MOST_ROUNDS, _LEAST_ROUNDS = 100, 200, 5


@dataclass(frozen=True)
class Times:
    """Quantiles 0.5, 0.2 and 0.8 of the time of one call in seconds, of so many rounds."""

    median: float
    low: float
    high: float
    rounds: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Times:
        low, _, _, high = statistics.quantiles(seconds, n=5)
        return cls(statistics.median(seconds), low, high, len(seconds))


def in_turns(
    contestants: Mapping[K, Sequence[Call]], device: torch.device, seconds: float
) -> dict[K, Times | Exception]:
    """The times of all contestants, one measurement each in every round.

    So whatever slows the machine down for a while slows all of them down.

    Args:
        contestants: name → calls that do the same work on different buffers, made in turn: none
            then finds its input in a cache. They have been called before.
        seconds: of measuring, per contestant; there are at least five rounds.

    Returns:
        Name → times, or what a call raised: it then takes no further turns.
    """
    found: dict[K, Times | Exception] = {}
    taken: dict[K, list[float]] = {name: [] for name in contestants}
    queues = {name: itertools.cycle(calls) for name, calls in contestants.items()}
    repeats: dict[K, int] = {}
    ends = time.perf_counter() + seconds * len(contestants)
    for round_ in range(_MOST_ROUNDS):
        if round_ >= _LEAST_ROUNDS and time.perf_counter() > ends:
            break
        for name, queue in queues.items():
            if name in found:
                continue
            try:
                if name not in repeats:
                    once = seconds_of(queue, 1, device)
                    repeats[name] = max(1, min(_MOST_CALLS, math.ceil(_SHORT / once)))
                    if repeats[name] == 1:
                        taken[name].append(once)
                        continue
                taken[name].append(seconds_of(queue, repeats[name], device))
            except Exception as error:  # of whatever kind: the others go on
                found[name] = error
    return {name: found.get(name) or Times.of(taken[name]) for name in contestants}


def measure(calls: Sequence[Call], device: torch.device, seconds: float = 0.5) -> Times:
    """The times of one contestant by itself.

    Raises:
        Exception: what a call raises.
    """
    result = in_turns({"": calls}, device, seconds)[""]
    if isinstance(result, Exception):
        raise result
    return result


def seconds_of(calls: Iterator[Call], repeats: int, device: torch.device) -> float:
    """The time of one of so many calls in a row."""
    if device.type != "cuda":
        started = time.perf_counter()
        for call in itertools.islice(calls, repeats):
            call()
        return (time.perf_counter() - started) / repeats
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    start.record()
    for call in itertools.islice(calls, repeats):
        call()
    end.record()
    end.synchronize()
    return 1e-3 * float(start.elapsed_time(end)) / repeats


def wall_seconds(call: Call, device: torch.device) -> float:
    """The time of one call by the host's clock, until the device has finished."""
    started = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


__all__ = ["Call", "Times", "in_turns", "measure", "seconds_of", "wall_seconds"]
