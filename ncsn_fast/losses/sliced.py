"""Sliced score matching (Song, Garg, Shi & Ermon 2019): score matching without a noise target.

Score matching ½ E‖s - ∇ log p‖² needs ∇ log p, which data do not give. Two ways around that are
known. Denoising (``denoising.py``) asks for the score of perturbed data, whose target is known.
Integration by parts asks for that of the data themselves, E[½‖s‖² + tr ∇s], the same up to a
constant; random directions v with E[vvᵀ] = I spare the trace, E[vᵀ∇s v] = tr ∇s, at the price of a
derivative through the network for each of them. It is here to compare with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ncsn_fast import noise as noise_source
from ncsn_fast import reference
from ncsn_fast.losses.common import check_batch, noise_key, place, reduce
from ncsn_fast.models.base import ScoreNetwork
from ncsn_fast.models.score import Score
from ncsn_fast.support import checks

DIRECTIONS = ("rademacher", "gaussian")


def sliced_score_matching(
    net: Score | Callable[..., Tensor],
    x: Tensor,
    sigmas: Sequence[float] | Tensor | None = None,
    labels: Tensor | None = None,
    *,
    projections: int = 1,
    directions: str = "rademacher",
    seed: int | None = None,
    step: int = 0,
    sample_ids: Iterable[int] | Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Sliced score matching with reduced variance, of the data or of a ladder of levels.

    On data, each sample pays ½‖s(x)‖² + vᵀ∇(vᵀs(x)), averaged over its directions v (Song et al.
    2019, SSM-VR). On a ladder it pays that at x̃ = x + σz, times σ² (Song & Ermon 2019); with
    n = σs that is ½‖n‖² + σ·vᵀ∇(vᵀn), which is what is computed. Its expectation is that of
    :func:`ncsn_fast.dsm_loss` less D/2, D being the values of a sample: one minimiser, at the
    price of a second derivative through the network for each direction.

    z is the noise that dsm_loss has for this seed, step and sample; the directions are the
    elements that follow it in that stream. The network has to be differentiable twice and to
    treat samples apart: statistics over the batch would leak into the derivative.

    Args:
        net: with ``sigmas`` as for dsm_loss; without them a callable score(x), or a Score of kind
            "score" and condition "none".
        x: (N, *shape) floating-point data in model space; float64 is computed in float64.
        sigmas: (L,) noise levels, descending; None for the data as they are.
        labels: (N,) int64 levels; drawn uniformly from [0, L) where not given.
        projections: directions v per sample, ≥ 1.
        directions: their law, "rademacher" (±1, less variance) or "gaussian".
        seed, step, sample_ids, reduction: as for dsm_loss.

    Returns:
        A scalar, or (N,); at least float32. It may well be negative.

    Raises:
        ValueError: for shapes, labels or settings that do not fit, and for a network whose output
            cannot be differentiated by its input.
    """
    checks.untransformed("sliced_score_matching() is called")
    check_batch(x, reduction)
    projections = checks.count("projections", projections)
    checks.choice("directions", directions, DIRECTIONS, "no such law of directions")
    key = noise_key(x, seed, step, sample_ids)
    precision = torch.promote_types(x.dtype, torch.float32)
    on_data = sigmas is None
    if sigmas is None:
        # The formula in n = σs holds for the score itself with σ = 1, and nothing perturbed.
        net, sigmas = _score_of_data(net, labels), [1.0]
    score, sigma, labels = place(net, x, sigmas, labels, key)
    normals = noise_source.normal(
        (1 + projections, *x.shape[1:]), stream=noise_source.PERTURB, dtype=precision, **key
    )
    z, v = normals[:, 0], normals[:, 1:]
    if directions == "rademacher":
        v = torch.copysign(torch.ones_like(v), v)
    points = x if on_data else reference.perturb(x, sigma, z).to(x.dtype)
    n, trace = _output_and_trace(score, points, sigma, labels, v)
    losses = 0.5 * n.to(precision).square().flatten(1).sum(1) + sigma * trace
    return reduce(losses, reduction, x)


def _score_of_data(net: Score | Callable[..., Tensor], labels: Tensor | None) -> Score:
    """A score that knows no noise level."""
    if labels is not None:
        raise ValueError("labels name noise levels: give sigmas too, or leave the labels out")
    score = net if isinstance(net, Score) else Score(net, "score", "none")
    known = (score.kind, score.condition) == ("score", "none")
    if isinstance(net, ScoreNetwork) or not known:
        raise ValueError(
            "without sigmas the score is a function of x alone: give score(x), or the noise "
            "levels of this network (sigmas=net.sigmas)"
        )
    return score


def _output_and_trace(
    score: Score, points: Tensor, sigma: Tensor, labels: Tensor, v: Tensor
) -> tuple[Tensor, Tensor]:
    """n, and the mean over the directions v (N, M, *shape) of vᵀ∇(vᵀn), (N,)."""
    training = torch.is_grad_enabled()
    seen: list[Tensor] = []

    def network(x: Tensor, *condition: Tensor) -> Tensor:
        seen.append(x.view_as(x))
        return score.fn(seen[0], *condition)

    network.__wrapped__ = score.fn  # type: ignore[attr-defined]
    # The derivative by x is part of the value, so it is taken under no_grad too, and in inference
    # mode, whose own tensors have none.
    with torch.inference_mode(False), torch.enable_grad():
        points, sigma, labels, v = (t.detach().clone() for t in (points, sigma, labels, v))
        points.requires_grad_()
        n = replace(score, fn=network).normalized(points, sigma, labels)
        slopes = [_slope(n, points, seen[0], direction, training) for direction in v.unbind(1)]
    products = [
        (direction * slope).flatten(1).sum(1)
        for direction, slope in zip(v.unbind(1), slopes, strict=True)
    ]
    return n, torch.stack(products).mean(0)


def _slope(n: Tensor, points: Tensor, seen: Tensor, direction: Tensor, training: bool) -> Tensor:
    """∇(vᵀn) by the points; a second derivative follows where the network is trained.

    n has the points in it even where the network ignores them, so that alone would go unnoticed
    and count as a divergence of 0: the derivative has to reach what the network has seen, too.
    """
    slope = reached = None
    if n.requires_grad:
        slope, reached = torch.autograd.grad(
            (n * direction).sum(),
            (points, seen),
            create_graph=training,
            retain_graph=True,
            allow_unused=True,
        )
    if slope is None or reached is None:
        raise ValueError(
            "the network's output does not depend on its input as autograd sees it: sliced score "
            "matching needs that derivative (is something detached, or under no_grad?)"
        )
    return slope


__all__ = ["sliced_score_matching"]
