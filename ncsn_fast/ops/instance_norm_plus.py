"""InstanceNorm++ and an activation: y = act(γ·(h + α·t) + β) per sample and channel.

Formula and tensors: :func:`ncsn_fast.reference.instance_norm_plus`. γ, α, β are (C,) in NCSNv2 and
a row per sample in NCSN v1.
"""

from __future__ import annotations

from torch import Tensor

from ncsn_fast import reference


def instance_norm_plus(
    x: Tensor,
    gamma: Tensor,
    alpha: Tensor,
    beta: Tensor,
    *,
    eps: float = 1e-5,
    activation: str | None = None,
    statistics: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """InstanceNorm++ followed by an activation; differentiable.

    Args:
        x: (N, C, H, W) float32, float16 or bfloat16, C ≥ 2, in any memory format.
        gamma, alpha, beta: (C,) or (N, C) float32.
        eps: added to both variances.
        activation: a name of ``reference.ACTIVATIONS``, or None for none.
        statistics: of x, as :func:`ncsn_fast.ops.residual_add` returns them; saves reading x once.
        backend: see :func:`ncsn_fast.use_backend`.

    Returns:
        (N, C, H, W) of x's dtype and memory format.

    Raises:
        ValueError: for one channel, parameters of other shapes or devices, an unknown activation,
            or where the backend cannot run.
    """
    return reference.instance_norm_plus(x, gamma, alpha, beta, eps, activation)


__all__ = ["instance_norm_plus"]
