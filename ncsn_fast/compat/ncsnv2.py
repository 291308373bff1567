"""The samplers of the official NCSNv2 code: same arguments, same return values, this engine.

    from ncsn_fast.compat.ncsnv2 import anneal_Langevin_dynamics

The network computes in float32; nf.Sampler has the 16-bit precisions. An official one is taken
over and runs as ours (see nf.prepare_for_inference), the same to rounding; ``adopt=False`` leaves
it as it is. Any other runs on a CPU with packed convolutions, and with ``noise="torch"`` as it is.
Where the initial states have another dtype the network is shown that one, as it is, and the states
are returned in it, though they are float32 on their way. A module is put in eval mode meanwhile;
where it has ``sigmas`` of its own its labels count those, and levels that are not among them are
refused. The initial states are left alone. All functions return CPU tensors (N, *shape), and raise
ValueError for bad input, before any work.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from ncsn_fast import noise as noise_source
from ncsn_fast.compat import common
from ncsn_fast.device.memory import check_host_memory
from ncsn_fast.inference.adopted import adopted
from ncsn_fast.inference.foreign import PackedCalls
from ncsn_fast.inference.prepare import prepare_for_inference
from ncsn_fast.methods.levels import check_sigmas
from ncsn_fast.methods.tables import annealed_langevin
from ncsn_fast.models.base import evaluating
from ncsn_fast.models.score import Score
from ncsn_fast.sampling import inputs
from ncsn_fast.sampling.chunks import ALL
from ncsn_fast.sampling.editing import turning_noise
from ncsn_fast.sampling.sampler import Sampler
from ncsn_fast.support import checks
from ncsn_fast.table import Table

ScoreNet = Callable[[Tensor, Tensor], Tensor]
Sigmas = Sequence[float] | np.ndarray | Tensor
_SCORENET = "scorenet(x, labels) → the score"


def anneal_Langevin_dynamics(  # the official name
    x_mod: Tensor,
    scorenet: ScoreNet,
    sigmas: Sigmas,
    n_steps_each: int = 200,
    step_lr: float = 8e-6,
    final_only: bool = False,
    verbose: bool = False,
    denoise: bool = True,
    *,
    noise: str = "philox",
    seed: int | None = None,
    adopt: bool = True,
) -> list[Tensor]:
    """Annealed Langevin dynamics (Song & Ermon 2020) with the official signature and return value.

    Args:
        x_mod: (N, *shape), the initial states, on the network's device.
        scorenet: scorenet(x, labels) → score, with long labels of shape (N,).
        sigmas: (L,) noise levels, descending: numbers, a NumPy array or a tensor on any device.
        n_steps_each: steps per level.
        step_lr: ε; the step size at level i is ε(σ_i/σ_L)².
        final_only: return the last state only.
        verbose: show a progress bar, of steps. (The official code prints norms, which stalls a
            GPU.)
        denoise: end with x + σ_L²·score.
        noise: "philox", this engine's noise (sample i of a seed is the same in every batch), or
            "torch", torch.randn_like in the official order.
        seed: of the "philox" noise; None draws one from torch's default generator.
        adopt: whether an official network is taken over as ours.

    Returns:
        CPU tensors (N, *shape): the state after every step, the denoised one last; with
        ``final_only`` a list of the last one.
    """
    common.check_noise(noise, seed)
    common.states("x_mod", x_mod)
    source = (lambda row: torch.randn_like(x_mod)) if noise == "torch" else None
    table = _table(sigmas, step_lr, n_steps_each, common.flag("denoise", denoise))
    whole = noise == "torch"
    return _states_after(
        x_mod, scorenet, sigmas, table, source, final_only, verbose, whole, seed, adopt
    )


def anneal_Langevin_dynamics_inpainting(
    x_mod: Tensor,
    refer_image: Tensor,
    scorenet: ScoreNet,
    sigmas: Sigmas,
    image_size: int,
    n_steps_each: int = 100,
    step_lr: float = 8e-6,
    *,
    order: str = "ncsnv2",
    noise: str = "philox",
    seed: int | None = None,
    adopt: bool = True,
) -> list[Tensor]:
    """Inpainting of images' right half (Song & Ermon 2020) with the official signature.

    The left half is held at that of the reference, noised to the level of each step. (For any
    other mask there is nf.Sampler(...)(n, mask=..., known=...).)

    Args:
        x_mod: (references, repeats, C, H, W), the initial states, on the network's device.
        refer_image: (references, C, H, W).
        scorenet, sigmas, n_steps_each, step_lr, noise, seed, adopt: as above.
        image_size: H and W.
        order: how the known half is noised: "ncsnv2", anew before each step, or "ncsn", the first
            version, once per noise level.

    Returns:
        For every step the CPU tensor (references·repeats, C, H, W) that the network was shown, the
        known half imposed. As in the originals the state after the last step is not among them;
        and "ncsn" clamps them to [0, 1]. (On a GPU, though not on a CPU, the NCSNv2 code lists its
        states before it imposes the known half.)

    Raises:
        ValueError: for other shapes, orders and kinds of noise.
    """
    common.check_noise(noise, seed)
    checks.choice("order", order, ("ncsnv2", "ncsn"), "noise per step, or per noise level")
    initial, reference = _inpainting_batch(x_mod, refer_image, image_size)
    table = _table(sigmas, step_lr, n_steps_each, denoise=False)
    common.function("scorenet", scorenet, _SCORENET)
    _check_list(len(table), x_mod)
    ladder = _counted(scorenet, sigmas)
    half = _KnownHalf(
        scorenet=_prepared(scorenet, ladder, x_mod.dtype, noise == "torch", adopt),
        table=table,
        reference=reference,
        renew=n_steps_each if order == "ncsn" else 1,
        clamp=order == "ncsn",
        seed=None if noise == "torch" else noise_source.chosen_seed(seed),
        like=x_mod.flatten(0, 1),
    )
    sampler = Sampler(
        # What the function returns is the state after the drift, so the table has the noise only.
        Score(half, "normalized", "label", ladder),
        shape=tuple(initial.shape[1:]),
        method=Table.of(table.sigma, a=0.0, b=1.0, d=table.d, level=table.level),
        prepare=False,
        device=initial.device,
    )
    with evaluating(Score(scorenet).module):
        sampler(len(initial), seed=0, initial=initial, noise=half.noise, batch_size=ALL)
    return half.states


def anneal_Langevin_dynamics_interpolation(
    x_mod: Tensor,
    scorenet: ScoreNet,
    sigmas: Sigmas,
    n_interpolations: int,
    n_steps_each: int = 200,
    step_lr: float = 8e-6,
    final_only: bool = False,
    verbose: bool = False,
    *,
    noise: str = "philox",
    seed: int | None = None,
    adopt: bool = True,
) -> list[Tensor]:
    """Interpolation between samples (Song & Ermon 2020) with the official signature.

    The samples of a row begin in one state and see the noise cos θ·p + sin θ·q, with two noises p
    and q per row of samples and θ from 0 to π/2.

    Args:
        x_mod: (rows, *shape), one initial state per row of samples, on the network's device.
        n_interpolations: samples per row.
        scorenet, sigmas, n_steps_each, step_lr, final_only, verbose, noise, seed, adopt: as above.

    Returns:
        CPU tensors (rows·n_interpolations, *shape), row after row: the state after every step,
        without denoising; with ``final_only`` a list of the last one.
    """
    common.check_noise(noise, seed)
    common.states("x_mod", x_mod)
    number = checks.count("n_interpolations", n_interpolations)
    if noise == "philox":
        seed = noise_source.chosen_seed(seed)

    def draw(stream: int, row: int) -> Tensor:
        return torch.randn_like(x_mod) if seed is None else _philox(x_mod, seed, stream, row)

    mixed = turning_noise(draw, number, x_mod)
    table = _table(sigmas, step_lr, n_steps_each, denoise=False)
    initial = x_mod.repeat_interleave(number, 0)
    whole = noise == "torch"
    return _states_after(
        initial, scorenet, sigmas, table, mixed, final_only, verbose, whole, 0, adopt
    )


class _KnownHalf:
    """The network with the known half imposed on what it is shown, and its noise."""

    def __init__(
        self,
        scorenet: ScoreNet,
        table: Table,
        reference: Tensor,
        renew: int,
        clamp: bool,
        seed: int | None,
        like: Tensor,
    ) -> None:
        self.states: list[Tensor] = []
        self._scorenet, self._table, self._reference = scorenet, table, reference
        self._renew, self._clamp, self._seed, self._like = renew, clamp, seed, like
        self._step_size, self._corrupted = 0.0, reference

    def noise(self, row: int) -> Tensor:
        """The noise of a row, which is asked for before the network; that of the known half first,
        as in the originals."""
        self._step_size = self._table.b[row] * self._table.sigma[row]
        if row % self._renew == 0:
            z = self._draw(self._reference, noise_source.KNOWN, row)
            self._corrupted = self._reference + self._table.sigma[row] * z
        return self._draw(self._like, noise_source.SAMPLER, row)

    def __call__(self, x: Tensor, labels: Tensor) -> Tensor:
        """x + α·score(x), x being the state with the known half imposed."""
        x = torch.cat([self._corrupted, x[..., self._reference.shape[-1] :]], -1)
        self.states.append((x.clamp(0, 1) if self._clamp else x).to("cpu", self._like.dtype))
        score = checks.same_shape("the network", self._scorenet(x, labels), x.shape, x)
        return x + self._step_size * score

    def _draw(self, like: Tensor, stream: int, row: int) -> Tensor:
        if self._seed is None:
            return torch.randn_like(like, dtype=self._like.dtype)
        # The element of a sample is counted in the whole image, as everywhere in this engine.
        return _philox(self._like, self._seed, stream, row)[..., : like.shape[-1]]


def _inpainting_batch(x_mod: Tensor, refer_image: Tensor, image_size: int) -> tuple[Tensor, Tensor]:
    """The initial states (N, C, H, W) and the left halves of their references, one for each."""
    checks.count("image_size", image_size, least=2)
    needed = f"(references, repeats, C, {image_size}, {image_size})"
    initial = common.states("x_mod", x_mod, needed, 1)
    if x_mod.ndim != 5 or x_mod.shape[-2:] != (image_size, image_size):
        raise ValueError(f"x_mod has shape {tuple(x_mod.shape)}; needed is {needed}")
    wanted = (len(x_mod), *x_mod.shape[2:])
    reference = inputs.states("refer_image", refer_image, wanted, x_mod.device)
    half = reference[..., : image_size // 2].repeat_interleave(x_mod.shape[1], 0)
    return initial.flatten(0, 1), half


def _prepared(
    scorenet: ScoreNet, ladder: Tensor | None, dtype: torch.dtype, whole: bool, adopt: bool
) -> ScoreNet:
    """What runs for a network that a function calls: what keeps a list of its calls must not be
    called once more to compare."""
    own = adopted(common.shown(scorenet, dtype), ladder, adopt)
    if own is not None:
        return prepare_for_inference(own, "fp32")
    return common.shown(scorenet if whole else PackedCalls(scorenet), dtype)


def _counted(scorenet: ScoreNet, sigmas: Sigmas) -> Tensor | None:
    """The ladder (L,) that the network's labels count: its own, where it has one."""
    own = Score(scorenet, "score", "label").sigmas
    return check_sigmas(sigmas) if own is None else own


