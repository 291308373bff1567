"""NCSNv2 in its three sizes (Song & Ermon 2020).

The body does not see the noise level and learns the normalised score n = σ·s; the score is
n / σ (Technique 3 of the paper).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from ncsn_fast.models.blocks import InstanceNormPlus, Norm
from ncsn_fast.models.ncsn import SMALL
from ncsn_fast.models.refinenet import ImageSize, RefineNet, Stage


class NCSNv2(RefineNet):
    """NCSNv2 for images of 28, 32 or 64 pixels. Arguments as :class:`RefineNet`, and:

    Args:
        divided: False for weights of training code that leaves the division by σ to the sampler:
            ``forward`` then returns the body as it is, like that code's network, and the
            state_dict holds no noise levels.
    """

    STAGES: tuple[Stage, ...] = SMALL
    sees_sigma = False

    def __init__(
        self,
        *,
        channels: int,
        image_size: ImageSize,
        ngf: int,
        sigmas: Tensor | np.ndarray | Sequence[float],
        activation: str = "elu",
        rescaled: bool = False,
        logit_transform: bool = False,
        divided: bool = True,
    ) -> None:
        super().__init__(
            channels=channels,
            image_size=image_size,
            ngf=ngf,
            sigmas=sigmas,
            activation=activation,
            rescaled=rescaled,
            logit_transform=logit_transform,
        )
        self.divided = bool(divided)
        if not divided:
            self.register_buffer("sigmas", self.sigmas, persistent=False)

    def _norm(self) -> Norm:
        return InstanceNormPlus

    def _refine_norm(self) -> Norm | None:
        return None

    def forward(self, x: Tensor, labels: Tensor | None) -> Tensor:
        """The score (N, C, H, W) of the images x at the noise levels ``labels`` (N,).

        Where the network is not ``divided``: the normalised score.

        Raises:
            ValueError: without labels, where it is.
        """
        n = self.body(x, labels)
        if not self.divided:
            return n
        if labels is None:
            raise ValueError("the score is divided by σ: give labels (N,), or call normalized()")
        return n / self.level(labels, x)

    def normalized(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """The normalised score σ·s (N, C, H, W), the body's output. The labels are not read."""
        return self.body(x, labels)

    @property
    def config(self) -> dict[str, Any]:
        """Plain JSON values that rebuild the network."""
        return {**super().config, "divided": self.divided}


class NCSNv2Deeper(NCSNv2):
    """NCSNv2 for images of 96 or 128 pixels. Arguments as :class:`NCSNv2`."""

    STAGES = (
        Stage("res1", "refine5", width=1, refined=1),
        Stage("res2", "refine4", width=2, refined=1, pool=True),
        Stage("res3", "refine3", width=2, refined=2, pool=True),
        Stage("res4", "refine2", width=4, refined=2, dilation=2),
        Stage("res5", "refine1", width=4, refined=4, dilation=4),
    )


class NCSNv2Deepest(NCSNv2):
    """NCSNv2 for images of 256 pixels. Arguments as :class:`NCSNv2`."""

    STAGES = (
        Stage("res1", "refine5", width=1, refined=1),
        Stage("res2", "refine4", width=2, refined=1, pool=True),
        Stage("res3", "refine3", width=2, refined=2, pool=True),
        Stage("res31", "refine31", width=2, refined=2, pool=True),
        Stage("res4", "refine2", width=4, refined=2, dilation=2),
        Stage("res5", "refine1", width=4, refined=4, dilation=4),
    )


__all__ = ["NCSNv2", "NCSNv2Deeper", "NCSNv2Deepest"]
