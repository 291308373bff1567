"""An activation by itself, where no other operation is there to take it along."""

from __future__ import annotations

from torch import Tensor

from ncsn_fast import reference


def activate(x: Tensor, activation: str, *, backend: str = "auto") -> Tensor:
    """act(x), of x's shape, dtype and memory format; differentiable.

    Args:
        x: float32, float16 or bfloat16.
        activation: a name of ``reference.ACTIVATIONS``.
        backend: see :func:`ncsn_fast.use_backend`.

    Raises:
        ValueError: for an unknown activation, or where the backend cannot run.
    """
    return reference.activated(x, activation)


__all__ = ["activate"]
