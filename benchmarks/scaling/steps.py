"""The published networks: their chains, and their steps as ``benchmarks/static`` models them."""

from __future__ import annotations

import math

import torch

from ncsn_fast.benchmarks.scaling.sampling import Chains
from ncsn_fast.benchmarks.scaling.training import StepTime
from ncsn_fast.benchmarks.static import model
from ncsn_fast.benchmarks.static.networks import Step
from ncsn_fast.models.by_name import build
from ncsn_fast.sampling.chunks import size_of_chunks
from ncsn_fast.training.presets import PRESETS

_ANY = 1 << 40  # samples: more than there are in a chunk
_SEVERAL = (32, 128)  # images of the steps that a straight line goes through


def step_time(preset: str, training: bool, gpu: str) -> StepTime:
    """A step of a preset's network on a GPU of ``model.GPUS``, to three digits.

    It takes a compiler and some seconds for each of the two numbers of images that it goes by.
    """
    found = [model.model(Step(preset, images, training)) for images in _SEVERAL]
    seconds = [one.convolving[gpu] + sum(line.seconds[gpu] for line in one.lines) for one in found]
    launches = found[0].convolutions + sum(line.launches for line in found[0].lines)
    points = tuple(zip(_SEVERAL, seconds, strict=True))
    exact = StepTime.through(points[0], points[1], launches)
    return exact._replace(fixed=float(f"{exact.fixed:.3g}"), image=float(f"{exact.image:.3g}"))


def weights(preset: str) -> int:
    """Bytes of the parameters of its network, and so of their gradients, in float32."""
    chosen = PRESETS[preset]
    config = {
        "network": chosen.network,
        "channels": chosen.channels,
        "image_size": chosen.image_size,
        "ngf": chosen.ngf,
    }
    with torch.device("meta"):
        return 4 * sum(one.numel() for one in build(config, (1.0, 0.5)).parameters())


def chains(preset: str, step: StepTime) -> Chains:
    """Chains of annealed Langevin dynamics as published, in chunks of the engine's own choice."""
    chosen = PRESETS[preset]
    shape = (chosen.channels, chosen.image_size, chosen.image_size)
    most = size_of_chunks(_ANY, "auto", shape, torch.device("cuda"))
    assert chosen.num_levels is not None
    rows = chosen.num_levels * chosen.steps_per_level + chosen.denoise
    return Chains(step, rows, most, math.prod(shape), weights(preset))


__all__ = ["chains", "step_time", "weights"]
