"""The engine: runs a sampler's table on a score network.

``Sampler`` is built once for a network and a method and called for samples; ``sample`` is the same
for one of our networks in one line. Sample i of a seed sees the same noise whatever it is computed
together with, so the batch is cut into chunks freely.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor

from ncsn_fast import noise as noise_source
from ncsn_fast.device import backends, profiling
from ncsn_fast.device import precision as precisions
from ncsn_fast.device.environment import usable
from ncsn_fast.guidance.base import Guidance, NetworkGuidance
from ncsn_fast.guidance.noise_level import holds_noise
from ncsn_fast.inference.adopted import taken_over
from ncsn_fast.inference.prepare import unprepared
from ncsn_fast.inference.runner import Runner
from ncsn_fast.methods.by_name import ANNEALED_LANGEVIN, known_settings, make_table, starts_uniform
from ncsn_fast.methods.levels import check_sigmas
from ncsn_fast.models.base import ScoreNetwork, own_network
from ncsn_fast.models.further_inputs import further_inputs
from ncsn_fast.models.score import Score, as_score
from ncsn_fast.models.space import to_images
from ncsn_fast.sampling import chunks, inputs
from ncsn_fast.sampling.chain import Callback, Chain, Drift, Noise
from ncsn_fast.sampling.divergence import SamplingError
from ncsn_fast.sampling.graph_cache import Graphs
from ncsn_fast.sampling.start import Start
from ncsn_fast.support import checks, per_sample
from ncsn_fast.support.progress import ProgressWish
from ncsn_fast.table import Table

if TYPE_CHECKING:
    from typing_extensions import Unpack

_log = logging.getLogger("ncsn_fast")


class Sampler:
    """A method on a score network.

    Args:
        score: one of our networks, an official one, a callable score(x, labels), or an nf.Score.
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
        spacing: which noise levels so many steps visit: "auto" (the default; an even subset of
            the network's own where these are geometric), "ladder", "geometric", "karras", "linear".
        hold_noise: whether states, which say how much noise they have, are held at each row's level
            (docs/few_steps.md). Default: of networks not told σ, by euler, heun and dpmpp_2m.
        settings: others of the method (rho, snr, predictor, those of a function of your own). What
            is not given comes from the network's checkpoint (``net.sampling``) as far as that is of
            the same method, then from its function in ``methods/tables.py``, which describes it.
        precision: what the network computes in, "fp32", "tf32", "fp16" or "bf16"; the state is
            float32 throughout. "auto" is fp32 for networks of others; for those of this package
            fp16 on a GPU, and on a CPU bf16 or fp32, which is faster there being measured.
        prepare, adopt: whether networks are prepared (:func:`nf.prepare_for_inference`: ours as a
            copy, others in fp32 on a CPU on packed weights), and official ones taken over as ours,
            with our defaults: hold_noise, precision, where chains begin (docs/cpu.md).
        backend: "auto", "torch", "triton" or "cpp" (:func:`nf.use_backend`).
        graph: "auto" captures a step as a CUDA graph and replays it, where there is a GPU and the
            score function can be captured; True refuses where it cannot; False runs eagerly: bit
            for bit the same, where kernels are deterministic. A capture runs host code once only.
        device: where to sample; default: the network's device.

    Attributes:
        table, hold_noise: the rows that will be run; whether states are held at their levels.
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
        hold_noise: bool | None = None,
        precision: str = "auto",
        prepare: bool = True,
        adopt: bool = True,
        backend: str = "auto",
        graph: str | bool = "auto",
        device: torch.device | str | None = None,
        **settings: object,
    ) -> None:
        checks.untransformed("a Sampler is made")
        score, precision = unprepared(taken_over(score, sigmas, adopt), precision)
        self.network = own_network(score)
        self.score = as_score(score, sigmas)
        shape = self.network.shape if shape is None and self.network else shape
        self.shape = checks.sample_shape(shape)
        defaults = getattr(self.network, "sampling", None) or {}
        method = method if method is not None else defaults.get("method", ANNEALED_LANGEVIN)
        settings.update(step_size=step_size, steps_per_level=steps_per_level, denoise=denoise)
        settings.update(steps=steps, spacing=spacing)
        ladder = self.score.sigmas if sigmas is None else check_sigmas(sigmas)
        self.table = make_table(method, ladder, settings, defaults, self.score.only_levels)
        self.hold_noise = holds_noise(hold_noise, self.score, self.table)
        self._start = Start(self.table, self.shape, self.network, starts_uniform(method))
        if adopt:
            self._start.tell(self.hold_noise and hold_noise is None)
        if device is None and isinstance(sigmas, Tensor) and sigmas.device.type != "cpu":
            device = sigmas.device
        self._device = None if device is None else usable(device)
        precisions.check_precision(precision, self.device, auto=True)
        self._runner = Runner(self.score, self.network, precision, prepare)
        self._graphs = Graphs.wished(graph, self.device)
        self._fits: dict[bool, int] = {}
        self._backend = backend
        backends.resolve(backend, self.device)
        # Refuse a network that cannot be told the levels of this table now, not in the loop.
        self.score.conditions(self.table, "cpu")
        self.seed: int | None = None

    @overload
    def __call__(self, n: int, *, every: None = None, **call: Unpack[inputs.Call]) -> Tensor: ...

    @overload
    def __call__(
        self, n: int, *, every: int, **call: Unpack[inputs.Call]
    ) -> tuple[Tensor, Tensor]: ...

    def __call__(
        self,
        n: int,
        *,
        seed: int | None = None,
        sample_ids: Iterable[int] | None = None,
        initial: Tensor | None = None,
        start_level: int = 0,
        noise: Noise | None = None,
        mask: Tensor | None = None,
        known: Tensor | None = None,
        guidance: Drift | None = None,
        clip: float | None = None,
        temperature: float = 1.0,
        every: int | None = None,
        callback: Callback | None = None,
        extra: Mapping[str, object] | None = None,
        shared: Mapping[str, object] | None = None,
        batch_size: int | str = "auto",
        progress: ProgressWish = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Draw n samples.

        Args:
            n: how many, at least 1.
            seed: in [0, 2⁶⁴); None draws one from torch's default generator (see ``self.seed``).
            sample_ids: n distinct ids in [0, 2⁴⁸); default 0 … n-1. Sample i of a seed is the same
                in every batch.
            initial: (n, *shape) states at the first row, used as given. Default: U[0, 1) for
                annealed Langevin dynamics, U[0, 1) + σ₁z for other tables (:meth:`first_noise`).
            start_level: first noise level to run, as an index into the ladder; the default
                initial state is then that of this level. It has to be one that the table visits in
                a row that needs no history; "dpmpp_2m" begins anywhere, with its first order.
            noise: row → (n, *shape) tensor in place of the engine's noise, by the row alone: every
                chunk asks for its rows again. Such a chain runs eagerly.
            mask, known: where the mask is 1 the state is held at ``known`` (model space), noised to
                each row's level, exact at the end; tensors, arrays that broadcast to (n, *shape).
            guidance: (x, n, σ, row) → drift g, which acts like a term added to the score: it is
                multiplied by the step size, α_i = ε(σ_i/σ_L)² in annealed Langevin dynamics. In a
                captured chain σ and row are tensors () on the device (float64, int64) and what it
                computes on the host is frozen; a function that decides by them wants graph=False.
            clip: largest norm of the score, per sample, > 0.
            temperature: factor on the noise's variance, ≥ 0; 1 without noise. 1 alone is held.
            every: keep every k-th state, k ≥ 1, in host memory; they are then returned too.
            callback: called as (row, x, n) after every row with the state before the update and the
                normalised score there, per chunk, and on the host even where the chain is captured.
                On a GPU the last chunk may have samples of the one before.
            extra: further keyword inputs of the network, one per sample: tensors and arrays (n, …),
                lists and tuples of length n, cut as the batch is; of length 1, and all else: all's.
            shared: further keyword inputs that all samples get as they are, of any length.
            batch_size: samples per chunk, at least 1, "auto", or "all": never cut, but refused by a
                RuntimeError where they do not fit in memory. On a GPU the last bits of a sample
                depend on it, or on n where that is fewer, and on nothing else of the batch.
            progress: True for a bar, or a function (rows done, rows in all).

        Returns:
            (n, *shape) float32 states in model space, not clamped. With ``every`` a pair: these
            and (K, n, *shape) float32 on the CPU, the initial state, every k-th one and the last.

        Raises:
            ValueError: for bad input, before any work.
            CaptureError: where graph=True and the score function cannot be captured.
            SamplingError: where the network returns NaN or infinity.
            SamplingInterrupted: on Ctrl-C, with what is done.
        """
        checks.untransformed("a Sampler is called")
        device = self.device
        first_row, table = self.table.begun(start_level)
        n = checks.count("n", n)
        every = None if every is None else checks.count("every", every)
        chunks.check_memory(n, self.shape, device, len(self.table) - first_row, every)
        ids = noise_source.sample_ids(n, sample_ids)
        full = (len(ids), *self.shape)
        inputs.functions(noise=noise, callback=callback)
        mask, known = inputs.mask_and_known(mask, known, full, device)
        if initial is not None:
            initial = inputs.states("initial", initial, full, device)
        inputs.check_guidance(guidance)
        if isinstance(guidance, Guidance):
            guidance.check(table[first_row:], len(ids), self.shape)
            per_sample.check("guidance.inputs", guidance.inputs, len(ids))
        extra, shared = further_inputs(self.network, extra, shared, len(ids))
        table = table.with_temperature(temperature := checks.number("temperature", temperature))
        size = self.chunk_size(len(ids), batch_size)
        through = isinstance(guidance, NetworkGuidance) and guidance.differentiates
        with profiling.mark("sample"), self._runner.running(device, through) as running:
            chain = Chain(
                score=running.score.sharing(shared),
                precision=running.precision,
                prepared=running.prepared,
                whole=batch_size == chunks.ALL,
                table=table,
                shape=self.shape,
                device=device,
                n=len(ids),
                first_row=first_row,
                noise=noise,
                mask=mask,
                known=known,
                guidance=guidance,
                clip=inputs.clip(clip),
                holds_noise=self.hold_noise and temperature == 1,
                every=every,
                callback=callback,
                extra=extra,
                shared=shared,
                backend=backends.choose(self._backend, device),
                # Last: a call that is refused leaves torch's generator alone.
                seed=noise_source.chosen_seed(seed),
            )
            self.seed = chain.seed
            _log.info("sampling %d samples with seed %d", len(ids), chain.seed)

            def begin(part: slice, part_ids: Tensor) -> Tensor:
                x = None if initial is None else initial[part]
                return self.first_states(chain.seed, part_ids, first_row) if x is None else x

            x, trajectory = chunks.run(chain, ids, begin, size, progress, self._graphs, self._fits)
        return x if trajectory is None else (x, trajectory)

    def first_states(self, seed: int, ids: Tensor, row: int = 0) -> Tensor:
        """Default states before a row: (B, *shape) float32 in model space, where ``ids`` are."""
        return self._start.states(seed, ids, row)

    def first_noise(self, seed: int, ids: Tensor) -> Tensor:
        """The z of the states x + σz that chains begin in: (B, *shape) float32 for ids (B,)."""
        return self._start.noise(seed, ids)

    def release(self) -> None:
        """Free what is kept between calls: captured graphs, the prepared copy of the network, and
        how many samples fitted in memory. The next call makes them again. What is kept follows a
        module's parameters, buffers, attributes; where more changes what it computes, call this.

        Raises:
            RuntimeError: while it is sampling.
        """
        if self._graphs is not None:
            self._graphs.release()
        self._runner.release()
        self._fits.clear()

    @property
    def device(self) -> torch.device:
        """Where it samples: as asked for, else where the network is now."""
        module = self.score.module
        if self._device is None and module is not None:
            for tensor in itertools.chain(module.parameters(), module.buffers()):
                return tensor.device
        return usable(self._device)

    @property
    def precision(self) -> str:
        """What the network computes in, "auto" resolved; raises what a call does."""
        return self._runner.precision(self.device)

    @property
    def convolutions(self) -> str:
        """The forms that the network's convolutions run in: "direct", or, on a CPU, how many are
        filtered in which tiles, and a digest that changes where any of them does."""
        return self._runner.forms(self.device, self.shape)

    def chunk_size(self, n: int, batch_size: int | str = "auto") -> int:
        """How many of n samples are computed at once, for a call's ``batch_size``."""
        return chunks.size_of_chunks(n, batch_size, self.shape, self.device)

    def kept_sigmas(self, every: int) -> list[float]:
        """The noise levels of the states that ``every`` keeps; 0 after a last noiseless row."""
        checks.count("every", every)
        sigma = (*self.table.sigma, self.table.sigma[-1] if self.table.d[-1] else 0.0)
        return [sigma[row] for row in [*range(0, len(self.table), every), len(self.table)]]


@overload
def sample(net: ScoreNetwork | Score, n: int, *, every: None = None, **keywords: Any) -> Tensor: ...


@overload
def sample(
    net: ScoreNetwork | Score, n: int, *, every: int, **keywords: Any
) -> tuple[Tensor, Tensor]: ...


def sample(
    net: ScoreNetwork | Score,
    n: int,
    *,
    shape: Sequence[int] | None = None,
    sigmas: Sequence[float] | Tensor | None = None,
    method: str | Table | Callable[..., Table] | None = None,
    step_size: float | None = None,
    steps_per_level: int | None = None,
    denoise: bool | None = None,
    steps: int | None = None,
    spacing: str | None = None,
    hold_noise: bool | None = None,
    precision: str = "auto",
    prepare: bool = True,
    adopt: bool = True,
    backend: str = "auto",
    graph: str | bool = "auto",
    device: torch.device | str | None = None,
    seed: int | None = None,
    sample_ids: Iterable[int] | None = None,
    initial: Tensor | None = None,
    start_level: int = 0,
    noise: Noise | None = None,
    mask: Tensor | None = None,
    known: Tensor | None = None,
    guidance: Drift | None = None,
    clip: float | None = None,
    temperature: float = 1.0,
    every: int | None = None,
    callback: Callback | None = None,
    extra: Mapping[str, object] | None = None,
    shared: Mapping[str, object] | None = None,
    batch_size: int | str = "auto",
    progress: ProgressWish = None,
    **settings: object,
) -> Tensor | tuple[Tensor, Tensor]:
    """Draw n images from a network of this package.

    Args:
        net: a network as nf.load_checkpoint returns it, or :func:`nf.guided` of one.
        n: how many images, at least 1.
        shape, sigmas, method, step_size, steps_per_level, denoise: as for :class:`Sampler`.
        steps, spacing, hold_noise, precision, prepare, adopt, backend, graph, device: likewise.
        seed, sample_ids: in [0, 2⁶⁴), by default drawn; n distinct ids, by default 0 … n-1.
        initial, start_level: states (n, C, H, W) to begin in, and the noise level to begin at.
        noise: row → (n, C, H, W), in the place of the engine's.
        mask, known: 0 and 1, and the states held where it is 1; both broadcast to (n, C, H, W).
        guidance: (x, n, σ, row) → drift (B, C, H, W), added to the score.
        clip, temperature: largest norm of the score, > 0; factor on the noise's variance, ≥ 0.
        every, callback: as for a Sampler's call; all states so far are in model space.
        extra, shared: further inputs of the network, one per image, and those of all images.
        batch_size, progress: images at once, "auto", "all"; True for a bar, or f(done, total).
        settings: others of the method, or of a function of your own.

    Returns:
        (n, C, H, W) float32 in [0, 1] on the network's device. With ``every`` a pair: these and
        the trajectory, (K, n, C, H, W) float32 in [0, 1] on the CPU. Of a network of points in
        the plane the states themselves, (n, 2).

    Raises:
        ValueError: for a network of others, and settings that are missing or out of range.
        TypeError: for a setting that no method knows; the message names them.
        CaptureError, SamplingError, SamplingInterrupted: as of :class:`Sampler`, with images.
    """
    if (own := own_network(net)) is None:
        told = f"sample() takes a network of ncsn_fast, got {type(net).__name__}"
        raise ValueError(f"{told}: for others there is nf.Sampler(score, shape, sigmas, ...)")
    methods = known_settings(method)
    if unknown := sorted(settings.keys() - methods):
        known_ones = sorted(methods.union(sample.__kwdefaults__ or ()))
        raise TypeError(f"sample() got unknown settings {unknown}; known: {known_ones}")
    sampler = Sampler(
        net,
        shape,
        sigmas,
        method,
        step_size=step_size,
        steps_per_level=steps_per_level,
        denoise=denoise,
        steps=steps,
        spacing=spacing,
        hold_noise=hold_noise,
        precision=precision,
        prepare=prepare,
        adopt=adopt,
        backend=backend,
        graph=graph,
        device=device,
        **settings,
    )
    call: inputs.Call = {
        "seed": seed,
        "sample_ids": sample_ids,
        "initial": initial,
        "start_level": start_level,
        "noise": noise,
        "mask": mask,
        "known": known,
        "guidance": guidance,
        "clip": clip,
        "temperature": temperature,
        "callback": callback,
        "extra": extra,
        "shared": shared,
        "batch_size": batch_size,
        "progress": progress,
    }
    try:
        result = sampler(n, every=every, **call)
    except (SamplingError, chunks.SamplingInterrupted) as stop:
        stop.samples = to_images(own, stop.samples)
        raise
    if isinstance(result, Tensor):
        return to_images(own, result)
    for states in result[1]:  # in place: a trajectory is as large as it may be
        states.copy_(to_images(own, states))
    return to_images(own, result[0]), result[1]


__all__ = ["Sampler", "sample"]
