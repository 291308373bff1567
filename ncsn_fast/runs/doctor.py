"""What is installed, which backend is used and why, and whether the engine gets its sums right."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ncsn_fast import noise, ops
from ncsn_fast.checkpoints.load_save import load_checkpoint, save_checkpoint
from ncsn_fast.data.digits import digits
from ncsn_fast.device import backends, measured, native
from ncsn_fast.inference.automatic import on_device
from ncsn_fast.methods.levels import geometric_sigmas
from ncsn_fast.models.conv_forms import NAMES
from ncsn_fast.models.ncsnv2 import NCSNv2
from ncsn_fast.sampling.sampler import Sampler

_PACKAGES = ("torch", "numpy", "safetensors", "triton", "matplotlib", "Pillow", "scipy")


class Finding(NamedTuple):
    """One line of the report; ``good`` is None where there is nothing to judge."""

    name: str
    value: str
    good: bool | None = None


def environment() -> list[Finding]:
    """Versions, devices and the backend each device gets; builds the CPU's kernels if need be."""
    found = [Finding("Python", f"{platform.python_version()} on {platform.platform()}")]
    for package in _PACKAGES:
        found.append(Finding(package, _version(package)))
    found.append(
        Finding(
            "CPU",
            f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, "
            f"{torch.backends.cpu.get_cpu_capability()}",
        )
    )
    devices = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    for device in devices:
        found.append(Finding(device, torch.cuda.get_device_name(device)))
    if not devices:
        found.append(Finding("GPU", "none that this torch can use; everything runs on the CPU"))
    for program in ("c++", "ninja"):
        found.append(
            Finding(program, shutil.which(program) or "not found: it builds the CPU's kernels")
        )
    for device in ("cpu", *devices):
        try:
            name, reason = backends.resolve("auto", device)
            found.append(Finding(f"backend on {device}", f"{name} ({reason})"))
        except ValueError as error:  # a wish of the environment's that cannot be met
            found.append(Finding(f"backend on {device}", f"none: {error}", False))
            continue
        found.append(_precision(device))
        if name == "cpp":
            found.append(Finding("CPU kernels", _native()))
    found.append(Finding("measured", _measured()))
    return found


def self_test() -> list[Finding]:
    """Small checks of the parts that everything rests on; each takes well under a second."""
    checks: dict[str, Callable[[], str | None]] = {
        "noise": _check_noise,
        "digits": lambda: f"{len(digits('all').images)} images, checksum agrees",
        "chunking": _check_chunking,
        "checkpoint": _check_checkpoint,
        "kernels": _check_kernels,
    }
    found = []
    for name, check in checks.items():
        try:
            value = check()
            found.append(
                Finding(name, value or "not run: PyTorch does all", True if value else None)
            )
        except Exception as error:  # a doctor reports every illness
            found.append(Finding(name, f"{type(error).__name__}: {error}", False))
    return found


def _precision(device: str) -> Finding:
    """What "auto" is on a device."""
    name = f"precision on {device}"
    try:
        chosen, reason = on_device(torch.device(device))
    except ValueError as error:  # a form of convolutions that there is not
        return Finding(name, f"none: {error}", False)
    return Finding(name, f"{chosen} ({reason})")


def _native() -> str:
    """The CPU's kernels, which have been built."""
    capability = native.ops().capability("")[0]
    library, cache = native.loaded(), native.cache_folder()
    kept = library is None or library.is_relative_to(cache.resolve())
    return f"{capability} code, {f'kept in {cache}' if kept else 'built for this process'}"


def _measured() -> str:
    """What was decided here by measurement, and how to have that done anew."""
    kinds = {"convolution": "convolutions", "weight_gradient": "gradients of weights"}
    told = []
    for kind, name in kinds.items():
        chosen = Counter(measured.decisions(kind).values())
        forms = ", ".join(f"{form} {chosen[tile]}" for tile, form in NAMES.items())
        told.append(f"geometries of {name}: {forms}")
    told.append(f"precisions of networks: {len(measured.decisions('precision'))}")
    return f"{'; '.join(told)}; remove {measured.cache_file()} to have all measured anew"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _check_noise() -> str:
    words = [int(word) for word in noise.philox4x32((0, 0), (0, 0, 0, 0))]
    known = [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    if words != known:
        raise ArithmeticError(f"Philox gave {words}, known answer {known}")
    return "Philox4x32-10 gives its known answer"


def _check_chunking() -> str:
    sampler = Sampler(_network(), step_size=1e-5, steps_per_level=1)
    whole, parts = sampler(4, seed=1), sampler(4, seed=1, batch_size=1)
    difference = float((whole - parts).abs().max())
    if not difference < 1e-4:
        raise ArithmeticError(f"images change by {difference:.2g} with the batch size")
    return f"images agree to {difference:.1g} between batches of 4 and of 1"


def _check_kernels() -> str | None:
    """The update and the loss of the kernels in use against the specification, on each device."""
    told = []
    for device in ("cpu", *(("cuda",) if torch.cuda.is_available() else ())):
        backend, _ = backends.resolve("auto", device)
        if backend != "torch":
            told.append(f"{backend} agrees with the specification to {_error(backend, device):.1g}")
    return ", ".join(told) or None


def _error(backend: str, device: str) -> float:
    x = torch.linspace(-1, 1, 2 * 3 * 32 * 32, device=device).view(2, 3, 32, 32)
    row = torch.tensor([1.0, 0.5, 0.0, 0.3, 0.0, 0.0, 0.0, 1.0, 0.0], device=device)
    which: dict[str, Any] = {"seed": 1, "step": 2, "sample_ids": torch.arange(2, device=device)}
    differences = []
    for kernel, specification in zip(
        (ops.sampler_update(x, x, row, backend=backend, **which).x, *_loss(x, backend, which)),
        (ops.sampler_update(x, x, row, backend="torch", **which).x, *_loss(x, "torch", which)),
        strict=True,
    ):
        scale = float(specification.abs().max())
        differences.append(float((kernel - specification).abs().max()) / scale)
    if not max(differences) < 1e-4:
        raise ArithmeticError(
            f"{backend} and specification differ by {max(differences):.2g} on {device}"
        )
    return max(differences)


def _loss(x: torch.Tensor, backend: str, which: dict[str, Any]) -> tuple[torch.Tensor, ...]:
    upstream = torch.ones(len(x), device=x.device)
    return ops.dsm_loss_and_gradient(x, upstream=upstream, backend=backend, **which)


def _check_checkpoint() -> str:
    net = _network()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save_checkpoint(net, path)
        again = load_checkpoint(path).state_dict()
    if not all(torch.equal(value, again[name]) for name, value in net.state_dict().items()):
        raise ArithmeticError("weights changed on the way to the disk and back")
    return "weights survive saving and loading bit for bit"


def _network() -> NCSNv2:
    return NCSNv2(channels=1, image_size=8, ngf=4, sigmas=geometric_sigmas(1.0, 0.01, 4)).eval()


__all__ = ["Finding", "environment", "self_test"]
