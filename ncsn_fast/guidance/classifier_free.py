"""Classifier-free guidance: a conditional network steered away from its unconditional self."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ncsn_fast.models.base import own_network
from ncsn_fast.models.score import Score, as_score
from ncsn_fast.support import checks
from ncsn_fast.support.per_sample import one_each


@dataclass(frozen=True, eq=False)
class Guided(Score):
    """A score with classifier-free guidance; see :func:`guided`."""

    scale: float = field(kw_only=True)
    unconditional: dict[str, Any] = field(kw_only=True)
    shared: frozenset[str] = field(default=frozenset(), kw_only=True)  # inputs never cut by sample

    def frozen(self) -> tuple[Any, ...]:
        """As of :class:`Score`, with the scale and the unconditional inputs."""
        unconditional = tuple(
            (name, id(value) if isinstance(value, Tensor) else repr(value))
            for name, value in self.unconditional.items()
        )
        return (*super().frozen(), self.scale, unconditional, self.shared)

    def sharing(self, names: Iterable[str]) -> Guided:
        """As of :class:`Score`: tensors of these names go to both networks as they are."""
        return replace(self, shared=frozenset(names))

    def __call__(self, x: Tensor, condition: Tensor | None, /, **extra: Any) -> Tensor:
        missing = sorted(self.unconditional.keys() - extra.keys())
        if missing:
            raise ValueError(
                f"guidance needs the conditional {missing} too: give the sampler's call "
                f"extra={{{missing[0]!r}: ...}} (training takes the network without guidance)"
            )
        pairs = self._pairs(len(x), extra)
        if pairs is None:
            without = super().__call__(x, condition, **{**extra, **self.unconditional})
            with_it = super().__call__(x, condition, **extra)
        else:
            if condition is not None and condition.ndim:
                condition = torch.cat([condition, condition])
            both = super().__call__(torch.cat([x, x]), condition, **pairs)
            without, with_it = both.chunk(2)
        wide = torch.promote_types(with_it.dtype, torch.float32)
        # lerp is exact at both ends, scales 0 and 1.
        return torch.lerp(without.to(wide), with_it.to(wide), self.scale)

    def _pairs(self, batch: int, extra: dict[str, Any]) -> dict[str, Any] | None:
        """The inputs of both in one batch, the unconditional ones first; None where some of those
        that differ are not one entry per sample."""
        pairs = {}
        for name, value in extra.items():
            per_sample = (
                isinstance(value, Tensor) and name not in self.shared and one_each(value, batch)
            )
            if name in self.unconditional:
                other = _like(self.unconditional[name], value) if per_sample else None
                if other is None:
                    return None
                value = torch.cat([other, value])
            elif per_sample:
                value = torch.cat([value, value])
            pairs[name] = value
        return pairs


def guided(
    score: Score | Callable[..., Tensor],
    scale: float,
    *,
    unconditional: Mapping[str, Any] | None = None,
) -> Guided:
    """Classifier-free guidance (Ho & Salimans 2022), in the space of the network's output.

    output = u + scale·(c - u), where c is the network's output for the inputs given by the
    sampler's ``extra`` and u that for the same inputs with ``unconditional`` in their places. Both
    are computed in one batch of 2B where the inputs that differ are tensors of one entry per
    sample, else by two calls. What the sampler's call is given as ``shared`` goes to both as it is.

        score = nf.guided(nf.Score(net, "denoiser", "sigma"), 3.0, unconditional={"y": 10})
        images = nf.Sampler(score, (3, 32, 32), sigmas)(8, extra={"y": classes})

    Of one of our networks that knows classes it is nf.guided(net, 2.0), and images of a class are
    nf.sample(nf.guided(net, 2.0), 8, extra={"classes": net.class_of("boot")}).

    Args:
        score: one of our networks, a callable score(x, labels, **extra), or a Score.
        scale: one number for all samples: 0 is the unconditional network, 1 the conditional one,
            more exaggerates the condition.
        unconditional: by name, what an input is without the condition: a number, a tensor on the
            network's device or an array (that of one sample, or one that broadcasts to the batch),
            or whatever else the network takes, such as None. Default: no classes, where the
            network is one of ours that knows some.

    Returns:
        A Score for :class:`Sampler`.

    Raises:
        ValueError: for a scale that is not finite, for no unconditional inputs, and for a score
            that is guided already.
    """
    if not math.isfinite(checks.number("scale", scale)):
        raise ValueError(f"scale = {scale!r}: give a finite number, such as 3.0")
    network = own_network(score)
    known = getattr(network, "classes", ())
    if unconditional is None and known:
        unconditional = {"classes": len(known)}
    if unconditional is None and network is not None:
        raise ValueError(
            "unconditional = None: this network knows no classes, and so there is nothing to guide "
            "it to: take one that was trained with classes (ncsn-fast train --conditional)"
        )
    if not isinstance(unconditional, Mapping) or not unconditional:
        raise ValueError(
            f"unconditional = {unconditional!r:.80}: say what the network's inputs are without the "
            'condition, such as {"y": 10}'
        )
    plain = as_score(score)
    if isinstance(plain, Guided):
        raise ValueError("this score is guided already: give the one it was made of")
    given = {one.name: getattr(plain, one.name) for one in fields(Score)}
    without = {name: _torch(name, value) for name, value in unconditional.items()}
    return Guided(**given, scale=float(scale), unconditional=without)


def _torch(name: object, value: Any) -> Any:
    """An unconditional input, NumPy's numbers and arrays as Python's and torch's."""
    if not isinstance(name, str):
        raise ValueError(f"unconditional has the key {name!r}: give names of the network's inputs")
    if isinstance(value, np.generic):
        return value.item()
    return checks.tensor(name, value) if isinstance(value, np.ndarray) else value


def _like(value: Any, given: Tensor) -> Tensor | None:
    """An unconditional input in the shape of the conditional one, if it can have it."""
    if isinstance(value, (bool, int, float)):
        return torch.full_like(given, value)
    if not isinstance(value, Tensor):
        return None
    if value.device != given.device:
        raise ValueError(
            f"an unconditional input is on {value.device}, the conditional one on {given.device}: "
            "move it there"
        )
    if value.ndim == given.ndim and len(value) != 1:
        raise ValueError(
            f"an unconditional input has shape {tuple(value.shape)}, the conditional one "
            f"{tuple(given.shape)}: give that of one sample, which goes to all"
        )
    try:
        return value.to(given.dtype).expand_as(given)
    except RuntimeError:
        return None


__all__ = ["Guided", "guided"]
