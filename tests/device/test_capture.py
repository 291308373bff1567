"""Capturing work as a graph: one at a time; and the stand-in that other tests capture with."""

from __future__ import annotations

import threading
import time
from contextlib import nullcontext

import pytest
import torch

from ncsn_fast.device import capture as capture_module
from ncsn_fast.device.capture import CaptureError

pytest_plugins = ["helpers.recorded_capture"]


def test_threads_capture_one_after_the_other(monkeypatch):
    inside, together = [], []

    def step():
        inside.append(1)
        time.sleep(0.005)
        together.append(len(inside))
        inside.pop()

    for name in ("side_stream", "waiting_refused"):
        monkeypatch.setattr(capture_module, name, lambda *_: nullcontext())
    monkeypatch.setattr(capture_module, "obstacle", lambda device: None)
    monkeypatch.setattr(capture_module, "_captured", lambda step, device: step())
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    threads = [
        threading.Thread(target=capture_module.capture, args=(step, torch.device("cuda")))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == [1] * 12


def test_the_stand_in_itself_refuses_to_wait(recorded):
    x, device = torch.rand(3), torch.device("cpu")
    for wait in (
        lambda: x.sum().item(),
        lambda: x[x > 0],
        lambda: bool(x.isnan().any()),
        lambda: torch.equal(x, x),
        lambda: x.to("meta"),
        lambda: x.nonzero(),
    ):
        with pytest.raises(CaptureError, match="waits for the device"):
            recorded.capture(wait, device)
        with pytest.raises(CaptureError, match="waits for the device"):
            recorded.capture(wait, device, warm_ups=0)


def test_the_stand_in_captures_without_doing_the_work(recorded):
    total, made = torch.zeros(2), []

    def step():
        made.append(total * 2 + 1)
        total.copy_(made[-1])

    graph = recorded.capture(step, torch.device("cpu"), warm_ups=0)
    assert total.tolist() == [0, 0]
    assert made[0].isnan().all()
    version = total._version
    graph.replay()
    graph.replay()
    assert total.tolist() == made[0].tolist() == [3, 3]
    assert total._version == version
    assert len(made) == 1
