"""Samplers in the style of k-diffusion, model(x, σ) being a denoiser; k-diffusion is not needed.

    from ncsn_fast.compat.k_diffusion import sample_annealed_langevin

In all of them, which raise ValueError for bad input, before any work:

Args:
    model: model(x, sigma, **extra_args) → D(x, σ), the denoised x, with sigma (N,), both of x's
        dtype.
    x: (N, *shape), the initial state, on the model's device: randn(N, *shape)·sigmas[0]. The
        state is float32 on its way, whatever its dtype is.
    sigmas: (L + 1,) noise levels, strictly descending, the last being 0: numbers, a NumPy array or
        a tensor on any device.
    extra_args: further keyword inputs of the model.
    callback: called once per step with {"x", "i", "sigma", "sigma_hat", "denoised"}: the state
        that the model sees, the step's number from 0, its noise level, an element of sigmas, that
        with its churn, and D there. (A step of annealed Langevin dynamics is one evaluation of the
        model; one of Heun's method or DPM-Solver-2 has two, and is told of at the first.)
    disable: True hides the progress bar, of steps; None shows it where stderr is a terminal.
    s_churn, s_tmin, s_tmax, s_noise: the noise on the way of Karras et al. 2022, algorithm 2: where
        s_tmin ≤ σ ≤ s_tmax a step begins with noise from σ up to (1 + γ)·σ, γ = s_churn/L, at most
        √2 - 1, and s_noise is a factor on it. (Here the step before adds it.)
    eta, s_noise: η ≥ 0, how much noise a step adds: 0 none, 1 that of the reverse SDE; a factor on
        it, at least 0.
    noise_sampler: (σ_i, σ_{i+1}), elements of sigmas, → (N, *shape), noise of unit variance in the
        place of this engine's.
    seed: of this engine's noise; None draws one from torch's default generator.
    noise: "philox", this engine's noise, or "torch", torch.randn_like(x) in k-diffusion's order.

Returns:
    (N, *shape) in x's dtype.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ncsn_fast import noise as noise_source
from ncsn_fast.compat import common
from ncsn_fast.compat.k_diffusion_steps import Churn, Remembered, multistep
from ncsn_fast.methods import tables
from ncsn_fast.methods.levels import best_step_size, check_sigmas
from ncsn_fast.models.score import Score
from ncsn_fast.sampling.chunks import ALL
from ncsn_fast.sampling.sampler import Sampler
from ncsn_fast.support import checks
from ncsn_fast.support.per_sample import one_each
from ncsn_fast.table import Table

Model = Callable[..., Tensor]
Sigmas = Sequence[float] | np.ndarray | Tensor
Callback = Callable[[dict[str, Any]], None] | None
NoiseSampler = Callable[[Tensor, Tensor], Tensor]


def sample_annealed_langevin(
    model: Model,
    x: Tensor,
    sigmas: Sigmas,
    extra_args: dict[str, Any] | None = None,
    callback: Callback = None,
    disable: bool | None = None,
    *,
    steps_per_level: int = 5,
    step_size: float | None = None,
    seed: int | None = None,
    noise: str = "philox",
) -> Tensor:
    """Annealed Langevin dynamics, with (σ_i/σ_L)²·ε the step size at level i (Song & Ermon 2019).

    Args:
        model, x, extra_args, callback, disable, seed, noise: as above.
        sigmas: (L,) noise levels; a 0 at the end stands for the step that removes the noise of
            the smallest level, and may be missing.
        steps_per_level: T.
        step_size: ε, 0 < ε < 2σ_L². Default: Technique 4 of Song & Ermon 2020, for the ratio of
            the two smallest levels; it wants L ≥ 2.

    Returns:
        (N, *shape) in x's dtype.

    Raises:
        ValueError: for levels or settings out of range.
    """
    denoise, levels = _split(sigmas)
    checks.count("steps_per_level", steps_per_level)
    if step_size is None:
        if len(levels) < 2:
            raise ValueError(
                "step_size is computed from the ratio of noise levels, of which there is one: give "
                "it, 0 < ε < 2σ²"
            )
        last = float(levels[-1])
        step_size = best_step_size(float(levels[-2]) / last, last, steps_per_level)
    table = tables.annealed_langevin(levels, step_size, steps_per_level, denoise)
    return _run(model, x, sigmas, table, extra_args, callback, disable, seed=seed, noise=noise)


def sample_euler(
    model: Model,
    x: Tensor,
    sigmas: Sigmas,
    extra_args: dict[str, Any] | None = None,
    callback: Callback = None,
    disable: bool | None = None,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
    *,
    seed: int | None = None,
    noise: str = "philox",
) -> Tensor:
    """Euler's method on the probability flow ODE (Karras et al. 2022); arguments as above."""
    churn = Churn.of(_to_zero(sigmas), 1, s_churn, s_tmin, s_tmax, s_noise)
    table = Table.of(churn.sigma, b=churn.sigma - churn.following)
    return _run(
        model, x, sigmas, table, extra_args, callback, disable, seed=seed, noise=noise, churn=churn
    )


