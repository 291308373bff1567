"""What "auto" is for a network: measured once, by a clock that the tests hold, and followed."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import networks
from helpers.networks import points
from torch import Tensor, nn

import ncsn_fast as nf
from ncsn_fast.device import measured, native
from ncsn_fast.device import precision as precisions
from ncsn_fast.inference import automatic as automatics
from ncsn_fast.inference.automatic import Choice, automatic, for_training, on_device
from ncsn_fast.models.base import ScoreNetwork
from ncsn_fast.models.conv_forms import Geometry
from ncsn_fast.runs import demo

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(not precisions.has_bf16(), reason="no bfloat16 to choose here")
Clock = Callable[..., list[Mapping[str, Callable[[], Tensor]]]]


def network(name: str = "NCSNv2", **changes: Any) -> ScoreNetwork:
    return networks.network(name, **{"ngf": 16, **changes})


@pytest.fixture
def clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    """What a convolution takes in each precision, in milliseconds; returns what was timed."""
    monkeypatch.setenv(native.CACHE, str(tmp_path))
    measured.forget()

    def set_to(fp32: float, bf16: float) -> list[Mapping[str, Callable[[], Tensor]]]:
        timed = []

        def times(contestants: Mapping[str, Callable[[], Tensor]]) -> dict[str, float]:
            timed.append(contestants)
            return {"fp32": fp32 / 1e3, "bf16": bf16 / 1e3}

        monkeypatch.setattr(automatics, "times", times)
        return timed

    yield set_to
    measured.forget()


@pytest.mark.parametrize(
    ("fp32", "bf16", "expected"),
    [(10, 2, "bf16"), (2, 5, "fp32"), (1.0, 0.94, "bf16"), (1.0, 0.96, "fp32")],
)
def test_bf16_has_to_be_faster_by_more_than_it_rounds(
    fp32: float, bf16: float, expected: str, clock: Clock
) -> None:
    clock(fp32, bf16)
    assert automatic(network()).precision == expected
    assert on_device(CPU).precision == expected


def test_it_is_measured_once_on_a_machine(clock: Clock) -> None:
    timed = clock(10, 2)
    first = automatic(network())
    assert len(timed) == len(automatics._heaviest(network(), 8, 8))
    clock(2, 10)
    assert automatic(network(seed=1)) == first  # its weights do not matter
    measured.forget()  # as in another process
    assert automatic(network()) == first


@pytest.mark.parametrize("changes", [{"ngf": 24}, {"image_size": 16}, {"name": "NCSNv2Deeper"}])
def test_another_network_is_measured_by_itself(changes: dict[str, object], clock: Clock) -> None:
    clock(10, 2)
    automatic(network())
    clock(2, 10)
    assert automatic(network(**changes)).precision == "fp32"


@pytest.mark.parametrize("name", ["NCSNv2", "NCSNv2Deepest"])
def test_a_network_for_any_size_is_measured_at_a_usual_one(name: str, clock: Clock) -> None:
    clock(10, 2)
    automatic(network(name, image_size=None))
    (key,) = measured.decisions("precision")
    assert f"{name} with 16 channels at 32×32" in key


def test_other_backends_and_forms_are_measured_by_themselves(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock(10, 2)
    automatic(network())
    clock(2, 10)
    with nf.use_backend("torch"):
        assert automatic(network()).precision == "fp32"
    assert automatic(network()).precision == "bf16"
    monkeypatch.setenv("NCSN_FAST_CONV", "F2")
    assert automatic(network()).precision == "fp32"


def test_it_does_not_depend_on_threads(clock: Clock) -> None:
    clock(10, 2)
    automatic(network())
    clock(2, 10)
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        assert automatic(network()).precision == "bf16"
    finally:
        torch.set_num_threads(before)


def test_the_reason_tells_the_times(clock: Clock) -> None:
    clock(0.5, 0.25)
    number = sum(automatics._heaviest(network(), 8, 8).values())
    assert f"take {number * 0.5:.3f} ms in fp32, {number * 0.25:.3f} ms in bf16 of one" in (
        automatic(network()).reason
    )
    told = on_device(CPU).reason
    assert told.startswith("a convolution of 128 channels at 16×16 takes 0.500 ms in fp32, 0.250")
    assert told.endswith("of a network its own are timed")


def test_an_entry_that_is_no_measurement_is_measured_anew(clock: Clock) -> None:
    clock(10, 2)
    automatic(network())
    path = measured.cache_file()
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(" ms in bf16", " seconds in int8"), encoding="utf-8")
    measured.forget()
    clock(2, 10)
    assert automatic(network()).precision == "fp32"


def test_without_bf16_nothing_is_measured(clock: Clock) -> None:
    timed = clock(10, 2)
    with torch.backends.mkldnn.flags(enabled=False):
        choice = automatic(network())
        assert on_device(CPU) == choice
    assert choice.precision == "fp32"
    assert "switched off" in choice.reason
    assert not timed


def test_networks_with_few_channels_without_convolutions_and_on_other_devices_are_not_measured(
    clock: Clock,
) -> None:
    timed = clock(10, 2)
    narrow = automatic(network(ngf=15))
    assert narrow == ("fp32", "convolutions of 30 channels gain nothing in bfloat16")
    assert automatic(points()) == ("fp32", "MLPScore has no convolutions")
    assert on_device(torch.device("cuda", 0)).precision == "fp16"
    assert on_device(torch.device("mps")).precision == "fp32"
    assert not timed


@pytest.mark.parametrize("name", ["NCSN", "NCSNv2", "NCSNv2Deeper", "NCSNv2Deepest"])
def test_the_heaviest_convolutions_are_those_of_a_whole_pass(name: str) -> None:
    net = network(name, image_size=32)
    seen: dict[Geometry, int] = {}

    def see(conv: nn.Module, inputs: tuple[Tensor]) -> None:
        assert isinstance(conv, nn.Conv2d)
        channels, sides = (conv.in_channels, conv.out_channels), tuple(inputs[0].shape[2:])
        one = Geometry(channels, sides, conv.padding, conv.dilation)
        seen[one] = seen.get(one, 0) + 1

    hooks = [
        conv.register_forward_pre_hook(see)
        for conv in net.modules()
        if isinstance(conv, nn.Conv2d) and conv.kernel_size == (3, 3)
    ]
    with torch.no_grad():
        net.normalized(torch.rand(1, 3, 32, 32), torch.zeros(1, dtype=torch.int64))
    for hook in hooks:
        hook.remove()

    def work(number: Mapping[Geometry, int]) -> int:
        return sum(n * math.prod((*one.channels, *one.sides)) for one, n in number.items())

    found = automatics._heaviest(net, 32, 32)
    assert found.items() <= seen.items()
    assert 1 <= len(found) <= 3
    others = {one: n for one, n in seen.items() if one not in found}
    assert min(work({one: n}) for one, n in found.items()) >= max(
        work({one: n}) for one, n in others.items()
    )
    assert work(found) >= 0.4 * work(seen)


def test_what_is_timed_is_what_prepared_networks_run() -> None:
    contestants = automatics._contestants(Geometry((8, 16), (128, 8), (2, 2), (2, 2)))
    with torch.inference_mode():
        fp32, bf16 = contestants["fp32"](), contestants["bf16"]()
    assert (fp32.dtype, bf16.dtype) == (torch.float32, torch.bfloat16)
    assert fp32.shape == bf16.shape == (2, 16, 64, 8)  # of a large image a part
    assert fp32.is_contiguous(memory_format=torch.channels_last)
    assert fp32.norm() > 0


def test_a_measurement_leaves_network_and_generator_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Really measured, whatever the outcome."""
    monkeypatch.setenv(native.CACHE, str(tmp_path))
    measured.forget()
    net = network()
    before, state = {k: v.clone() for k, v in net.state_dict().items()}, torch.get_rng_state()
    with torch.autocast("cpu", torch.bfloat16):
        choice = automatic(net.train())
    assert choice.precision in ("fp32", "bf16")
    assert net.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    assert not any(module._forward_pre_hooks for module in net.modules())
    measured.forget()


