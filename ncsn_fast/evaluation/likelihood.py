"""How likely are given images under a score network: the probability flow ODE, run upwards.

States follow dx = -n(x, σ) dσ, along which p_σ is carried unchanged but for its volume (Chen et
al. 2018; Song et al. 2021, equation 39):

    log p_{σ_L}(x) = log p_{σ_1}(x(σ_1)) - ∫ ∇·n(x(σ), σ) dσ,  from σ_L up to σ_1

and at σ_1, which covers the data, p is nearly a normal law. The divergence is exact, by a backward
pass for each value of a sample, or Hutchinson's estimate E vᵀ(∂n/∂x)v with random signs v.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ncsn_fast import noise as noise_source
from ncsn_fast.device import precision
from ncsn_fast.device.memory import chunk_size, in_chunks
from ncsn_fast.evaluation.probability_flow import METHODS, Flow, integrate, make_flow, wide
from ncsn_fast.models.base import ScoreNetwork, evaluating, own_network
from ncsn_fast.models.further_inputs import further_inputs
from ncsn_fast.models.score import Score, as_score
from ncsn_fast.models.space import Space
from ncsn_fast.support import checks, per_sample
from ncsn_fast.support.progress import Progress, ProgressWish

# Values of the states in one chunk: backward passes keep every layer's.
_AUTO_ELEMENTS = {"cpu": 1 << 14, "cuda": 1 << 17}


@dataclass(frozen=True, eq=False)
class Likelihood:
    """What :func:`log_likelihood` found.

    Attributes:
        log_likelihood: float64 (N,), ln p in nats, of the states in model space.
        bits_per_dim: float64 (N,), -log₂ p per value of the images: of the pixels, with
            ``grey_levels``, else of the density of images in [0, 1].
        standard_error: float64 (N,) of ``log_likelihood``, from the spread of several probes; 0
            where the divergence is exact, None for one probe.
        evaluations: of the network, for each sample; each with a backward pass for each probe.
        seed: of the probes and the dequantisation.
    """

    log_likelihood: Tensor
    bits_per_dim: Tensor
    standard_error: Tensor | None
    evaluations: int
    seed: int


def log_likelihood(
    score: Score | Callable[..., Tensor],
    x: Tensor,
    sigmas: Sequence[float] | Tensor | None = None,
    *,
    steps: int | None = None,
    method: str | None = None,
    exact: bool = False,
    probes: int = 1,
    prior_mean: float | Tensor | None = None,
    prior_std: float | None = None,
    grey_levels: int | None = None,
    rescaled: bool | None = None,
    logit_transform: bool | None = None,
    seed: int | None = None,
    sample_ids: Iterable[int] | None = None,
    extra: Mapping[str, Any] | None = None,
    shared: Mapping[str, Any] | None = None,
    batch_size: int | str = "auto",
    progress: ProgressWish = None,
) -> Likelihood:
    """The log-likelihood of samples by the probability flow ODE (Song et al. 2021, appendix D.2).

    It is that of the law the network describes at the smallest level, the data's law blurred by
    σ_L. The ODE is integrated in ln σ with fixed steps; the error falls with their number to the
    power of 4 ("rk4") or 2 ("heun"): double them to see how much is left.

    Args:
        score: one of our networks, guided or not, a callable score(x, labels), or a Score;
            computed in the precision of its weights, in evaluation mode.
        x: (N, *shape) floating-point states in model space, on the network's device; with
            ``grey_levels``, images: uint8 levels 0 … G - 1, or k/(G - 1) as floating point. A
            NumPy array will do.
        sigmas: noise levels, descending, of which the first and the last bound the integral;
            default: the network's. Networks that are told labels step from level to level.
        steps: of equal ln σ between those ends, for networks that take any σ; default 50.
        method: "rk4", four network evaluations a step, or "heun", two, the only one for networks
            that know nothing between their levels. Default: rk4 where that is possible.
        exact: compute the divergence exactly, with D backward passes for D values per sample.
        probes: random directions v for each sample otherwise, averaged; ≥ 2 give an error estimate.
        prior_mean: m, a number or (*shape), of the normal law N(m, s²) at the largest level.
            Default: 0.5 for a network of ours that works on images in [0, 1], else 0. An error
            costs Σ(error²)/2s² nats on average.
        prior_std: s; default the largest level. (√(σ_1² + variance of the data) is closer.)
        grey_levels: G, 256 for 8-bit images and 17 for the digits: x are images on such a grid.
            They are dequantised, y = (k + u)/G, and the result bounds the probability of the
            pixels themselves from below.
        rescaled, logit_transform: of the space the network works in; default: the network's own,
            for others none.
        seed: in [0, 2⁶⁴), of probes and dequantisation; None draws one from torch.
        sample_ids: N ids; a sample's result does not depend on the others.
        extra: further keyword inputs of the network that come one per sample, of length N; of
            length 1, and no tensors, arrays, lists or tuples: one for all.
        shared: those that all samples get as they are, of any length.
        batch_size: samples at once; changes no result beyond rounding. Halved where they do not
            fit in memory.
        progress: True for a bar, or a function (done, total) of steps times samples.

    Returns:
        In nats and bits, per sample.

    Raises:
        ValueError: for input or settings that are out of range or do not fit each other, and where
            a network that knows its levels by label is asked for others.
        RuntimeError: where the network returns values that are not finite.
    """
    checks.untransformed("log_likelihood() is called")
    net = own_network(score)
    where = torch.device("cpu") if net is None else net.sigmas.device
    x = checks.from_numpy("x", x, where)
    own = Space() if net is None else Space.of(net)
    space = Space(
        own.rescaled if rescaled is None else rescaled,
        own.logit_transform if logit_transform is None else logit_transform,
    )
    _check(net, x, grey_levels)
    directions = None if exact else checks.count("probes", probes)
    flow = make_flow(as_score(score, sigmas), sigmas, steps, method, probes=directions)
    extra, shared = further_inputs(net, extra, shared, len(x))
    flow = flow._replace(score=flow.score.sharing(shared))
    ids = noise_source.sample_ids(len(x), sample_ids)
    seed = noise_source.chosen_seed(seed)
    x = _in_the_type(net, x)
    if grey_levels is not None:
        x = space.enter(_dequantized(x, grey_levels, seed, ids))
    unit = net is not None and len(x.shape) == 4 and space.plain
    default = 0.5 if unit else 0.0
    mean = checks.tensor("prior_mean", default if prior_mean is None else prior_mean)
    largest = math.exp(float(flow.grid[-1]))
    std = checks.number("prior_std", largest if prior_std is None else prior_std)
    _check_prior(mean, std, x)
    budget = _AUTO_ELEMENTS["cuda" if x.is_cuda else "cpu"]
    size = chunk_size(batch_size, math.prod(x.shape[1:]), budget)
    state, change = _in_chunks(flow, x, seed, ids, extra, shared, size, progress)
    found = change.mean(0) + _log_normal(state, mean, std)
    error = change.std(0) / math.sqrt(len(change)) if len(change) > 1 else None
    return Likelihood(
        log_likelihood=found,
        bits_per_dim=_bits(found, x, grey_levels, space),
        standard_error=torch.zeros_like(found) if exact else error,
        evaluations=(len(flow.grid) - 1) * len(METHODS[flow.method][1]),
        seed=seed,
    )


def _in_chunks(
    flow: Flow,
    x: Tensor,
    seed: int,
    ids: Tensor,
    extra: Mapping[str, Any],
    shared: Mapping[str, Any],
    chunk: int,
    wish: ProgressWish,
) -> tuple[Tensor, Tensor]:
    """``integrate`` for chunk after chunk; a chunk that does not fit in memory is halved."""
    found: list[tuple[Tensor, Tensor]] = []
    steps = len(flow.grid) - 1
    with (
        Progress(wish, total=len(x) * steps) as shown,
        evaluating(flow.score.module),
        precision.arithmetic("fp32", x.device),  # whatever the caller has around this
    ):

        def work(part: slice) -> None:
            inputs = {**per_sample.cut(extra, part, len(x)), **shared}
            found.append(integrate(flow, x[part], seed, ids[part].to(x.device), inputs, shown))

        in_chunks(len(x), chunk, work, again=lambda done: shown.back_to(done * steps))
    states, changes = zip(*found, strict=True)
    return torch.cat(states), torch.cat(changes, 1)


def _in_the_type(net: ScoreNetwork | None, x: Tensor) -> Tensor:
    """States as float32, or float64 where the network computes in that; bytes as they are."""
    if x.dtype == torch.uint8 or net is None:
        return x if x.dtype in (torch.uint8, torch.float64) else x.float()
    double = next(net.parameters()).dtype == torch.float64
    return x.to(torch.float64 if double and x.dtype == torch.float64 else torch.float32)


def _dequantized(x: Tensor, grey_levels: int, seed: int, ids: Tensor) -> Tensor:
    """(k + u)/G."""
    k = x.float() if x.dtype == torch.uint8 else (x * (grey_levels - 1)).round()
    u = noise_source.uniform(
        tuple(x.shape[1:]),
        seed=seed,
        stream=noise_source.DEQUANTIZE,
        sample_ids=ids.to(x.device),
        dtype=k.dtype,
    )
    return (k + u) / grey_levels


def _bits(log_p: Tensor, x: Tensor, grey_levels: int | None, space: Space) -> Tensor:
    """-log₂ of the density of images in [0, 1], or of the probability of pixels, per value."""
    dimension = math.prod(x.shape[1:])
    bits = -(log_p + space.log_stretch(x.to(log_p.dtype))) / (dimension * math.log(2))
    return bits if grey_levels is None else bits + math.log2(grey_levels)


def _log_normal(x: Tensor, mean: Tensor, std: float) -> Tensor:
    dtype = wide(x.device)
    apart = (x.to(dtype) - mean.to(x.device, dtype)).flatten(1)
    constant = apart.shape[1] * (math.log(std) + 0.5 * math.log(2 * math.pi))
    return -0.5 * (apart / std).square().sum(1) - constant


def _check(net: ScoreNetwork | None, x: Tensor, grey_levels: int | None) -> None:
    """Refuse what cannot be computed before anything is."""
    if not isinstance(x, Tensor) or x.ndim < 2 or x.numel() == 0:
        raise ValueError(
            f"x is {tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__}: give a tensor "
            "(N, *shape) of at least one sample"
        )
    if net is not None:
        if tuple(x.shape[1:]) != tuple(net.shape):
            raise ValueError(f"x has samples of {tuple(x.shape[1:])}, the network {net.shape}")
        if x.device != net.sigmas.device:
            raise ValueError(f"x is on {x.device}, the network on {net.sigmas.device}: move it")
    if grey_levels is not None:
        return _check_grey(x, checks.count("grey_levels", grey_levels, 1, 1 << 24))
    if not x.is_floating_point():
        raise ValueError(
            f"x is {x.dtype}: give floating-point states in model space, or say grey_levels=256 "
            "for 8-bit images"
        )
    if not bool(torch.isfinite(x).all()):
        raise ValueError("x holds values that are not finite")
    return None


def _check_grey(x: Tensor, grey_levels: int) -> None:
    if grey_levels < 2:
        raise ValueError("grey_levels = 1: images have at least two")
    if x.dtype == torch.uint8:
        if int(x.max()) >= grey_levels:
            raise ValueError(
                f"x holds the level {int(x.max())}: grey_levels = {grey_levels} are 0 to "
                f"{grey_levels - 1}"
            )
        return
    k = x * (grey_levels - 1) if x.is_floating_point() else x.double() + 0.5
    on_grid = bool(((k - k.round()).abs() < 1e-3).all())  # not for NaN
    if not (on_grid and bool(((k >= -1e-3) & (k < grey_levels - 0.5)).all())):
        raise ValueError(
            f"x does not hold images of {grey_levels} grey levels: give uint8, or k/"
            f"{grey_levels - 1} in [0, 1] before any dequantisation; without grey_levels x are "
            "states in model space"
        )


def _check_prior(mean: Tensor, std: float, x: Tensor) -> None:
    if not (math.isfinite(std) and std > 0):
        raise ValueError(f"prior_std = {std}: a standard deviation is finite and positive")
    try:
        mean.expand(x.shape[1:])
    except RuntimeError:
        raise ValueError(
            f"prior_mean has shape {tuple(mean.shape)}: give a number, or {tuple(x.shape[1:])}"
        ) from None
    if not bool(torch.isfinite(mean).all()):
        raise ValueError("prior_mean holds values that are not finite")


__all__ = ["Likelihood", "log_likelihood"]