def sample_heun(
    model: Model,
    x: Tensor,
    sigmas: Sigmas,
    extra_args: dict[str, Any] | None = None,
    callback: Callback = None,
    disable: bool | None = None,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
    *,
    seed: int | None = None,
    noise: str = "philox",
) -> Tensor:
    """Heun's method (Karras et al. 2022), 2 evaluations a step, 1 at last; arguments as above."""
    churn = Churn.of(_to_zero(sigmas), 2, s_churn, s_tmin, s_tmax, s_noise)
    table = tables.two_stage(churn.sigma, churn.following, churn.following, 0.5)
    return _run(
        model, x, sigmas, table, extra_args, callback, disable, seed=seed, noise=noise, churn=churn
    )


def sample_dpm_2(
    model: Model,
    x: Tensor,
    sigmas: Sigmas,
    extra_args: dict[str, Any] | None = None,
    callback: Callback = None,
    disable: bool | None = None,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
    *,
    seed: int | None = None,
    noise: str = "philox",
) -> Tensor:
    """DPM-Solver-2 (Lu et al. 2022), likewise, with midpoints in ln σ; arguments as above."""
    churn = Churn.of(_to_zero(sigmas), 2, s_churn, s_tmin, s_tmax, s_noise)
    table = tables.two_stage(churn.sigma, churn.following, churn.middle, 1.0)
    return _run(
        model, x, sigmas, table, extra_args, callback, disable, seed=seed, noise=noise, churn=churn
    )


