"""The loop: one chunk of samples taken down the table, row by row or by replays of a graph.

``langevin`` is plain Langevin dynamics, the chain that needs no more than that.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from ncsn_fast import noise
from ncsn_fast.device import backends, precision, profiling
from ncsn_fast.methods.tables import langevin as langevin_rows
from ncsn_fast.models.base import evaluating
from ncsn_fast.models.score import Score
from ncsn_fast.reference import StepResult
from ncsn_fast.sampling import inputs
from ncsn_fast.sampling.captured import CapturedLoop
from ncsn_fast.sampling.chain import Chain, Chunk
from ncsn_fast.sampling.divergence import Finite, explanation
from ncsn_fast.sampling.graph_cache import Graphs
from ncsn_fast.sampling.start import first_state
from ncsn_fast.sampling.step import EagerStep
from ncsn_fast.support import checks
from ncsn_fast.support.progress import Progress

_log = logging.getLogger("ncsn_fast")

# A state is looked at for NaN once in so many rows. Where one is found the rows since the last good
# look are run again to find the culprit, which is exact because noise is a function of the row.
_LOOK_EVERY = 32


class EagerLoop:
    """Runs rows one after the other, driven by the host."""

    def __init__(self, chain: Chain, state: StepResult, chunk: Chunk) -> None:
        self.state = state
        self._step = EagerStep(chain, chunk)
        self._callback, self._samples = chain.callback, len(chunk.ids)

    def run(self, first: int, last: int, progress: Progress | None) -> None:
        """Take the state from before row ``first`` to before row ``last``."""
        for row in range(first, last):
            self.state = self._step.run(row, self.state, self._callback)
            if progress is not None:
                progress.advance(self._samples)


@torch.no_grad()
@profiling.mark("chunk")
def run(
    chain: Chain,
    x: Tensor,
    ids: Tensor,
    part: slice = slice(None),
    *,
    progress: Progress | None = None,
    trajectory: Tensor | None = None,
    graphs: Graphs | None = None,
) -> Tensor:
    """Take the states x (B, *shape) of these samples through all rows.

    Args:
        x: float32, on the chain's device.
        ids: (B,) int64, likewise.
        part: which samples of the whole batch these are, for inputs given per sample.
        trajectory: (K, B, *shape), filled with the states before the rows of ``kept_rows``; page-
            locked if the chain runs on a GPU, so that nothing waits for the copies.
        graphs: captured loops to use; None runs eagerly.

    Returns:
        (B, *shape) float32, the states after the last row.

    Raises:
        SamplingError: where a state is no longer finite.
    """
    chunk = chain.chunk(ids, part)
    computes = precision.arithmetic(chain.precision, chain.device, own_casts=chain.prepared)
    with computes, precision.repeatable(chain.device):
        state = first_state(chain, chunk, x)
        if graphs is None:
            return _down(chain, EagerLoop(chain, state, chunk), chunk, progress, trajectory)
        with graphs.loop(chain, state, chunk) as captured:
            loop = captured or EagerLoop(chain, state, chunk)
            return _down(chain, loop, chunk, progress, trajectory)


def _down(
    chain: Chain,
    loop: EagerLoop | CapturedLoop,
    chunk: Chunk,
    progress: Progress | None,
    trajectory: Tensor | None,
) -> Tensor:
    kept = {row: i for i, row in enumerate(chain.kept_rows())}
    looks = {*range(chain.first_row, len(chain.table), _LOOK_EVERY), len(chain.table)}
    finite = Finite(loop.state, chain.first_row)
    for first, last in pairwise(sorted(looks | kept.keys())):
        if trajectory is not None and first in kept:
            trajectory[kept[first]].copy_(loop.state.x, non_blocking=True)
        loop.run(first, last, progress)
        if last in looks and not finite.look(loop.state, last):
            break
    if trajectory is not None:
        trajectory[-1].copy_(loop.state.x, non_blocking=True)
    # A captured loop writes its own state again at its next use, on another stream perhaps: it is
    # read before the host waits for the last look.
    result = loop.state.x.clone() if isinstance(loop, CapturedLoop) else loop.state.x
    failure = finite.failure()
    if failure is None:
        return result
    row, x, history = failure
    last = min(row + _LOOK_EVERY, len(chain.table))
    raise explanation(chain, chunk, chain.state(x, history, row), row, last)


def langevin(
    score: Score | Callable[[Tensor], Tensor],
    x: Tensor,
    step_size: float,
    steps: int,
    *,
    seed: int | None = None,
    first_step: int = 0,
) -> Tensor:
    """Plain Langevin dynamics x ← x + α·score(x) + √(2α)·z (Song & Ermon 2019, equation 4).

    Args:
        score: x (N, *shape) → ∇ log p(x), the same shape; or a Score that is told nothing.
        x: (N, *shape) float32, where the N chains start.
        step_size: α > 0.
        steps: how many, at least 1.
        seed: in [0, 2⁶⁴); None draws one from torch's default generator.
        first_step: number of steps made before, in [0, 2³¹), so that two calls equal one long one.

    Returns:
        (N, *shape) float32.

    Raises:
        ValueError: for x of another kind or with values that are not finite, and for numbers out of
            range.
        SamplingError: where the chains leave the finite numbers.
    """
    told = isinstance(score, Score) and (score.kind, score.condition) != ("score", "none")
    if not callable(score) or told:
        raise ValueError(f"score = {score!r:.80}: give a function x → ∇ log p(x)")
    given = checks.from_numpy("x", x, torch.device("cpu"))
    if not isinstance(given, Tensor):
        raise ValueError(f"x is {type(x).__name__}: give a tensor (N, *shape), N chains")
    if given.ndim < 2 or not given.numel():
        raise ValueError(f"x has shape {tuple(given.shape)}: give (N, *shape), N chains")
    x = inputs.states("x", given, tuple(given.shape), given.device)
    first_step = checks.count("first_step", first_step, 0, (1 << 31) - 1)
    chain = Chain(
        score=score if isinstance(score, Score) else Score(score, "score", "none"),
        table=langevin_rows(step_size, steps),
        shape=tuple(x.shape[1:]),
        device=x.device,
        seed=noise.chosen_seed(seed),
        n=len(x),
        first_step=first_step,
        backend=backends.choose("auto", x.device),
    )
    _log.info("Langevin dynamics of %d chains with seed %d", len(x), chain.seed)
    with evaluating(chain.score.module):
        return run(chain, x, torch.arange(len(x), device=x.device))


__all__ = ["EagerLoop", "langevin", "run"]
