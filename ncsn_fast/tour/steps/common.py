"""What several steps do alike: chains that begin anywhere, a small network that is trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import Module

import ncsn_fast as nf
from ncsn_fast.tour.figure import Axis
from ncsn_fast.tour.mixture import TWO_MODES

# The part of the plane that is looked at, [-8, 8]².
REACH = 8.0
# Told the number of training steps done, and shown the network as it is then.
Watch = Callable[[int, Module], None]


def anywhere(n: int) -> Tensor:
    """(n, 2) points, uniform over the part of the plane that is looked at."""
    u = nf.noise.uniform((2,), seed=0, stream=nf.noise.INITIAL, sample_ids=range(n))
    return REACH * (2 * u - 1)


def left(x: Tensor) -> float:
    """The share of points (N, 2) in the left mode, or nearer to it."""
    return float((TWO_MODES.nearest(x)[0] == 0).float().mean())


def plane(reach: float = REACH) -> tuple[Axis, Axis]:
    """The axes of [-reach, reach]²."""
    return Axis("x", -reach, reach), Axis("y", -reach, reach)


def grid(points: int) -> Tensor:
    """(points², 2) points on a grid over that part, row by row from the lowest."""
    at = torch.linspace(-REACH, REACH, points)
    return torch.stack(torch.meshgrid(at, at, indexing="xy"), dim=-1).reshape(-1, 2)


def trained(data: Tensor, sigmas: Sequence[float] | Tensor, steps: int, watch: Watch) -> Module:
    """A small network after so many steps of denoising score matching on points (N, 2)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nf.MLPScore(dim=2, hidden=64, layers=3, sigmas=sigmas)
    config = nf.TrainConfig(
        steps=steps, batch_size=256, learning_rate=2e-3, cooldown=steps // 2, ema_warmup=True
    )
    trainer = nf.Trainer(net, data, config)
    trainer.fit(progress=lambda done, _: watch(done, trainer.average))
    return trainer.average


__all__ = ["REACH", "Watch", "anywhere", "grid", "left", "plane", "trained"]
