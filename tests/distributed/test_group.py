"""What processes tell each other, over gloo: sums, agreements, what the first one did alone."""

from __future__ import annotations

import os
import pickle
import signal
import threading
import time
from datetime import timedelta
from typing import Any

import pytest
import torch
from helpers.together import outcomes, together

from ncsn_fast.distributed import group as module
from ncsn_fast.distributed.gradients import GradientSum
from ncsn_fast.distributed.group import Group, OtherProcessError, join
from ncsn_fast.distributed.ranks import Ranks, from_environment


def here() -> Group:
    return join(from_environment(), "cpu")


def everything() -> dict[str, Any]:
    group = here()
    rank = group.ranks.rank
    assert here()._group is group._group  # they meet once
    told: dict[str, Any] = {"rank": rank}
    tensor = torch.full((2, 3), rank + 0.5)
    group.add_up(tensor)
    told["sum"] = tensor.tolist()
    told["largest"] = group.largest(rank, -rank, 7)
    told["same"] = group.are_same([5, rank, -(1 << 62)])
    told["first"] = group.from_first(lambda: {"made by": rank})
    order: list[int] = []
    told["alone"] = group.first_alone(lambda: order.append(rank) or rank)
    told["order"] = order
    return told


@pytest.mark.parametrize("size", [2, 3])
def test_every_process_knows_what_all_know(size: int) -> None:
    for rank, told in enumerate(together(size, everything)):
        assert told == {
            "rank": rank,
            "sum": [[size * size / 2] * 3] * 2,
            "largest": [size - 1, 0, 7],
            "same": [True, False, True],
            "first": {"made by": 0},
            "alone": rank,
            "order": [rank],
        }


def test_one_process_waits_for_nobody() -> None:
    group = Group()
    tensor = torch.ones(2)
    group.add_up(tensor)
    assert tensor.tolist() == [1, 1]
    assert group.largest(3, 4) == [3, 4]
    assert group.are_same([1, 2]) == [True, True]
    assert group.from_first(lambda: 5) == group.first_alone(lambda: 5) == 5


def failing(kind: str) -> None:
    def work() -> None:
        raise OSError("the disk is full")

    group = here()
    if kind == "first":
        group.from_first(work)
    elif kind == "other":
        group.first_alone(lambda: None if group.ranks.is_first else work())
        group.add_up(torch.ones(3))
    elif group.ranks.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    elif kind == "killed in a sum":
        group.add_up(torch.ones(3))
    else:
        group.from_first(lambda: group.add_up(torch.ones(1)))


def test_a_failure_of_the_first_ends_all_of_them() -> None:
    first, second, third = outcomes(3, failing, "first")
    assert first.error == "OSError: the disk is full"
    assert second.error == third.error
    assert str(second.error).endswith("process 0 of 3 failed: OSError: the disk is full")


def test_a_failure_of_another_one_ends_the_first() -> None:
    first, second = outcomes(2, failing, "other")
    assert second.error == "OSError: the disk is full"
    assert "OtherProcessError: another process of the run failed: what it said" in str(first.error)
    assert "what was saved stays" in str(first.error)
    assert ".cc:" not in str(first.error)


def test_a_process_that_is_killed_ends_the_others() -> None:
    first, second, third = outcomes(3, failing, "killed in a sum")
    assert second.exitcode == -signal.SIGKILL
    for one in (first, third):
        assert "OtherProcessError: another process of the run has ended" in str(one.error)


def beating() -> int:
    """How often the first has said that it is at work, in one piece of work."""
    module._BEAT = 0.01
    group, heard, beats = here(), [], threading.Semaphore(0)
    inner = group._of_first

    def counted(value: Any) -> Any:
        told = inner(value)
        if told is None:
            heard.append(None)
            beats.release()
        return told

    group._of_first = counted  # type: ignore[method-assign]

    def work() -> None:
        for _ in range(5):
            assert beats.acquire(timeout=600)

    group.from_first(work)
    return len(heard)


