"""What the modules of this folder share: arguments are refused by the names that they have there,
networks see the dtype that they are given states in, and bars count steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ncsn_fast.inference.adopted import taken_over
from ncsn_fast.models.score import Score
from ncsn_fast.noise import check_seed
from ncsn_fast.sampling import inputs
from ncsn_fast.support.progress import Progress


def check_noise(noise: str, seed: int | None) -> None:
    """Refuse a kind of noise that does not exist, a bad seed, and one that would not be heeded."""
    if not isinstance(noise, str) or noise not in ("philox", "torch"):
        raise ValueError(f"noise = {noise!r:.80}: choose 'philox' or 'torch'")
    if seed is None:
        return
    check_seed(seed)
    if noise == "torch":
        raise ValueError("seed goes with noise='philox'; torch.manual_seed governs noise='torch'")


def states(name: str, value: object, needed: str = "(N, *shape)", dimensions: int = 2) -> Tensor:
    """States of the caller's as float32, detached.

    Args:
        name: what the caller calls them.
        value: (N, *shape), floating point, finite, with at least one value.
        needed: their shape in words.
        dimensions: how many it has at least.

    Raises:
        ValueError: for anything else.
    """
    if not isinstance(value, Tensor):
        got = type(value).__name__
    elif not value.is_floating_point() or value.ndim < dimensions or not value.numel():
        got = f"{value.dtype} of shape {tuple(value.shape)}"
    else:
        return inputs.states(name, value, tuple(value.shape), value.device)
    raise ValueError(f"{name} is {got}; needed is a floating-point tensor {needed}")


def function(name: str, value: object, what: str) -> None:
    """Refuse what cannot be called; ``what`` says how it will be.

    Raises:
        ValueError: for that.
    """
    if not callable(value):
        raise ValueError(f"{name} is {type(value).__name__}; needed is a function {what}")


def flag(name: str, value: object) -> bool:
    """A truth value, or 0 or 1 in its place.

    Raises:
        ValueError: for anything else: "False" and [0] would be true.
    """
    if isinstance(value, (bool, int, np.bool_, np.integer)) and value in (0, 1):
        return bool(value)
    raise ValueError(f"{name} = {value!r:.80}: give True or False")


def in_turn(
    draw: Callable[[int], Tensor], place: Callable[[int], int] = lambda row: row
) -> Callable[[int], Tensor]:
    """Noise for rows in rising order, drawn as often as the originals draw it.

    Args:
        draw: makes it.
        place: row → which draw, from 0, is its own; those in between that no row asks for are made
            all the same, as the originals make noise that they multiply by 0.
    """
    drawn = 0

    def of(row: int) -> Tensor:
        nonlocal drawn
        own = place(row)
        for skipped in range(drawn, own):
            draw(skipped)
        drawn = own + 1
        return draw(own)

    return of


class _Shown(nn.Module):
    """A network that is shown states, and noise levels, in a dtype of its own."""

    def __init__(self, network: Callable[..., Tensor], dtype: torch.dtype) -> None:
        super().__init__()
        self.network, self.dtype = network, dtype

    def forward(self, x: Tensor, condition: Tensor, **extra: Any) -> Tensor:
        told = condition.to(self.dtype) if condition.is_floating_point() else condition
        output = self.network(x.to(self.dtype), told, **extra)
        return output.float() if isinstance(output, Tensor) else output


def shown(network: Callable[..., Tensor], dtype: torch.dtype) -> Callable[..., Tensor]:
    """The network as the engine calls it, with float32, for states that are given in ``dtype``."""
    return network if dtype == torch.float32 else _Shown(network, dtype)


def engine(score: Score, adopt: bool, drawn: bool) -> dict[str, Any]:
    """What a Sampler is told of a network.

    Args:
        score: as it is given.
        adopt: whether an official network is taken over as ours.
        drawn: whether noise is torch's: what is not ours then runs as it is, for it may draw too.
    """
    taken = taken_over(score, adopt=adopt)
    prepare = not drawn or taken is not score
    return {"score": taken, "prepare": prepare, "adopt": False}  # it has been asked


@contextmanager
def steps_shown(wanted: bool, steps: int) -> Iterator[Callable[[int, int], None] | None]:
    """A bar that counts steps, as the originals' do, where the engine counts rows of samples.

    Yields:
        What the sampler takes for its progress; None where there is no bar.
    """
    with Progress(wanted, total=steps) as bar:
        yield (lambda done, total: bar.back_to(done * steps // total)) if wanted else None


__all__ = [
    "check_noise",
    "engine",
    "flag",
    "function",
    "in_turn",
    "shown",
    "states",
    "steps_shown",
]