def _table(sigmas: Sigmas, step_lr: float, n_steps_each: int, denoise: bool) -> Table:
    """The rows of the official loop; what is refused has the official name."""
    levels = check_sigmas(sigmas)
    steps = checks.count("n_steps_each", n_steps_each)
    epsilon = checks.number("step_lr", step_lr)
    try:
        return annealed_langevin(levels, epsilon, steps, denoise)
    except ValueError as error:
        raise ValueError(f"step_lr = {step_lr}: {error}") from None


def _check_list(length: int, like: Tensor) -> None:
    """Refuse a list of so many states like these that does not fit in memory."""
    needed = length * like.numel() * like.element_size()
    otherwise = "give fewer images at a time, or final_only=True where the function has it"
    check_host_memory(needed, f"the list of {length} states", otherwise)


def _states_after(
    initial: Tensor,
    scorenet: ScoreNet,
    sigmas: Sigmas,
    table: Table,
    source: Callable[[int], Tensor] | None,
    final_only: bool,
    verbose: bool,
    whole: bool,
    seed: int | None,
    adopt: bool,
) -> list[Tensor]:
    """Run a table and list the states after its rows, or the last one.

    ``whole``: whether the noise is drawn once per row, for all samples.
    """
    common.function("scorenet", scorenet, _SCORENET)
    last_only = common.flag("final_only", final_only)
    if not last_only:
        _check_list(len(table), initial)
    shown = common.shown(scorenet, initial.dtype)
    score = Score(shown, "score", "label", _counted(scorenet, sigmas))
    sampler = Sampler(
        **common.engine(score, adopt, whole),
        shape=tuple(initial.shape[1:]),
        method=table,
        precision="fp32",
        device=initial.device,
    )
    states: list[Tensor] = []

    def keep(row: int, x: Tensor, n: Tensor) -> None:
        if row > 0 and not last_only:  # the official list begins after the first step
            states.append(x.to("cpu", initial.dtype))

    with common.steps_shown(common.flag("verbose", verbose), len(table)) as progress:
        last = sampler(
            len(initial),
            seed=0 if whole else seed,  # None would draw one from torch, ahead of the noise
            initial=initial,
            noise=source,
            callback=keep,
            # torch's noise is drawn once per step for all samples, and so is a state in the list.
            batch_size=len(initial) if last_only and not whole else ALL,
            progress=progress,
        )
    return [*states, last.to("cpu", initial.dtype)]


def _philox(like: Tensor, seed: int, stream: int, step: int) -> Tensor:
    """This engine's noise for samples 0, 1, … of a batch."""
    ids = torch.arange(len(like), device=like.device)
    return noise_source.normal(
        tuple(like.shape[1:]), seed=seed, stream=stream, sample_ids=ids, step=step
    )


__all__ = [
    "anneal_Langevin_dynamics",
    "anneal_Langevin_dynamics_inpainting",
    "anneal_Langevin_dynamics_interpolation",
]
