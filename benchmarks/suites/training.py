"""Training steps: ours, the published code, and plain PyTorch at its best.

Everybody starts from the same weights, and for the check has the same images, noise levels and
noise: the losses of the first steps then have to be those of the published code in float32.
"""

from __future__ import annotations

import copy
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

import ncsn_fast as nf
from ncsn_fast import noise
from ncsn_fast.benchmarks.contest.contest import Contest, Contestant, Ready
from ncsn_fast.benchmarks.contest.plans import COMPILED, REDUCED, Plan, Subject
from ncsn_fast.benchmarks.contest.rows import Row
from ncsn_fast.benchmarks.contestants import networks, official
from ncsn_fast.benchmarks.contestants.networks import Work
from ncsn_fast.benchmarks.contestants.official import OfficialNetwork
from ncsn_fast.benchmarks.suites.common import network_contest, published, with_share
from ncsn_fast.benchmarks.suites.sampling import TUNED
from ncsn_fast.device.precision import autocast, float32_mode
from ncsn_fast.losses.common import draw_labels

# Losses of this many steps are compared; on a GPU they outlast the warm-up of a captured step.
_CHECKED = {"cuda": 6, "cpu": 3}
_RATE, _EMA = 1e-3, 0.999
_TOLERANCE = {"fp32": 1e-3, "tf32": 1e-2, "fp16": 3e-2, "bf16": 3e-2}


def training_contest(plan: Plan, suite: str, subject: Subject, work: Work, batch: int) -> Contest:
    """The contestants of a training step; torch.compile meets those that it is compared with."""
    run = Steps(work, batch)
    entries = [] if subject.compiled else published(plan, run.official)
    on_gpu = plan.device == "cuda"
    for precision in subject.precisions or plan.trained_in:
        entries.append(Contestant("eager channels_last", precision, run.plain))
        for way in subject.compiled:
            entries.append(Contestant(way, precision, partial(run.plain, way=way)))
        if on_gpu and not subject.compiled:
            entries.append(Contestant("ours, no graph", precision, partial(run.ours, graph=False)))
            tuned = partial(run.ours, graph=True, tuned=True)
            entries.append(Contestant(TUNED, precision, tuned))
        ours = partial(run.ours, graph=on_gpu or "auto")
        entries.append(Contestant("ours", precision, ours))
    return network_contest(
        plan,
        suite,
        subject,
        batch,
        contestants=entries,
        expected=lambda: run.official("fp32").result(),
        tolerance=_TOLERANCE,
        figures=lambda row: figures(row, work, plan),
    )


def figures(row: Row, work: Work, plan: Plan) -> dict[str, float]:
    """Images per second and FLOP/s; the backward pass counts as twice the forward pass."""
    seconds = row.median_s or float("nan")
    found = {"images_per_s": row.size / seconds, "flops": 3 * work.cost.flops * row.size / seconds}
    return with_share(found, row, plan)


