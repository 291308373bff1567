"""Prepared networks follow the weights of their source, or say why they cannot."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from helpers.networks import SIGMAS, assert_same, error, inputs, network, other_weights, points
from torch import nn

from ncsn_fast.device import native
from ncsn_fast.inference.prepare import prepare_for_inference
from ncsn_fast.models.base import ScoreNetwork
from ncsn_fast.models.mlp import MLPScore
from ncsn_fast.models.packed_conv import PackedConv


def load(net: ScoreNetwork) -> None:
    net.load_state_dict(other_weights(net))


def assign(net: ScoreNetwork) -> None:
    net.load_state_dict(other_weights(net), assign=True)


def step(net: ScoreNetwork) -> None:
    optimiser = torch.optim.Adam(net.parameters(), lr=0.1)
    net(*inputs(net)).square().sum().backward()
    optimiser.step()


def swap_in_place(net: ScoreNetwork) -> None:
    """As the official EMAHelper does, through .data, which no version counter sees."""
    new = other_weights(net)
    for name, parameter in net.named_parameters():
        parameter.data.copy_(new[name])


def swap_data(net: ScoreNetwork) -> None:
    new = other_weights(net)
    for name, parameter in net.named_parameters():
        parameter.data = new[name]


def half(net: ScoreNetwork) -> None:
    load(net)
    net.half().float()


def one_number(net: ScoreNetwork) -> None:
    next(net.parameters()).data.view(-1)[3] += 0.5


def strided(net: ScoreNetwork) -> None:
    new = other_weights(net)
    for name, parameter in net.named_parameters():
        parameter.data = torch.stack([new[name], new[name] - 1], dim=-1)[..., 0]


def turned(net: ScoreNetwork) -> None:
    """The same numbers in memory, in another order of the dimensions."""
    for parameter in net.parameters():
        if parameter.ndim == 4 and parameter.shape[0] == parameter.shape[1]:
            parameter.data = parameter.data.transpose(0, 1)
        elif parameter.ndim == 2 and parameter.shape[0] == parameter.shape[1]:
            parameter.data = parameter.data.t()


def shared(net: ScoreNetwork) -> None:
    """Two layers with one tensor for both, which is then changed."""
    layers = [m for m in net.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    kind = "bias" if isinstance(net, MLPScore) else "weight"
    first = getattr(layers[0 if kind == "bias" else -2], kind)
    setattr(layers[1 if kind == "bias" else -1], kind, first)
    first.data += 0.3


def new_module(net: ScoreNetwork) -> None:
    torch.manual_seed(5)
    if isinstance(net, MLPScore):
        net.linears[0] = nn.Linear(3, 8)
    else:
        net.end_conv = nn.Conv2d(8, 3, 3, padding=1)


CHANGES = [load, assign, step, swap_in_place, swap_data, half, new_module]
CHANGES += [one_number, strided, turned, shared]
WITH_AND_WITHOUT_KERNELS = pytest.mark.parametrize("kernels", [True, False])


def give_kernels(kernels: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not kernels:
        monkeypatch.setattr(native, "ready", lambda: None)
    elif native.missing():
        pytest.skip("needs a compiler")


@WITH_AND_WITHOUT_KERNELS
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("make", [network, lambda: network("NCSN"), points])
def test_refresh_follows_every_change_at_the_same_addresses(
    make: Callable[[], ScoreNetwork],
    change: Callable[[ScoreNetwork], None],
    kernels: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    give_kernels(kernels, monkeypatch)
    net = make()
    prepared = prepare_for_inference(net, "fp32")
    addresses = [t.data_ptr() for t in prepared.network.state_dict().values()]
    before = prepared.normalized(*inputs(net)).detach()
    change(net)
    assert error(net.normalized(*inputs(net)), before.double()) > 1e-3
    prepared.refresh()
    assert_same(prepared, net)
    assert [t.data_ptr() for t in prepared.network.state_dict().values()] == addresses
    assert prepared.generation == 0


@WITH_AND_WITHOUT_KERNELS
@torch.no_grad()
def test_weights_that_are_not_numbers_come_and_go(
    kernels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    give_kernels(kernels, monkeypatch)
    net = network()
    good = copy.deepcopy(net.state_dict())
    prepared = prepare_for_inference(net, "fp32")
    net.end_conv.weight.data[0, 0, 0, 0] = torch.nan
    prepared.refresh()
    assert prepared.normalized(*inputs(net)).isnan().any()
    net.end_conv.weight.data.copy_(good["end_conv.weight"])
    prepared.refresh()
    assert_same(prepared, net)


@WITH_AND_WITHOUT_KERNELS
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_only_what_has_changed_is_packed_again(
    precision: str, kernels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    give_kernels(kernels, monkeypatch)
    net = network()
    prepared = prepare_for_inference(net, precision)
    packed: list[nn.Module] = []
    pack = PackedConv.pack
    monkeypatch.setattr(PackedConv, "pack", lambda conv: (packed.append(conv), pack(conv))[1])
    prepared.refresh()
    assert packed == []
    assert prepared.agrees()
    net.res1[0].conv1.weight.data[0, 0, 0, 0] += 1  # type: ignore[index]
    assert not prepared.agrees()
    prepared.refresh()
    assert packed == [prepared.network.res1[0].conv1]  # type: ignore[index]
    assert prepared.agrees()
    x = inputs(net)
    assert torch.equal(
        prepared.normalized(*x), prepare_for_inference(net, precision).normalized(*x)
    )


@WITH_AND_WITHOUT_KERNELS
def test_a_refresh_that_was_cut_short_is_made_up_for(
    kernels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    give_kernels(kernels, monkeypatch)
    net = network()
    before = copy.deepcopy(net.state_dict())
    prepared = prepare_for_inference(net, "fp32")
    swap_in_place(net)
    pack, calls = PackedConv.pack, iter(range(100))

    def interrupted(conv: PackedConv) -> None:
        if next(calls) == 3:
            raise KeyboardInterrupt
        pack(conv)

    with monkeypatch.context() as patch:
        patch.setattr(PackedConv, "pack", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepared.refresh()
    for name, parameter in net.named_parameters():  # back as they were
        parameter.data.copy_(before[name])
    prepared.refresh()
    assert_same(prepared, net)


def test_a_copy_of_a_prepared_network_follows_by_itself() -> None:
    net = network()
    prepared = prepare_for_inference(net, "fp32")
    other = copy.copy(prepared)
    swap_in_place(net)
    prepared.refresh()
    assert prepared.agrees()
    assert not other.agrees()
    other.refresh()
    assert_same(other, net)


def test_refresh_follows_inside_inference_mode() -> None:
    net = network()
    with torch.inference_mode():
        prepared = prepare_for_inference(net, "fp32")
    load(net)
    prepared.refresh()
    assert_same(prepared, net)
    step(net)
    with torch.inference_mode():
        prepared.refresh()
    assert_same(prepared, net)


def test_network_made_in_inference_mode_is_followed() -> None:
    with torch.inference_mode():
        net = network()
    prepared = prepare_for_inference(net, "fp32")
    with torch.inference_mode():
        swap_in_place(net)
    prepared.refresh()
    assert_same(prepared, net)


@pytest.mark.parametrize("what", ["another width", "another activation"])
def test_a_rebuilt_source_is_a_new_generation(what: str) -> None:
    net = network()
    prepared = prepare_for_inference(net, "fp32")
    other = network(**({"ngf": 4} if what == "another width" else {"activation": "relu"}))
    net.__dict__.update(other.__dict__)
    prepared.refresh()
    assert prepared.generation == 1
    assert_same(prepared, other)


def test_another_number_of_noise_levels_is_a_new_generation() -> None:
    net = network()
    prepared = prepare_for_inference(net, "fp32")
    net.sigmas = torch.tensor([5.0, *SIGMAS])
    prepared.refresh()
    assert prepared.generation == 1
    assert torch.equal(prepared.network.sigmas, net.sigmas)


def test_16_bit_copy_follows_in_16_bits() -> None:
    net = network()
    prepared = prepare_for_inference(net, "bf16")
    load(net)
    prepared.refresh()
    expected = prepare_for_inference(net, "bf16")
    assert torch.equal(prepared.normalized(*inputs(net)), expected.normalized(*inputs(net)))


def test_a_source_that_can_no_longer_be_prepared_is_refused() -> None:
    net = network()
    prepared = prepare_for_inference(net)
    handle = net.end_conv.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="'end_conv' has hooks"):
        prepared.refresh()
    handle.remove()
    prepared.refresh()
    net.double()
    with pytest.raises(ValueError, match=r"torch\.float64.*net\.float\(\)"):
        prepared.refresh()


@pytest.mark.gpu
def test_moving_the_source_is_a_new_generation() -> None:
    net = network()
    prepared = prepare_for_inference(net, "fp32")
    net.cuda()
    prepared.refresh()
    assert prepared.generation == 1
    x, _ = inputs(net)
    found = prepared.normalized(x.cuda()).cpu()
    assert error(found, copy.deepcopy(net).cpu().normalized(x).double()) < 1e-4


@pytest.mark.gpu
def test_refresh_does_not_wait_for_the_device() -> None:
    prepared = prepare_for_inference(network().cuda(), "fp16")
    torch.cuda.set_sync_debug_mode("error")
    try:
        prepared.refresh()
    finally:
        torch.cuda.set_sync_debug_mode("default")
