"""Steps of the engine itself, whose launches are compiled: what is measured is what is run.

Each function makes real steps, of a sampler or of a training run, with a network that does nothing
but answer in a given type and layout. They are called where launches are recorded and not run (see
``record`` in ``compiled.py``).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

import ncsn_fast as nf
from ncsn_fast.device import backends, capture
from ncsn_fast.models.base import ScoreNetwork
from ncsn_fast.table import Table
from ncsn_fast.training.log import LossSums
from ncsn_fast.training.step import TrainingStep

_SAMPLES = 8
_SIZE = (32, 32)
_SIGMAS = (1.0, 0.5)
EVERYTHING = "history, guidance, mask, scaled input"


@contextlib.contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Inside, Triton's kernels are chosen also for tensors of the CPU."""
    with mock.patch.object(backends, "missing", return_value=None), nf.use_backend("triton"):
        yield


class _Network(ScoreNetwork):
    """Answers with its input, in a type and layout."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, last: bool) -> None:
        super().__init__(_SIGMAS)
        self._shape, self._dtype = shape, dtype
        self._layout = torch.channels_last if last else torch.contiguous_format
        self.factor = nn.Parameter(torch.ones(()))

    @property
    def config(self) -> dict[str, Any]:
        return {}

    @property
    def shape(self) -> tuple[int, ...]:
        return self._shape

    def normalized(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        return (self.factor * x).to(self._dtype, memory_format=self._layout)


def _network(dtype: torch.dtype, channels: int, size: tuple[int, int]) -> _Network:
    """channels_last if channels are given."""
    return _Network((channels or 3, *size), dtype, channels > 0)


def sample(
    uses: str = "",
    *,
    dtype: torch.dtype = torch.float16,
    channels: int = 0,
    size: tuple[int, int] = _SIZE,
    graph: bool = False,
) -> None:
    """A row of a chain.

    Args:
        uses: what it has beside the network and the noise, or without, of "history", "guidance",
            "mask", "scaled input", "given noise", "no noise" and "held", that is at the level that
            the table says, separated by commas.
        dtype: of the network's output, which is channels_last if ``channels`` are given.
        size: of its images.
        graph: whether as a step that is captured.
    """
    used, net = uses.split(", "), _network(dtype, channels, size)
    remembered = 0.5 if "history" in used else 0.0
    table = Table.of(
        net.sigmas[:1].numpy(),
        b=0.1,
        c=remembered,
        d=0.0 if "no noise" in used else 0.1,
        e=remembered,
        c_in=0.5 if "scaled input" in used else 1.0,
        level=0,
    )
    call: dict[str, Any] = {"initial": torch.zeros(_SAMPLES, *net.shape)}
    if "guidance" in used:
        call["guidance"] = lambda x, n, sigma, row: x
    if "mask" in used:
        call |= {"mask": torch.ones(size), "known": torch.zeros(net.shape)}
    if "given noise" in used:
        call["noise"] = lambda row: torch.zeros(_SAMPLES, *net.shape)
    with as_on_a_gpu(), torch.no_grad():
        score = nf.Score(net.normalized, "normalized", "label", sigmas=net.sigmas)
        given: dict[str, Any] = {"precision": "fp32", "graph": graph, "hold_noise": "held" in used}
        sampler = nf.Sampler(score, net.shape, method=table, **given)
        sampler(_SAMPLES, seed=0, **call)


def captured() -> None:
    """A row of a captured chain: its step is run where it would be captured."""

    def run(step: Callable[[], None], device: torch.device, *, warm_ups: int) -> mock.Mock:
        step()
        return mock.Mock()

    with mock.patch.multiple(capture, capture=run, obstacle=lambda device: None):
        sample(graph=True)


def train(
    *,
    dtype: torch.dtype = torch.float16,
    channels: int = 0,
    size: tuple[int, int] = _SIZE,
    anneal_power: float = 2.0,
) -> None:
    """A training step; the arguments are those of :func:`sample`, and p of the loss weight."""
    net = _network(dtype, channels, size)
    config = nf.TrainConfig(batch_size=_SAMPLES, anneal_power=anneal_power)
    # Adam launches none of our kernels, and takes a second to import.
    with as_on_a_gpu(), mock.patch.object(torch.optim, "Adam", mock.MagicMock()):
        TrainingStep(net, net, LossSums(len(_SIGMAS), torch.device("cpu")), config)()


def loss(backward: bool = False) -> None:
    """The loss by itself, as it is evaluated, or its gradient."""
    net = _network(torch.float16, 0, _SIZE)
    with as_on_a_gpu(), torch.set_grad_enabled(backward):
        found = nf.dsm_loss(net, torch.zeros(_SAMPLES, *net.shape), net.sigmas, seed=0)
        if backward:
            found.backward()


__all__ = ["EVERYTHING", "as_on_a_gpu", "captured", "loss", "sample", "train"]