def sample_dpmpp_2m(
    model: Model,
    x: Tensor,
    sigmas: Sigmas,
    extra_args: dict[str, Any] | None = None,
    callback: Callback = None,
    disable: bool | None = None,
) -> Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022); arguments as above."""
    return _run(model, x, sigmas, tables.dpmpp_2m(_to_zero(sigmas)), extra_args, callback, disable)


def sample_dpmpp_2m_sde(
    model: Model,
    x: Tensor,
    sigmas: Sigmas,
    extra_args: dict[str, Any] | None = None,
    callback: Callback = None,
    disable: bool | None = None,
    eta: float = 1.0,
    s_noise: float = 1.0,
    noise_sampler: NoiseSampler | None = None,
    solver_type: str = "midpoint",
    *,
    seed: int | None = None,
    noise: str = "philox",
) -> Tensor:
    """DPM-Solver++(2M) on the reverse SDE (Lu et al. 2022); arguments as above.

    k-diffusion's own noise is that of a Brownian tree (torchsde), the same whatever the levels are;
    here that is its BrownianTreeNoiseSampler as noise_sampler.

    Args:
        solver_type: "midpoint" or "heun".

    Returns:
        (N, *shape) in x's dtype.
    """
    table = tables.dpmpp_2m(_to_zero(sigmas), eta=eta, solver_type=solver_type)
    return _run(
        model,
        x,
        sigmas,
        _scaled(table, s_noise),
        extra_args,
        callback,
        disable,
        seed=seed,
        noise=noise,
        noise_sampler=noise_sampler,
    )


def sample_lms(
    model: Model,
    x: Tensor,
    sigmas: Sigmas,
    extra_args: dict[str, Any] | None = None,
    callback: Callback = None,
    disable: bool | None = None,
    order: int = 4,
) -> Tensor:
    """Adams–Bashforth's multistep method (1883) on the probability flow ODE; arguments as above.

    A row of a table leaves two tensors behind, the state and one history; this method needs the
    state and the scores of order - 1 steps, and so brings its own memory of them, as a guidance.
    It runs eagerly, on a GPU too.

    Args:
        order: how many scores a step is made of, at least 1.

    Returns:
        (N, *shape) in x's dtype.
    """
    levels = _to_zero(sigmas).double().numpy()
    weights = multistep(levels, checks.count("order", order))
    table = Table.of(levels, b=weights[:, 0], w=1.0, level=np.arange(len(levels)))
    memory = Remembered(weights[:, 1:])
    return _run(model, x, sigmas, table, extra_args, callback, disable, memory=memory)


def sample_euler_ancestral(
    model: Model,
    x: Tensor,
    sigmas: Sigmas,
    extra_args: dict[str, Any] | None = None,
    callback: Callback = None,
    disable: bool | None = None,
    eta: float = 1.0,
    s_noise: float = 1.0,
    noise_sampler: NoiseSampler | None = None,
    *,
    seed: int | None = None,
    noise: str = "philox",
) -> Tensor:
    """Ancestral sampling with Euler steps (Song et al. 2021); arguments as above."""
    return _run(
        model,
        x,
        sigmas,
        _scaled(tables.ancestral(_to_zero(sigmas), eta=eta), s_noise),
        extra_args,
        callback,
        disable,
        seed=seed,
        noise=noise,
        noise_sampler=noise_sampler,
    )


def _run(
    model: Model,
    x: Tensor,
    sigmas: Sigmas,
    table: Table,
    extra_args: dict[str, Any] | None,
    callback: Callback,
    disable: bool | None,
    *,
    seed: int | None = None,
    noise: str = "philox",
    noise_sampler: NoiseSampler | None = None,
    churn: Churn | None = None,
    memory: Remembered | None = None,
) -> Tensor:
    """Take x down a table made from sigmas."""
    initial = common.states("x", x)
    common.function("model", model, "model(x, sigma) → the denoised x")
    _check_inputs(extra_args, callback, disable)
    common.check_noise(noise, seed)
    told = _elements(sigmas, x)
    source = _noise_source(x, told, noise, seed, noise_sampler)
    rows_per_step = 1 if churn is None else churn.rows_per_step
    if churn is not None:
        table = churn.added_to(table)
        # Of a row the next step's, that of the first step being the initial state's, row -1.
        source = source and common.in_turn(source, lambda row: row // rows_per_step + 1)
    # Networks there get the batch as a whole; should that not fit, what is as long as it is cut.
    inputs = {} if extra_args is None else extra_args
    extra = {name: value for name, value in inputs.items() if one_each(value, len(x))}
    whole = source is not None or callback is not None
    sampler = Sampler(
        Score(common.shown(model, x.dtype), "denoiser", "sigma"),
        tuple(x.shape[1:]),
        method=table,
        graph="auto" if memory is None else False,
        device=x.device,
    )
    if churn is not None and churn.noise[0]:
        chosen = seed = 0 if source else noise_source.chosen_seed(seed)
        initial = initial + churn.noise[0] * _first_noise(x, chosen, source)
    wanted = sys.stderr.isatty() if disable is None else not disable
    with common.steps_shown(wanted, -(-len(table) // rows_per_step)) as progress:
        last = sampler(
            len(x),
            seed=0 if source else seed,  # None would draw one from torch, ahead of the noise
            initial=initial,
            noise=source,
            guidance=memory,
            callback=callback and _report(callback, x, told, table, churn),
            extra=extra,
            shared={name: value for name, value in inputs.items() if name not in extra},
            batch_size=ALL if whole else len(x),
            progress=progress,
        )
    return last.to(x.dtype)


def _report(
    callback: Callable[[dict[str, Any]], None],
    x: Tensor,
    told: Tensor,
    table: Table,
    churn: Churn | None,
) -> Callable[[int, Tensor, Tensor], None]:
    """What tells k-diffusion's callback of the first row of each step."""

    def report(row: int, state: Tensor, n: Tensor) -> None:
        step, second = divmod(row, 1 if churn is None else churn.rows_per_step)
        if second:
            return
        sigma = told[table.level[row]]
        info = {"x": state.to(x.dtype), "i": step, "sigma": sigma}
        info["sigma_hat"] = sigma if churn is None else sigma * float(churn.factor[step])
        info["denoised"] = (state + table.sigma[row] * n).to(x.dtype)
        callback(info)

    return report


