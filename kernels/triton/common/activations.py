"""The activations of the networks in registers: act(x) and act'(x) of float32 values.

Specification: ``ncsn_fast.reference.ACTIVATIONS``. ACTIVATION is one of its names, or None for the
identity. NaN stays NaN. FAST_MATH takes the hardware's exponential, which takes very small results
for zero: three instructions less.
"""

import triton
import triton.language as tl
from triton.language.extra import libdevice


@triton.jit
def activate(x, ACTIVATION: tl.constexpr, FAST_MATH: tl.constexpr):
    """act(x)."""
    if ACTIVATION is None:
        y = x
    elif ACTIVATION == "elu":
        # Near zero this has an error of a few 1e-7, that of exp(x) near 1; a series that has not
        # would cost as much as the exponential.
        y = tl.where(x > 0, x, _exp(x, FAST_MATH) - 1.0)
    elif ACTIVATION == "relu":
        y = tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
    elif ACTIVATION == "lrelu":
        y = tl.maximum(x, 0.2 * x, propagate_nan=tl.PropagateNan.ALL)
    else:
        tl.static_assert(ACTIVATION == "swish", "an unknown activation")
        y = x * _sigmoid(x, FAST_MATH)
    return y


@triton.jit
def derivative(x, ACTIVATION: tl.constexpr, FAST_MATH: tl.constexpr):
    """act'(x); at a kink that of the left side, as PyTorch has it."""
    if ACTIVATION is None:
        d = tl.full(x.shape, 1.0, tl.float32)
    elif ACTIVATION == "elu":
        d = _exp(tl.minimum(x, 0.0, propagate_nan=tl.PropagateNan.ALL), FAST_MATH)
    elif ACTIVATION == "relu":
        d = tl.where(x <= 0, 0.0, 1.0)
    elif ACTIVATION == "lrelu":
        d = tl.where(x > 0, 1.0, 0.2)
    else:
        tl.static_assert(ACTIVATION == "swish", "an unknown activation")
        s = _sigmoid(x, FAST_MATH)
        d = s * (1.0 + x * (1.0 - s))
    return d


@triton.jit
def _sigmoid(x, FAST_MATH: tl.constexpr):
    return 1.0 / (1.0 + _exp(-x, FAST_MATH))


@triton.jit
def _exp(x, FAST_MATH: tl.constexpr):
    return libdevice.fast_expf(x) if FAST_MATH else tl.exp(x)


__all__ = ["activate", "derivative"]
