"""InstanceNorm++ with parameters per channel (NCSNv2) or per sample and channel (NCSN v1)."""

from __future__ import annotations

from torch import Tensor

from ncsn_fast import reference


def instance_norm_plus(
    x: Tensor, gamma: Tensor, alpha: Tensor, beta: Tensor, eps: float = 1e-5
) -> Tensor:
    """See :func:`ncsn_fast.reference.instance_norm_plus`."""
    return reference.instance_norm_plus(x, gamma, alpha, beta, eps)


__all__ = ["instance_norm_plus"]
