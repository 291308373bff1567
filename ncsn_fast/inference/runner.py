"""What is run for a score while it is sampled from: a prepared copy, or the score as it is."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from ncsn_fast.device.precision import arithmetic
from ncsn_fast.inference.adopted import follow
from ncsn_fast.inference.foreign import PackedCalls
from ncsn_fast.inference.forms import forms
from ncsn_fast.inference.prepare import (
    CannotPrepare,
    PreparedNetwork,
    obstacle,
    prepare_for_inference,
)
from ncsn_fast.models.base import ScoreNetwork
from ncsn_fast.models.conv_forms import DIRECT, NAMES
from ncsn_fast.models.score import Score
from ncsn_fast.support import checks


class Running(NamedTuple):
    """What is run: a score, the precision it computes in, whether it makes its own 16 bits."""

    score: Score
    precision: str
    prepared: bool


class _Copied(NamedTuple):
    network: PreparedNetwork
    score: Score  # that calls it


class Runner:
    """What stands for a score while it is sampled from, kept from call to call.

    A network of this package runs as a prepared copy; one that cannot be copied (it has hooks,
    say) runs itself where float32 will do. Any other score runs itself; in float32 on a CPU its
    convolutions are packed (:class:`PackedCalls`).

    Args:
        score: as it is told.
        network: where it is one of ours, called by its normalised score; or by itself, as ``fn``.
        precision: a name, or "auto"; for what runs itself that is "fp32".
        prepare: whether anything is copied or packed; without it every score runs as it is.

    Raises:
        ValueError: where our network cannot be prepared in this precision.
    """

    def __init__(
        self, score: Score, network: ScoreNetwork | None, precision: str, prepare: bool = True
    ) -> None:
        checks.choice("prepare", prepare, (True, False), "whether networks are prepared")
        if network is None and isinstance(score.fn, ScoreNetwork):
            network = score.fn
        if prepare and network is not None and precision not in ("auto", "fp32"):
            reason = obstacle(network, precision)
            if reason is not None:
                raise ValueError(f"precision = {precision!r}: {reason}")
        self._score, self._network, self._precision = score, network, precision
        self._prepare = prepare
        self._sigmas = None if network is None else network.sigmas.cpu().clone()
        self._forget()

    def _forget(self) -> None:
        self._packed: tuple[PackedCalls, Score] | None = None
        self._copies: dict[str, _Copied] = {}  # by the precision that is asked for
        self._place: torch.device | None = None
        self._lock = threading.Lock()
        self._running: list[PreparedNetwork] = []  # a copy once for each chain

    def __getstate__(self) -> dict[str, Any]:
        # Each copy makes its own.
        made = {"_packed", "_copies", "_place", "_lock", "_running"}
        return {name: value for name, value in self.__dict__.items() if name not in made}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    @contextmanager
    def running(self, device: torch.device, differentiable: bool = False) -> Iterator[Running]:
        """What is to be run on a device, with the weights that the network has now.

        They stay as they are inside, whatever other threads and chains do meanwhile. Where it is to
        be ``differentiable`` it computes in float32.

        Raises:
            ValueError: where it is to be differentiable in less than float32, where weights with
                other noise levels have been loaded since, and for a network that was taken over,
                whose original computes something else now.
            RuntimeError: where another thread changes the weights all the time.
        """
        net = self._network
        if net is not None:
            follow(net)
        if net and self._sigmas is not None and not torch.equal(net.sigmas.cpu(), self._sigmas):
            raise ValueError(
                "the network's noise levels have changed since this sampler was made: make another"
            )
        own = "fp32" if self._precision == "auto" else self._precision
        if differentiable and own != "fp32":
            raise ValueError(
                f"precision = {own!r}: guidance through the network needs 1 + σ∂n/∂x, which is of "
                'the size of 1/σ² and lost in fewer bits; give the sampler precision="fp32"'
            )
        copied = None
        if self._prepare and net is not None:
            precision = own if differentiable else self._precision
            with self._lock:
                copied = self._current(net, device, precision, unless_hindered=own == "fp32")
                if copied is not None:
                    self._running.append(copied.network)
        if copied is None:
            packs = self._prepare and own == "fp32" and device.type == "cpu"
            yield Running(self._on_packed_weights() if packs else self._score, own, prepared=False)
            return
        try:
            yield Running(copied.score, copied.network.precision, prepared=True)
        finally:
            with self._lock:
                self._running.remove(copied.network)

    def _on_packed_weights(self) -> Score:
        """The score as it is, but for its convolutions, with the weights that it has now."""
        with self._lock:
            if self._packed is None:
                fn = self._score.fn
                calls = fn if isinstance(fn, PackedCalls) else PackedCalls(fn)
                self._packed = calls, replace(self._score, fn=calls)
            self._packed[0].refresh()
            return self._packed[1]

    def precision(self, device: torch.device) -> str:
        """What is computed in on a device; raises what :meth:`running` does."""
        with self.running(device) as running:
            return running.precision

    @torch.no_grad()
    def forms(self, device: torch.device, shape: Sequence[int]) -> str:
        """Which forms convolutions run in for samples of a shape, see ``inference/forms.py``.

        It is found by one call of a network of ours; of others it is what has run so far.
        """
        if device.type != "cpu":
            return NAMES[DIRECT]
        with self.running(device) as running:
            if isinstance(running.score.fn, PackedCalls):
                return forms(running.score.fn.convolutions())
            prepared = getattr(running.score.fn, "__self__", running.score.fn)
            if not isinstance(prepared, PreparedNetwork):
                return NAMES[DIRECT]
            x, label = torch.zeros(1, *shape, device=device), torch.zeros(1, device=device)
            with arithmetic(running.precision, device, own_casts=True):
                prepared.normalized(x, label.long())
            return forms(prepared.network.modules())

    def _current(
        self, net: ScoreNetwork, device: torch.device, precision: str, unless_hindered: bool
    ) -> _Copied | None:
        """The copy for a chain that begins; one that runs already is shared, and never changed.

        None where there can be none, if ``unless_hindered``.
        """
        if self._place != device:  # elsewhere "auto" may be another
            self._copies, self._place = {}, device
        copied = self._copies.get(precision)
        try:
            if copied is None:
                keep = False
            elif any(one is copied.network for one in self._running):
                keep = copied.network.agrees()
            else:
                keep = True
                copied.network.refresh()
            if not keep or copied is None:
                prepared = prepare_for_inference(net, precision)
                fn = prepared if self._score.fn is net else prepared.normalized
                copied = self._copies[precision] = _Copied(prepared, replace(self._score, fn=fn))
        except CannotPrepare:
            if unless_hindered:
                return None
            raise
        if precision == "auto":  # which needs no second copy where it is one of those asked for
            self._copies[copied.network.precision] = copied
        return copied

    def release(self) -> None:
        """Let go of the copies, or of what is packed; the next call makes them again."""
        with self._lock:
            self._packed, self._copies = None, {}


__all__ = ["Runner", "Running"]
