"""What every score network shares: noise levels, the score, the settings that rebuild it."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ncsn_fast.methods.levels import check_sigmas
from ncsn_fast.reference import ACTIVATIONS, per_sample

T = TypeVar("T")

# Weights are changed and taken over under it, so that no thread sees them half changed.
_weights_lock = threading.RLock()
# Networks whose weights were last seen whole, and by what their tensors are told from changed ones.
_whole: WeakKeyDictionary[nn.Module, list[tuple[int, int]]] = WeakKeyDictionary()
# Where another thread changes weights without that lock, it is given so long to go on, and in all
# so long to come to an end.
_PAUSE, _PATIENCE = 0.005, 5.0  # seconds

_modes_lock = threading.Lock()
# How many blocks have put a module, which was in training mode, into evaluation mode.
_evaluating: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()


def activation_name(name: str) -> str:
    """The activation called ``name`` in the official configurations, in lower case.

    Raises:
        ValueError: for a name that is not in ``ACTIVATIONS``.
    """
    if not isinstance(name, str) or name.lower() not in ACTIVATIONS:
        allowed = ", ".join(ACTIVATIONS)
        raise ValueError(f"unknown activation {name!r:.80}: choose one of {allowed}")
    return name.lower()


class ScoreNetwork(nn.Module, ABC):
    """A network s(x, σ_i) for all noise levels i.

    Attributes:
        sigmas: (L,) float32 buffer, descending; float32 whatever precision the weights have.
        sampling: settings that suit these weights, or None: a dict with the keys ``method``,
            ``step_size``, ``steps_per_level`` and ``denoise``.
        source: where the weights were loaded from, in words, or None.
        sees_sigma: True where the body depends on the noise level.
        keeps_sigmas: whether the state_dict of such a network holds its noise levels.
        save_pretrained, push_to_hub, from_pretrained: see ``checkpoints/pretrained.py``.
    """

    sees_sigma: bool = False
    keeps_sigmas: bool = True
    sigmas: Tensor
    sampling: dict[str, Any] | None
    source: str | None
    # This room may not know that of files, which puts them here.
    save_pretrained: ClassVar[Callable[..., Any]]
    push_to_hub: ClassVar[Callable[..., Any]]
    from_pretrained: ClassVar[Any]

    def __init__(self, sigmas: Tensor | np.ndarray | Sequence[float]) -> None:
        super().__init__()
        with torch.device("cpu"):  # real values even while the network is built on "meta"
            levels = check_sigmas(sigmas).clone()
        self.register_buffer("sigmas", levels, persistent=self.keeps_sigmas)
        self.sampling = None
        self.source = None

    @property
    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Plain JSON values that rebuild the network (all but the noise levels and weights)."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample."""

    @abstractmethod
    def normalized(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """The normalised score σ·s(x, σ), of x's shape.

        Args:
            x: (N, *shape), in model space.
            labels: (N,) integers, 0 to L - 1; None where the body does not see the noise level.

        Raises:
            ValueError: for x or labels of another shape, and where labels are needed.
        """

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        """The score s(x, σ) = ∇ log p_σ(x), of x's shape.

        Args:
            x: (N, *shape), in model space.
            labels: (N,) integers, 0 to L - 1: the noise level of each sample.

        Raises:
            ValueError: for x or labels of another shape, or labels out of range.
        """
        n = self.normalized(x, labels)
        return n / self.level(labels, x)

    def level(self, labels: Tensor, x: Tensor) -> Tensor:
        """σ of each sample of x, float32 (N, 1, …) to broadcast with x, of its ``labels`` (N,)."""
        check_labels(labels, len(x), len(self.sigmas))
        return per_sample(self.sigmas[labels], x)

    def load_state_dict(self, *arguments: Any, **keywords: Any) -> Any:
        """As of a module (``arguments``, ``keywords``); no sampler takes over half of them."""
        with changing_weights(self):
            return super().load_state_dict(*arguments, **keywords)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ScoreNetwork:
        before = self.sigmas
        with changing_weights(self):
            super()._apply(fn, recurse)
        # σ = 0.01 has no exact half-precision value, and to_empty() would leave noise levels that
        # no state_dict restores: they keep their values and move only between devices.
        if not before.is_meta:
            self.sigmas = before.to(self.sigmas.device)
        return self


def check_labels(labels: Tensor, batch: int, number: int, what: str = "labels") -> None:
    """Refuse labels that are not (batch,) integers from 0 to number - 1.

    Args:
        what: what they are called; "labels" count noise levels.

    Raises:
        ValueError: naming what was given. The values are checked on the CPU only: reading those on
            a device would stop the host until the device has caught up.
    """
    if not isinstance(labels, Tensor) or labels.dtype not in (torch.int64, torch.int32):
        given, mend = type(labels).__name__, f"torch.as_tensor({what})"
        if isinstance(labels, Tensor):
            given, mend = str(labels.dtype), f"{what}.long()"
        raise ValueError(f"{what} must be int64 or int32, got {given}: use {mend}")
    if labels.shape != (batch,):
        raise ValueError(f"{what} must have shape ({batch},), got {tuple(labels.shape)}")
    if labels.device.type != "cpu" or torch.compiler.is_compiling() or labels.numel() == 0:
        return
    low, high = (int(v) for v in labels.aminmax())
    if low < 0 or high >= number:
        kinds = f"{number} noise levels 0 to {number - 1}"
        if what != "labels":
            kinds = f"{what} 0 to {number - 2}, and {number - 1} for none of them"
        raise ValueError(f"{what} run from {low} to {high}, but the network has the {kinds}")


def own_network(score: object) -> ScoreNetwork | None:
    """The network of this package that a score calls as it is: itself, or one behind an
    ``nf.Score`` (guided or not) of its method ``normalized``; None for any other."""
    if isinstance(score, ScoreNetwork):
        return score
    method = getattr(score, "fn", None)
    owner = getattr(method, "__self__", None)
    own = isinstance(owner, ScoreNetwork) and getattr(method, "__name__", "") == "normalized"
    return owner if own else None


@contextmanager
def changing_weights(*networks: nn.Module) -> Iterator[None]:
    """Inside, the weights of networks are changed from one whole state to another.

    :func:`whole_weights` in another thread waits for the end.
    """
    with _weights_lock:
        yield
        if threading.active_count() > 1:
            for network in networks:
                _whole[network] = _marks(network)


def whole_weights(network: nn.Module, take: Callable[[], T]) -> T:
    """What ``take`` makes of a network's weights, all from before or all from after a change.

    What other threads change inside of :func:`changing_weights` is waited for. Other changes are
    noticed by PyTorch's counters of in-place operations (not those made through ``.data``): what
    has been taken is then taken again once they have ended.

    Raises:
        RuntimeError: where they do not end.
    """
    end = time.monotonic() + _PATIENCE
    while True:
        with _weights_lock:
            before = _marks(network)
            known = threading.active_count() == 1 or _whole.get(network) == before
            taken = take()
            unchanged = _marks(network) == before
        if unchanged and not known:
            time.sleep(_PAUSE)  # whoever is about to change more of them goes on meanwhile
            unchanged = _marks(network) == before
        if unchanged:
            _whole[network] = before
            return taken
        if time.monotonic() > end:
            raise RuntimeError(
                "the network's weights are being changed all the time by another thread: sample "
                "between its steps, or from a copy of the network (copy.deepcopy)"
            )


def _marks(module: nn.Module) -> list[tuple[int, int]]:
    """Which tensors a module has, and how often each has been changed in place."""
    held = [one for m in module.modules() for one in (m._parameters, m._buffers)]
    return _counts([tensor for one in held for tensor in _values(one)])


def _values(held: Mapping[str, Tensor | None]) -> list[Tensor]:
    return [one for one in held.values() if one is not None]


def _counts(tensors: Iterable[Tensor]) -> list[tuple[int, int]]:
    # Tensors made in inference mode do not count.
    return [(id(t), 0 if t.is_inference() else t._version) for t in tensors]


class evaluating:
    """A module in evaluation mode while it is sampled from, as it was afterwards.

    Threads may be inside for one module at once: the last to leave puts its mode back.

    Raises:
        ValueError: for a lazy module that has no parameters yet.
        RuntimeError: at the end, where its parameters were changed in the meantime, or a part of it
            put into training mode.
    """

    def __init__(self, module: nn.Module | None) -> None:
        self._module = module
        self._training: list[nn.Module] = []

    def __enter__(self) -> None:
        if self._module is None:
            return
        modules = list(self._module.modules())  # once: a walk of a large network takes long
        parameters = [one for m in modules for one in _values(m._parameters)]
        if any(map(is_lazy, parameters)):
            raise ValueError(
                f"the network ({type(self._module).__name__}) has lazy parameters without values: "
                "call it once, or load its weights"
            )
        self._before = _counts(parameters)
        with _modes_lock:
            self._training = [m for m in modules if m.training or m in _evaluating]
            for module in self._training:
                _evaluating[module] = _evaluating.get(module, 0) + 1
                module.training = False

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._module is None:
            return
        with _modes_lock:
            modules = list(self._module.modules())
            trained = any(module.training for module in modules)
            for module in self._training:
                _evaluating[module] -= 1
                if not _evaluating[module]:
                    del _evaluating[module]
                    module.training = True
        if kind is None and trained:
            raise RuntimeError(
                "the network was put into training mode while it was sampled from, so that the "
                "result is of both modes: let the callback, or the other thread, leave the mode "
                "alone, or use a copy (copy.deepcopy)"
            )
        parameters = [one for m in modules for one in _values(m._parameters)]
        if kind is None and _counts(parameters) != self._before:
            raise RuntimeError(
                "the network's parameters were changed while it was sampled from, so that the "
                "result is of both: sample between the changes, from a copy (copy.deepcopy), or, "
                "where that is meant, give the network as a function, lambda *a: net(*a)"
            )


__all__ = [
    "ScoreNetwork",
    "activation_name",
    "changing_weights",
    "check_labels",
    "evaluating",
    "own_network",
    "whole_weights",
]
