"""Chains that begin at an image, and chains between two chains."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor

from ncsn_fast import noise
from ncsn_fast.methods.levels import nearest_level
from ncsn_fast.sampling import inputs
from ncsn_fast.sampling.sampler import Sampler
from ncsn_fast.support import checks
from ncsn_fast.table import Table


def interpolate(
    sampler: Sampler,
    pairs: int,
    n_interpolations: int,
    *,
    seed: int | None = None,
    sample_ids: Iterable[int] | None = None,
    initial: Tensor | None = None,
    start_level: int = 0,
    **call: Any,
) -> Tensor:
    """Chains that share their first state and turn from one noise to another.

    Chain k of a pair runs on the noise cos θ·p + sin θ·q in every step, θ = (π/2)·k/(K - 1), as
    published (Song & Ermon 2020). The first is the sampler's own of the pair's id, the last the
    same with the stream ``noise.SECOND``. Such chains run eagerly.

    Args:
        sampler: of a method that adds noise.
        pairs: how many.
        n_interpolations: K ≥ 2, the chains of a pair, both ends among them.
        seed: in [0, 2⁶⁴); None draws one from torch's default generator (see ``sampler.seed``).
        sample_ids: one per pair; default 0 … pairs-1.
        initial: (pairs, *shape), where they begin; default: as the sampler's own.
        start_level: first noise level to run.
        call: other keywords of the sampler's call, for pairs·K samples in the order of the result;
            not ``noise`` and ``every``.

    Returns:
        (pairs, K, *shape) float32 in model space.

    Raises:
        ValueError: for a method that adds no noise, and for bad input.
    """
    _check_sampler(sampler)
    if not sampler.table.adds_noise:
        raise ValueError(
            "this method adds no noise that could be interpolated: take one that does, such as "
            '"annealed_langevin", or interpolate the initial= states'
        )
    refused = sorted({"noise", "every"} & set(call))
    if refused:
        raise ValueError(f"interpolate() takes no {refused}: it makes the noise of its chains")
    ids = noise.sample_ids(checks.count("pairs", pairs, 1, 1 << 31), sample_ids)
    if checks.count("n_interpolations", n_interpolations, 1, 1 << 31) < 2:
        raise ValueError("n_interpolations = 1: a pair has two ends, give at least 2")
    seed = noise.chosen_seed(seed)
    ids = ids.to(sampler.device)
    if initial is None:
        initial = sampler.first_states(seed, ids, sampler.table.start_row(start_level))
    initial = inputs.states("initial", initial, (len(ids), *sampler.shape), sampler.device)

    def draw(stream: int, row: int) -> Tensor:
        return noise.normal(sampler.shape, seed=seed, stream=stream, sample_ids=ids, step=row)

    x = sampler(
        len(ids) * n_interpolations,
        seed=seed,
        initial=initial.repeat_interleave(n_interpolations, 0),
        start_level=start_level,
        noise=turning_noise(draw, n_interpolations, initial),
        **call,
    )
    return x.view(len(ids), n_interpolations, *sampler.shape)


def turning_noise(
    draw: Callable[[int, int], Tensor], number: int, like: Tensor
) -> Callable[[int], Tensor]:
    """The noise cos θ·p + sin θ·q of chains between two, θ = (π/2)·k/(K - 1).

    Args:
        draw: (stream, row) → (pairs, *shape), p of the stream SAMPLER and q of SECOND, in this
            order.
        number: K, the chains of a pair; a single one has p.
        like: (pairs, *shape), of the noise's dtype and device.

    Returns:
        row → (pairs·K, *shape), pair after pair.
    """
    weights = _quarter_turn(number, like)

    def turned(row: int) -> Tensor:
        p, q = (draw(stream, row)[:, None] for stream in (noise.SAMPLER, noise.SECOND))
        return (weights[0] * p + weights[1] * q).flatten(0, 1)

    return turned


@overload
def edit(
    sampler: Sampler,
    images: Tensor,
    start_level: int | None = None,
    *,
    sigma: float | None = None,
    every: None = None,
    **call: Any,
) -> Tensor: ...


@overload
def edit(
    sampler: Sampler,
    images: Tensor,
    start_level: int | None = None,
    *,
    sigma: float | None = None,
    every: int,
    **call: Any,
) -> tuple[Tensor, Tensor]: ...


def edit(
    sampler: Sampler,
    images: Tensor,
    start_level: int | None = None,
    *,
    sigma: float | None = None,
    seed: int | None = None,
    sample_ids: Iterable[int] | None = None,
    **call: Any,
) -> Tensor | tuple[Tensor, Tensor]:
    """Chains that begin at noised images, x = image + σz (SDEdit, Meng et al. 2022).

    The larger σ, the less of the image is kept; at the smallest level it comes back. The z is
    that of a default start, so that image i of a seed is the same in every batch.

    Args:
        sampler: of any method that can begin at that level.
        images: (n, *shape) in model space, on the sampler's device.
        start_level: the level to begin at, an index into the ladder.
        sigma: in its place the noise level; the nearest one (in ln σ) is taken.
        seed, sample_ids, call: as for the sampler's call.

    Returns:
        What the sampler returns for n samples: (n, *shape) float32 in model space; with ``every``
        a pair, these and the trajectory.

    Raises:
        ValueError: for both or none of start_level and sigma, or a level out of range.
    """
    _check_sampler(sampler)
    if (start_level is None) == (sigma is None):
        raise ValueError("say where to begin by start_level= or by sigma=, one of them")
    given = checks.from_numpy("images", images, sampler.device)
    if not isinstance(given, Tensor) or given.ndim != 1 + len(sampler.shape):
        raise ValueError(f"images: give (n, *{sampler.shape}) in the model's space")
    if sigma is not None:
        start_level = _nearest_level(sampler.table, checks.number("sigma", sigma))
    start_level = checks.count("start_level", start_level, 0)
    row = sampler.table.start_row(start_level)
    ids = noise.sample_ids(len(given), sample_ids)
    images = inputs.states("images", given, (len(ids), *sampler.shape), sampler.device)
    seed = noise.chosen_seed(seed)
    z = sampler.first_noise(seed, ids.to(sampler.device))
    return sampler(
        len(ids),
        seed=seed,
        sample_ids=ids,
        initial=images + sampler.table.sigma[row] * z,
        start_level=start_level,
        **call,
    )


def _check_sampler(sampler: object) -> None:
    if not isinstance(sampler, Sampler):
        raise ValueError(f"sampler = {sampler!r:.80}: give a nf.Sampler")


def _quarter_turn(number: int, like: Tensor) -> Tensor:
    """(2, 1, number, 1 …) cos θ and sin θ; exactly 1 and 0 at the ends."""
    theta = torch.linspace(0, math.pi / 2, number, dtype=torch.float64, device="cpu")
    weights = torch.stack([theta.cos(), theta.sin()])
    if number > 1:
        weights[0, -1] = 0.0
    return weights.to(like).view(2, 1, number, *(1,) * (like.ndim - 1))


def _nearest_level(table: Table, sigma: float) -> int:
    rows = zip(table.level, table.sigma, strict=True)
    sigmas = {level: own for level, own in rows if level >= 0}
    if not sigmas:
        raise ValueError(
            f"sigma = {sigma}: this sampler begins only at its first noise level, "
            f"{table.sigma[0]:g}, which start_level=0 says; make one whose sigmas= start lower"
        )
    low, high = min(sigmas.values()), max(sigmas.values())
    if not low * (1 - 1e-4) <= sigma <= high * (1 + 1e-4):
        raise ValueError(
            f"sigma = {sigma}: the levels of this sampler are from {low:g} to {high:g}"
        )
    wanted = torch.tensor(sigma, dtype=torch.float64, device="cpu")
    nearest, _ = nearest_level(wanted, wanted.new_tensor(list(sigmas.values())))
    return list(sigmas)[int(nearest)]


__all__ = ["edit", "interpolate", "turning_noise"]
