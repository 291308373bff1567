"""The precision that "auto" is for a network.

On a CPU it is measured: the heaviest convolutions of the network, which most of its time goes to,
are run in float32 and in bfloat16, some tenths of a second, once on each machine
(``device/measured.py``). The flags of a CPU do not tell. Where it has AMX, bfloat16 is many times
faster; where it has AVX-512's instructions for bfloat16 alone, it is faster than direct
convolutions in float32 and slower than filtered ones (``models/conv_forms.py``).
"""

from __future__ import annotations

import copy
import functools
import math
import re
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ncsn_fast.device import backends, malloc
from ncsn_fast.device import precision as precisions
from ncsn_fast.device.measured import Value, decided, times
from ncsn_fast.models import conv_forms
from ncsn_fast.models.base import ScoreNetwork
from ncsn_fast.models.conv_forms import Geometry
from ncsn_fast.models.packed_conv import PackedConv
from ncsn_fast.models.refinenet import RefineNet

# bfloat16 rounds more: it is taken where its convolutions need no more than this share of the time.
_MARGIN = 0.95
# With fewer channels calls cost more than products: with AMX bfloat16 takes 1.04 times as long for
# 16 of them, and elsewhere the two differ by no more than two measurements.
_FEWEST = 32
# Heaviest first, until they have this share of the work.
_SHARE, _MOST = 0.6, 3
# Of the images of a network for images of any size.
_SIDE = 32
_CPU = torch.device("cpu")
_MEASURED = re.compile(r"(\d+\.\d+) ms in fp32, (\d+\.\d+) ms in bf16")


class Choice(NamedTuple):
    """A precision, "fp32", "fp16" or "bf16", and why it is that."""

    precision: str
    reason: str


_STANDARD = Geometry((128, 128), (16, 16), (1, 1), (1, 1))


def automatic(net: ScoreNetwork) -> Choice:
    """What "auto" is for a network on the device that it is on.

    Args:
        net: a network that can be prepared for inference. On a GPU "fp16" is without regard to its
            weights, with which activations may leave that range.

    Raises:
        ValueError: where a backend asked for by name cannot run.
    """
    if not isinstance(net, RefineNet):
        return Choice("fp32", f"{type(net).__name__} has no convolutions")
    if net.sigmas.device.type != "cpu":
        return _elsewhere(net.sigmas.device)
    widest = max(conv.out_channels for conv in net.modules() if isinstance(conv, nn.Conv2d))
    if widest < _FEWEST:
        return Choice("fp32", f"convolutions of {widest} channels gain nothing in bfloat16")
    least = 2 * net.reduction()
    side = least * math.ceil(_SIDE / least)
    height, width = (side, side) if net.image_size is None else net.shape[1:]
    name = f"{type(net).__name__} with {net.config['ngf']} channels at {height}×{width}"
    find = functools.partial(_heaviest, net, height, width)
    return _measured(name, find, "its heaviest convolutions take {}")


def for_training(net: ScoreNetwork) -> Choice:
    """What "auto" is for training a network on the device that it is on.

    On a CPU that of :func:`automatic`. On a GPU "bf16", which has the range of float32: in "fp16"
    small gradients are lost without a GradScaler, which skips steps until its scale fits. A GPU
    that has bfloat16 in emulation only trains in "fp32".

    Raises:
        ValueError: as :func:`automatic`.
    """
    choice = automatic(net)
    if choice.precision != "fp16":
        return choice
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return Choice("bf16", "this GPU has it, and it needs no scaler of the loss")
    return Choice("fp32", "this GPU has no bfloat16, and float16 would need a scaler of the loss")


def on_device(device: torch.device) -> Choice:
    """What "auto" is on a device for a network like those published."""
    if device.type != "cpu":
        return _elsewhere(device)
    name = "a convolution of 128 channels at 16×16"
    told = f"{name} takes {{}}; of a network its own are timed"
    return _measured(name, lambda: Counter([_STANDARD]), told)