def _check_inputs(extra_args: object, callback: object, disable: object) -> None:
    if extra_args is not None and not isinstance(extra_args, Mapping):
        raise ValueError(
            f"extra_args is {type(extra_args).__name__}; needed is a dict of the model's further "
            "inputs by name"
        )
    if callback is not None:
        common.function("callback", callback, "of a dict, or None")
    if disable is not None:
        common.flag("disable", disable)


def _noise_source(
    x: Tensor, told: Tensor, noise: str, seed: int | None, noise_sampler: NoiseSampler | None
) -> Callable[[int], Tensor] | None:
    """Noise that is made outside of the engine, for a row."""
    if noise_sampler is None:
        return (lambda row: torch.randn_like(x)) if noise == "torch" else None
    if seed is not None or noise != "philox":
        raise ValueError(
            f"noise_sampler given beside seed = {seed}, noise = {noise!r}: it makes the noise, "
            "leave these out"
        )
    sampled = noise_sampler
    common.function("noise_sampler", sampled, "of two noise levels")

    def draw(row: int) -> Tensor:
        return checks.same_shape("noise_sampler()", sampled(told[row], told[row + 1]), x.shape, x)

    return draw


def _first_noise(x: Tensor, seed: int, source: Callable[[int], Tensor] | None) -> Tensor:
    """Noise for the initial states x, which no row adds: (N, *shape) float32."""
    if source is not None:
        return source(-1).float()
    ids, shape = torch.arange(len(x), device=x.device), tuple(x.shape[1:])
    return noise_source.normal(
        shape, seed=seed, stream=noise_source.INITIAL, sample_ids=ids, step=2
    )


def _scaled(table: Table, s_noise: float) -> Table:
    """The table with a factor on its noise."""
    factor = tables.noise_factor("s_noise", s_noise)
    return replace(table, d=tuple(factor * value for value in table.d))


def _elements(sigmas: Sigmas, x: Tensor) -> Tensor:
    """The noise levels as tensors () for the caller's functions: his own, where he gave a tensor"""
    if isinstance(sigmas, Tensor):
        return sigmas.detach()
    return torch.tensor([float(sigma) for sigma in sigmas], dtype=torch.float32, device=x.device)


def _split(sigmas: Sigmas) -> tuple[bool, Tensor]:
    """Whether the list ends in 0, and the noise levels before that."""
    try:
        ends = len(sigmas) > 1 and float(sigmas[-1]) == 0
    except (TypeError, ValueError, LookupError, RuntimeError):
        ends = False  # no list of numbers: that is said next
    return ends, check_sigmas(sigmas[:-1] if ends else sigmas)


def _to_zero(sigmas: Sigmas) -> Tensor:
    ends, levels = _split(sigmas)
    if not ends:
        raise ValueError(
            f"sigmas end in {float(levels[-1]):g}: this method goes to 0, so append it"
        )
    return levels


__all__ = [
    "sample_annealed_langevin",
    "sample_dpm_2",
    "sample_dpmpp_2m",
    "sample_dpmpp_2m_sde",
    "sample_euler",
    "sample_euler_ancestral",
    "sample_heun",
    "sample_lms",
]
