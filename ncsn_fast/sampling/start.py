"""Where chains begin: the default states, and a given state as the first row wants it."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ncsn_fast import noise
from ncsn_fast.inference.adopted import original
from ncsn_fast.models.base import ScoreNetwork
from ncsn_fast.models.space import Space
from ncsn_fast.reference import StepResult, per_sample
from ncsn_fast.sampling.chain import Chain, Chunk
from ncsn_fast.table import Table

_log = logging.getLogger("ncsn_fast")


@dataclass(frozen=True, eq=False)
class Start:
    """Where the samples of a seed begin if the caller does not say.

    Attributes:
        table: the rows that are run.
        shape: of one sample.
        network: where it is one of ours, whose space the states are in.
        uniform: whether they begin in U[0, 1) alone, as annealed Langevin dynamics does.
    """

    table: Table
    shape: tuple[int, ...]
    network: ScoreNetwork | None
    uniform: bool

    def states(self, seed: int, ids: Tensor, row: int = 0) -> Tensor:
        """The states before a row, (len(ids), *shape) float32 on the device of ``ids``."""
        x = noise.uniform(self.shape, seed=seed, stream=noise.INITIAL, sample_ids=ids)
        if self.network is not None:
            x = Space.of(self.network).enter(x)
        if not self.uniform:
            x = x + self.table.sigma[row] * self.noise(seed, ids)
        return x

    def noise(self, seed: int, ids: Tensor) -> Tensor:
        """The standard normal z of states x + σz, (len(ids), *shape) float32.

        For a network that does not see σ and a method that adds no noise, z has the length √D it
        has on average: such a network takes away noise of that length, and nothing on the way would
        make up for the rest, about σ/√2.
        """
        z = noise.normal(self.shape, seed=seed, stream=noise.INITIAL, sample_ids=ids, step=1)
        if self._of_one_length:
            length = per_sample(z.flatten(1).norm(dim=1), z)
            z = z * (math.sqrt(math.prod(self.shape)) / length)
        return z

    @property
    def _of_one_length(self) -> bool:
        blind = self.network is not None and not self.network.sees_sigma
        return blind and not self.table.adds_noise

    def tell(self, held: bool) -> None:
        """What is otherwise by default, where the network was taken over, than for the original.

        Args:
            held: whether states are held at the noise level of each row, by default.
        """
        if self.network is None or (module := original(self.network)) is None:
            return
        told = ["states are held at the noise level of each row (hold_noise=True)"] if held else []
        if not Space.of(self.network).plain:
            told.append("chains begin in the range of its data")
        if self._of_one_length and not self.uniform:
            told.append("the noise that chains begin in has the length √D")
        if told:
            name, words = type(module).__name__, "; ".join(told)
            _log.info("%s samples as ncsn_fast's: %s (not so with adopt=False)", name, words)


def first_state(chain: Chain, chunk: Chunk, x: Tensor) -> StepResult:
    """The states x (B, *shape) as they are before the chain's first row."""
    if chunk.mask is not None and chunk.known is not None:
        z = noise.normal(
            chain.shape,
            seed=chain.seed,
            stream=noise.KNOWN,
            sample_ids=chunk.ids,
            step=chain.first_step + chain.first_row,
            backend="torch" if chain.backend == "torch" else "auto",
        )
        x = torch.where(chunk.mask, chunk.known + chain.table.sigma[chain.first_row] * z, x)
    # The network sees one layout, from the first row on and however it is run.
    x = x.contiguous()
    history = torch.zeros_like(x) if chain.table.has_history else None
    return chain.state(x, history, chain.first_row)


__all__ = ["Start", "first_state"]