def _elsewhere(device: torch.device) -> Choice:
    name = "fp16" if device.type == "cuda" else "fp32"
    return Choice(name, f"what {device.type} computes fast")


def _measured(name: str, find: Callable[[], Counter[Geometry]], told: str) -> Choice:
    """The faster one for some convolutions, and how long they take: "{}" in what is told."""
    if not precisions.has_bf16():
        return Choice("fp32", "oneDNN has no bfloat16 on this CPU, or is missing or switched off")
    key = f"of {name}, backend {backends.resolve('auto', _CPU)[0]}, forms {conv_forms.asked()}"
    found = decided("precision", key, lambda: _measure(find()), _is_measurement)
    fp32, bf16 = _milliseconds(found)
    name = "bf16" if bf16 < _MARGIN * fp32 else "fp32"
    return Choice(name, told.format(f"{found} of one thread"))


def _is_measurement(value: Value) -> bool:
    return isinstance(value, str) and _MEASURED.fullmatch(value) is not None


def _milliseconds(told: str) -> list[float]:
    found = _MEASURED.fullmatch(told)
    assert found is not None
    return [float(figure) for figure in found.groups()]


@torch.no_grad()
def _heaviest(net: RefineNet, height: int, width: int) -> Counter[Geometry]:
    """The convolutions that most of a network's work is in, and how many there are of each."""
    found: Counter[Geometry] = Counter()
    side = 2 * net.reduction()  # of a small image: sizes inside grow in proportion

    def see(conv: nn.Conv2d, inputs: tuple[Tensor]) -> None:
        rows, columns = inputs[0].shape[2:]
        sides = rows * height // side, columns * width // side
        widths = conv.in_channels, conv.out_channels
        assert not isinstance(conv.padding, str)
        found[Geometry(widths, sides, conv.padding, conv.dilation)] += 1

    seen = copy.deepcopy(net).float()
    for module in seen.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
            module.register_forward_pre_hook(see)
    x = torch.zeros(1, net.channels, side, side, dtype=torch.float32, device=_CPU)
    labels = torch.zeros(1, dtype=torch.int64, device=_CPU)
    with precisions.arithmetic("fp32", _CPU):
        seen.normalized(x, labels)
    work = {one: n * math.prod((*one.channels, *one.sides)) for one, n in found.items()}
    heaviest: Counter[Geometry] = Counter()
    for one in sorted(work, key=lambda one: -work[one])[:_MOST]:
        if sum(work[one] for one in heaviest) < _SHARE * sum(work.values()):
            heaviest[one] = found[one]
    return heaviest


def _measure(convolutions: Counter[Geometry]) -> str:
    """How long so many of each take in both precisions, in words."""
    malloc.keep_freed_memory()
    seconds = {"fp32": 0.0, "bf16": 0.0}
    for one, number in convolutions.items():
        with torch.inference_mode(), precisions.arithmetic("fp32", _CPU):
            for name, taken in times(_contestants(one)).items():
                seconds[name] += number * taken
    fp32, bf16 = (1e3 * seconds[name] for name in ("fp32", "bf16"))
    return f"{fp32:.3f} ms in fp32, {bf16:.3f} ms in bf16"


@torch.inference_mode()
def _contestants(one: Geometry) -> dict[str, Callable[[], Tensor]]:
    """A convolution as networks run it that are prepared in either precision."""
    conv, x = conv_forms.example(one.part())
    conv.__class__ = PackedConv
    found: dict[str, Callable[[], Tensor]] = {}
    for name in ("fp32", "bf16"):
        dtype = precisions.network_dtype(name)
        packed = copy.deepcopy(conv).to(dtype)
        assert isinstance(packed, PackedConv)
        packed.pack()
        found[name] = functools.partial(packed, x.to(dtype))
    return found


__all__ = ["Choice", "automatic", "for_training", "on_device"]
