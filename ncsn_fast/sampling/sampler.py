"""The engine: runs a sampler's table on a score network.

``Sampler`` is built once for a network and a method and called for samples; ``sample`` is the same
for one of our networks in one line; ``langevin`` is plain Langevin dynamics. Sample i of a seed
sees the same noise whatever it is computed together with, so the batch is cut into chunks freely.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ncsn_fast import noise as noise_source
from ncsn_fast.device import backends, capture, profiling
from ncsn_fast.device import precision as precisions
from ncsn_fast.guidance.base import Guidance
from ncsn_fast.methods.by_name import ANNEALED_LANGEVIN, known_settings, make_table, starts_uniform
from ncsn_fast.methods.levels import check_sigmas
from ncsn_fast.methods.tables import langevin as langevin_table
from ncsn_fast.models import prepare
from ncsn_fast.models.base import ScoreNetwork, evaluating
from ncsn_fast.models.score import Score, as_score
from ncsn_fast.models.space import to_images
from ncsn_fast.sampling import inputs, loop
from ncsn_fast.sampling.chain import Chain
from ncsn_fast.sampling.chunks import SamplingInterrupted, run_chunks
from ncsn_fast.sampling.divergence import SamplingError
from ncsn_fast.sampling.graph_cache import Graphs
from ncsn_fast.sampling.start import Start
from ncsn_fast.support import checks
from ncsn_fast.support.progress import ProgressWish
from ncsn_fast.table import Table

_log = logging.getLogger("ncsn_fast")


# Values of the state in one chunk when the batch size is left to the engine: on a CPU more images
# at once only wear out the caches, on a GPU fewer leave it idle.
_AUTO_ELEMENTS = {"cpu": 1 << 17, "cuda": 1 << 22}


class Sampler:
    """A method on a score network.

    Args:
        score: one of our networks, a callable score(x, labels), or a :class:`nf.Score`.
        shape: shape of one sample, for example (3, 32, 32); default: the network's.
        sigmas: (L,) noise levels, descending; default: the network's.
        method: a name of ``ncsn_fast.methods.METHODS`` (default: what the network's checkpoint
            says, else "annealed_langevin"), a function from noise levels and settings to a
            :class:`Table`, or a :class:`Table`.
        step_size: ε of annealed Langevin dynamics, 0 < ε < 2σ_L², and of methods made from it.
        steps_per_level: T of annealed Langevin dynamics, k of consistent annealed sampling.
        denoise: whether a last step of theirs removes the noise of the smallest level (default:
            yes).
        steps: network evaluations, at most, of the other methods (default: all noise levels).
        spacing: which noise levels they visit: "ladder" (the network's own, the default),
            "geometric", "karras" or "linear".
        settings: others of the method (rho, snr, corrector_steps, predictor, those of a function of
            your own). What is not given comes from the network's checkpoint (``net.sampling``) as
            far as that is of the same method, then from the method's function in
            ``methods/tables.py``, which describes it.
        precision: what the network computes in, "fp32", "tf32", "fp16" or "bf16"; the state is
            float32 throughout. "auto" is fp16 for networks of this package on a GPU, else fp32.
        backend: "auto", "torch", "triton" or "cpp"; see :func:`nf.use_backend`.
        graph: "auto" captures a step as a CUDA graph and replays it, where there is a GPU and the
            score function can be captured; True refuses where it cannot; False runs eagerly. The
            samples are the same, bit for bit, where the network's kernels are deterministic.
            What a captured function does on the host is done once, not in each row.
        device: where to sample; default: the network's device.

    Attributes:
        table: the rows that will be run.
        start: where chains begin by default.
        seed: the seed of the last call.

    Raises:
        ValueError: for settings that are unknown, missing or out of range; the message says which.
    """

    def __init__(
        self,
        score: Score | Callable[..., Tensor],
        shape: Sequence[int] | None = None,
        sigmas: Sequence[float] | Tensor | None = None,
        method: str | Table | Callable[..., Table] | None = None,
        *,
        step_size: float | None = None,
        steps_per_level: int | None = None,
        denoise: bool | None = None,
        steps: int | None = None,
        spacing: str | None = None,
        precision: str = "auto",
        backend: str = "auto",
        graph: str | bool = "auto",
        device: torch.device | str | None = None,
        **settings: Any,
    ) -> None:
        self.network = score if isinstance(score, ScoreNetwork) else None
        self.score = as_score(score, sigmas)
        if shape is None and self.network is not None:
            shape = self.network.shape
        self.shape = checks.sample_shape(shape)
        defaults = getattr(self.network, "sampling", None) or {}
        method = method if method is not None else defaults.get("method", ANNEALED_LANGEVIN)
        settings.update(
            step_size=step_size,
            steps_per_level=steps_per_level,
            denoise=denoise,
            steps=steps,
            spacing=spacing,
        )
        self._network_sigmas = None if self.network is None else self.network.sigmas.cpu().clone()
        self.table = make_table(method, self._ladder(sigmas), settings, defaults)
        self.start = Start(self.table, self.shape, self.network, starts_uniform(method))
        if device is None and isinstance(sigmas, Tensor) and sigmas.device.type != "cpu":
            device = sigmas.device
        self._device = device
        precisions.resolve(precision, self.device)
        if self.network is not None and precision not in ("auto", "fp32"):
            reason = prepare.obstacle(self.network, precision)
            if reason is not None:
                raise ValueError(f"precision = {precision!r}: {reason}")
        self._precision = precision
        self._prepared_on: torch.device | None = None
        self._prepared: prepare.PreparedNetwork | None = None
        checks.choice(
            "graph", graph, ("auto", True, False), "capture where possible, always, never"
        )
        if graph is True and (reason := capture.obstacle(self.device)) is not None:
            raise ValueError(f"graph=True: {reason}. graph='auto' captures where that is possible")
        self._graphs = Graphs(graph) if graph else None
        self._backend = backend
        backends.resolve(backend, self.device)
        # Refuse a network that cannot be told the levels of this table now, not in the loop.
        self.score.conditions(self.table, "cpu")
        self.seed: int | None = None

    def __call__(
        self,
        n: int,
        *,
        seed: int | None = None,
        sample_ids: Iterable[int] | None = None,
        initial: Tensor | None = None,
        start_level: int = 0,
        noise: Callable[[int], Tensor] | None = None,
        mask: Tensor | None = None,
        known: Tensor | None = None,
        guidance: Callable[..., Tensor] | None = None,
        clip: float | None = None,
        temperature: float = 1.0,
        every: int | None = None,
        callback: Callable[[int, Tensor, Tensor], None] | None = None,
        extra: dict[str, Any] | None = None,
        batch_size: int | str = "auto",
        progress: ProgressWish = None,
    ) -> Any:
        """Draw n samples.

        Args:
            n: how many.
            seed: in [0, 2⁶⁴); None draws one from torch's default generator (see ``self.seed``).
            sample_ids: n distinct ids in [0, 2⁴⁸); default 0 … n-1. Sample i of a seed is the same
                in every batch.
            initial: (n, *shape) states at the first row, used as given. Default: U[0, 1) for
                annealed Langevin dynamics, U[0, 1) + σ₁z for other tables.
            start_level: first noise level to run, as an index into the ladder; the default
                initial state is then that of this level. A method begins only at levels that its
                table visits without a history (not so "dpmpp_2m").
            noise: row → (n, *shape) tensor that replaces the engine's noise. It must depend on the
                row alone: each chunk of the batch asks for its rows again. Such a chain runs
                eagerly.
            mask, known: where the mask is 1 the state is held at ``known`` (model space), noised
                to the level of each step and exact at the end; both broadcast to (n, *shape).
            guidance: (x, n, σ, row) → drift g, which acts like a term added to the score: it is
                multiplied by the step size, α_i = ε(σ_i/σ_L)² in annealed Langevin dynamics. In a
                captured chain σ and row are tensors () on the device (float64, int64) and what it
                computes on the host is frozen; a function that decides by them wants graph=False.
            clip: largest norm of the score, per sample.
            temperature: factor on the variance of the noise, at least 0; 1 for methods without.
            every: keep every k-th state; the trajectory is then returned too.
            callback: called as (row, x, n) after every row with the state before the update and
                the normalised score there. It runs per chunk, and on the host even where the chain
                is captured.
            extra: further keyword inputs of the network; tensors of length n are chunked (a shared
                tensor of that very length needs a leading dimension of 1).
            batch_size: samples per chunk, or "auto".
            progress: True for a bar, or a function (rows done, rows in all).

        Returns:
            (n, *shape) float32 states in model space, not clamped. With ``every`` a pair: these
            and (K, n, *shape) on the CPU, the initial state, every k-th one and the last.

        Raises:
            ValueError: for bad input, before any work.
            CaptureError: where graph=True and the score function cannot be captured.
            SamplingError: where the network returns NaN or infinity.
            SamplingInterrupted: on Ctrl-C, with what is done.
        """
        self._check_network()
        device = self.device
        ids = noise_source.sample_ids(n, sample_ids)
        n = len(ids)
        full = (n, *self.shape)
        mask, known = inputs.mask_and_known(mask, known, full, device)
        if initial is not None:
            initial = inputs.states("initial", initial, full, device)
        if isinstance(guidance, Guidance):
            guidance.check(self.table[self.table.start_row(start_level) :], n, self.shape)
        score, precision, prepared = self._runs()
        chain = Chain(
            score=score,
            precision=precision,
            prepared=prepared,
            table=self.table.with_temperature(temperature),
            shape=self.shape,
            device=device,
            seed=0 if seed is None else noise_source.check_seed(seed),
            n=n,
            first_row=self.table.start_row(start_level),
            noise=noise,
            mask=mask,
            known=known,
            guidance=guidance,
            clip=inputs.clip(clip),
            every=None if every is None else checks.count("every", every),
            callback=callback,
            extra=extra or {},
            backend=backends.choose(self._backend, device),
        )
        chunk = self.chunk_size(n, batch_size)
        # Drawn when nothing can be refused any more: a refused call leaves torch's generator alone.
        if seed is None:
            chain = replace(chain, seed=noise_source.random_seed())
        self.seed = chain.seed
        _log.info("sampling %d samples with seed %d", n, self.seed)

        def start(part: slice, part_ids: Tensor) -> Tensor:
            if initial is not None:
                return initial[part]
            return self.start.states(chain.seed, part_ids, chain.first_row)

        with profiling.mark("sample"):
            x, trajectory = run_chunks(chain, ids, start, chunk, progress, self._graphs)
        return x if trajectory is None else (x, trajectory)

    def release(self) -> None:
        """Free what is kept between calls: captured graphs and the prepared copy of the network.

        The next call makes them again. Wanted also where the behaviour of a module has changed by
        anything but its tensors and numbers (its parameters, buffers and attributes).

        Raises:
            RuntimeError: while it is sampling.
        """
        if self._graphs is not None:
            self._graphs.release()
        self._prepared = None

    @property
    def device(self) -> torch.device:
        """Where it samples: as asked for, else where the network is now."""
        module = self.score.module
        if self._device is None and module is not None:
            for tensor in (*module.parameters(), *module.buffers()):
                return tensor.device
        # Made there, a tensor knows the index that "cuda" leaves open.
        return torch.empty(0, device=self._device).device

    def chunk_size(self, n: int, batch_size: int | str = "auto") -> int:
        """How many of n samples are computed at once; no result depends on it."""
        if batch_size == "auto":
            values = torch.Size(self.shape).numel()
            budget = _AUTO_ELEMENTS["cpu" if self.device.type == "cpu" else "cuda"]
            return min(n, max(1, budget // values))
        if isinstance(batch_size, str):
            raise ValueError(f"batch_size = {batch_size!r}: give 'auto' or a number of at least 1")
        return min(n, checks.count("batch_size", batch_size))

    def kept_sigmas(self, every: int) -> list[float]:
        """The noise level of each state in a whole trajectory; 0 after a last noiseless row."""
        checks.count("every", every)
        sigma = (*self.table.sigma, self.table.sigma[-1] if self.table.d[-1] else 0.0)
        return [sigma[row] for row in [*range(0, len(self.table), every), len(self.table)]]

    def _ladder(self, sigmas: Sequence[float] | Tensor | None) -> Tensor | None:
        """The noise levels that a method is laid over."""
        if sigmas is not None:
            return check_sigmas(sigmas)
        if self.score.sigmas is None and self.network is not None:
            return self.network.sigmas
        return self.score.sigmas

    def _runs(self) -> tuple[Score, str, bool]:
        """What is run, in which precision, and whether it is a prepared network.

        A network of this package runs as a prepared copy with the weights it has now; one that
        cannot be copied (it has hooks, say) runs itself where float32 will do.
        """
        net = self.network
        if net is None:
            return self.score, "fp32" if self._precision == "auto" else self._precision, False
        if self._precision in ("auto", "fp32") and prepare.obstacle(net) is not None:
            return self.score, "fp32", False
        if self._prepared is not None and self._prepared_on == self.device:
            self._prepared.refresh()
        else:  # on another device "auto" may be another precision
            self._prepared = prepare.prepare_for_inference(net, self._precision)
            self._prepared_on = self.device
        score = replace(self.score, fn=self._prepared.normalized)
        return score, self._prepared.precision, True

    def _check_network(self) -> None:
        """A sampler is for the noise levels it was made for, not those of weights loaded since."""
        if self.network is None or self._network_sigmas is None:
            return
        if not torch.equal(self.network.sigmas.cpu(), self._network_sigmas):
            raise ValueError(
                "the network's noise levels have changed since this sampler was made: make another"
            )


def sample(net: ScoreNetwork, n: int, **keywords: Any) -> Any:
    """Draw n images from a network of this package.

    Args:
        net: a network as nf.load_checkpoint returns it.
        n: how many images.
        keywords: those of :class:`Sampler` and of its call.

    Returns:
        (n, C, H, W) float32 in [0, 1] on the network's device; with ``every`` also the trajectory,
        (K, n, C, H, W) on the CPU.
    """
    if not isinstance(net, ScoreNetwork):
        raise ValueError(
            f"sample() takes a network of ncsn_fast, got {type(net).__name__}: for others there is "
            "nf.Sampler(score, shape, sigmas, ...)"
        )
    known = set(inspect.signature(Sampler.__init__).parameters) - {"self", "score", "settings"}
    known |= known_settings(keywords.get("method"))
    runtime = set(inspect.signature(Sampler.__call__).parameters) - {"self", "n"}
    unknown = sorted(set(keywords) - known - runtime)
    if unknown:
        raise TypeError(
            f"sample() got unknown settings {unknown}; known: {sorted(known | runtime)}"
        )
    sampler = Sampler(net, **{k: v for k, v in keywords.items() if k not in runtime})
    try:
        result = sampler(n, **{k: v for k, v in keywords.items() if k in runtime})
    except (SamplingError, SamplingInterrupted) as stop:
        stop.samples = to_images(net, stop.samples)
        raise
    if isinstance(result, tuple):
        return tuple(to_images(net, states) for states in result)
    return to_images(net, result)


def langevin(
    score: Callable[[Tensor], Tensor],
    x: Tensor,
    step_size: float,
    steps: int,
    *,
    seed: int | None = None,
    first_step: int = 0,
) -> Tensor:
    """Plain Langevin dynamics x ← x + α·score(x) + √(2α)·z, ``steps`` times.

    Args:
        score: x (N, *shape) → ∇ log p(x), the same shape.
        x: (N, *shape) float32, where the N chains start.
        step_size: α > 0.
        steps: how many.
        seed: in [0, 2⁶⁴); None draws one from torch's default generator.
        first_step: number of steps made before, so that two calls equal one long one.

    Returns:
        (N, *shape) float32.
    """
    if x.ndim < 2:
        raise ValueError(f"x has shape {tuple(x.shape)}: give (N, *shape), N chains")
    x = inputs.states("x", x, tuple(x.shape), x.device)
    if not 0 <= first_step < 1 << 31:
        raise ValueError(f"first_step = {first_step}: steps count from 0 to 2³¹ - 1")
    chain = Chain(
        score=Score(score, "score", "none"),
        table=langevin_table(step_size, steps),
        shape=tuple(x.shape[1:]),
        device=x.device,
        seed=noise_source.chosen_seed(seed),
        n=len(x),
        first_step=first_step,
        backend=backends.choose("auto", x.device),
    )
    _log.info("Langevin dynamics of %d chains with seed %d", len(x), chain.seed)
    with evaluating(chain.score.module):
        return loop.run(chain, x, torch.arange(len(x), device=x.device))


__all__ = ["Sampler", "langevin", "sample"]
