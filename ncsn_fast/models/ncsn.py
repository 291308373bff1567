"""NCSN (Song & Ermon 2019): every norm reads the noise level; the output is the score itself."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from ncsn_fast.models.base import check_labels
from ncsn_fast.models.blocks import ConditionalInstanceNormPlus, Norm
from ncsn_fast.models.refinenet import RefineNet, Stage

SMALL = (
    Stage("res1", "refine4", width=1, refined=1),
    Stage("res2", "refine3", width=2, refined=1, pool=True),
    Stage("res3", "refine2", width=2, refined=2, dilation=2),
    Stage("res4", "refine1", width=2, refined=2, dilation=4),
)


class NCSN(RefineNet):
    """NCSN v1 for images of 28, 32 or 64 pixels (Song & Ermon 2019, appendix A).

    Arguments as :class:`ncsn_fast.models.refinenet.RefineNet`.

    The noise levels are a buffer that the state_dict does not hold, as in the official network.
    """

    STAGES = SMALL
    sees_sigma = True
    keeps_sigmas = False

    def _norm(self) -> Norm:
        return partial(ConditionalInstanceNormPlus, num_levels=len(self.sigmas))

    def _refine_norm(self) -> Norm:
        return self._norm()

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        """The score (N, C, H, W) of the images x at the noise levels ``labels`` (N,)."""
        check_labels(labels, len(x), len(self.sigmas))
        return self.body(x, labels)

    def normalized(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """The normalised score σ·s of x, (N, C, H, W) both; this network needs ``labels`` (N,).

        Raises:
            ValueError: without labels.
        """
        if labels is None:
            raise ValueError("NCSN sees the noise level: give labels (N,), integers")
        sigma = self.level(labels, x)
        return sigma * self.body(x, labels)


__all__ = ["NCSN", "SMALL"]
