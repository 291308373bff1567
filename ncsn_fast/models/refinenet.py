"""The body that NCSN and NCSNv2 share, described by a table of stages.

An image passes residual stages, some of which halve it or widen the view by dilation; refine
blocks then join each stage with the coarser ones, from the deepest stage back to the first.
(Song & Ermon 2019, appendix A; Song & Ermon 2020, appendix A.)
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ncsn_fast.models.base import ScoreNetwork, activation_name
from ncsn_fast.models.blocks import Norm, RefineBlock, ResidualBlock, conv3x3
from ncsn_fast.ops.residual_add import Sum

ImageSize = int | Sequence[int] | None

_MOST_CHANNELS = 1 << 20  # a convolution between so many has 10¹³ weights


@dataclass(frozen=True)
class Stage:
    """Two residual blocks, and the refine block that brings them to the output.

    Attributes:
        residual, refine: names of the modules, as in the official state_dict.
        width: channels of the stage in units of ngf.
        refined: channels after its refine block, in units of ngf.
        pool: the first block halves the image.
        dilation: of the stage's convolutions.
    """

    residual: str
    refine: str
    width: int
    refined: int
    pool: bool = False
    dilation: int = 1


class RefineNet(ScoreNetwork):
    """The convolutional body h → stages → refine blocks → norm → act → conv (Lin et al. 2017).

    Args:
        channels: of an image, ≥ 1.
        image_size: side of the square images, or (height, width), or None where it is not known:
            the body takes any size its poolings can halve.
        ngf: width of the first stage, ≥ 2.
        sigmas: (L,) noise levels, finite, positive, descending.
        activation: "elu", "relu", "lrelu" (slope 0.2) or "swish".
        rescaled, logit_transform: how the data were transformed; where neither, the network
            itself maps [0, 1] to [-1, 1].

    Raises:
        ValueError: for a value that the network cannot have.
    """

    STAGES: tuple[Stage, ...]

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
    ) -> None:
        super().__init__(sigmas)
        _check_width("channels", channels, 1, "an image has at least one channel")
        _check_width("ngf", ngf, 2, "InstanceNorm++ compares channels with one another")
        self.channels = channels
        self.ngf = ngf
        self.activation = activation_name(activation)
        self.rescaled = bool(rescaled)
        self.logit_transform = bool(logit_transform)
        self.image_size = self._checked_size(image_size)
        self._build(self._norm(), self._refine_norm())

    @abstractmethod
    def _norm(self) -> Norm:
        """Makes the norms of the residual blocks and of the head."""

    @abstractmethod
    def _refine_norm(self) -> Norm | None:
        """Makes the norms of the refine blocks, where the network has them."""

    def _build(self, norm: Norm, refine_norm: Norm | None) -> None:
        ngf, activation = self.ngf, self.activation
        self.begin_conv = conv3x3(self.channels, ngf)
        self.normalizer = norm(ngf)
        self.end_conv = conv3x3(ngf, self.channels)
        width = ngf
        for stage in self.STAGES:
            new = stage.width * ngf
            pool, dilation = stage.pool, stage.dilation
            entry = ResidualBlock(
                width,
                new,
                norm,
                activation,
                pool=pool,
                dilation=dilation,
                shortcut=pool or dilation > 1,
            )
            second = ResidualBlock(new, new, norm, activation, dilation=dilation)
            self.add_module(stage.residual, nn.ModuleList([entry, second]))
            width = new
        refines: dict[str, RefineBlock] = {}
        coarse: int | None = None
        for stage in reversed(self.STAGES):
            inputs = [stage.width * ngf] + ([] if coarse is None else [coarse])
            last = stage is self.STAGES[0]
            coarse = stage.refined * ngf
            refines[stage.refine] = RefineBlock(inputs, coarse, refine_norm, activation, last=last)
        # The official order is that of the names: refine31 runs before refine3 but follows it here.
        for name in sorted(refines):
            self.add_module(name, refines[name])

    def body(self, x: Tensor, labels: Tensor | None) -> Tensor:
        """The network at x without any scaling by σ: (N, C, H, W) both; ``labels`` (N,) or None."""
        self._check_input(x)
        h = x if self.rescaled or self.logit_transform else torch.rsub(x, -1, alpha=-2)  # 2x - 1
        total = Sum(self._see(h), None, None)
        skips: list[Sum] = []
        for stage in self.STAGES:
            for block in getattr(self, stage.residual):
                total = block(total.total, labels, total.statistics)
            skips.append(total)
        between = self.activation if self._refine_norm() is None else "norm"
        inputs = [skips.pop()]
        for stage in reversed(self.STAGES):
            total = getattr(self, stage.refine)(inputs, labels, between if skips else "norm")
            if skips:
                inputs = [skips.pop(), total]
        h = self.normalizer(total.total, labels, self.activation, total.statistics)
        return self.end_conv(h)

    def _see(self, x: Tensor) -> Tensor:
        """The first convolution, in the precision of its weights also under autocast.

        In bfloat16 the values near 1 lie 0.004 apart, and the noise to be seen is 0.01.
        """
        kind = x.device.type
        with torch.autocast(kind, enabled=False):
            h = self.begin_conv(x.to(self.begin_conv.weight.dtype))
        return h.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else h

    @property
    def config(self) -> dict[str, Any]:
        """Plain JSON values that rebuild the network."""
        size = self.image_size
        return {
            "network": type(self).__name__,
            "channels": self.channels,
            "image_size": list(size) if isinstance(size, tuple) else size,
            "ngf": self.ngf,
            "activation": self.activation,
            "rescaled": self.rescaled,
            "logit_transform": self.logit_transform,
        }

    @property
    def shape(self) -> tuple[int, ...]:
        """(channels, height, width) of one image.

        Raises:
            ValueError: where the image size is not known.
        """
        if self.image_size is None:
            raise ValueError(
                "the image size is not known: weights do not hold it. Give image_size= where the "
                "network is made or loaded (load_checkpoint(path, image_size=32)), or the "
                "configuration file it was trained with"
            )
        size = self.image_size
        height, width = size if isinstance(size, tuple) else (size, size)
        return self.channels, height, width

    @classmethod
    def reduction(cls) -> int:
        """How many times smaller the coarsest stage is: sides must be multiples of this."""
        return 2 ** sum(stage.pool for stage in cls.STAGES)

    def _checked_size(self, size: ImageSize) -> int | tuple[int, int] | None:
        if size is None:
            return None
        sides = tuple(size) if isinstance(size, Sequence) else (size, size)
        if len(sides) != 2 or not all(type(side) is int for side in sides):
            raise ValueError(f"image_size must be a whole number or (height, width), got {size!r}")
        height, width = sides
        self.check_sides(height, width)
        return height if height == width else (height, width)

    @classmethod
    def check_sides(cls, height: int, width: int) -> None:
        """ValueError for a height and width that this network cannot take; it says which it can."""
        factor = cls.reduction()
        if height % factor or width % factor or height < factor or width < factor:
            wider = (max(2 * factor, -(-side // factor) * factor) for side in (height, width))
            raise ValueError(
                f"{cls.__name__} cannot take images of {height}×{width}: it halves them until they "
                f"are {factor} times smaller, so each side must be a multiple of {factor}. Resize "
                f"or pad the images, e.g. to {'×'.join(map(str, wider))}"
            )
        if height * width == factor * factor:
            raise ValueError(
                f"{cls.__name__} cannot take images of {height}×{width}: its coarsest stage "
                "would see a single pixel, which instance normalisation turns into zero. The "
                f"smallest square size is {2 * factor}"
            )

    def _check_input(self, x: Tensor) -> None:
        if x.ndim != 4 or x.shape[1] != self.channels:
            raise ValueError(
                f"{type(self).__name__} takes images (N, {self.channels}, H, W), "
                f"got {tuple(x.shape)}"
            )
        self.check_sides(x.shape[2], x.shape[3])


def _check_width(name: str, value: int, least: int, why: str) -> None:
    if type(value) is not int or not least <= value <= _MOST_CHANNELS:
        raise ValueError(
            f"{name} must be a whole number ≥ {least} (and at most {_MOST_CHANNELS:,}), got "
            f"{value!r:.80}: {why}"
        )


__all__ = ["ImageSize", "RefineNet", "Stage"]
