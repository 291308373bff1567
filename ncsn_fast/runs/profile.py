"""A profile of sampling or training: what ``ncsn-fast profile`` does.

The same few steps run under Nsight Systems, Nsight Compute, PyTorch's own profiler, or a profiler
that somebody else has started; only these steps are recorded, after a warm-up.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ncsn_fast.checkpoints.load_save import load_checkpoint
from ncsn_fast.device import profiling
from ncsn_fast.device.environment import environment
from ncsn_fast.methods.levels import geometric_sigmas
from ncsn_fast.methods.tables import annealed_langevin
from ncsn_fast.models.base import ScoreNetwork
from ncsn_fast.models.by_name import build
from ncsn_fast.runs import profile_table
from ncsn_fast.sampling.sampler import Sampler
from ncsn_fast.support.checks import count
from ncsn_fast.support.files import (
    atomic_write,
    check_writable,
    remove_leftovers,
    write_text,
)
from ncsn_fast.support.locks import folder_lock
from ncsn_fast.training.config import TrainConfig
from ncsn_fast.training.presets import PRESETS
from ncsn_fast.training.trainer import Trainer

Say = Callable[[str], None]
WORK = ("sample", "train")
TOOLS = ("auto", "nsys", "ncu", "torch", "mark")
# A captured training step takes three real steps to warm up, and one to be captured.
_WARM_UP_STEPS = 5
_BATCH = {"cuda": 128, "cpu": 16}
_PRODUCTS = {"nsys": "Nsight Systems", "ncu": "Nsight Compute"}
_REPORTS = {"nsys": "nsys-rep", "ncu": "ncu-rep"}
_SECTIONS = (
    "SpeedOfLight",
    "SpeedOfLight_RooflineChart",
    "MemoryWorkloadAnalysis",
    "SchedulerStats",
    "WarpStateStats",
    "LaunchStats",
    "Occupancy",
)


@dataclass(frozen=True)
class Workload:
    """What is profiled.

    Attributes:
        what: "sample" or "train".
        model: what nf.load_checkpoint takes; a preset's name wins over it.
        preset: the network of a preset, with random weights.
        config: the YAML of an official checkpoint.
        batch: images at once; None: 128 on a GPU, 16 on a CPU.
        steps: rows of the sampler's table, or optimiser steps, that are recorded.
        precision: None: what sampling or training takes by itself.
        graph: whether the step is a captured CUDA graph; None: where that works.
        device: "cpu", "cuda" or "cuda:N".
    """

    what: str = "sample"
    model: str = "digits"
    preset: str | None = None
    config: str | None = None
    batch: int | None = None
    steps: int = 10
    precision: str | None = None
    graph: bool | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name, value, known in (
            ("what", self.what, WORK),
            ("preset", self.preset, (None, *PRESETS)),
        ):
            if value not in known:
                raise ValueError(f"{name} = {value!r} is unknown; choose one of {known}")
        count("steps", self.steps)
        if self.batch is not None:
            count("batch", self.batch)

    @property
    def on_gpu(self) -> bool:
        return torch.device(self.device).type == "cuda"

    @property
    def images(self) -> int:
        return self.batch or _BATCH["cuda" if self.on_gpu else "cpu"]

    @property
    def network(self) -> str:
        """The network in words."""
        if self.preset is None:
            return self.model
        return f"{PRESETS[self.preset].network} of preset {self.preset}, random weights"

    def arguments(self) -> list[str]:
        """The command line after ``ncsn-fast profile`` that asks for this work."""
        given: list[str] = [self.what] if self.preset else [self.what, self.model]
        # On a machine without a GPU the commands are for one that has one.
        device = self.device if self.on_gpu else None
        for name in ("preset", "config", "batch", "steps", "precision", "device"):
            value = device if name == "device" else getattr(self, name)
            if value is not None:
                given += [f"--{name}", str(value)]
        if self.graph is not None:
            given.append("--graph" if self.graph else "--no-graph")
        return given


def commands(work: Workload, out: Path) -> dict[str, list[str]]:
    """The commands that profile this work with Nsight Systems and Nsight Compute, by program.

    Nsight Compute runs every kernel many times over: it gets one step.
    """
    program = [sys.executable, "-m", "ncsn_fast", "profile", "--tool", "mark"]
    nsys = ["nsys", "profile", "--trace=cuda,nvtx", "--capture-range=cudaProfilerApi"]
    nsys += ["--capture-range-end=stop", "--cuda-graph-trace=node", "--force-overwrite=true"]
    ncu = ["ncu", "--graph-profiling", "node", "--profile-from-start", "off", "--nvtx"]
    if work.what == "sample" and importlib.util.find_spec("nvtx"):
        # In training the backward pass is launched by a thread that is in no range.
        ncu += ["--nvtx-include", f"{profiling.DOMAIN}@sample/"]
    ncu += ["--clock-control", "none"]
    ncu += [word for section in _SECTIONS for word in ("--section", section)]
    path, short = str(out / work.what), replace(work, steps=1)
    return {
        "nsys": [*nsys, "--output", path, *program, *work.arguments()],
        "ncu": [*ncu, "--force-overwrite", "--export", path, *program, *short.arguments()],
    }


def profile(work: Workload, out: Path, tool: str, say: Say) -> dict[str, Path]:
    """Profile this work; return the files written, by name.

    Args:
        out: folder for the report; it is made.
        tool: "nsys" or "ncu" runs that program. "torch" writes WHAT_trace.json.gz (for
            https://ui.perfetto.dev), WHAT_profile.md and WHAT_profile.html. "mark" writes nothing:
            it marks the steps for a profiler that has started this process. "auto": nsys for a GPU
            where it is found on the PATH, else torch.
        say: told the table.

    Raises:
        ValueError: for settings that cannot be had, before any work.
        OSError: where ``out`` cannot be written, or the program is missing or fails.
    """
    tool = _choose(tool, work)
    if tool == "mark":
        device, run = _prepare(work)
        run(profiling.capture_range(device))
        return {}
    with folder_lock(out, "choose another --out"):
        remove_leftovers(out)
        if tool == "torch":
            return _by_torch(work, out, say)
        return _by_program(tool, work, out)


def _by_program(tool: str, work: Workload, out: Path) -> dict[str, Path]:
    report = out / f"{work.what}.{_REPORTS[tool]}"
    check_writable(report)
    ended = subprocess.run(commands(work, out)[tool], check=False).returncode
    if ended != 0 or not report.exists():
        raise OSError(
            f"{tool} ended with code {ended} and {'a' if report.exists() else 'no'} report: what "
            "it says above is why (docs/profiling.md knows the usual reasons); without it there is "
            "tool='torch'"
        )
    return {"report": report}


def _choose(tool: str, work: Workload) -> str:
    """The tool that runs; refused where it cannot."""
    if tool not in TOOLS:
        raise ValueError(f"tool={tool!r} is unknown; choose one of {TOOLS}")
    if tool == "auto":
        return "nsys" if work.on_gpu and shutil.which("nsys") else "torch"
    if tool in _PRODUCTS:
        if not work.on_gpu:
            raise ValueError(f"tool={tool!r} profiles NVIDIA GPUs, and this runs on {work.device}")
        if shutil.which(tool) is None:
            raise ValueError(
                f"tool={tool!r} is not on the PATH: install NVIDIA {_PRODUCTS[tool]} (the CUDA "
                "toolkit has it), or choose 'torch', which needs nothing"
            )
    return tool


def _by_torch(work: Workload, out: Path, say: Say) -> dict[str, Path]:
    files = {
        "trace": out / f"{work.what}_trace.json.gz",
        "table": out / f"{work.what}_profile.md",
        "page": out / f"{work.what}_profile.html",
    }
    for path in files.values():
        check_writable(path)
    device, run = _prepare(work)
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    profiler = torch.profiler.profile(activities=activities)

    @contextmanager
    def recorded() -> Iterator[None]:
        with profiling.capture_range(device), profiler:
            yield

    with profiling.ranges_for_torch():
        run(recorded())
    with atomic_write(files["trace"]) as temporary:
        profiler.export_chrome_trace(str(temporary))
    found = profile_table.read_profile(profiler.events(), work.steps)
    facts = {
        "network": work.network,
        "batch": work.images,
        "precision": work.precision or "default",
        "graph": {None: "auto", True: "yes", False: "no"}[work.graph],
        "steps": work.steps,
        **environment(device),
    }
    title = f"Profile: {'sampling' if work.what == 'sample' else 'training'}"
    write_text(files["table"], profile_table.markdown(found, title, facts))
    write_text(files["page"], profile_table.html(found, title, facts))
    say(profile_table.summary(found))
    say(profile_table.group_table(found))
    return files


def _prepare(work: Workload) -> tuple[torch.device, Callable[[AbstractContextManager[None]], None]]:
    """The device, and a function that runs the work with its last steps inside a context."""
    net = _network(work).to(work.device)
    run = (_sampling if work.what == "sample" else _training)(work, net)
    return net.sigmas.device, run


def _network(work: Workload) -> ScoreNetwork:
    if work.preset is None:
        return load_checkpoint(work.model, config=work.config)
    preset = PRESETS[work.preset]
    settings = {
        name: getattr(preset, name) for name in ("network", "channels", "image_size", "ngf")
    }
    # How long a step takes depends on no noise level: where they would follow from data, any do.
    sigmas = geometric_sigmas(preset.sigma_max or 1.0, preset.sigma_min, preset.num_levels or 10)
    torch.manual_seed(0)
    return build(settings, sigmas)


def _sampling(work: Workload, net: ScoreNetwork) -> Callable[[AbstractContextManager[None]], None]:
    # Small enough for every ladder; how long a step takes does not depend on it.
    table = annealed_langevin(net.sigmas, 0.1 * float(net.sigmas[-1]) ** 2, steps_per_level=5)
    if work.steps > len(table):
        raise ValueError(
            f"steps = {work.steps}: a chain of {work.network} has {len(table)} rows, give fewer"
        )
    sampler = Sampler(
        net,
        method=table[: work.steps],
        precision=work.precision or "auto",
        graph="auto" if work.graph is None else work.graph,
    )

    def chain() -> None:
        sampler(work.images, seed=0, batch_size=work.images)

    def run(recorded: AbstractContextManager[None]) -> None:
        chain()
        with recorded:
            chain()

    return run


def _training(work: Workload, net: ScoreNetwork) -> Callable[[AbstractContextManager[None]], None]:
    recorded_until = _WARM_UP_STEPS + work.steps
    settings: dict[str, Any] = {} if work.precision is None else {"precision": work.precision}
    if work.graph is not None:
        settings["graph"] = work.graph
    config = TrainConfig(
        steps=recorded_until + 1,  # so that what is done after the last step stays outside
        batch_size=work.images,
        log_every=recorded_until + 2,
        **settings,
    )
    known = len(getattr(net, "classes", ()))
    classes = torch.arange(2 * work.images) % known if known else None
    trainer = Trainer(net, torch.rand(2 * work.images, *net.shape), config, classes=classes)

    def run(recorded: AbstractContextManager[None]) -> None:
        with ExitStack() as stack:

            def after_step(done: int, total: int) -> None:
                if done == _WARM_UP_STEPS:
                    stack.enter_context(recorded)
                elif done == recorded_until:
                    stack.close()

            trainer.fit(progress=after_step)

    return run


__all__ = ["TOOLS", "WORK", "Workload", "commands", "profile"]
