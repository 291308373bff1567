"""The 5×5 maximum of chained residual pooling, with the activation before it.

Formula and tensors: :func:`ncsn_fast.reference.max_pool5`. No indices are kept: the backward pass
finds the maxima again.
"""

from __future__ import annotations

from torch import Tensor

from ncsn_fast import reference


def max_pool5(
    x: Tensor, *, activation: str | None = None, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """(act(x), the maximum of its 5×5 neighbourhoods); stride 1, image size kept; differentiable.

    Args:
        x: (N, C, H, W) float32, float16 or bfloat16, in any memory format.
        activation: a name of ``reference.ACTIVATIONS``, or None: the first result is then x itself.
        backend: see :func:`ncsn_fast.use_backend`.

    Raises:
        ValueError: for a tensor that is not of images, an unknown activation, or where the backend
            cannot run.
    """
    return reference.max_pool5(x, activation)


__all__ = ["max_pool5"]
