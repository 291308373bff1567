"""Noise levels, step sizes, and the rules that choose both from the data.

The rules are Techniques 1, 2 and 4 of Song & Ermon 2020 ("Improved Techniques for Training
Score-Based Generative Models"): the largest level is the largest distance between two data points,
neighbouring levels overlap by a fixed probability, and the step size keeps the variance of the
annealed chain where it should be.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ncsn_fast.support import checks
from ncsn_fast.support.callables import layers

# Overlap C of neighbouring levels in Technique 2, as the paper states it.
OVERLAP = 0.5
# Noise levels whose ln σ differ by no more are one: a ladder is kept in float32.
SAME_LEVEL = 1e-5
_MOST_RATIO = 2.0
MOST_ROWS = 10**7  # of a table, and levels of a ladder: some gigabytes
MOST_LEVELS = 100_000  # of a ladder that somebody's file asks for: some megabytes


def geometric_sigmas(sigma_max: float, sigma_min: float, num_levels: int) -> Tensor:
    """A geometric ladder of noise levels, (num_levels,) float32, from sigma_max to sigma_min.

    Of Song & Ermon 2019, section 4.1.

    Raises:
        ValueError: unless sigma_max > sigma_min > 0 and num_levels ≥ 2.
    """
    sigma_max = checks.number("sigma_max", sigma_max)
    sigma_min = checks.number("sigma_min", sigma_min)
    if not (math.isfinite(sigma_max) and sigma_max > sigma_min > 0):
        raise ValueError(
            f"sigma_max = {sigma_max}, sigma_min = {sigma_min}: levels are positive and "
            "descending, so finite sigma_max > sigma_min > 0 is needed"
        )
    num_levels = checks.count("num_levels", num_levels, 1, MOST_ROWS)
    if num_levels < 2:
        raise ValueError(f"num_levels = {num_levels}: a ladder has at least 2 levels")
    ladder = np.exp(np.linspace(math.log(sigma_max), math.log(sigma_min), num_levels))
    return torch.from_numpy(ladder).float()


def check_sigmas(sigmas: Sequence[float] | np.ndarray | Tensor) -> Tensor:
    """Noise levels as a (L,) float32 CPU tensor.

    Raises:
        ValueError: unless they are finite, positive and strictly descending; the message says what
            is wrong with which.
    """
    try:
        if not isinstance(sigmas, Tensor):
            given = np.asarray(sigmas)
            if given.dtype.kind not in "iufO":  # words and complex numbers can be made to floats
                raise TypeError(f"they are {given.dtype}")
            sigmas = torch.from_numpy(np.array(given, dtype=np.float64))
        if sigmas.is_complex() or sigmas.dtype == torch.bool:
            raise TypeError(f"they are {sigmas.dtype}")
        levels = sigmas.detach().to("cpu", torch.float32)
    except (TypeError, ValueError, RuntimeError, NotImplementedError) as error:
        raise ValueError(f"sigmas are no list of numbers ({error}): give noise levels") from None
    if levels.ndim != 1 or len(levels) == 0:
        raise ValueError(f"sigmas has shape {tuple(levels.shape)}: give a 1-D list of noise levels")
    wrong = (~(torch.isfinite(levels) & (levels > 0))).nonzero()
    if len(wrong):
        raise ValueError(_no_level(sigmas.double().tolist(), int(wrong[0])))
    rises = (levels.diff() >= 0).nonzero()
    if len(rises):
        raise ValueError(_no_descent(sigmas, levels, int(rises[0])))
    return levels


def _no_descent(sigmas: Tensor, levels: Tensor, i: int) -> str:
    """What is wrong with noise levels (L,) of which the i-th is not followed by a smaller one."""
    before, after = float(levels[i]), float(levels[i + 1])
    rule = "noise levels descend from the largest to the smallest"
    if before < after:
        ascend = bool((levels.diff() > 0).all())
        cure = "these ascend: reverse the list" if ascend else "sort the list"
        return f"sigmas[{i}] = {before:g} is followed by {after:g}: {rule} ({cure})"
    where = " in float32, which ladders are kept in" if sigmas[i] != sigmas[i + 1] else ""
    return (
        f"sigmas[{i}] = sigmas[{i + 1}] = {before:g}{where}: {rule}, each given once (leave "
        "repeated ones out; how many steps are made at a level is steps_per_level)"
    )


def _no_level(sigmas: list[float], i: int) -> str:
    """What is wrong with a noise level that is not finite and positive."""
    what = f"sigmas[{i}] = {sigmas[i]}: noise levels are finite and positive"
    if sigmas[i] == 0 and i == len(sigmas) - 1 and i > 0:
        return f"{what} (leave the 0 at the end out: methods go there by themselves)"
    if 0 < sigmas[i] < math.inf:
        return f"{what} in float32, which ladders are kept in"
    return what


def trusted_sigmas(sigmas: Sequence[float] | np.ndarray | Tensor) -> Tensor:
    """:func:`check_sigmas`, but levels (L,) on a GPU stay there, unseen: looking would stall it."""
    if isinstance(sigmas, Tensor) and sigmas.device.type != "cpu":
        return sigmas.detach().float()
    return check_sigmas(sigmas)


def ddpm_sigmas(alphas_cumprod: Sequence[float] | np.ndarray | Tensor) -> Tensor:
    """The noise levels √((1-ᾱ_t)/ᾱ_t) of DDPM's timesteps, (T,) float64 on the CPU, descending.

    Args:
        alphas_cumprod: (T,) ᾱ_t for t = 0 … T-1, falling, in (0, 1).

    Raises:
        ValueError: for ᾱ that are no such numbers.
    """
    alphas = checks.tensor("alphas_cumprod", alphas_cumprod).cpu()
    if alphas.is_complex() or alphas.ndim != 1 or not bool(((alphas > 0) & (alphas < 1)).all()):
        raise ValueError(
            f"alphas_cumprod of shape {tuple(alphas.shape)}: give (T,) numbers strictly "
            "between 0 and 1 (leave out a last ᾱ of 0, where σ is infinite)"
        )
    alphas = alphas.double()
    if not bool((alphas.diff() < 0).all()):
        raise ValueError("alphas_cumprod has to fall with t: the products of 1 - β up to t")
    return ((1 - alphas) / alphas).sqrt().flip(0)


def vp_sigmas(beta_min: float, beta_max: float) -> Tensor:
    """The noise levels of a VP diffusion at 1,000 times from 1 to 1e-3, (1000,) float64.

    ln(1 + σ²) = ½(β_max - β_min)t² + β_min·t.

    Raises:
        ValueError: unless 0 < β_min ≤ β_max, finite.
    """
    for name, beta in (("beta_min", beta_min), ("beta_max", beta_max)):
        checks.number(name, beta)
    if not (math.isfinite(beta_max) and 0 < beta_min <= beta_max):
        raise ValueError(
            f"beta_min = {beta_min}, beta_max = {beta_max}: needed is 0 < β_min ≤ β_max, finite"
        )
    t = torch.linspace(1, 1e-3, 1000, dtype=torch.float64, device="cpu")
    return torch.expm1((beta_max - beta_min) / 2 * t**2 + beta_min * t).sqrt()


def vp_time(sigma: Tensor, beta_min: float, beta_max: float) -> Tensor:
    """999·t of the VP diffusion that has noise level σ, without cancellation where σ is small."""
    log = torch.log1p(sigma.square())
    return 999 * 2 * log / (beta_min + (beta_min**2 + 2 * (beta_max - beta_min) * log).sqrt())


def levels_each(sigma: object, x: Tensor) -> Tensor:
    """A noise level for each sample, (B,) or (1,) of the dtype and on the device of x (B, *shape).

    Args:
        sigma: σ ≥ 0, a number or (B,).

    Raises:
        ValueError: for levels of another kind or shape.
    """
    level = checks.tensor("sigma", sigma)
    if level.is_complex() or level.ndim > 1 or level.numel() not in (1, len(x)):
        raise ValueError(
            f"sigma is {level.dtype} of shape {tuple(level.shape)}: give a noise level for all "
            f"samples, or {len(x)}"
        )
    level = level.to(x.device, x.dtype).flatten()
    if not bool(((level >= 0) & (level < math.inf)).all()):
        raise ValueError("sigma holds values that are not finite numbers of at least 0")
    return level


def nearest_level(sigma: Tensor, sigmas: Tensor) -> tuple[Tensor, Tensor]:
    """The level nearest in ln σ to each σ, and how far it is, in the precision of what is given.

    Args:
        sigma: (...) positive.
        sigmas: (L,) noise levels in any order, of sigma's dtype and device.

    Returns:
        (...) int64 indices, of the first one where two are equally near; (...) |ln σ - ln σ_i|.
    """
    wanted = sigma.log().contiguous()
    ascending, order = sigmas.log().sort(stable=True)
    above = torch.searchsorted(ascending, wanted).clamp(max=len(ascending) - 1)
    below = (above - 1).clamp(min=0)
    below = torch.searchsorted(ascending, ascending[below])  # the first of equal ones
    to_above, to_below = (ascending[above] - wanted).abs(), (wanted - ascending[below]).abs()
    lower = (to_below < to_above) | ((to_below == to_above) & (order[below] < order[above]))
    nearest = order[torch.where(lower, below, above)]
    return nearest, torch.where(lower, to_below, to_above)


def place_between(wanted: Tensor, ladder: Tensor) -> Tensor:
    """Where each ln σ lies in a ladder of ln σ, counted from 0 and linear between two levels."""
    # The ladder descends; searchsorted wants it ascending.
    right = torch.searchsorted(-ladder, -wanted).clamp(0, len(ladder) - 1)
    left = (right - 1).clamp(min=0)
    # A ladder of one level, and its first level, have no gap to lie in.
    gap = (ladder[left] - ladder[right]).clamp(min=torch.finfo(ladder.dtype).tiny)
    return left + ((ladder[left] - wanted) / gap).clamp(0, 1)


def counted_by_labels(fn: Callable[..., Tensor], given: Tensor | None) -> Tensor | None:
    """The ladder that a network's labels count, as far as it is known: as given, or its own.

    Args:
        fn: the network, or what calls it; its own ladder is its attribute ``sigmas``.
        given: (L,) levels that are said to be those, or None.

    Raises:
        ValueError: where its own is no ladder, and where a part of it, or of that of a module in
            it, is given that its labels do not begin with.
    """
    network = list(layers(fn))[-1]
    own = _own_sigmas(network)
    if own is None:
        if given is not None and given.device.type == "cpu":
            _refuse_part_of_inner(network, given)
        return given
    try:
        own = trusted_sigmas(own)
    except ValueError as error:
        if given is not None:
            return given
        raise ValueError(
            f"the network's own sigmas are no ladder for its labels: {error}. Say what it is told "
            "with nf.Score(fn, kind, condition, sigmas=...), such as nf.Score(lambda x, i: net(x, "
            'len(net.sigmas) - 1 - i), "score", "label", sigmas=net.sigmas.flip(0)) where labels '
            "count from the smallest"
        ) from None
    if given is None or given.device.type != "cpu" or own.device.type != "cpu":
        return own if given is None else given  # looking at a device would stall it
    first = _first_of_part(given, own)
    if first is not None:
        raise ValueError(
            f"sigmas are {len(given)} of the {len(own)} levels that the network's own sigmas have, "
            f"from label {first} on, but would be counted from 0: leave them to "
            "nf.Sampler, which looks its levels up in those, or give a function of other labels"
        )
    return given


def _refuse_part_of_inner(network: Any, given: Tensor) -> None:
    """Refuse levels (K,) that a wrapper, without a ladder of its own, would count from 0, and a
    module in it otherwise."""
    held = [network, *getattr(network, "__dict__", {}).values()]
    for module in (one for top in held if isinstance(top, nn.Module) for one in top.modules()):
        own = _own_sigmas(module)
        try:  # in any order and shape: what is asked is whether labels can count it from 0
            own = torch.as_tensor([] if own is None else own).detach().cpu().double().flatten()
        except (TypeError, ValueError, RuntimeError):  # something else of that name
            continue
        first = _first_of_part(given, own[own > 0]) if bool((own > 0).any()) else None
        if first is not None:
            raise ValueError(
                f"sigmas are {len(given)} of the {len(own)} levels that {type(module).__name__} in "
                f"{type(network).__name__} has, from its label {first} on, but would be counted "
                "from 0: give the outer one, too, an attribute sigmas, the levels that its labels "
                "count, such as outer.sigmas = inner.sigmas"
            )


def _first_of_part(given: Tensor, own: Tensor) -> int | None:
    """Where levels (K,) begin in a ladder (L,) of which they are a part other than its beginning;
    None where they are no such part."""
    label, gap = nearest_level(given.double(), own.double())
    is_part = bool((gap <= SAME_LEVEL).all()) and label.tolist() != list(range(len(given)))
    return int(label[0]) if is_part else None


def check_step_size(step_size: float, sigma_min: float) -> float:
    """Return ε, or raise ValueError unless 0 < ε < 2σ_L², where the chain does not diverge."""
    step_size = checks.number("step_size", step_size)
    limit = 2 * sigma_min**2
    if not 0 < step_size < limit:
        raise ValueError(
            f"step_size = {step_size:g}: annealed Langevin dynamics needs 0 < ε < 2σ_L² = "
            f"{limit:g} (σ_L = {sigma_min:g}), beyond which every chain diverges. Published "
            "values lie near 0.06·σ_L²; nf.auto_schedule(data) computes one"
        )
    return step_size


def level_overlap(dimension: int, ratio: float) -> float:
    """C of Technique 2: Φ(u + 3g) - Φ(u - 3g), u = √(2D)(g - 1), for the ratio g of two levels.

    Args:
        dimension: D, values per data point.
        ratio: g ≥ 1.
    """
    u = math.sqrt(2 * dimension) * (ratio - 1)
    return _normal_cdf(u + 3 * ratio) - _normal_cdf(u - 3 * ratio)


def level_ratio(dimension: int, overlap: float = OVERLAP) -> float:
    """g = σ_{i-1}/σ_i that solves Φ(u + 3g) - Φ(u - 3g) = C, u = √(2D)(g - 1).

    Technique 2 of Song & Ermon 2020.

    At most 2: in fewer than 18 dimensions a level overlaps even more distant ones, up to four
    dimensions any, but the few steps at a level cannot bring a chain so far down.

    Args:
        dimension: D, values per data point.
        overlap: C, in (0, 0.997).

    Returns:
        g, in (1, 2].

    Raises:
        ValueError: for a dimension or an overlap out of range.
    """
    most = 2 * _normal_cdf(3.0) - 1  # at g = 1
    if dimension < 1:
        raise ValueError(f"dimension = {dimension}: data points have at least one value")
    if not 0 < overlap < most:
        raise ValueError(
            f"overlap = {overlap}: give one above 0 and below {most:.4f}, the overlap of a level "
            "with itself; 0.5 is usual"
        )

    def excess(g: float) -> float:
        return level_overlap(dimension, g) - overlap

    return _MOST_RATIO if excess(_MOST_RATIO) > 0 else _bisect(excess, 1.0, _MOST_RATIO)


def num_levels_for(sigma_max: float, sigma_min: float, ratio: float) -> float:
    """L = 1 + ln(σ₁/σ_L)/ln g, not rounded."""
    return 1 + math.log(sigma_max / sigma_min) / math.log(ratio)


def relative_variance(step_size: np.ndarray, ratio: float, steps_per_level: int) -> np.ndarray:
    """r(ε) of Technique 4: the chain's variance after a level, over that of the level.

    With a = ε/σ_L² and b = 2a/(1 - (1 - a)²), T Langevin steps turn the relative variance g² that
    a level is entered with into r = (1 - a)^{2T}(g² - b) + b.

    Args:
        step_size: a, the step size over σ_L², in (0, 2).
        ratio: g.
        steps_per_level: T.
    """
    b = 2 * step_size / (1 - (1 - step_size) ** 2)
    return (1 - step_size) ** (2 * steps_per_level) * (ratio**2 - b) + b


def best_step_size(ratio: float, sigma_min: float, steps_per_level: int) -> float:
    """ε of Technique 4, for which :func:`relative_variance` is closest to 1.

    Args:
        ratio: g > 1.
        sigma_min: σ_L.
        steps_per_level: T.
    """
    low, high = 1e-8, 2.0 - 1e-8
    for _ in range(8):  # each pass narrows the best interval of a logarithmic grid
        grid = np.geomspace(low, high, 1001)
        best = int(np.argmin(np.abs(relative_variance(grid, ratio, steps_per_level) - 1)))
        low, high = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    return float(grid[best]) * sigma_min**2


def _own_sigmas(network: Any) -> Any:
    """The ``sigmas`` of a network, if they are a list of numbers."""
    own: Any = getattr(network, "sigmas", None)
    several = isinstance(own, (Tensor, np.ndarray, list, tuple)) and getattr(own, "ndim", 1) > 0
    return own if several and len(own) else None


def _normal_cdf(value: float) -> float:
    return 0.5 * math.erfc(-value / math.sqrt(2))


def _bisect(falling: Callable[[float], float], low: float, high: float) -> float:
    """The root of a falling function between two bounds, to the last bit."""
    for _ in range(200):
        middle = 0.5 * (low + high)
        if falling(middle) > 0:
            low = middle
        else:
            high = middle
    return 0.5 * (low + high)


__all__ = [
    "MOST_ROWS",
    "OVERLAP",
    "SAME_LEVEL",
    "best_step_size",
    "check_sigmas",
    "check_step_size",
    "counted_by_labels",
    "ddpm_sigmas",
    "geometric_sigmas",
    "level_overlap",
    "level_ratio",
    "levels_each",
    "nearest_level",
    "num_levels_for",
    "place_between",
    "relative_variance",
    "trusted_sigmas",
    "vp_sigmas",
    "vp_time",
]
