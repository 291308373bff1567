"""Gradients summed between two graphs, by NCCL where there are two GPUs: pytest -m gpu."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from helpers.together import together
from helpers.training import config, images, network, weights

import ncsn_fast as nf
from ncsn_fast.distributed.group import Group
from ncsn_fast.training import trainer as module

pytestmark = pytest.mark.gpu
TWO = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
SETTINGS: list[dict[str, Any]] = [
    {},
    {"precision": "bf16", "accumulate": 2},
    {"precision": "fp16", "clip_gradient": 1.0},
]


class OfOne(Group):
    """One process that sums as several do."""

    is_alone = False  # type: ignore[assignment]

    def add_up(self, tensor: torch.Tensor) -> None:
        pass

    def largest(self, *values: int) -> list[int]:
        return list(values)

    def from_first(self, work: Callable[[], Any]) -> Any:
        return work()


def run(**settings: Any) -> dict[str, Any]:
    """A run on this process's GPU, by algorithms that are the same each time."""
    index = int(os.environ.get("LOCAL_RANK", 0))
    before = torch.are_deterministic_algorithms_enabled()
    flags = torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with flags:
            net = network().to(f"cuda:{index}")
            trainer = nf.Trainer(net, images(), config(steps=8, learning_rate=1e-4, **settings))
            trainer.fit()
    finally:
        torch.use_deterministic_algorithms(before)
    found = [weights(each).cpu().tolist() for each in (trainer.net, trainer.average)]
    return {"losses": [loss for _, loss in trainer.history], "weights": sum(found, [])}  # noqa: RUF017


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_two_graphs_around_a_sum_are_the_one_without(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    whole = run(**settings, graph=True)
    monkeypatch.setattr(module, "join", lambda ranks, device: OfOne(ranks))
    assert run(**settings, graph=True) == whole
    assert run(**settings, graph=False) == whole


@TWO
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_two_gpus_train_as_one_and_alike_each_time(settings: dict[str, Any]) -> None:
    first, second = together(2, partial(run, **settings, graph=True))
    assert first == second
    assert together(2, partial(run, **settings, graph=True)) == [first] * 2
    (whole,) = together(1, partial(run, **{"accumulate": 2, **settings}))
    assert first["losses"] == pytest.approx(whole["losses"], rel=1e-5)
    assert first["weights"] == pytest.approx(whole["weights"], abs=0.01 * 8 * 1e-4)
