"""What guidances by a measurement have in common: it is checked, and cut with the samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ncsn_fast.guidance.base import Guidance
from ncsn_fast.guidance.nonlinear import Nonlinear
from ncsn_fast.guidance.operators.base import Operator, kept, under
from ncsn_fast.support import checks
from ncsn_fast.table import Table


@dataclass(frozen=True, eq=False)
class Measured(Guidance):
    """A guidance by a measurement y of each sample.

    Attributes:
        operator: A.
        y: (1, *measured), the measurement of all samples, or (n, *measured), one each; a copy of
            what was given.
    """

    operator: Operator | Nonlinear
    y: Tensor

    def __post_init__(self) -> None:
        y, measured = measurement(self.y), self.operator.measured
        if not y.is_floating_point():
            raise ValueError(
                f"y is {y.dtype}: give a real floating-point tensor; complex numbers are two "
                "channels, torch.stack([y.real, y.imag])"
            )
        if tuple(y.shape) == measured:
            y = y[None]
        if tuple(y.shape[1:]) != measured or not len(y):
            raise ValueError(
                f"y has shape {tuple(y.shape)}; {type(self.operator).__name__} measures "
                f"{measured}: give that for all samples, or one each with n in front"
            )
        if not bool(torch.isfinite(y).all()):
            raise ValueError("y holds values that are not finite: mask them")
        if isinstance(self.operator, Operator):
            self.operator.verify(y.device)
        object.__setattr__(self, "y", kept("y", y))

    @property
    def inputs(self) -> dict[str, Tensor]:
        """What goes with the samples: ``y``, and what of the operator differs between them."""
        constants = {f"operator.{name}": v for name, v in self.operator.inputs.items()}
        return {"y": self.y, **constants}

    def check(self, table: Table, n: int, shape: tuple[int, ...]) -> None:
        """Refuse a sampler that this measurement does not fit.

        Raises:
            ValueError: for samples of another shape, or not one measurement for each of n.
        """
        if shape != self.operator.shape:
            raise ValueError(
                f"the sampler's samples have shape {shape}, those of "
                f"{type(self.operator).__name__} {self.operator.shape}: make the operator for them"
            )
        if len(self.y) not in (1, n):
            raise ValueError(
                f"{len(self.y)} measurements for n = {n} samples: give one for all, or one each"
            )
        if self.operator.samples not in (1, n):
            raise ValueError(
                f"{type(self.operator).__name__} has {', '.join(self.operator.inputs)} of "
                f"{self.operator.samples} samples, for n = {n}: give one for all, or one each"
            )

    def of(self, x: Tensor, inputs: Mapping[str, Tensor]) -> tuple[Any, Tensor]:
        """The operator and the measurements of samples x (B, *shape), from their part of the
        inputs."""
        y = inputs.get("y", self.y).to(x)
        if len(y) not in (1, len(x)):
            raise ValueError(
                f"{len(y)} measurements for {len(x)} samples: give one for all, or one each"
            )
        return self.operator.of(under("operator.", inputs)), y


def measurement(y: Any) -> Tensor:
    """A measurement as a tensor.

    Raises:
        ValueError: for what is neither a tensor nor an array.
    """
    if isinstance(y, (Tensor, np.ndarray)):
        return checks.tensor("y", y)
    raise ValueError(f"y is {type(y).__name__}: give a real floating-point tensor or array")


__all__ = ["Measured", "measurement"]
