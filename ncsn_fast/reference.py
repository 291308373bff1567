"""The specification: every operation of the engine in plain PyTorch.

These functions say what is computed; the fast implementations in ``kernels/`` are tested against
them and may compute nothing else. They run on any device, in float32 or, for the tests, float64.
Noise comes in as a tensor z: which numbers it holds is the business of ``noise.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Activation = Callable[[Tensor], Tensor]

# The activations of the official networks, by the names of their configuration files.
ACTIVATIONS: dict[str, Activation] = {
    "elu": F.elu,
    "relu": F.relu,
    "lrelu": partial(F.leaky_relu, negative_slope=0.2),
    "swish": F.silu,
}

# The coefficients of one sampler step, in the order in which a row tensor holds them.
ROW = ("a", "b", "c", "d", "e", "f", "w", "next_c_in", "next_sigma")


class StepResult(NamedTuple):
    """What a sampler step leaves behind, (N, *shape) each.

    Attributes:
        x: the new state.
        history: of methods that keep one; None of others.
        network_input: c_in·x of the next row, or x itself.
    """

    x: Tensor  # (N, *shape), the new state
    history: Tensor | None  # (N, *shape), the new history, where the method keeps one
    network_input: Tensor  # (N, *shape), what the network sees next


def begin_step(
    counter: Tensor, table: Tensor, conditions: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """What the next step of a captured loop runs with.

    Args:
        counter: (2,) int64, the row and the step of its noise.
        table: (R, 9), the coefficients of all rows.
        conditions: (R,), what the network is told in each row, if anything.

    Returns:
        (row (9,), step (), condition () or None, the advanced counter). Beyond its ends the table
        stays at its first or last row.
    """
    row = counter[:1].clamp(0, len(table) - 1)
    # Selected on the device: indexing with a tensor of no dimensions would ask the host.
    condition = None if conditions is None else conditions.index_select(0, row)[0]
    return table.index_select(0, row)[0], counter[1], condition, counter + 1


def sampler_update(
    x: Tensor,
    n: Tensor,
    row: Tensor,
    z: Tensor | None = None,
    *,
    history: Tensor | None = None,
    guidance: Tensor | None = None,
    mask: Tensor | None = None,
    known: Tensor | None = None,
    known_z: Tensor | None = None,
    scale_input: bool = False,
) -> StepResult:
    """One step of any sampler: x ← a·x + b·n + c·h + d·z + w·g, then h ← e·x_old + f·n.

    Where the mask is set the new state is the known one at the noise level of the next step,
    known + σ_next·z'. The next network input is c_in·x with the next step's c_in.

    Args:
        x: (N, *shape) float32 (or float64), the state.
        n: (N, *shape), the network's output; 16-bit types are widened first.
        row: (9,) of x's dtype, the coefficients in the order of ``ROW``.
        z: (N, *shape), standard normal noise; None where d is 0.
        history: (N, *shape); None for methods that keep none.
        guidance: (N, *shape), the drift g; None where there is none.
        mask, known, known_z: (N, *shape), bool, state and noise of the known region, together.
        scale_input: whether any c_in of the method differs from 1.

    Returns:
        The new state, the new history or None, and the next network input, (N, *shape) each, of x's
        dtype.
    """
    a, b, c, d, e, f, w, next_c_in, next_sigma = row.unbind()
    n = n.to(x.dtype)
    new = a * x + b * n
    if history is not None:
        new = new + c * history
        history = e * x + f * n
    if z is not None:
        new = new + d * z
    if guidance is not None:
        new = new + w * guidance
    if mask is not None and known is not None and known_z is not None:
        new = torch.where(mask, known + next_sigma * known_z, new)
    return StepResult(new, history, next_c_in * new if scale_input else new)


def perturb(x: Tensor, sigma: Tensor, z: Tensor) -> Tensor:
    """x̃ = x + σz (Vincent 2011) with x, z (N, *shape) and one ``sigma`` per sample, (N,)."""
    return x + per_sample(sigma, x) * z


def dsm_loss(n: Tensor, z: Tensor, weight: Tensor | None = None) -> Tensor:
    """Denoising score matching per sample, ½ Σ (s + z/σ)² σ^p = ½ w Σ (n + z)², w = σ^(p-2).

    Of Vincent 2011, weighted as by Song & Ermon 2019, equations 5 and 6.

    The right-hand side, in the normalised score n = σs, never forms 1/σ²; with the papers' p = 2
    the weight is 1.

    Args:
        n: (N, *shape), the normalised score at x + σz; 16-bit types are widened first.
        z: (N, *shape), the noise.
        weight: (N,), w; None for 1.

    Returns:
        (N,) losses of at least float32.
    """
    losses = 0.5 * (n.to(z.dtype) + z).square().flatten(1).sum(1)
    return losses if weight is None else weight * losses


def dsm_gradient(n: Tensor, z: Tensor, weight: Tensor | None, upstream: Tensor) -> Tensor:
    """The gradient of :func:`dsm_loss` with respect to n, g·w·(n + z), in n's dtype.

    Args:
        n, z, weight: as for :func:`dsm_loss`.
        upstream: (N,), g, the gradient with respect to each loss.

    Returns:
        (N, *shape) of n's dtype.
    """
    scale = upstream if weight is None else upstream * weight
    return (per_sample(scale, n) * (n.to(z.dtype) + z)).to(n.dtype)


def instance_norm_plus(
    x: Tensor,
    gamma: Tensor,
    alpha: Tensor,
    beta: Tensor,
    eps: float = 1e-5,
    activation: str | None = None,
) -> Tensor:
    """InstanceNorm++ (NCSN 2019, appendix A): y = act(γ·(h + α·t) + β).

    h is x normalised over its pixels (biased variance); t is the channel means normalised over
    the channels (**unbiased** variance), which puts back the shifts that h has lost.

    Args:
        x: (N, C, H, W), C ≥ 2.
        gamma, alpha, beta: (C,), or (N, C) where each sample has its own row (NCSN v1).
        eps: added to both variances.
        activation: a name of ``ACTIVATIONS``, or None for none.

    Returns:
        A tensor of x's shape and dtype; everything before it is at least float32.

    Raises:
        ValueError: for one channel, whose unbiased variance does not exist.
    """
    if x.shape[1] < 2:
        raise ValueError(
            f"InstanceNorm++ needs at least 2 channels, got {x.shape[1]}: "
            "the variance over channels is undefined for one (choose ngf ≥ 2)"
        )
    h = _widened(x)
    mean = h.mean((2, 3))
    # The mean comes off first: a variance of differences, and a scale applied to them, lose
    # nothing where a channel's mean is large against its spread.
    h = h - mean[:, :, None, None]
    variance = h.square().mean((2, 3))
    channel_variance, channel_mean = torch.var_mean(mean, dim=1, correction=1, keepdim=True)
    t = (mean - channel_mean) / torch.sqrt(channel_variance + eps)
    scale = gamma / torch.sqrt(variance + eps)
    shift = gamma * alpha * t + beta
    y = torch.addcmul(shift[:, :, None, None], h, scale[:, :, None, None])
    return activated(y, activation).to(x.dtype)


def activated(x: Tensor, activation: str | None) -> Tensor:
    """act(x) by the name of the ``activation``, of x's shape; x itself for None."""
    return x if activation is None else ACTIVATIONS[activation](x)


