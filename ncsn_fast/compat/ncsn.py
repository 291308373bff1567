"""The samplers of the official code of NCSN, the first version: same arguments, same return values.

    from ncsn_fast.compat.ncsn import anneal_Langevin_dynamics

There they are methods of a runner, so here is how they take their places:

    AnnealRunner.anneal_Langevin_dynamics = staticmethod(anneal_Langevin_dynamics)

What differs from those of :mod:`ncsn_fast.compat.ncsnv2`, which do the work: the list of states
begins with the initial one and leaves the last one out, states in it are clamped to [0, 1], and
nothing is denoised. So the list of NCSN's ends one step before the end of the chain.
"""

from __future__ import annotations

from torch import Tensor

from ncsn_fast.compat import ncsnv2
from ncsn_fast.compat.ncsnv2 import ScoreNet, Sigmas


def anneal_Langevin_dynamics(  # the official name
    x_mod: Tensor,
    scorenet: ScoreNet,
    sigmas: Sigmas,
    n_steps_each: int = 100,
    step_lr: float = 2e-5,
    *,
    noise: str = "philox",
    seed: int | None = None,
    verbose: bool = False,
    adopt: bool = True,
) -> list[Tensor]:
    """Annealed Langevin dynamics (Song & Ermon 2019) with the official signature and return value.

    Args:
        x_mod: (N, *shape), the initial states, on the network's device; they are left alone.
        scorenet: scorenet(x, labels) → score, with long labels of shape (N,).
        sigmas: (L,) noise levels, descending: numbers, a NumPy array or a tensor on any device.
        n_steps_each: steps per level.
        step_lr: ε; the step size at level i is ε(σ_i/σ_L)².
        noise: "philox", this engine's noise (sample i of a seed is the same in every batch), or
            "torch", torch.randn_like in the official order.
        seed: of the "philox" noise; None draws one from torch's default generator.
        verbose: show a progress bar, of steps.
        adopt: whether an official network is taken over as ours.

    Returns:
        CPU tensors (N, *shape) in [0, 1]: the state before every step, n_steps_each·L of them.

    Raises:
        ValueError: for bad input, before any work.
    """
    states = ncsnv2.anneal_Langevin_dynamics(
        x_mod,
        scorenet,
        sigmas,
        n_steps_each,
        step_lr,
        verbose=verbose,
        denoise=False,
        noise=noise,
        seed=seed,
        adopt=adopt,
    )
    # In place: the list may fill the memory.
    return [x_mod.detach().cpu().clamp(0, 1), *(state.clamp_(0, 1) for state in states[:-1])]


def anneal_Langevin_dynamics_inpainting(
    x_mod: Tensor,
    refer_image: Tensor,
    scorenet: ScoreNet,
    sigmas: Sigmas,
    n_steps_each: int = 100,
    step_lr: float = 8e-6,
    *,
    noise: str = "philox",
    seed: int | None = None,
    adopt: bool = True,
) -> list[Tensor]:
    """Inpainting of images' right half (Song & Ermon 2019) with the official signature.

    It is :func:`ncsn_fast.compat.ncsnv2.anneal_Langevin_dynamics_inpainting` in the order "ncsn",
    for images of any size; see there.

    Args:
        x_mod: (references, repeats, C, H, H), the initial states, on the network's device. (The
            official code writes into them; here they are left alone.)
        refer_image: (references, C, H, H).
        scorenet, sigmas, n_steps_each, step_lr, noise, seed, adopt: as above.

    Returns:
        For every step the CPU tensor (references·repeats, C, H, H), in [0, 1], before it.

    Raises:
        ValueError: for bad input, before any work.
    """
    size = x_mod.shape[-1] if isinstance(x_mod, Tensor) and x_mod.ndim else 2
    return ncsnv2.anneal_Langevin_dynamics_inpainting(
        x_mod,
        refer_image,
        scorenet,
        sigmas,
        size,
        n_steps_each,
        step_lr,
        order="ncsn",
        noise=noise,
        seed=seed,
        adopt=adopt,
    )


__all__ = ["anneal_Langevin_dynamics", "anneal_Langevin_dynamics_inpainting"]
