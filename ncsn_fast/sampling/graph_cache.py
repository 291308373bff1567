"""Which captured loops a sampler keeps, and what a captured step freezes."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ncsn_fast.device import backends, capture
from ncsn_fast.device.capture import CaptureError
from ncsn_fast.inference.foreign import PackedCalls
from ncsn_fast.inference.prepare import PreparedNetwork
from ncsn_fast.reference import StepResult
from ncsn_fast.sampling.captured import CapturedLoop, capacity
from ncsn_fast.sampling.chain import Chain, Chunk
from ncsn_fast.support import checks

_log = logging.getLogger("ncsn_fast")

_MOST_LOOPS = 4
# Capturing runs about five steps: a chain of fewer rows is over before that pays.
_FEWEST_ROWS = 8
# What a graph may freeze: values that cannot change without becoming others.
_FROZEN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)


class _Kept(NamedTuple):
    """A loop that is kept."""

    loop: CapturedLoop
    weights: Hashable  # what its network computes with
    lasting: bool  # whether it may serve later calls


class Graphs:
    """The captured loops of one sampler: four at most, the least recently used goes first.

    Args:
        wish: "auto" runs eagerly what cannot be captured, True refuses it.
    """

    def __init__(self, wish: str | bool = "auto") -> None:
        self._wish = wish
        self._loops: OrderedDict[Hashable, _Kept] = OrderedDict()
        self._refused: dict[Hashable, bool] = {}  # and whether that lasts
        self._warned = False
        self._lock = threading.Lock()

    @staticmethod
    def wished(wish: str | bool, device: torch.device) -> Graphs | None:
        """Those of a new sampler; None where it runs eagerly.

        Raises:
            ValueError: for another wish than "auto", True and False, and for one that the device
                cannot grant.
        """
        choices = ("auto", True, False)
        checks.choice("graph", wish, choices, "capture where possible, always, never")
        if wish is True and (reason := capture.obstacle(device)) is not None:
            raise ValueError(f"graph=True: {reason}. graph='auto' captures where that is possible")
        return Graphs(wish) if wish else None

    def __reduce__(self) -> tuple[Any, ...]:
        return Graphs, (self._wish,)  # a copy of a sampler captures for itself

    def __len__(self) -> int:
        return len(self._loops)

    @contextmanager
    def loop(self, chain: Chain, state: StepResult, chunk: Chunk) -> Iterator[CapturedLoop | None]:
        """A captured loop at the beginning of this chain; None where it is to run eagerly.

        Raises:
            ValueError, CaptureError: where it cannot be captured and has to be.
        """
        # Loops have one memory each: a chain inside a chain, or in another thread, runs eagerly.
        if not self._lock.acquire(blocking=False):
            yield None
            return
        loop = None
        try:
            loop = self._ready(chain, state, chunk)
            yield loop
        finally:
            if loop is not None:
                loop.callback = None
            self._lock.release()

    def end_call(self) -> None:
        """Release what must not serve another call. A chain around this one does so at its end."""
        if not self._lock.acquire(blocking=False):
            return
        try:
            for key in [key for key, kept in self._loops.items() if not kept.lasting]:
                self._loops.pop(key).loop.release()
            self._refused = {key: lasts for key, lasts in self._refused.items() if lasts}
        finally:
            self._lock.release()

    def release(self) -> None:
        """Release all of it.

        Raises:
            RuntimeError: while a chain runs.
        """
        if not self._lock.acquire(blocking=False):
            raise RuntimeError("a chain of this sampler is under way: release it afterwards")
        try:
            while self._loops:
                self._loops.popitem()[1].loop.release()
            self._refused.clear()
        finally:
            self._lock.release()

    def _ready(self, chain: Chain, state: StepResult, chunk: Chunk) -> CapturedLoop | None:
        reason = _obstacle(chain, chunk)
        if reason is not None:
            if self._wish is True:
                raise ValueError(f"graph=True: {reason}. graph='auto' runs such chains eagerly")
            _log.info("sampling eagerly: %s", reason)
            return None
        key = _key(chain, state, chunk)
        short = self._wish == "auto" and chain.steps < _FEWEST_ROWS
        if key in self._refused or (short and key not in self._loops):
            return None
        kept = self._loops.pop(key, None)
        if kept is None:
            return self._new(key, chain, state, chunk)
        if kept.weights != _weights(chain):
            kept.loop.release()
            return self._new(key, chain, state, chunk)
        kept.loop.fill(chain, state, chunk)
        self._loops[key] = kept
        return kept.loop

    def _new(
        self, key: Hashable, chain: Chain, state: StepResult, chunk: Chunk
    ) -> CapturedLoop | None:
        while len(self._loops) >= _MOST_LOOPS:
            self._loops.popitem(last=False)[1].loop.release()
        try:
            loop = CapturedLoop(chain, state, chunk)
        except CaptureError as error:
            what = "the chain" if chain.guidance is None else "the chain with its guidance"
            said = f"{what} cannot be captured as a CUDA graph: {error.cause}"
            if self._wish is True:
                raise CaptureError(f"{said}. graph='auto' runs it eagerly") from error
            self._refused[key] = chain.guidance is None
            if not self._warned:
                _log.warning("%s. It runs eagerly, more slowly (graph=False says so)", said)
            self._warned = True
            return None
        loop.fill(chain, state, chunk)  # the warm-ups have moved it
        # Only now: some of what a network computes with is made in the first run.
        self._loops[key] = _Kept(loop, _weights(chain), _lasting(chain))
        return loop


def _obstacle(chain: Chain, chunk: Chunk) -> str | None:
    """Why a chain cannot be captured, as far as that is known before trying."""
    if chain.noise is not None:
        return "noise= is a function that the host calls in every row"
    for name, value in chunk.extra.items():
        if isinstance(value, Tensor):
            if value.device != chain.device:
                return f"extra[{name!r}] is on {value.device}, not on {chain.device}"
        elif not isinstance(value, _FROZEN):
            return f"extra[{name!r}] is a {type(value).__name__}, which may change between steps"
    if (reason := capture.obstacle(chain.device)) is not None:
        return reason
    module = chain.score.module
    for part in () if module is None else module.modules():
        if part._forward_hooks or part._forward_pre_hooks:
            return "the network has hooks, which a replay does not call"
    return None


def _key(chain: Chain, state: StepResult, chunk: Chunk) -> Hashable:
    """All that a captured step freezes."""
    conditions = None if chain.conditions is None else chain.conditions.dtype
    extra = tuple(
        (name, (value.shape, value.dtype) if isinstance(value, Tensor) else (type(value), value))
        for name, value in sorted(chunk.extra.items())
    )
    family = (state.history is not None, chain.adds_noise, chain.scales_input, chain.explicit)
    inputs = (chunk.mask is not None, chain.clip is not None, chain.callback is not None)
    held = chain.holds_noise
    backend = chain.backend, backends.resolve("auto", chain.device)[0]  # and the network's
    where = (chain.device, backend, chain.precision, capacity(chain), conditions)
    called = (_identity(chain.score.fn), chain.score.frozen(), _identity(chain.guidance))
    guiding = tuple((name, value.shape, value.dtype) for name, value in chunk.guiding.items())
    return (tuple(state.x.shape), family, held, inputs, extra, guiding, where, called)


def _identity(function: Any) -> tuple[int, int]:
    """Bound methods are made anew at each look; what they are bound to is not."""
    owner = getattr(function, "__self__", None)
    return id(owner), id(getattr(function, "__func__", function))


def _weights(chain: Chain) -> Hashable:
    """What the network computes with, as far as it can be seen. With other weights a chain needs
    another capture.

    Of a prepared network it is its generation, of a module where its tensors lie, and its numbers.
    What may hide some is taken to compute with others in each call.
    """
    owner = _owner(chain)
    seen: Hashable = None
    if isinstance(owner, PreparedNetwork):
        seen = owner.generation
    elif isinstance(owner, nn.Module):
        seen = tuple(_attributes(owner))
    return seen, None if _lasting(chain) else chain.call


def _lasting(chain: Chain) -> bool:
    """Whether :func:`_weights` sees all that a step computes with."""
    return chain.guidance is None and isinstance(_owner(chain), (PreparedNetwork, nn.Module))


def _owner(chain: Chain) -> Any:
    fn = chain.score.fn
    fn = fn.source if isinstance(fn, PackedCalls) else fn
    return getattr(fn, "__self__", fn)


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


__all__ = ["Graphs"]
