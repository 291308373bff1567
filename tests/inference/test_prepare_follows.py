"""Prepared networks follow the weights of their source, or say why they cannot."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from helpers.networks import SIGMAS, assert_same, error, inputs, network, other_weights, points
from torch import nn

from ncsn_fast.inference.prepare import prepare_for_inference
from ncsn_fast.models.base import ScoreNetwork
from ncsn_fast.models.mlp import MLPScore


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


def new_module(net: ScoreNetwork) -> None:
    torch.manual_seed(5)
    if isinstance(net, MLPScore):
        net.linears[0] = nn.Linear(3, 8)
    else:
        net.end_conv = nn.Conv2d(8, 3, 3, padding=1)


CHANGES = [load, assign, step, swap_in_place, swap_data, half, new_module]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("make", [network, lambda: network("NCSN"), points])
def test_refresh_follows_every_change_at_the_same_addresses(
    make: Callable[[], ScoreNetwork], change: Callable[[ScoreNetwork], None]
) -> None:
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
