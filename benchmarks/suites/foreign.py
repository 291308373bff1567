"""A network of somebody else's, the U-Net of DDPM as diffusers has it: its own loop, and ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import ncsn_fast as nf
from ncsn_fast import noise
from ncsn_fast.benchmarks.contest import contest
from ncsn_fast.benchmarks.contest.contest import Absent, Contest, Contestant, Ready
from ncsn_fast.benchmarks.contest.plans import Plan
from ncsn_fast.benchmarks.contest.rows import Row
from ncsn_fast.benchmarks.contestants.engines import NOT_INSTALLED
from ncsn_fast.benchmarks.contestants.networks import SEED
from ncsn_fast.device.precision import float32_mode

SUITE, CASE = "foreign", "U-Net of DDPM for CIFAR-10, diffusers"
OWN = "its own loop"
_CHANNELS, _SIDE = (128, 256, 256, 256), 32
_STEPS = 6


def foreign(plan: Plan) -> Iterator[Row]:
    """The rows for each batch size of the plan."""
    for batch in plan.foreign:
        yield from contest.run(foreign_contest(plan, batch), torch.device(plan.device))


def foreign_contest(
    plan: Plan, batch: int, channels: Sequence[int] = _CHANNELS, side: int = _SIDE
) -> Contest:
    """The contestants of a step of Euler's method with the network, in float32.

    Args:
        channels: of the levels of the network, the second of which has attention.
        side: of the images, which have three channels.
    """
    run = Loops(torch.device(plan.device), batch, channels, side)
    last = partial(run.own, memory_format=torch.channels_last)
    entries = [
        Contestant(OWN, "fp32", run.own),
        Contestant(f"{OWN}, channels_last", "fp32", last),
        Contestant("ours, network as it is", "fp32", partial(run.ours, prepare=False)),
        Contestant("ours", "fp32", run.ours),
    ]
    return Contest(
        suite=SUITE,
        case=CASE,
        size=batch,
        contestants=entries,
        expected=lambda: run.own("fp32").result(),
        tolerance=contest.NETWORK_TOLERANCE,
        units=_STEPS,
        seconds=plan.seconds,
    )


class Loops:
    """The same steps from the same state, by each contestant; how far they go is compared."""

    def __init__(
        self, device: torch.device, batch: int, channels: Sequence[int], side: int
    ) -> None:
        self.device, self.channels, self.side = device, channels, side
        self.shape = (3, side, side)
        betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
        self.alphas = (1 - betas).cumprod(0)
        ids = torch.arange(batch, device=device)
        z = noise.normal(self.shape, seed=SEED, stream=noise.INITIAL, sample_ids=ids)
        self.table = self._sampler(lambda x, t: x).table
        self.x = self.table.sigma[0] * z

    def own(
        self, precision: str, memory_format: torch.memory_format = torch.contiguous_format
    ) -> Ready:
        """What people write: a line of arithmetic after each call of the network."""
        layout: dict[str, Any] = {"memory_format": memory_format}
        net = self._network().to(**layout)  # a keyword unknown to torch's type hints
        levels = zip(self.table.level, self.table.sigma, self.table.b, strict=True)
        rows = [(len(self.alphas) - 1 - level, (1 + s * s) ** -0.5, b) for level, s, b in levels]

        def loop() -> Tensor:
            x = self.x.to(**layout)
            for t, scale, b in rows:
                x = x - b * net(scale * x, t).sample  # the noise: minus the normalised score
            return x

        return self._ready(loop)

    def ours(self, precision: str, prepare: bool = True) -> Ready:
        net = self._network()
        sampler = self._sampler(lambda x, t: net(x, t).sample, prepare)
        n = len(self.x)
        return self._ready(lambda: sampler(n, seed=SEED, initial=self.x, batch_size=n))

    def _sampler(self, fn: Callable[..., Tensor], prepare: bool = True) -> nf.Sampler:
        score = nf.Score.ddpm(fn, self.alphas, quantize=True)
        settings: dict[str, Any] = {"steps": _STEPS, "device": self.device, "prepare": prepare}
        return nf.Sampler(score, self.shape, method="euler", **settings)

    def _network(self) -> nn.Module:
        """The network with random weights, the same each time."""
        try:
            from diffusers import UNet2DModel
        except ImportError as error:
            raise Absent(NOT_INSTALLED) from error
        more = len(self.channels) - 2
        torch.manual_seed(SEED)
        net: Any = UNet2DModel(
            sample_size=self.side,
            block_out_channels=tuple(self.channels),
            down_block_types=("DownBlock2D", "AttnDownBlock2D", *["DownBlock2D"] * more),
            up_block_types=(*["UpBlock2D"] * more, "AttnUpBlock2D", "UpBlock2D"),
        )
        return net.to(self.device).eval().requires_grad_(False)

    def _ready(self, loop: Callable[[], Tensor]) -> Ready:
        def call() -> Tensor:
            with float32_mode("fp32", self.device):
                return loop()

        return Ready([call], lambda: [call() - self.x])


__all__ = ["CASE", "OWN", "SUITE", "foreign", "foreign_contest"]