def residual_add(
    x: Tensor, residual: Tensor, activation: str | None = None
) -> tuple[Tensor, Tensor]:
    """(x + residual, act(x + residual)), both of x's shape and dtype; without activation twice the
    same sum."""
    total = x + residual
    return total, activated(total, activation)


def max_pool5(x: Tensor, activation: str | None = None) -> tuple[Tensor, Tensor]:
    """(act(x), its maximum over each 5×5 neighbourhood), both of x's shape and dtype.

    Chained residual pooling's (Lin et al. 2017); ``activation`` None leaves x.

    x is (N, C, H, W); what lies outside of the image has no part in a maximum; NaN wins.
    """
    active = activated(x, activation)
    return active, F.max_pool2d(active, 5, stride=1, padding=2)


def resize_add(x: Tensor, base: Tensor) -> Tensor:
    """base + x resized to base's size, bilinearly, corners aligned (Lin et al. 2017).

    Args:
        x: (N, C, h, w).
        base: (N, C, H, W) of x's dtype. Where the sizes agree the resize is the identity.

    Returns:
        (N, C, H, W) in base's dtype, rounded once.
    """
    if x.shape[2:] == base.shape[2:]:
        return base + x
    h = F.interpolate(_widened(x), size=base.shape[2:], mode="bilinear", align_corners=True)
    return (h + base).to(base.dtype)


def _widened(x: Tensor) -> Tensor:
    """At least float32."""
    return x if x.dtype == torch.float64 else x.float()


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """``values``, one for each sample, (N,), as (N, 1, …) to go with ``like`` (N, *shape)."""
    return values.reshape(-1, *(1,) * (like.ndim - 1))


__all__ = [
    "ACTIVATIONS",
    "ROW",
    "Activation",
    "StepResult",
    "activated",
    "begin_step",
    "dsm_gradient",
    "dsm_loss",
    "instance_norm_plus",
    "max_pool5",
    "per_sample",
    "perturb",
    "residual_add",
    "resize_add",
    "sampler_update",
]
