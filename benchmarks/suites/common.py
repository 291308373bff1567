"""What the suites of networks share: who takes part, over which networks, and shares of peaks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ncsn_fast.benchmarks.contest import contest
from ncsn_fast.benchmarks.contest.contest import Contest, Contestant, Ready
from ncsn_fast.benchmarks.contest.plans import Plan, Subject, tf32_is_there
from ncsn_fast.benchmarks.contest.rows import Row
from ncsn_fast.benchmarks.contestants import networks
from ncsn_fast.benchmarks.contestants.networks import Work
from ncsn_fast.inference.prepare import prepare_for_inference
from ncsn_fast.models.conv_forms import DIRECT
from ncsn_fast.models.packed_conv import PackedConv

ContestOf = Callable[[Plan, str, Subject, Work, int], Contest]


def rows_of(
    plan: Plan, suite: str, contest_of: ContestOf, subjects: Sequence[Subject]
) -> Iterator[Row]:
    """The rows of a contest for each network and batch size, one after the other.

    Profiles follow when all have been timed, but for a CPU's and those of who is compiled: what
    replays graphs is hardly slower beside a profiler, and is not compiled twice.
    """
    device = torch.device(plan.device)
    for part, run in (("times", contest.run), ("profiles", contest.profiles)):
        for subject in subjects if part in plan.parts else ():
            if part == "profiles" and not _profiled_later(plan, subject):
                continue
            work = networks.make(subject, device)
            for batch in subject.batches:
                yield from run(contest_of(plan, suite, subject, work, batch), device)


def _profiled_later(plan: Plan, subject: Subject) -> bool:
    return plan.device == "cuda" and not subject.compiled


def network_contest(plan: Plan, suite: str, subject: Subject, batch: int, **rest: Any) -> Contest:
    """A contest with a network; ``rest`` are the fields of :class:`Contest` that are its own."""
    return Contest(
        suite=suite,
        case=subject.name,
        size=batch,
        seconds=plan.seconds,
        profiled="profiles" in plan.parts and not _profiled_later(plan, subject),
        **rest,
    )


def published(plan: Plan, prepare: Callable[[str], Ready]) -> list[Contestant]:
    """The published code, written anew, in float32 and where there is TF32 also in that."""
    precisions = ("fp32", "tf32") if tf32_is_there(plan.device) else ("fp32",)
    return [Contestant("official", one, prepare) for one in precisions]


def with_share(figures: dict[str, float], row: Row, plan: Plan) -> dict[str, float]:
    """The figures, and the FLOP/s that are really done, where they are known: ``done_flops``.

    ``share_of_peak`` is their share of the fastest product measured. ``flops`` are those of the
    published network in the same time, whoever takes fewer for the same result: no share of any
    peak.
    """
    done, peak = row.figures.get("done_flop"), plan.facts.get(f"peak_{row.precision}")
    if done is None or not row.median_s:
        return figures
    figures = {**figures, "done_flops": done / row.median_s}
    return {**figures, "share_of_peak": figures["done_flops"] / peak} if peak else figures


@torch.no_grad()
def flop_of_ours(work: Work, precision: str) -> float:
    """The FLOP that our prepared copy takes for one image, on this device.

    PyTorch counts its convolutions, which are fewer than the published ones. One that is filtered
    in tiles of T×T takes (T + 2)² products of a tile instead of 9T².
    """
    prepared = prepare_for_inference(work.net, precision)
    x = work.states(1)
    labels = torch.zeros(1, dtype=torch.int64, device=work.device)
    spared = 0.0

    def filtered(conv: PackedConv, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal spared
        tile = conv.tile(*inputs[0].shape[2:])
        if tile != DIRECT and conv.packed is not None:
            share = (tile + 2) ** 2 / (9 * tile**2)
            spared += (1 - share) * 18 * conv.in_channels * output.numel()

    for module in prepared.network.modules():
        if isinstance(module, PackedConv):
            module.register_forward_hook(filtered)
    with FlopCounterMode(display=False) as counter:  # watched, they are PyTorch's convolutions
        prepared.normalized(x, labels)
    return counter.get_total_flops() - spared


__all__ = ["ContestOf", "flop_of_ours", "network_contest", "published", "rows_of", "with_share"]
