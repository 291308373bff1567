"""The samplers of score_sde (Song et al. 2021): same arguments, same return values, this engine.

    import sampling  # score_sde's
    from ncsn_fast.compat.score_sde import get_ode_sampler, get_pc_sampler

    sampling.get_pc_sampler = get_pc_sampler  # sampling.get_sampling_fn then makes these, too

They take its VESDE and VPSDE, by their attributes. States are its own: x₀ + σz of the VE diffusion,
√ᾱ·x₀ + √(1-ᾱ)·z of the VP one. A model is a module or a function (x, labels) as there, and computes
in float32.

What differs: the step size of its "langevin" corrector has norms averaged over the batch, so that
an image depends on those beside it; here each sample has its own. ``batch_mean=True`` has theirs.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ncsn_fast import noise as noise_source
from ncsn_fast.compat import common
from ncsn_fast.compat.score_sde_steps import Diffusion, diffusion, predictor_corrector
from ncsn_fast.guidance.norm_adaptive import NormAdaptive
from ncsn_fast.inference.runner import Runner
from ncsn_fast.models.base import evaluating, own_network
from ncsn_fast.sampling import inputs
from ncsn_fast.sampling.chunks import ALL
from ncsn_fast.sampling.sampler import Sampler
from ncsn_fast.support import checks

Model = Callable[..., Tensor]
Scaler = Callable[[Tensor], Tensor]

_MODEL = "model(x, labels)"


def get_pc_sampler(
    sde: Any,
    shape: Sequence[int],
    predictor: Any,
    corrector: Any,
    inverse_scaler: Scaler,
    snr: float,
    n_steps: int = 1,
    probability_flow: bool = False,
    continuous: bool = False,
    denoise: bool = True,
    eps: float = 1e-3,
    device: torch.device | str | None = None,
    *,
    batch_mean: bool = False,
    noise: str = "philox",
    seed: int | None = None,
    adopt: bool = True,
) -> Callable[[Model], tuple[Tensor, int]]:
    """A predictor-corrector sampler (Song et al. 2021), of N times evenly spaced from T to eps.

    Args:
        sde: score_sde's VESDE or VPSDE.
        shape: (N, C, H, W), of a batch.
        predictor: score_sde's class, or its name there: "reverse_diffusion", "ancestral_sampling",
            "euler_maruyama", or None, "none".
        corrector: likewise, "langevin", "ald", or None, "none".
        inverse_scaler: a function of the samples, applied at the end.
        snr: r > 0, the signal-to-noise ratio of the corrector; not looked at without one.
        n_steps: corrector steps before each of the predictor, at least 1; without a corrector it
            counts in what is returned alone, as there.
        probability_flow: whether the predictor solves the ODE, without noise.
        continuous: whether the model was trained on all times, and is told σ (VE) or 999·t (VP);
            else it is told labels.
        denoise: whether the last step of the predictor adds no noise.
        eps: the last time, in (0, T).
        device: default: the model's.
        batch_mean: whether the norms in the step size of "langevin" are means over the batch.
        noise: "philox", this engine's noise (sample i of a seed is the same in every batch), or
            "torch", the generator of torch in the order of score_sde.
        seed: of the "philox" noise; None draws one at each call.
        adopt: whether an NCSN, NCSNv2, NCSNv2_128 or NCSNv2_256 is taken over as ours.

    Returns:
        model → (samples (N, C, H, W) float32, the number of evaluations as score_sde counts them,
        sde.N·(n_steps + 1): also those of a predictor or corrector that is None, and not made).

    Raises:
        ValueError: for bad input; the message says which.
    """
    common.check_noise(noise, seed)
    common.function("inverse_scaler", inverse_scaler, "of samples")
    shape = _batch(shape)
    told = diffusion(sde, common.flag("continuous", continuous), eps)
    n_steps = checks.count("n_steps", n_steps, 0)
    table, adapts = predictor_corrector(
        told,
        predictor,
        corrector,
        snr,
        n_steps,
        probability_flow=common.flag("probability_flow", probability_flow),
        denoise=common.flag("denoise", denoise),
    )
    together = shape[0] if common.flag("batch_mean", batch_mean) else None
    guidance = NormAdaptive(table, adapts, together) if any(adapts) else None
    drawn = noise == "torch"

    @functools.lru_cache(maxsize=1)
    def made(model: Model) -> Sampler:
        common.function("model", model, _MODEL)
        return Sampler(
            **common.engine(told.score(model), adopt, drawn),
            shape=shape[1:],
            method=table,
            hold_noise=False,
            precision="fp32",
            graph=not drawn and "auto",
            device=device,
        )

    def pc_sampler(model: Model) -> tuple[Tensor, int]:
        sampler = made(model)
        where = sampler.device
        chosen = 0 if drawn else noise_source.chosen_seed(seed)
        initial = _prior(sde, told, shape, where, chosen, drawn)
        source = common.in_turn(lambda row: torch.randn_like(initial)) if drawn else None
        samples = sampler(
            shape[0],
            seed=chosen,
            initial=initial,
            noise=source,
            guidance=guidance,
            batch_size=ALL if drawn or together else shape[0],
        )
        return inverse_scaler(samples), len(told.sigma) * (n_steps + 1)

    return pc_sampler


def get_ode_sampler(
    sde: Any,
    shape: Sequence[int],
    inverse_scaler: Scaler,
    denoise: bool = False,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    method: str = "RK45",
    eps: float = 1e-3,
    device: torch.device | str | None = None,
    *,
    noise: str = "philox",
    seed: int | None = None,
) -> Callable[..., tuple[Tensor, int]]:
    """A sampler by the probability flow ODE (Song et al. 2021), solved by scipy from T to eps.

    Its steps are chosen for the batch as a whole, so a sample depends on those beside it, by the
    tolerance. (nf.Sampler's "heun" and "dpmpp_2m" have steps of their own, in fewer evaluations.)

    Args:
        sde, shape, inverse_scaler, eps, device, noise, seed: as above; the model is told all times.
        denoise: whether a step of the predictor without noise comes last.
        rtol, atol: tolerances, ≥ 0, not both 0.
        method: of scipy.integrate.solve_ivp.

    Returns:
        (model, z=None) → (samples (N, C, H, W) float32, the number of evaluations of the solver);
        z (N, C, H, W) is the state at T in place of a random one.

    Raises:
        ValueError: for bad input; the message says which.
        RuntimeError: where the solver does not arrive.
        ImportError: without scipy.
    """
    try:
        from scipy.integrate import solve_ivp
    except ImportError as error:
        raise ImportError("get_ode_sampler needs scipy: pip install scipy") from error
    common.check_noise(noise, seed)
    common.function("inverse_scaler", inverse_scaler, "of samples")
    shape = _batch(shape)
    ends = common.flag("denoise", denoise)
    methods = ("RK45", "RK23", "DOP853", "Radau", "BDF", "LSODA")
    checks.choice("method", method, methods, "of scipy.integrate.solve_ivp")
    tolerances = {"rtol": checks.number("rtol", rtol), "atol": checks.number("atol", atol)}
    if not all(0 <= one < math.inf for one in tolerances.values()) or not any(tolerances.values()):
        raise ValueError(f"rtol = {rtol}, atol = {atol}: finite, at least 0, and not both 0")
    told = diffusion(sde, True, eps)

    @functools.lru_cache(maxsize=1)
    def made(model: Model) -> tuple[Sampler, Runner]:
        common.function("model", model, _MODEL)
        score = told.score(model)
        last = Sampler(score, shape[1:], method=told.last, hold_noise=False, device=device)
        return last, Runner(score, own_network(model), "fp32")

    @torch.no_grad()
    def ode_sampler(model: Model, z: Tensor | None = None) -> tuple[Tensor, int]:
        last, runner = made(model)
        where = last.device
        chosen = 0 if noise == "torch" else noise_source.chosen_seed(seed)
        if z is None:
            x = _prior(sde, told, shape, where, chosen, noise == "torch")
        else:
            x = inputs.states("z", z, shape, where)
        with runner.running(where) as running, evaluating(last.score.module):

            def slope(t: float, flat: np.ndarray) -> np.ndarray:
                x = torch.from_numpy(flat).to(where, torch.float32).view(shape)
                level = torch.full((len(x),), told.told_at(t), device=where)
                output = running.score(x, level).float()
                return told.slope(t, x, output).flatten().cpu().double().numpy()

            start = x.flatten().cpu().double().numpy()
            found = solve_ivp(slope, (told.first_time, told.last_time), start, method, **tolerances)
        if not found.success:
            raise RuntimeError(f"the solver did not arrive at t = {eps}: {found.message}")
        x = torch.from_numpy(found.y[:, -1].copy()).to(where, torch.float32).view(shape)
        if ends:
            x = last(len(x), seed=0, initial=x, batch_size=len(x))
        return inverse_scaler(x), int(found.nfev)

    return ode_sampler


def _batch(shape: Sequence[int]) -> tuple[int, ...]:
    sizes = checks.sizes("shape", shape)
    if len(sizes) < 2:
        raise ValueError(f"shape = {sizes}: give that of a batch, such as (64, 3, 32, 32)")
    return sizes


def _prior(
    sde: Any, told: Diffusion, shape: tuple[int, ...], device: torch.device, seed: int, drawn: bool
) -> Tensor:
    """Where chains begin: score_sde's own, from torch's generator, or the same of this engine's."""
    if drawn:
        return inputs.states(
            "sde.prior_sampling()", sde.prior_sampling(shape).to(device), shape, device
        )
    ids = torch.arange(shape[0], device=device)
    z = noise_source.normal(
        shape[1:], seed=seed, stream=noise_source.INITIAL, sample_ids=ids, step=1
    )
    return told.prior_std * z


__all__ = ["get_ode_sampler", "get_pc_sampler"]
