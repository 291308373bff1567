"""The end of a residual unit: x + residual, with what the next operation needs of the sum.

That is act(x + residual) where a convolution follows (:func:`ncsn_fast.reference.residual_add`), or
the statistics of the sum where InstanceNorm++ does.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ncsn_fast import reference


class Sum(NamedTuple):
    """What :func:`residual_add` returns."""

    total: Tensor  # (N, C, H, W), x + residual
    active: Tensor | None  # (N, C, H, W), act(total), where an activation was asked for
    statistics: Tensor | None  # for instance_norm_plus of the total, where a kernel made them


def residual_add(
    x: Tensor,
    residual: Tensor,
    *,
    activation: str | None = None,
    statistics: bool = False,
    backend: str = "auto",
) -> Sum:
    """x + residual and what comes after it, in one pass; differentiable.

    Args:
        x, residual: (N, C, H, W) float32, float16 or bfloat16, of one shape and dtype.
        activation: a name of ``reference.ACTIVATIONS``: also return act(x + residual).
        statistics: whether instance_norm_plus follows. They are returned where a kernel makes them
            and no gradient is needed.
        backend: see :func:`ncsn_fast.use_backend`.

    Raises:
        ValueError: for shapes, dtypes or devices that differ, an unknown activation, or where the
            backend cannot run.
    """
    total, active = reference.residual_add(x, residual, activation)
    return Sum(total, active if activation else None, None)


__all__ = ["Sum", "residual_add"]