def test_work_that_takes_long_is_waited_for() -> None:
    counts = together(2, beating)
    assert counts[0] == counts[1] >= 5


def late() -> int:
    """The others take longer for their work than anybody waits for an answer."""
    module._BEAT, module.ANSWER = 0.5, timedelta(seconds=20)
    group = here()

    def work() -> int:
        if not group.ranks.is_first:
            time.sleep(25)
        return group.ranks.rank

    found = group.first_alone(work)
    assert group.largest(found) == [1]
    return found


def failing_late() -> None:
    """One fails while another one is at work."""
    module._BEAT = 0.05
    group, failed = here(), threading.Event()

    def work() -> None:
        if group.ranks.rank == 1:
            raise ValueError("no room")
        failed.wait(1)

    group.patiently(work)


@pytest.mark.slow
def test_work_of_others_that_takes_long_is_waited_for() -> None:
    assert together(2, late) == [0, 1]


def test_where_one_fails_the_others_are_told_when_they_have_done_their_work() -> None:
    first, second = outcomes(2, failing_late)
    assert "OtherProcessError: another process of the run failed: what it said" in str(first.error)
    assert "ValueError: no room" in str(second.error)


def test_processes_that_cannot_meet_are_told_what_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    ranks = from_environment({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"})
    with pytest.raises(ValueError, match="process 0 of 2 has no MASTER_ADDR and no MASTER_PORT"):
        join(ranks, "cpu")


def test_what_processes_of_an_earlier_start_have_left_is_passed_over() -> None:
    """torchrun keeps its store; there are tokens and answers of processes that are gone."""
    store = torch.distributed.HashStore()
    for key, value in (("came/1", "old"), ("answer/old", "gone"), ("gone/1", ""), ("came/2", "2")):
        store.set(key, value)
    met: dict[int, str] = {}

    def come(rank: int) -> None:
        met[rank] = module._meet(Ranks(rank, 3), store)

    first = threading.Thread(target=come, args=(0,), daemon=True)
    first.start()
    while not store.check(["answer/2"]):  # the first has answered those that are gone
        pass
    others = [threading.Thread(target=come, args=(rank,), daemon=True) for rank in (1, 2)]
    for thread in others:
        thread.start()
    for thread in (first, *others):
        thread.join(600)
    assert len(met) == 3
    assert len(set(met.values())) == 1
    assert "gone" not in met.values()


class Doubling(Group):
    """Stands for another process that has found the same."""

    def add_up(self, tensor: torch.Tensor) -> None:
        tensor.mul_(2)


def test_gradients_keep_their_memory_format_and_who_has_none_stays_without() -> None:
    parameters = [
        torch.nn.Parameter(torch.randn(3, 5, 2, 2).to(memory_format=torch.channels_last)),
        torch.nn.Parameter(torch.randn(7)),
        torch.nn.Parameter(torch.randn(2, dtype=torch.float64)),
        torch.nn.Parameter(torch.randn(4)),
    ]
    total = GradientSum(parameters, Doubling())
    assert len(total._buffers) == 2
    for missing in (3, 1, 3):
        found = [torch.randn_like(p) for p in parameters]
        for i, parameter in enumerate(parameters):
            parameter.grad = None if i == missing else found[i].clone()
        total.gather()
        total.add_up()
        for i, (parameter, gradient) in enumerate(zip(parameters, found, strict=True)):
            if i == missing:
                assert parameter.grad is None
                assert not total._places[parameter].any()
            else:
                assert parameter.grad is not None
                assert torch.equal(parameter.grad, 2 * gradient)
                assert parameter.grad.stride() == parameter.stride()
                assert parameter.grad.data_ptr() % 64 == total._buffers[0].data_ptr() % 64


def test_the_error_survives_pickling() -> None:
    assert str(pickle.loads(pickle.dumps(OtherProcessError("lost")))) == "lost"
