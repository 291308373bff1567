"""The samplers of the official NCSNv2 code: same arguments, same return values, this engine.

from ncsn_fast.compat.ncsnv2 import anneal_Langevin_dynamics
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ncsn_fast.engine import Sampler
from ncsn_fast.samplers import annealed_langevin
from ncsn_fast.score import Score


def anneal_Langevin_dynamics(  # the official name
    x_mod: Tensor,
    scorenet: Callable[[Tensor, Tensor], Tensor],
    sigmas: np.ndarray | Tensor,
    n_steps_each: int = 200,
    step_lr: float = 8e-6,
    final_only: bool = False,
    verbose: bool = False,
    denoise: bool = True,
    *,
    noise: str = "philox",
    seed: int | None = None,
) -> list[Tensor]:
    """Annealed Langevin dynamics with the official signature and return value.

    Args:
        x_mod: (N, *shape), the initial states, on the network's device.
        scorenet: scorenet(x, labels) → score, with long labels of shape (N,).
        sigmas: (L,) float32 noise levels, descending.
        n_steps_each: steps per level.
        step_lr: ε; the step size at level i is ε(σ_i/σ_L)².
        final_only: return the last state only.
        verbose: show a progress bar. (The official code prints norms, which stalls a GPU.)
        denoise: end with x + σ_L²·score.
        noise: "philox", this engine's noise (sample i of a seed is the same in every batch), or
            "torch", torch.randn_like in the official order.
        seed: of the "philox" noise; None draws one from torch's default generator.

    Returns:
        CPU tensors (N, *shape): the state after every step, the denoised one last; with
        ``final_only`` a list of the last one.
    """
    if noise not in ("philox", "torch"):
        raise ValueError(f"noise = {noise!r}: choose 'philox' or 'torch'")
    if noise == "torch" and seed is not None:
        raise ValueError("seed goes with noise='philox'; torch.manual_seed governs noise='torch'")
    sampler = Sampler(
        Score(scorenet, "score", "label", torch.as_tensor(sigmas)),
        shape=tuple(x_mod.shape[1:]),
        method=annealed_langevin(sigmas, step_lr, n_steps_each, denoise),
        device=x_mod.device,
    )
    states: list[Tensor] = []

    def keep(row: int, x: Tensor, n: Tensor) -> None:
        # A batch that did not fit in memory comes in parts. The list of states has no place for
        # them, and torch would draw other noise for each.
        if len(x) != len(x_mod) and not (final_only and noise == "philox"):
            raise RuntimeError(f"{len(x_mod)} samples at once do not fit in memory: give fewer")
        if row > 0 and not final_only:  # the official list begins after the first step
            states.append(x.cpu())

    last = sampler(
        len(x_mod),
        seed=0 if noise == "torch" else seed,  # None would draw one from torch, ahead of the noise
        initial=x_mod,
        noise=(lambda row: torch.randn_like(x_mod)) if noise == "torch" else None,
        callback=keep,
        # One chunk, as the official loop: torch's noise is drawn once per step for all samples.
        batch_size=len(x_mod),
        progress=verbose,
    )
    return [*states, last.cpu()]


__all__ = ["anneal_Langevin_dynamics"]
