"""What a measurement was made on: device, versions, commit."""

from __future__ import annotations

import functools
import importlib.metadata
import platform
import subprocess
from pathlib import Path

import torch


def usable(device: torch.device | str | int | None) -> torch.device:
    """A device with its index, such as cuda:0; None: the one that new tensors are made on.

    Raises:
        ValueError: for one that this PyTorch or this machine does not have.
    """
    try:
        # Made there, a tensor knows the index that "cuda" leaves open.
        found = torch.empty(0, device=device).device
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"device = {device!r:.80} cannot be used here ({reason}): give 'cpu', or a device that "
            "torch has, such as 'cuda'"
        ) from None
    if found.type == "meta":
        raise ValueError(f"device = {device!r}: tensors on 'meta' have no values: give another")
    return found


def environment(device: torch.device) -> dict[str, str]:
    """The facts without which a figure means nothing."""
    on_gpu = device.type == "cuda"
    on_cpu = f"{processor()}, {torch.get_num_threads()} threads"
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else on_cpu,
        "torch": torch.__version__,
        "triton": version("triton"),
        "python": platform.python_version(),
        "commit": _commit(),
    }


@functools.cache
def processor() -> str:
    """The model of the CPU, or its kind where the system does not tell that."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not on Linux
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def version(package: str) -> str:
    """The version of an installed package, in words where it is not."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _commit() -> str:
    """The commit of the checkout that runs, marked where files have changed since."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


__all__ = ["environment", "processor", "usable"]
