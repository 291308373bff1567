"""Training on more GPUs: a step is computed by all of them, summed over all, and waited for.

A model: nothing of it is measured. Gradients are summed when the backward pass is over, as in the
engine, whose pass is a captured graph: nothing hides behind anything.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from ncsn_fast.benchmarks.scaling.cluster import Cluster, summing, waiting


class StepTime(NamedTuple):
    """How long a step takes one GPU, by its number of images.

    Attributes:
        fixed: seconds whatever the number: weights, their average, the optimiser.
        image: seconds for each image.
        launches: of kernels, each of which costs ``Cluster.launch`` beside.
    """

    fixed: float
    image: float
    launches: int

    def seconds(self, images: float, launch: float) -> float:
        return self.fixed + images * self.image + self.launches * launch

    @classmethod
    def through(cls, few: tuple[int, float], many: tuple[int, float], launches: int) -> StepTime:
        """From two numbers of images and the seconds that their steps take without launches."""
        image = (many[1] - few[1]) / (many[0] - few[0])
        return cls(few[1] - few[0] * image, image, launches)


class Point(NamedTuple):
    """A step of so many GPUs.

    Attributes:
        gpus: how many.
        images: of the GPU that has the most of them.
        batch: of all GPUs.
        computing, summing, waiting: seconds, one after the other.
    """

    gpus: int
    images: int
    batch: int
    computing: float
    summing: float
    waiting: float

    @property
    def seconds(self) -> float:
        return self.computing + self.summing + self.waiting

    @property
    def rate(self) -> float:
        """Images a second."""
        return self.batch / self.seconds


def point(step: StepTime, gradient: float, batch: int, gpus: int, cluster: Cluster) -> Point | None:
    """A step with a global batch on so many GPUs; None where there are more GPUs than images.

    Args:
        gradient: bytes that are summed, in one message.
    """
    if gpus > batch:
        return None
    images = math.ceil(batch / gpus)
    computing = step.seconds(images, cluster.launch)
    sums = summing(gradient, gpus, cluster)
    return Point(gpus, images, batch, computing, sums, waiting(computing, gpus, cluster.jitter))


def efficiency(one: Point, many: Point) -> float:
    """Images a second of each GPU, over those of one alone."""
    return many.rate / many.gpus / one.rate


def most_gpus(step: StepTime, gradient: float, batch: int, cluster: Cluster, least: float) -> int:
    """The most GPUs among the powers of two that share a batch at an efficiency of ``least``."""
    one = point(step, gradient, batch, 1, cluster)
    gpus = 1
    while one and (next_one := point(step, gradient, batch, 2 * gpus, cluster)):
        if efficiency(one, next_one) < least:
            break
        gpus *= 2
    return gpus


__all__ = ["Point", "StepTime", "efficiency", "most_gpus", "point"]
