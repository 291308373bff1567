"""Forward passes and steps of a chain: ours, the published code, and plain PyTorch at its best.

Everybody has the same weights, the same first state, the same batch; for the check, the same
noise. A chain is timed over its first rows only (``Plan.rows_for``), which cost what all others
cost, and images per second are scaled to the whole chain.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

import ncsn_fast as nf
from ncsn_fast.benchmarks.contest import contest
from ncsn_fast.benchmarks.contest.contest import Contest, Contestant, Ready
from ncsn_fast.benchmarks.contest.plans import Plan, Subject
from ncsn_fast.benchmarks.contest.rows import Row
from ncsn_fast.benchmarks.contestants import networks, official, peer
from ncsn_fast.benchmarks.contestants.engines import ENGINES
from ncsn_fast.benchmarks.contestants.networks import Work
from ncsn_fast.benchmarks.contestants.official import Noise
from ncsn_fast.benchmarks.suites.common import (
    flop_of_ours,
    network_contest,
    published,
    with_share,
)
from ncsn_fast.device import capture
from ncsn_fast.device.precision import float32_mode
from ncsn_fast.inference.prepare import prepare_for_inference

_INPUTS = 4
# Rows in a profile, which takes long over many operations; our chain has some beside its rows.
_PROFILED, _PROFILED_OURS = 5, 12
_WIDE = ("fp32", "tf32")
DIRECT, TUNED, PASSES = "ours, direct", "ours, cudnn.benchmark", "ours, biases in passes"
SEVERAL = f"ours, {networks.ROWS_A_REPLAY} rows a replay"
# Of larger batches a row takes so long that each contestant costs seconds.
_MOST_FOR_DETAILS = 128
Making = Callable[[], Tensor]


def chain_contest(plan: Plan, suite: str, subject: Subject, work: Work, batch: int) -> Contest:
    """The contestants of a step of a chain; compilers meet those that they are compared with."""
    run = Chains(work, batch, plan.rows_for(batch), plan.rows_for_ours(batch))
    rivals_in = subject.precisions or plan.rivals_in
    on_gpu = plan.device == "cuda"
    entries = [] if subject.compiled else published(plan, run.official)
    if not subject.compiled:
        if plan.peer is not None and peer.takes(work.net):
            checkout = partial(run.peer, path=plan.peer)
            entries.append(Contestant("official checkout", "fp32", checkout))
        for precision in rivals_in:
            entries.append(Contestant("eager channels_last", precision, run.plain))
        if on_gpu:
            entries.append(Contestant("ours, no graph", plan.half, partial(run.ours, graph=False)))
            ways = {TUNED: partial(networks.tuned, True)}
            if batch <= _MOST_FOR_DETAILS:
                ways[PASSES] = networks.biases_in_passes
                ways[SEVERAL] = networks.several_rows_a_replay
            for name, under in ways.items():
                way = partial(run.ours, graph=True, under=under)
                entries.append(Contestant(name, plan.half, way))
    for way, precision in itertools.product(subject.compiled, rivals_in):
        entries.append(Contestant(way, precision, partial(run.plain, way=way)))
    ours = partial(run.ours, graph=on_gpu or "auto")
    precisions = rivals_in if subject.compiled else plan.ours
    entries += [Contestant("ours", precision, ours) for precision in precisions]
    if subject.direct:
        direct = partial(networks.convolutions, "direct")
        entries.append(Contestant(DIRECT, "fp32", partial(run.ours, graph="auto", under=direct)))
    return network_contest(
        plan,
        suite,
        subject,
        batch,
        contestants=entries,
        expected=run.expected,
        tolerance=contest.NETWORK_TOLERANCE,
        units=run.rows,
        figures=lambda row: step_figures(row, work, plan),
    )


def step_figures(row: Row, work: Work, plan: Plan) -> dict[str, float]:
    """Images per second of the whole chain, and FLOP/s."""
    seconds = row.median_s or float("nan")
    found = {"images_per_s": row.size / (seconds * work.rows), "rows_of_chain": work.rows}
    return {**found, **forward_figures(row, work, plan)}


class Chains:
    """The first rows of a chain, run by each contestant from the same state.

    What is compared is the drift, the end minus the start and all noise: an error of the score,
    much smaller than the state, shows there.

    Args:
        rows: how many are compared, and timed of all but our sampler.
        rows_of_ours: how many of ours are timed, at least as many: a call checks and refreshes the
            weights once, which a whole chain pays once in more than a thousand rows.
    """

    def __init__(self, work: Work, batch: int, rows: int, rows_of_ours: int) -> None:
        self.work = work
        self.table = work.table(min(rows, work.rows))
        self.rows, self.rows_of_ours = len(self.table), min(rows_of_ours, work.rows)
        self.x = work.states(batch)
        self.noise = work.noise(batch)

    def expected(self) -> list[Tensor]:
        with float32_mode("fp32", self.work.device):
            return [self._drift(self._official(self.noise, self.rows))]

    def official(self, precision: str) -> Ready:
        return self._ready(self._official, precision, self.work.cost.flops)

    def plain(self, precision: str, way: str = "") -> Ready:
        """Plain PyTorch without logging and division: network and update in one function."""
        forward = networks.plain_forward(self.work, precision, way)
        factors = self.table.sigma if self.work.net.sees_sigma else (1.0,) * self.rows
        columns = zip(self.table.b, self.table.d, factors, strict=True)
        device = self.work.device
        rows = [torch.tensor([b * factor, d], device=device) for b, d, factor in columns]
        labels = [torch.full((len(self.x),), level, device=device) for level in self.table.level]
        example = (self.x, self.noise(0), rows[0], labels[0])
        step = networks.compiled(networks.plain_step(forward), way, precision, example)

        def loop(noise: Noise | None, count: int) -> Tensor:
            x = self.x
            for i in range(count):
                z = torch.randn_like(x) if noise is None else noise(i)
                x = step(x, z, rows[i], labels[i])
            return x

        # What other engines make of the network they do not tell.
        return self._ready(loop, precision, None if way in ENGINES else self.work.cost.flops)

    def ours(
        self,
        precision: str,
        graph: bool | str,
        under: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> Ready:
        """Our sampler; ``under`` what it runs, a setting that the engine itself does not make."""
        captured = graph is True

        @cache
        def sampler(count: int) -> nf.Sampler:
            table = self.work.table(count)
            return nf.Sampler(self.work.net, method=table, precision=precision, graph=graph)

        def loop(noise: Noise | None, count: int) -> Tensor:
            n = len(self.x)
            given: Any = {"seed": networks.SEED, "initial": self.x, "batch_size": n}
            with networks.tuned(False), under():
                if noise is None:
                    return sampler(count)(n, **given)
                # The engine's own noise is the one that the others are given for the check, of
                # which the sampler that is timed goes through the first rows.
                _, states = sampler(self.rows_of_ours)(n, every=self.rows, **given)
            return states[1].to(self.x.device)

        # A graph has few operations of the host, and would have to be captured once more.
        profiled = self.rows_of_ours if captured else min(_PROFILED_OURS, self.work.rows)
        with under():
            flop = flop_of_ours(self.work, precision)
        return self._ready(loop, precision, flop, profiled, self.rows_of_ours)

    def peer(self, precision: str, path: str) -> Ready:
        network = peer.network(path, self.work.net)
        loop = partial(self._official, network=network)
        return self._ready(loop, precision, self.work.cost.flops)

    def _official(
        self,
        noise: Noise | None,
        count: int,
        network: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> Tensor:
        work = self.work
        return official.chain(
            network or work.official(),
            self.x,
            work.sigmas,
            work.step_size,
            work.steps_per_level,
            count,
            noise,
        )

    def _ready(
        self,
        loop: Callable[[Noise | None, int], Tensor],
        precision: str,
        flop: float | None,
        profiled: int | None = None,
        timed: int | None = None,
    ) -> Ready:
        """``loop`` takes noise, or None for its own, and the number of rows; FLOP of one image."""
        timed = timed or self.rows

        def making(noise: Noise | None, rows: int) -> Making:
            return _in_mode(lambda: loop(noise, rows), precision, self.work.device)

        profiled = profiled or min(_PROFILED, self.rows)
        return Ready(
            [making(None, timed)],
            lambda: [self._drift(making(self.noise, self.rows)())],
            (making(None, profiled), profiled),
            flop and flop * len(self.x),
            timed,
        )

    def _drift(self, end: Tensor) -> Tensor:
        drift = end.double() - self.x
        for row, d in enumerate(self.table.d):
            drift -= d * self.noise(row)
        return drift.float()


def forward_contest(plan: Plan, suite: str, subject: Subject, work: Work, batch: int) -> Contest:
    """The contestants of a forward pass, at noise levels from first to last."""
    run = Forwards(work, batch)
    entries = published(plan, run.official)
    for way, precision in itertools.product(("", *subject.compiled), plan.rivals_in):
        name = way or "eager channels_last"
        entries.append(Contestant(name, precision, partial(run.plain, way=way)))
    if plan.device == "cuda":
        entries.append(Contestant("ours, no graph", plan.half, run.ours))
        entries.append(Contestant("ours", plan.half, run.captured))
    else:
        entries += [Contestant("ours", precision, run.ours) for precision in plan.ours]
    return network_contest(
        plan,
        suite,
        subject,
        batch,
        contestants=entries,
        expected=lambda: run.official("fp32").result(),
        tolerance=contest.NETWORK_TOLERANCE,
        figures=lambda row: forward_figures(row, work, plan),
    )


def forward_figures(row: Row, work: Work, plan: Plan) -> dict[str, float]:
    """FLOP/s, published and done, and the share of the peak."""
    flops = work.cost.flops * row.size / (row.median_s or float("nan"))
    intensity = work.cost.intensity(row.size, row.precision)
    return with_share({"flops": flops, "intensity": intensity}, row, plan)


class Forwards:
    """The normalised score of the same perturbed images, by each contestant."""

    def __init__(self, work: Work, batch: int) -> None:
        self.work = work
        levels = len(work.sigmas)
        spread = torch.linspace(0, levels - 1, batch).round().long()
        self.labels = spread.to(work.device)
        self.sigma = work.net.sigmas[self.labels].view(-1, 1, 1, 1)
        draw = work.noise(batch)
        x = work.states(batch)
        self.inputs = [x + self.sigma * draw(i) for i in range(_INPUTS)]

    def official(self, precision: str) -> Ready:
        network = self.work.official()
        flop = self.work.cost.flops
        return self._ready(lambda x: network(x, self.labels), precision, flop, self.sigma)

    def plain(self, precision: str, way: str = "") -> Ready:
        forward = networks.plain_forward(self.work, precision, way)
        forward = networks.compiled(forward, way, precision, (self.inputs[0], self.labels))
        scale = self.sigma if self.work.net.sees_sigma else None
        flop = None if way in ENGINES else self.work.cost.flops
        return self._ready(lambda x: forward(x, self.labels), precision, flop, scale)

    def ours(self, precision: str) -> Ready:
        prepared = prepare_for_inference(self.work.net, precision)

        def forward(x: Tensor) -> Tensor:
            # Of the first convolution.
            with float32_mode(precision, self.work.device), networks.tuned(False):
                return prepared.normalized(x, self.labels)

        return self._ready(forward, precision, flop_of_ours(self.work, precision))

    def captured(self, precision: str) -> Ready:
        """The same in a CUDA graph of its own."""
        prepared = prepare_for_inference(self.work.net, precision)
        x = self.inputs[0].clone()
        out = torch.empty_like(x)

        def step() -> None:
            out.copy_(prepared.normalized(x, self.labels))

        with float32_mode(precision, self.work.device), networks.tuned(False):
            graph = capture.capture(step, self.work.device)

        def forward(given: Tensor) -> Tensor:
            x.copy_(given)
            graph.replay()
            return out

        return self._ready(forward, precision, flop_of_ours(self.work, precision))

    def _ready(
        self,
        forward: Callable[[Tensor], Tensor],
        precision: str,
        flop: float | None,
        scale: Tensor | None = None,
    ) -> Ready:
        device = self.work.device
        calls = [_in_mode(partial(forward, x), precision, device) for x in self.inputs]

        def result() -> list[Tensor]:
            n = calls[0]().float()
            return [n if scale is None else scale * n]

        return Ready(calls, result, flop=flop and flop * len(self.labels))


def _in_mode(call: Making, precision: str, device: torch.device) -> Making:
    """The call with the float32 products of its precision.

    Who has only 16 bits leaves their mode alone: torch.compile asks for it in a way that PyTorch
    refuses once it has been set by its newer name.
    """

    def run() -> Tensor:
        with float32_mode(precision, device):
            return call()

    return run if precision in _WIDE else call


__all__ = [
    "DIRECT",
    "PASSES",
    "SEVERAL",
    "TUNED",
    "Chains",
    "Forwards",
    "chain_contest",
    "forward_contest",
]
