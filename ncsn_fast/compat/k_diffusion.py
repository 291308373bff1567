"""Samplers in the style of k-diffusion, model(x, σ) being a denoiser; k-diffusion is not needed.

from ncsn_fast.compat.k_diffusion import sample_annealed_langevin

In all of them:

    model: model(x, sigma, **extra_args) → D(x, σ), the denoised x, with sigma (N,) float32.
    x: (N, *shape), the initial state, on the model's device: randn(N, *shape)·sigmas[0].
    sigmas: (L + 1,) noise levels, descending, the last being 0.
    extra_args: further keyword inputs of the model.
    callback: called once per evaluation of the model with {"x", "i", "sigma", "sigma_hat",
        "denoised"}: the state before the update, the number of the evaluation from 0, its noise
        level twice, as a CPU tensor (), and D there.
    disable: True hides the progress bar; None shows it where stderr is a terminal.
    seed: of this engine's noise; None draws one from torch's default generator.
    noise: "philox", this engine's noise, or "torch", torch.randn_like(x) once per step that adds
        noise.

They return (N, *shape) float32, and raise ValueError for bad input, before any work.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ncsn_fast.compat.common import check_noise
from ncsn_fast.methods import tables
from ncsn_fast.methods.levels import best_step_size, check_sigmas
from ncsn_fast.models.score import Score
from ncsn_fast.sampling.sampler import Sampler
from ncsn_fast.table import Table

Model = Callable[..., Tensor]
Sigmas = Sequence[float] | np.ndarray | Tensor
Callback = Callable[[dict[str, Any]], None] | None


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
    """Annealed Langevin dynamics, with (σ_i/σ_L)²·ε the step size at level i.

    Args:
        model, x, extra_args, callback, disable, seed, noise: see above.
        sigmas: (L,) noise levels; a 0 at the end stands for the step that removes the noise of
            the smallest level, and may be missing.
        steps_per_level: T.
        step_size: ε, 0 < ε < 2σ_L². Default: Technique 4 of Song & Ermon 2020, for the ratio of
            the two smallest levels; it wants L ≥ 2.

    Raises:
        ValueError: for levels or settings out of range.
    """
    denoise, levels = _split(sigmas)
    if step_size is None:
        if len(levels) < 2:
            raise ValueError(
                "step_size is computed from the ratio of noise levels, of which there is one: give "
                "it, 0 < ε < 2σ²"
            )
        last = float(levels[-1])
        step_size = best_step_size(float(levels[-2]) / last, last, steps_per_level)
    table = tables.annealed_langevin(levels, step_size, steps_per_level, denoise)
    return _run(model, x, table, extra_args, callback, disable, seed, noise)


def sample_euler(
    model: Model,
    x: Tensor,
    sigmas: Sigmas,
    extra_args: dict[str, Any] | None = None,
    callback: Callback = None,
    disable: bool | None = None,
) -> Tensor:
    """Euler's method on the probability flow ODE; arguments as above."""
    return _run(model, x, tables.euler(_to_zero(sigmas)), extra_args, callback, disable)


def sample_heun(
    model: Model,
    x: Tensor,
    sigmas: Sigmas,
    extra_args: dict[str, Any] | None = None,
    callback: Callback = None,
    disable: bool | None = None,
) -> Tensor:
    """Heun's method, two evaluations a step but the last; arguments as above."""
    return _run(model, x, tables.heun(_to_zero(sigmas)), extra_args, callback, disable)


def sample_dpmpp_2m(
    model: Model,
    x: Tensor,
    sigmas: Sigmas,
    extra_args: dict[str, Any] | None = None,
    callback: Callback = None,
    disable: bool | None = None,
) -> Tensor:
    """DPM-Solver++(2M); arguments as above."""
    return _run(model, x, tables.dpmpp_2m(_to_zero(sigmas)), extra_args, callback, disable)


def sample_euler_ancestral(
    model: Model,
    x: Tensor,
    sigmas: Sigmas,
    extra_args: dict[str, Any] | None = None,
    callback: Callback = None,
    disable: bool | None = None,
    *,
    seed: int | None = None,
    noise: str = "philox",
) -> Tensor:
    """Ancestral sampling with Euler steps, η = 1; arguments as above."""
    table = tables.ancestral(_to_zero(sigmas))
    return _run(model, x, table, extra_args, callback, disable, seed, noise)


@torch.no_grad()
def _run(
    model: Model,
    x: Tensor,
    table: Table,
    extra_args: dict[str, Any] | None,
    callback: Callback,
    disable: bool | None,
    seed: int | None = None,
    noise: str = "philox",
) -> Tensor:
    check_noise(noise, seed)

    def report(row: int, state: Tensor, n: Tensor) -> None:
        assert callback is not None
        sigma = torch.tensor(table.sigma[row], dtype=torch.float32)
        denoised = state + sigma * n
        callback({"x": state, "i": row, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})

    return Sampler(
        Score(model, "denoiser", "sigma"), tuple(x.shape[1:]), method=table, device=x.device
    )(
        len(x),
        seed=0 if noise == "torch" else seed,  # None would draw one from torch, ahead of the noise
        initial=x,
        noise=(lambda row: torch.randn_like(x)) if noise == "torch" else None,
        callback=None if callback is None else report,
        extra=extra_args,
        batch_size=len(x),
        progress=sys.stderr.isatty() if disable is None else not disable,
    )


def _split(sigmas: Sigmas) -> tuple[bool, Tensor]:
    """Whether the list ends in 0, and the noise levels before that."""
    levels = torch.as_tensor(np.asarray(sigmas) if not isinstance(sigmas, Tensor) else sigmas)
    levels = levels.detach().cpu()
    ends = levels.ndim == 1 and len(levels) > 1 and float(levels[-1]) == 0
    return ends, check_sigmas(levels[:-1] if ends else levels)


def _to_zero(sigmas: Sigmas) -> Tensor:
    ends, levels = _split(sigmas)
    if not ends:
        raise ValueError(
            f"sigmas end in {float(levels[-1]):g}: this method goes to 0, so append it"
        )
    return levels


__all__ = [
    "sample_annealed_langevin",
    "sample_dpmpp_2m",
    "sample_euler",
    "sample_euler_ancestral",
    "sample_heun",
]
