"""Named precisions: what a network computes in. The state, noise and losses stay in float32."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

# In training these are autocast: weights stay float32, convolutions run in 16 bits.
_SIXTEEN_BITS = {"bf16": torch.bfloat16, "fp16": torch.float16}
PRECISIONS = ("fp32", "tf32", *_SIXTEEN_BITS)
# What "auto" is, by the kind of device; "fp32" on others. See docs/precision.md.
_AUTOMATIC = {"cuda": "fp16", "cpu": "bf16"}


def resolve(name: str, device: torch.device) -> str:
    """The precision that a network samples in on a device.

    Args:
        name: one of ``PRECISIONS``, or "auto": what is :func:`automatic`.
        device: where the network is.

    Raises:
        ValueError: for an unknown precision, or one that the device does not have.
    """
    if name == "auto":
        return automatic(device)[0]
    if name not in PRECISIONS:
        allowed = ("auto", *PRECISIONS)
        raise ValueError(f"precision = {name!r} is unknown; choose one of {allowed}")
    check_precision(name, device)
    return name


def automatic(device: torch.device) -> tuple[str, str]:
    """The precision that "auto" is on a device and the reason: "fp16" on GPUs, "bf16" on a CPU
    that :func:`has_bf16`, else "fp32"."""
    name = _AUTOMATIC.get(device.type, "fp32")
    if device.type != "cpu":
        return name, f"what {device.type} computes fast"
    if not _onednn():
        return "fp32", "bfloat16 needs oneDNN, which is missing or switched off"
    if not has_bf16():
        return "fp32", "bfloat16 is slower on a CPU without AMX"
    return name, "this CPU has AMX, which multiplies bfloat16"


def has_bf16() -> bool:
    """Whether this CPU computes in bfloat16 faster than in float32: with AMX, and by oneDNN.

    oneDNN takes bfloat16 on other CPUs too. It is slower there than in float32, also where they
    have the instructions of AVX-512 for it.
    """
    return _onednn() and bool(getattr(torch.cpu, "_is_amx_tile_supported", bool)())


def _onednn() -> bool:
    return torch.backends.mkldnn.is_available() and torch._C._get_mkldnn_enabled()


def network_dtype(name: str) -> torch.dtype:
    """The type of a network's weights and activations in a precision."""
    return _SIXTEEN_BITS.get(name, torch.float32)


@contextlib.contextmanager
def float32_mode(name: str, device: torch.device) -> Iterator[None]:
    """Let float32 products be what a precision says, inside the block.

    TF32 keeps 10 bits of a factor's mantissa. PyTorch's convolutions take it unless they are told
    otherwise; here only "tf32" does.

    Args:
        name: one of ``PRECISIONS``.
        device: where the network is.
    """
    if device.type != "cuda":
        yield
        return
    matmul: Any = torch.backends.cuda.matmul
    cudnn: Any = torch.backends.cudnn
    if hasattr(matmul, "fp32_precision"):  # torch 2.9 and newer, which refuse a mix with the other
        switches: list[tuple[Any, str]] = [(matmul, "fp32_precision")]
        switches += [(cudnn.conv, "fp32_precision")]
        wanted: str | bool = "tf32" if name == "tf32" else "ieee"
    else:
        switches, wanted = [(matmul, "allow_tf32"), (cudnn, "allow_tf32")], name == "tf32"
    before = [getattr(owner, switch) for owner, switch in switches]
    for owner, switch in switches:
        setattr(owner, switch, wanted)
    try:
        yield
    finally:
        for (owner, switch), value in zip(switches, before, strict=True):
            setattr(owner, switch, value)


def autocast(name: str, device: torch.device) -> contextlib.AbstractContextManager[None]:
    """The region in which a network's forward pass runs in 16 bits, if the precision has them."""
    return torch.autocast(
        device.type,
        dtype=_SIXTEEN_BITS.get(name),
        enabled=name in _SIXTEEN_BITS,
        cache_enabled=False,  # a weight cast before a capture would stay what it was
    )


@contextlib.contextmanager
def arithmetic(name: str, device: torch.device, *, own_casts: bool = False) -> Iterator[None]:
    """Let a network's forward pass compute in a precision inside the block, whatever is around it.

    Args:
        name: one of ``PRECISIONS``.
        device: where the network is.
        own_casts: whether the network makes its own 16 bits, as a prepared one does.
    """
    with float32_mode(name, device), autocast("fp32" if own_casts else name, device):
        yield


def check_precision(name: str, device: torch.device) -> None:
    """Refuse a precision that is unknown, or that this device does not have.

    Raises:
        ValueError: saying which there are.
    """
    if name not in PRECISIONS:
        raise ValueError(f"precision = {name!r} is unknown; choose one of {PRECISIONS}")
    if name == "tf32" and device.type != "cuda":
        raise ValueError("precision = 'tf32' is a mode of NVIDIA GPUs: choose 'fp32' or 'bf16'")
    if name == "tf32" and torch.cuda.get_device_capability(device) < (8, 0):
        raise ValueError("precision = 'tf32' needs a GPU of compute capability 8.0: choose 'fp16'")


__all__ = [
    "PRECISIONS",
    "arithmetic",
    "autocast",
    "automatic",
    "check_precision",
    "float32_mode",
    "has_bf16",
    "network_dtype",
    "resolve",
]
