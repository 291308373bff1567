"""Named precisions: what a network computes in. The state, noise and losses stay in float32."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from ncsn_fast.support.switch import Switch

# In training these are autocast: weights stay float32, convolutions run in 16 bits.
_SIXTEEN_BITS = {"bf16": torch.bfloat16, "fp16": torch.float16}
PRECISIONS = ("fp32", "tf32", *_SIXTEEN_BITS)


def has_bf16() -> bool:
    """Whether oneDNN is on and computes in bfloat16 on this CPU, fast or not."""
    if not (torch.backends.mkldnn.is_available() and torch._C._get_mkldnn_enabled()):
        return False
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def network_dtype(name: str) -> torch.dtype:
    """The type of a network's weights and activations in a precision."""
    return _SIXTEEN_BITS.get(name, torch.float32)


@contextlib.contextmanager
def float32_mode(name: str, device: torch.device) -> Iterator[None]:
    """Let float32 products be what a precision says, inside the block.

    TF32 keeps 10 bits of a factor's mantissa. PyTorch's convolutions on a GPU take it unless they
    are told otherwise; here only "tf32" does. On a CPU, where a program may let oneDNN round the
    factors to bfloat16, nothing does. Both are switches of the whole process: afterwards they are
    as they were, once no thread is in such a block.

    Args:
        name: one of ``PRECISIONS``.
        device: where the network is.

    Raises:
        RuntimeError: where another thread is in a block of the other mode, on a GPU.
    """
    if device.type not in _PRODUCTS:
        yield
        return
    tf32 = name == "tf32" and device.type == "cuda"
    with _PRODUCTS[device.type].set("tf32" if tf32 else "ieee"):
        yield


class _Products(NamedTuple):
    """How float32 products are made: the switches of torch 2.9 and newer, and those of before."""

    switches: dict[tuple[str, str], str]  # by (backend, operation), as set, not as inherited
    matmul: str | bool
    cudnn: bool | None  # None: left alone


_OPERATIONS = ("conv", "rnn", "matmul")
_ALL = ("generic", "all")


def _products_on_cuda() -> _Products:
    if not _has_switches():
        matmul: Any = torch.backends.cuda.matmul
        return _Products({}, matmul.allow_tf32, torch.backends.cudnn.allow_tf32)
    switches = _read(("cuda", "mkldnn"))
    # With all of them at "none" the older ones can be read, whatever they are mixed with.
    for place in switches:
        _put(place, "none")
    matmul = torch.get_float32_matmul_precision()
    try:
        cudnn = bool(torch.backends.cudnn.allow_tf32)
    except RuntimeError:  # on, while convolutions are off
        cudnn = True
    return _Products(switches, matmul, cudnn)


def _set_on_cuda(wanted: str) -> None:
    on = wanted == "tf32"
    if not _has_switches():
        _restore(_Products({}, on, on))
        return
    new = {("cuda", operation): wanted for operation in ("all", *_OPERATIONS)}
    # Whoever asks the older ones inside is answered, not refused for a mixture.
    switches = {_ALL: _get(_ALL), ("mkldnn", "matmul"): "ieee", **new}
    _restore(_Products(switches, "high" if on else "highest", on))


def _products_on_cpu() -> _Products:
    return _Products(_read(("mkldnn",)) if _has_switches() else {}, "", None)


def _set_on_cpu(wanted: str) -> None:
    if _has_switches():
        for operation in ("all", *_OPERATIONS):
            _put(("mkldnn", operation), wanted)


def _restore(products: _Products) -> None:
    """The older switches first: they set the newer ones too."""
    if products.cudnn is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that there are newer ones
            torch.backends.cudnn.allow_tf32 = products.cudnn
            if isinstance(products.matmul, bool):
                torch.backends.cuda.matmul.allow_tf32 = products.matmul
            else:
                torch.set_float32_matmul_precision(products.matmul)
    for place, value in products.switches.items():
        _put(place, value)


def _read(backends: tuple[str, ...]) -> dict[tuple[str, str], str]:
    """What is set at each switch. One at "none" shows what is set above it, unless that is too."""
    found = {_ALL: _get(_ALL)}
    _put(_ALL, "none")
    for backend in backends:
        above = (backend, "all")
        found[above] = _get(above)
        _put(above, "none")
        found |= {(backend, operation): _get((backend, operation)) for operation in _OPERATIONS}
        _put(above, found[above])
    _put(_ALL, found[_ALL])
    return found


def _has_switches() -> bool:
    return hasattr(torch._C, "_get_fp32_precision_getter")


def _get(place: tuple[str, str]) -> str:
    return torch._C._get_fp32_precision_getter(*place)


def _put(place: tuple[str, str], value: str) -> None:
    torch._C._set_fp32_precision_setter(*place, value)


_PRODUCTS = {
    "cuda": Switch("float32 products", _products_on_cuda, _set_on_cuda, _restore),
    "cpu": Switch("float32 products", _products_on_cpu, _set_on_cpu, _restore),
}


def autocast(name: str, device: torch.device) -> contextlib.AbstractContextManager[None]:
    """The region in which a network's forward pass runs in 16 bits, if the precision has them."""
    return torch.autocast(
        device.type,
        dtype=_SIXTEEN_BITS.get(name),
        enabled=name in _SIXTEEN_BITS,
        cache_enabled=False,  # a weight cast before a capture would stay what it was
    )


@contextlib.contextmanager
def repeatable(device: torch.device) -> Iterator[None]:
    """cuDNN's convolutions on a device give the same bits each time, inside the block.

    Of its algorithms only those are then taken that add in one order. Which of them it takes
    depends on the shape of what is convolved, so one image in two batches may still differ.
    """
    if device.type == "cuda":
        with _REPEATABLE.set(True):
            yield
    else:
        yield


def _set_repeatable(wanted: bool) -> None:
    torch.backends.cudnn.deterministic = wanted


_REPEATABLE = Switch(
    "deterministic convolutions",
    lambda: bool(torch.backends.cudnn.deterministic),
    _set_repeatable,
    _set_repeatable,
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


def check_precision(name: str, device: torch.device, *, auto: bool = False) -> None:
    """Refuse a precision that is unknown, or that this device does not have.

    Args:
        name: what was given.
        device: where the network is.
        auto: whether "auto" is one, too.

    Raises:
        ValueError: saying which there are.
    """
    allowed = ("auto", *PRECISIONS) if auto else PRECISIONS
    if not isinstance(name, str) or name not in allowed:
        raise ValueError(f"precision = {name!r:.80} is unknown; choose one of {allowed}")
    if name == "tf32" and device.type != "cuda":
        raise ValueError("precision = 'tf32' is a mode of NVIDIA GPUs: choose 'fp32' or 'bf16'")
    if name == "tf32" and torch.cuda.get_device_capability(device) < (8, 0):
        raise ValueError("precision = 'tf32' needs a GPU of compute capability 8.0: choose 'fp16'")


__all__ = [
    "PRECISIONS",
    "arithmetic",
    "autocast",
    "check_precision",
    "float32_mode",
    "has_bf16",
    "network_dtype",
]
