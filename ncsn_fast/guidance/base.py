"""What a guidance can be besides a function: one with inputs that belong to the samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ncsn_fast.table import Table


class Guidance:
    """A guidance whose inputs are cut into chunks together with the samples.

    It is called as guidance(x, n, σ, row, **inputs); see ``guidance`` of ``Sampler.__call__``.
    """

    @property
    def inputs(self) -> dict[str, Tensor]:
        """By name, tensors (n, …) with one entry per sample or (1, …) for all samples."""
        return {}

    def check(self, table: Table, n: int, shape: tuple[int, ...]) -> None:
        """Raise ValueError where it is not made for a chain; called before any work.

        Args:
            table: the rows that will be run.
            n: how many samples.
            shape: of one sample.
        """

    def __call__(self, x: Tensor, n: Tensor, sigma: Any, row: Any, **inputs: Tensor) -> Tensor:
        """The drift g (B, *shape).

        Args:
            x, n: (B, *shape), the states and their normalised scores.
            sigma, row: the noise level and the number of the row; in a captured chain tensors () on
                the device.
            inputs: those of the guidance, (B, …) or (1, …), cut to these samples.
        """
        raise NotImplementedError


class NetworkGuidance(Guidance):
    """A guidance that needs the derivative of the network's evaluation in the row.

    In place of a call, :meth:`drift` is called.

    Attributes:
        differentiates: False where it needs no derivative; the network then runs as for any other.
    """

    differentiates: bool = True

    def __call__(self, x: Tensor, n: Tensor, sigma: Any, row: Any, **inputs: Tensor) -> Tensor:
        """Refused: only the sampler has the derivative.

        Raises:
            TypeError: always.
        """
        raise TypeError(
            f"{type(self).__name__} needs the network's derivative: give it to the sampler itself, "
            "guidance=…, not in a function"
        )

    def drift(
        self,
        x: Tensor,
        n: Tensor,
        sigma: Any,
        weight: Any,
        pull: Callable[[Tensor], Tensor],
        **inputs: Tensor,
    ) -> Tensor:
        """The drift g (B, *shape).

        Args:
            x, n: (B, *shape), the states, their noise held where it is, and their normalised
                scores.
            sigma: σ of the row.
            weight: w, the factor on g in the row's update.
            pull: v ↦ (∂n/∂x)ᵀv, (B, *shape) both; of n before it is clipped, at the state before
                its noise was held.
            inputs: those of the guidance, (B, …) or (1, …), cut to these samples.
        """
        raise NotImplementedError


__all__ = ["Guidance", "NetworkGuidance"]
