"""The networks that are measured, and plain PyTorch's ways to run them."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import ncsn_fast as nf
from ncsn_fast import noise
from ncsn_fast.benchmarks.contest.plans import AUTOTUNED, COMPILED, FROZEN, REDUCED, Subject
from ncsn_fast.benchmarks.contestants.engines import ENGINES
from ncsn_fast.benchmarks.contestants.official import Noise, OfficialNetwork
from ncsn_fast.methods.tables import annealed_langevin
from ncsn_fast.models.by_name import build
from ncsn_fast.models.packed_conv import PackedConv
from ncsn_fast.models.refinenet import RefineNet
from ncsn_fast.sampling import captured
from ncsn_fast.training.presets import PRESETS

TYPES = {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16}
TYPES["bf16"] = torch.bfloat16
SEED = 0


class Cost(NamedTuple):
    """Of a forward pass of one image, as published.

    ``flops`` counts a multiplication and an addition as two; ``activations`` are the values that
    its convolutions read and write, ``weights`` those of their kernels.
    """

    flops: int
    activations: int
    weights: int

    def intensity(self, batch: int, precision: str) -> float:
        """FLOP per byte that the convolutions have to move, for a whole batch."""
        values = batch * self.activations + self.weights
        return batch * self.flops / (TYPES[precision].itemsize * values)


@dataclass(frozen=True)
class Work:
    """A network on a device, and the sampler it was published with.

    Attributes:
        rows: of the whole chain.
        cost: of a forward pass of one image.
    """

    net: RefineNet
    sigmas: list[float]
    step_size: float
    steps_per_level: int
    rows: int
    cost: Cost
    device: torch.device

    def table(self, rows: int) -> nf.Table:
        """The first rows of the chain."""
        whole = annealed_langevin(self.sigmas, self.step_size, self.steps_per_level)
        return whole[:rows]

    def states(self, batch: int) -> Tensor:
        """(batch, *shape) U[0, 1), the same in every process."""
        ids = torch.arange(batch, device=self.device)
        return noise.uniform(self.net.shape, seed=SEED, stream=noise.INITIAL, sample_ids=ids)

    def noise(self, batch: int) -> Noise:
        """The noise that our sampler draws at a row."""
        ids = torch.arange(batch, device=self.device)
        return lambda row: noise.normal(
            self.net.shape, seed=SEED, stream=noise.SAMPLER, sample_ids=ids, step=row
        )

    def official(self) -> OfficialNetwork:
        return OfficialNetwork(self.net)

    def plain(self, precision: str) -> OfficialNetwork:
        """Plain PyTorch at its best without a compiler: channels_last, weights in 16 bits."""
        net = copy.deepcopy(self.net).to(TYPES[precision])
        layout: dict[str, Any] = {"memory_format": torch.channels_last}
        return OfficialNetwork(net.to(**layout))  # a keyword unknown to torch's type hints


def make(subject: Subject, device: torch.device) -> Work:
    """The network of a subject."""
    preset = PRESETS[subject.preset]
    if preset.num_levels is None or preset.sigma_max is None or preset.step_size is None:
        net = nf.load_checkpoint(subject.preset)
        sampling = net.sampling or {}
        step_size, steps_per_level = sampling["step_size"], sampling["steps_per_level"]
    else:
        torch.manual_seed(SEED)
        config = {
            "network": preset.network,
            "channels": preset.channels,
            "image_size": subject.image_size or preset.image_size,
            "ngf": subject.ngf or preset.ngf,
        }
        levels = nf.geometric_sigmas(preset.sigma_max, preset.sigma_min, preset.num_levels)
        net = build(config, levels)
        step_size, steps_per_level = preset.step_size, preset.steps_per_level
    if not isinstance(net, RefineNet):
        raise ValueError(f"{subject.name}: {type(net).__name__} is no network of the NCSN family")
    net = net.eval().requires_grad_(False)
    cost = _cost(net)
    sigmas = net.sigmas.tolist()
    rows = len(sigmas) * steps_per_level + preset.denoise
    return Work(net.to(device), sigmas, step_size, steps_per_level, rows, cost, device)


def _cost(net: RefineNet) -> Cost:
    values = {"activations": 0, "weights": 0}

    def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        values["activations"] += inputs[0].numel() + output.numel()
        values["weights"] += sum(p.numel() for p in module.parameters())

    convolutions = [module for module in net.modules() if isinstance(module, nn.Conv2d)]
    hooks = [module.register_forward_hook(add) for module in convolutions]
    try:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            x = torch.zeros(1, *net.shape)
            OfficialNetwork(net).body(x, torch.zeros(1, dtype=torch.int64))
    finally:
        for hook in hooks:
            hook.remove()
    return Cost(counter.get_total_flops(), **values)


@contextmanager
def convolutions(form: str) -> Iterator[None]:
    """Our 3×3 convolutions run in a form inside the block, whatever is the fastest."""
    before = os.environ.get("NCSN_FAST_CONV")
    os.environ["NCSN_FAST_CONV"] = form
    try:
        yield
    finally:
        os.environ.pop("NCSN_FAST_CONV")
        if before is not None:
            os.environ["NCSN_FAST_CONV"] = before


@contextmanager
def tuned(wish: bool) -> Iterator[None]:
    """Whether cuDNN times its algorithms inside the block and takes the fastest.

    All others do in the benchmarks; ours leaves that to its user, who by default has it not.
    """
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = wish
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


@contextmanager
def biases_in_passes() -> Iterator[None]:
    """Inside, PyTorch adds the biases of our convolutions, each in a pass of its own."""

    def whole(conv: PackedConv, x: Tensor) -> tuple[Tensor, None]:
        return PackedConv.forward(conv, x), None

    with mock.patch.object(PackedConv, "apart", whole):
        yield


ROWS_A_REPLAY = 4


@contextmanager
def several_rows_a_replay() -> Iterator[None]:
    """Inside, a captured graph of ours has so many rows of a chain, one after the other."""
    capture = captured.capture.capture

    def captured_rows(step: Callable[[], None], device: torch.device, **how: Any) -> Any:
        def rows() -> None:
            for _ in range(ROWS_A_REPLAY):
                step()

        return capture(rows, device, **how)

    def run(loop: captured.CapturedLoop, first: int, last: int, progress: object) -> None:
        if (last - first) % ROWS_A_REPLAY:
            raise ValueError(f"{last - first} rows are no multiple of {ROWS_A_REPLAY}")
        for _ in range(first, last, ROWS_A_REPLAY):
            loop._graph.replay()

    with (
        mock.patch.object(captured.capture, "capture", captured_rows),
        mock.patch.object(captured.CapturedLoop, "run", run),
    ):
        yield


Step = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
Forward = Callable[[Tensor, Tensor], Tensor]


def plain_forward(work: Work, precision: str, way: str) -> Forward:
    """(x float32, labels) → the network's output before any division by σ, float32.

    Engines get it in float32 and as it was published; types and layouts are up to them.
    """
    if way in ENGINES:
        return work.official().body
    network, dtype = work.plain(precision), TYPES[precision]

    def forward(x: Tensor, labels: Tensor) -> Tensor:
        return network.body(x.to(dtype, memory_format=torch.channels_last), labels).float()

    return forward


def plain_step(forward: Forward) -> Step:
    """One step of annealed Langevin dynamics, x + b·output + d·z, with (2,) coefficients b, d."""

    def step(x: Tensor, z: Tensor, row: Tensor, labels: Tensor) -> Tensor:
        return x + row[0] * forward(x, labels) + row[1] * z

    return step


def compiled(
    function: Callable[..., Tensor], way: str, precision: str, example: Sequence[Tensor]
) -> Callable[..., Tensor]:
    """The function as torch.compile or another engine makes it; "" leaves it alone.

    Args:
        example: tensors like those that it will be called with.
    """
    if way == "":
        return function
    if way in ENGINES:
        return ENGINES[way](function, example, precision)
    if way == FROZEN:
        return torch.compile(function, dynamic=False, options={"freezing": True})
    mode = {COMPILED: None, REDUCED: "reduce-overhead", AUTOTUNED: "max-autotune"}[way]
    fast = torch.compile(function, dynamic=False, mode=mode)
    if mode is None or not torch.cuda.is_available():
        return fast

    def call(*tensors: Tensor) -> Tensor:
        # Its graphs write over the last result: a new step begins, and what it returns is cloned.
        torch.compiler.cudagraph_mark_step_begin()
        return fast(*tensors).clone()

    return call


__all__ = [
    "ROWS_A_REPLAY",
    "SEED",
    "TYPES",
    "Forward",
    "Step",
    "Work",
    "biases_in_passes",
    "compiled",
    "convolutions",
    "make",
    "plain_forward",
    "plain_step",
    "several_rows_a_replay",
    "tuned",
]
