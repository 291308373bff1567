"""One row of a table for the samples of a chunk: the network, what the caller adds, the update."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from ncsn_fast import noise, ops
from ncsn_fast.device import profiling
from ncsn_fast.guidance.base import NetworkGuidance
from ncsn_fast.guidance.noise_level import excess, held
from ncsn_fast.guidance.norm_adaptive import NormAdaptive
from ncsn_fast.noise import Word
from ncsn_fast.reference import StepResult, per_sample
from ncsn_fast.sampling.chain import Callback, Chain, Chunk
from ncsn_fast.support import checks

_MOST_AHEAD, _AHEAD_VALUES = 64, 1 << 18

T = TypeVar("T")
Number = float | Tensor
Backward = Callable[[Tensor], Tensor]


class Row(NamedTuple):
    """What one row runs with: numbers of the host or, in a captured step, of the device."""

    row: int | Tensor
    coefficients: Tensor  # (9,) float32, reference.ROW
    condition: Tensor | None  # (B,) or (), what the network is told
    seed: Word
    step: Word
    clip: Number | None
    sigma: Number
    p: Number  # n = p·x + q·output
    q: Number
    c_in: Number  # the network's input is c_in·x
    w: Number  # the factor on what guidance adds


class Step:
    """Takes the samples of a chunk down a row.

    Nothing in it waits for the device or depends on its data, so that it can be captured.
    """

    def __init__(self, chain: Chain, chunk: Chunk) -> None:
        self._chain, self._chunk = chain, chunk

    def __call__(
        self, row: Row, state: StepResult, z: Tensor | None = None, out: StepResult | None = None
    ) -> tuple[StepResult, Tensor]:
        """One row.

        Args:
            row: its numbers.
            state: before it.
            z: (B, *shape), noise that is made already.
            out: the tensors to write, those of ``state`` if need be; default: new ones.

        Returns:
            The new state and what entered for n (B, *shape): the normalised score where the chain
            is explicit, else the network's output.
        """
        chain, chunk = self._chain, self._chunk
        with profiling.mark("network"):
            n, back = self._network(row, state.network_input)
        guidance, x, full = None, state.x, n
        if chain.explicit:
            n = full = self._normalized(row, x, n)
            level = excess(x, n, row.sigma, chunk.mask) if chain.holds_noise else None
            n = self._clipped(row, n)
            if level is not None:
                x = held(x, n, level, chunk.mask)
            guidance = self._drift(row, x, n, back)
        entering = n
        if guidance is not None and chain.table.remembers_score:
            # The history has to have the guidance in it: n of a score that it is added to.
            entering, guidance = n + row.sigma * guidance, None
        if isinstance(chain.guidance, NormAdaptive):
            entering, z = self._adapted(chain.guidance, row, full, n, z)
        with profiling.mark("update"):
            new = ops.sampler_update(
                x,
                entering,
                row.coefficients,
                seed=row.seed,
                step=row.step,
                sample_ids=chunk.ids,
                add_noise=chain.adds_noise,
                z=z,
                history=state.history,
                guidance=guidance,
                mask=chunk.mask,
                known=chunk.known,
                scale_input=chain.scales_input,
                out=out,
                backend=chain.backend,
            )
        return new, n

    def _network(self, row: Row, seen: Tensor) -> tuple[Tensor, Backward | None]:
        """The network's output, and v ↦ (∂output/∂input)ᵀv where guidance wants it."""
        chain, chunk = self._chain, self._chunk

        def output(seen: Tensor, condition: Tensor | None, extra: dict[str, Any]) -> Tensor:
            call = partial(chain.score, seen, condition, **extra)
            return _harmless("the network", call, seen)

        if not chain.differentiates:
            return output(seen, row.condition, chunk.extra), None
        with torch.inference_mode(False), torch.enable_grad():
            leaf = _saved(seen).detach().requires_grad_()
            extra = {name: _saved(value) for name, value in chunk.extra.items()}
            # A copy, so that who writes into it is told as elsewhere.
            found = output(leaf.clone(), _saved(row.condition), extra)

        def back(v: Tensor) -> Tensor:
            pulled = None
            if found.requires_grad:
                how: dict[str, bool] = {"retain_graph": True, "allow_unused": True}
                (pulled,) = torch.autograd.grad(found, leaf, v.to(found.dtype), **how)
            if pulled is None:
                raise ValueError(
                    "guidance goes through the network, but its output has no derivative: it runs "
                    "under torch.no_grad(), or detaches"
                )
            return pulled.float()

        return found.detach(), back

    def _normalized(self, row: Row, x: Tensor, output: Tensor) -> Tensor:
        """The normalised score from the network's output."""
        n = row.q * output.float()
        if self._chain.state_enters:  # elsewhere 0·∞ would be NaN
            n = n + row.p * x
        return n

    def _clipped(self, row: Row, n: Tensor) -> Tensor:
        """The normalised score no longer than the caller wants the score to be."""
        if row.clip is None:
            return n
        # ‖s‖ = ‖n‖/σ. Products only: a GPU divides by a number of the host and by one of its own
        # differently. A norm of 0 gives inf, which the clamp ends.
        norm = n.flatten(1).norm(dim=1)
        factor = (norm.reciprocal() * (row.clip * row.sigma)).clamp(max=1.0)
        return n * per_sample(factor, n)

    def _drift(self, row: Row, x: Tensor, n: Tensor, back: Backward | None) -> Tensor | None:
        """What the caller's guidance adds."""
        guidance, given = self._chain.guidance, self._chunk.guiding
        if guidance is None or isinstance(guidance, NormAdaptive):
            return None
        call = partial(guidance, x, n, row.sigma, row.row, **given)
        if isinstance(guidance, NetworkGuidance):

            def pull(v: Tensor) -> Tensor:
                if back is None:
                    raise ValueError(
                        f"{type(guidance).__name__} says that it needs no derivative of the "
                        "network (differentiates=False), and asks for it"
                    )
                return row.p * v + back(v) * (row.q * row.c_in)

            call = partial(guidance.drift, x, n, row.sigma, row.w, pull, **given)
        drift = _harmless("guidance()", call, x, n)
        return checks.same_shape("guidance()", drift, x.shape, x).to(x.dtype)

    def _adapted(
        self, guidance: NormAdaptive, row: Row, full: Tensor, n: Tensor, z: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """The score and the noise that enter, of a row whose step goes by their norms.

        It goes by that of the whole score: of a clipped one, n, the step would be the longer.
        """
        chain, chunk = self._chain, self._chunk
        # Counted in the guidance's own table: the sampler's may have other rows before the first.
        own = row.row + (len(guidance.rows) - len(chain.table))
        if not isinstance(own, Tensor) and not guidance.rows[own]:
            return n, z
        if z is None:
            key: dict[str, Any] = {"seed": row.seed, "sample_ids": chunk.ids, "step": row.step}
            z = noise.normal(chain.shape, stream=noise.SAMPLER, **key)
        ratio = guidance.ratio(full, z, own, **chunk.guiding)
        return ratio.square() * n, ratio * z


class EagerStep:
    """A step that the host drives, with its own numbers and the noise that is made beforehand."""

    def __init__(self, chain: Chain, chunk: Chunk) -> None:
        self._chain = chain
        self._step = Step(chain, chunk)
        self._noise = _NoiseBefore(chain, chunk)
        self._numbers: list[list[float]] = chain.numbers.tolist()
        steps = range(chain.first_step, chain.first_step + len(chain.table))
        self._seed: Word = chain.seed
        self._steps: Sequence[int] | Tensor = steps
        if chain.backend != "torch":  # kernels read them in device memory
            self._seed = noise.seed_tensor(chain.seed, chain.device)
            self._steps = torch.arange(steps.start, steps.stop, device=chain.device)

    def run(self, index: int, state: StepResult, callback: Callback | None = None) -> StepResult:
        """The state after row ``index``."""
        with profiling.mark("step"):
            new, n = self._step(self._row(index), state, self._noise.of(index))
        if callback is not None:
            call_back(callback, index, state.x, n)
        return new

    def _row(self, index: int) -> Row:
        chain = self._chain
        condition = None if chain.conditions is None else chain.conditions[index]
        told = (index, chain.rows[index], condition, self._seed, self._steps[index])
        return Row(*told, chain.clip, *self._numbers[index])


class _NoiseBefore:
    """The noise of a row where it is made before the update: the caller's, or many rows' at once.

    Making noise is a hundred small operations whatever its size: for a thousand points that is
    more than the network. Where samples are small it is made for many rows at a time; large states
    are left to the update.
    """

    def __init__(self, chain: Chain, chunk: Chunk) -> None:
        self._chain, self._chunk = chain, chunk
        values = len(chunk.ids) * math.prod(chain.shape)
        ahead = chain.backend == "torch" and chain.adds_noise
        self._count = min(_MOST_AHEAD, _AHEAD_VALUES // max(1, values)) if ahead else 0
        self._first, self._made = 0, torch.empty(0, device=chain.device)

    def of(self, row: int) -> Tensor | None:
        """(B, *shape), or None where the update makes it, or adds none."""
        chain = self._chain
        if chain.noise is None:
            return self._ahead(row) if self._count > 1 else None
        if chain.table.d[row] == 0:
            return None
        z = chain.noise(row)
        checks.same_shape("noise()", z, (chain.n, *chain.shape), z)
        return z[self._chunk.part].to(chain.device, torch.float32)

    def _ahead(self, row: int) -> Tensor:
        if not self._first <= row < self._first + len(self._made):
            chain, ids = self._chain, self._chunk.ids
            step = chain.first_step + row
            steps = min(self._count, len(chain.table) - row)
            self._first = row
            self._made = noise.normal(
                chain.shape,
                seed=chain.seed,
                stream=noise.SAMPLER,
                sample_ids=ids,
                step=torch.arange(step, step + steps, device=ids.device),
                backend="torch",  # as the update itself would make it
            )
        return self._made[row - self._first]


def _saved(value: Any) -> Any:
    """A tensor that a derivative may be made of: one of inference mode cannot be saved for it."""
    return value.clone() if isinstance(value, Tensor) and value.is_inference() else value


def call_back(callback: Callback, row: int, x: Tensor, n: Tensor) -> None:
    """Tell the caller of a row: the states x before it and the normalised score n, (B, *shape)."""
    _harmless("callback()", lambda: callback(row, x, n), x)


def _harmless(name: str, call: Callable[[], T], *tensors: Tensor) -> T:
    """What the caller's function returns, provided it has not written into the chain's tensors."""
    # Tensors of inference mode have no version to tell by.
    watched = [tensor for tensor in tensors if not tensor.is_inference()]
    before = [tensor._version for tensor in watched]
    result = call()
    if [tensor._version for tensor in watched] != before:
        raise ValueError(
            f"{name} writes into its input (an in-place operation): sampling needs the state as "
            "it was, so let it work on a copy"
        )
    return result


__all__ = ["EagerStep", "Number", "Row", "Step", "call_back"]