class Steps:
    """The training step of each contestant on the same images."""

    def __init__(self, work: Work, batch: int) -> None:
        self.work = work
        self.images = work.states(batch)
        self.ids = torch.arange(batch, device=work.device)
        self.flop = 3 * batch * work.cost.flops  # of who computes as published
        self.checked = _CHECKED[work.device.type]
        self.order: list[Tensor] | None = None

    def official(self, precision: str) -> Ready:
        network = OfficialNetwork(self._copy())
        parameters = [p for p in network.parameters() if p.requires_grad]
        optimizer = torch.optim.Adam(parameters, lr=_RATE)
        average = {name: p.data.clone() for name, p in network.named_parameters()}
        step = partial(official.train_step, network, optimizer, average)

        def run(*given: Tensor) -> float:
            with torch.enable_grad(), float32_mode(precision, self.work.device), _plain():
                return step(*given)

        losses = torch.tensor([run(*self._batch(i)) for i in range(self.checked)])
        return Ready([lambda: run(self.images)], lambda: [losses], flop=self.flop)

    def plain(self, precision: str, way: str = "") -> Ready:
        """Autocast, channels_last, fused Adam, the average of the weights in one call."""
        net = self._copy()
        layout: dict[str, Any] = {"memory_format": torch.channels_last}
        net = net.to(**layout)  # a keyword unknown to torch's type hints
        average = copy.deepcopy(net).requires_grad_(False)
        body = OfficialNetwork(net).body
        device = self.work.device

        def loss_of(x: Tensor, labels: Tensor, z: Tensor) -> Tensor:
            sigma = net.sigmas[labels].view(-1, 1, 1, 1)
            given = (x + sigma * z).contiguous(memory_format=torch.channels_last)
            n = body(given, labels).float()
            n = sigma * n if net.sees_sigma else n
            return 0.5 * (n + z).square().sum() / len(x)

        if way:
            mode = {COMPILED: None, REDUCED: "reduce-overhead"}[way]
            loss_of = torch.compile(loss_of, dynamic=False, mode=mode)
        parameters = list(net.parameters())
        optimizer = torch.optim.Adam(parameters, lr=_RATE, fused=True)

        def step(x: Tensor, labels: Tensor, z: Tensor) -> Tensor:
            if way == REDUCED and device.type == "cuda":
                torch.compiler.cudagraph_mark_step_begin()
            mode = float32_mode(precision, device) if precision == "fp32" else nullcontext()
            with torch.enable_grad(), mode, _plain():
                with autocast(precision, device):
                    loss = loss_of(x, labels, z)
                loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            with torch.no_grad():
                torch._foreach_lerp_(list(average.parameters()), parameters, 1 - _EMA)
            return loss.detach()

        levels = len(self.work.sigmas)

        def call() -> Tensor:
            labels = torch.randint(0, levels, self.ids.shape, device=device)
            return step(self.images, labels, torch.randn_like(self.images))

        losses = torch.tensor([float(step(*self._batch(i))) for i in range(self.checked)])
        return Ready([call], lambda: [losses], flop=self.flop)

    def ours(self, precision: str, graph: bool | str, tuned: bool = False) -> Ready:
        """Our trainer; ``tuned``: under ``cudnn.benchmark``, which it does not set itself."""
        trainer = self._trainer(precision, graph)
        if precision == "fp16":  # from a scale that does not overflow, so that no step is skipped
            trainer.scaler.load_state_dict({**trainer.scaler.state_dict(), "scale": 256.0})
        with torch.enable_grad(), networks.tuned(tuned):
            trainer.fit()
        losses = torch.tensor([loss for _, loss in trainer.history])

        def call() -> None:
            mode = float32_mode(precision, self.work.device)
            with torch.enable_grad(), mode, networks.tuned(tuned):
                trainer._train_step()

        for _ in range(self.checked):  # a captured step is warmed up anew after fit()
            call()
        return Ready([call], lambda: [losses])

    def _trainer(self, precision: str, graph: bool | str) -> nf.Trainer:
        config = nf.TrainConfig(
            steps=self.checked,
            batch_size=len(self.images),
            learning_rate=_RATE,
            precision=precision,
            ema=_EMA,
            log_every=1,
            graph=graph,
        )
        return nf.Trainer(self._copy(), self.images.cpu(), config)

    def _batch(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Images, levels and noise of our trainer at a step."""
        if self.order is None:
            batches = self._trainer("fp32", False).batches
            self.order = [batches.at(i)[0] for i in range(self.checked)]
        labels = draw_labels(len(self.work.sigmas), seed=0, step=step, sample_ids=self.ids)
        z = noise.normal(
            self.work.net.shape, seed=0, stream=noise.PERTURB, sample_ids=self.ids, step=step
        )
        return self.order[step].to(self.work.device), labels, z

    def _copy(self) -> networks.RefineNet:
        return copy.deepcopy(self.work.net).requires_grad_(True).train()


def _plain() -> nf.use_backend:
    """Our modules' convolutions are then PyTorch's."""
    return nf.use_backend("torch")


__all__ = ["Steps", "training_contest"]