def test_sampling_follows_it(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    clock(10, 2)
    sampler = nf.Sampler(network(), step_size=1e-5, steps_per_level=1)
    with caplog.at_level(logging.INFO, "ncsn_fast"):
        automatically = sampler(2, seed=0)
    assert sampler.precision == "bf16"
    assert any(line.startswith("NCSNv2 samples in bf16: its heaviest") for line in caplog.messages)
    named = nf.Sampler(network(), step_size=1e-5, steps_per_level=1, precision="bf16")
    assert torch.equal(named(2, seed=0), automatically)


def test_a_sampler_says_what_it_computes_in(clock: Clock) -> None:
    clock(10, 2)
    net, settings = network(), {"step_size": 1e-5, "steps_per_level": 1}
    assert nf.Sampler(net, **settings, precision="fp16").precision == "fp16"
    assert nf.Sampler(points(), **settings).precision == "fp32"
    net.begin_conv.register_forward_hook(lambda *_: None)  # it cannot be copied, and runs itself
    assert nf.Sampler(net, **settings).precision == "fp32"


@pytest.mark.parametrize(("fp32", "bf16", "expected"), [(10, 2, "bf16"), (2, 10, "fp32")])
def test_the_demo_trains_in_it(fp32: float, bf16: float, expected: str, clock: Clock) -> None:
    clock(fp32, bf16)
    net = network()
    trainer = nf.Trainer(net, torch.rand(64, *net.shape), demo._settings(1.0, seed=0))
    assert trainer.config.precision == expected


@pytest.mark.parametrize(("has_it", "expected"), [(True, "bf16"), (False, "fp32")])
def test_training_on_a_gpu_needs_no_scaler(
    has_it: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_supported(including_emulation: bool = True) -> bool:
        return has_it or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_supported)
    monkeypatch.setattr(automatics, "automatic", lambda net: Choice("fp16", "as on a GPU"))
    assert for_training(network()).precision == expected
