"""Small training runs: in this process, and in one that can be killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
import traceback
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import ncsn_fast as nf
from ncsn_fast.data.digits import digits
from ncsn_fast.runs import train as runs
from ncsn_fast.training.config import TrainRun

SIGMAS = nf.geometric_sigmas(5, 0.01, 8)
SAMPLING = {"method": "annealed_langevin", "step_size": 2e-5, "steps_per_level": 1, "denoise": True}
# What a training step depends on, captured or not.
OF_STEPS: list[dict[str, Any]] = [
    {},
    {"precision": "bf16"},
    {"precision": "fp16", "clip_gradient": 1.0},
    {"precision": "fp16", "accumulate": 2},
    {"accumulate": 2, "clip_gradient": 1e-2},
    {"warmup": 6, "ema_warmup": True},
    {"ema": 0.0},
    {"continuous": True, "anneal_power": 1.0},
    {"flip": True, "dequantize": "uniform"},
]
# A server that has imported all this and computed nothing forks a process in little time.
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["ncsn_fast", "safetensors.torch", "torch._dynamo", "pytest"])


def network(cls: Any = nf.NCSNv2, **keywords: Any) -> Any:
    torch.manual_seed(0)
    net = cls(channels=1, image_size=8, ngf=4, sigmas=SIGMAS, **keywords)
    net.sampling = dict(SAMPLING)
    return net


class Waiting(nf.NCSNv2):
    """A network whose forward pass waits for the device."""

    def normalized(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        return super().normalized(x, labels) * float(x.isfinite().all())


def images(n: int = 40) -> Tensor:
    return digits("train").images[:n]


def config(**keywords: Any) -> nf.TrainConfig:
    settings = {"steps": 6, "batch_size": 8, "learning_rate": 1e-3, "log_every": 1}
    return nf.TrainConfig(**{**settings, **keywords})


def weights(net: torch.nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def trainer_of(
    net: Any = None,
    data: Any = None,
    *,
    held_out: Tensor | None = None,
    resume: bool = False,
    **settings: Any,
) -> nf.Trainer:
    net = network() if net is None else net
    data = images() if data is None else data
    return nf.Trainer(net, data, config(**settings), held_out=held_out, resume=resume)


def trained(*arguments: Any, **keywords: Any) -> nf.Trainer:
    """The trainer of that run, at its end."""
    trainer = trainer_of(*arguments, **keywords)
    trainer.fit()
    return trainer


def train_small(folder: Path) -> None:
    """A run of ``ncsn-fast train`` that leaves every kind of file, or what is left of it."""
    quiet: dict[str, Any] = {"device": "cpu", "say": lambda text: None, "progress": False}
    if (folder / "run.json").exists():
        runs.resume(folder, {}, **quiet)
        return
    run = TrainRun(ngf=2, sigma_max=2.0, num_levels=3, step_size=2e-5, steps_per_level=1)
    often = {"checkpoint_every": 2, "keep_every": 2, "sample_every": 2, "samples": 3}
    runs.train(run, config(steps=4, batch_size=4, out=folder, **often), **quiet)


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


class Run:
    """A training run in a process of its own that goes on until it is stopped.

    Args:
        out: its folder; a run that is there is resumed.
        keywords: settings of ``config``.
    """

    def __init__(self, out: Path, **keywords: Any) -> None:
        self.errors = out / "errors.txt"
        settings = {"steps": 100_000, "out": out, **keywords}
        self.process: BaseProcess = _SERVER.Process(
            target=_train, args=(settings, self.errors), daemon=True
        )
        self.process.start()

    def wait_for(self, happened: Any) -> None:
        """Until a function says so, however busy the machine is."""
        deadline = time.monotonic() + 600
        while not happened():
            assert self.process.is_alive(), self.errors.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def stop(self, number: signal.Signals) -> str:
        """Send it a signal; return what it said in the end."""
        assert self.process.pid is not None
        assert self.process.is_alive(), "the run ended by itself"
        os.kill(self.process.pid, number)
        self.process.join(600)
        assert self.process.exitcode not in (None, 0)
        return self.errors.read_text() if self.errors.exists() else ""


def _train(settings: dict[str, Any], errors: Path) -> None:
    torch.set_num_threads(1)  # as in the run to compare with: sums depend on the number
    try:
        resume = (Path(settings["out"]) / "checkpoint.safetensors").exists()
        trained(**settings, resume=resume)
    except BaseException:
        errors.write_text(traceback.format_exc())
        raise SystemExit(1) from None
