"""Convolutions that are filtered where gradients are needed, and what sees PyTorch's instead."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from unittest import mock

import pytest
import torch
from helpers.networks import error, inputs, network
from torch import nn
from torch.func import functional_call, jvp, vmap

import ncsn_fast as nf
from ncsn_fast.device import measured, native
from ncsn_fast.models import conv_forms
from ncsn_fast.models.conv_forms import Geometry, gradient_tile_of
from ncsn_fast.models.trained_conv import FEWEST_PIXELS, TrainedConv, forms
from ncsn_fast.ops import conv3x3
from ncsn_fast.ops.conv3x3 import Tiles

pytestmark = pytest.mark.skipif(
    native.missing() is not None or not torch.backends.mkldnn.is_available(),
    reason="needs the native kernels and oneDNN",
)
LAST = torch.channels_last


@pytest.fixture(autouse=True)
def filtered(monkeypatch: pytest.MonkeyPatch) -> Iterator[mock.Mock]:
    """Everything that may be filtered is, in tiles of 4; calls are counted."""
    monkeypatch.setenv("NCSN_FAST_CONV", "F4")
    with mock.patch.object(conv3x3, "convolution", side_effect=conv3x3.convolution) as calls:
        yield calls


def conv(**settings: object) -> TrainedConv:
    torch.manual_seed(0)
    return TrainedConv(**{"in_channels": 6, "out_channels": 7, "kernel_size": 3, **settings})


def images(samples: int = 5, side: int = 9) -> torch.Tensor:
    x = torch.randn(samples, 6, side, side, generator=torch.Generator().manual_seed(1))
    return x.contiguous(memory_format=LAST)


@pytest.mark.parametrize(
    "settings",
    [
        {"padding": 1},
        {"padding": 2, "dilation": 2, "bias": False},
        {"padding": (2, 1), "dilation": (1, 2)},
        {},
    ],
)
@pytest.mark.parametrize("asked", ["F2", "F4", "auto"])
def test_results_and_gradients_are_those_of_float64(monkeypatch, filtered, settings, asked):
    monkeypatch.setenv("NCSN_FAST_CONV", asked)
    ours, x = conv(**settings), images().requires_grad_()
    exact = nn.Conv2d.forward(
        doubled := copy.deepcopy(ours).double(), y := x.detach().double().requires_grad_()
    )
    found = ours(x)
    assert asked == "auto" or filtered.call_count == 1
    upstream = torch.randn(found.shape, generator=torch.Generator().manual_seed(2))
    found.backward(upstream)
    exact.backward(upstream.double())
    pairs = [(found, exact), (x.grad, y.grad)]
    pairs += [
        (p.grad, q.grad) for p, q in zip(ours.parameters(), doubled.parameters(), strict=True)
    ]
    for one, other in pairs:
        assert error(one, other) < 5e-6


@pytest.mark.parametrize(
    "settings",
    [
        {"stride": 2},
        {"padding": 3},  # whose gradient would need a padding below zero
        {"padding": "same"},
        {"padding": 1, "padding_mode": "reflect"},
        {"in_channels": 6, "out_channels": 6, "groups": 2},
        {"kernel_size": 1},
    ],
)
def test_other_convolutions_are_pytorchs(filtered, settings):
    ours, x = conv(**settings), images()
    assert torch.equal(ours(x), nn.Conv2d.forward(ours, x))
    assert not filtered.called


def test_what_is_not_trained_is_pytorchs(filtered):
    ours, x = conv(padding=1), images()
    with torch.no_grad():
        assert torch.equal(ours(x), nn.Conv2d.forward(ours, x))
    ours(x.contiguous())
    ours(images(3, 9))  # pixels are too few
    with nf.use_backend("torch"):
        ours(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert ours(x).dtype == torch.bfloat16
    copy.deepcopy(ours).double()(x.double())
    ours.requires_grad_(False)(x)
    assert not filtered.called
    ours(x.requires_grad_())
    assert filtered.called


def test_transforms_see_pytorchs(filtered):
    ours, x = conv(padding=1), images()
    plain = nn.Conv2d(6, 7, 3, padding=1)
    plain.load_state_dict(ours.state_dict())
    for found, expected in zip(jvp(ours, (x,), (x,)), jvp(plain, (x,), (x,)), strict=True):
        assert torch.equal(found, expected)
    stacked = torch.stack([x, x + 1])
    assert error(vmap(ours)(stacked), torch.stack([plain(part) for part in stacked])) < 1e-6
    weights = {name: torch.stack([p, 2 * p]) for name, p in plain.named_parameters()}
    many = vmap(lambda w: functional_call(ours, w, (x,)))(weights)
    assert error(many[1], 2 * plain(x)) < 1e-6
    assert not filtered.called


def test_gradients_of_many_upstream_ones_at_once_are_pytorchs():
    ours, x = conv(padding=1), images().requires_grad_()
    wanted = [x, *ours.parameters()]
    upstream = torch.randn(3, 5, 7, 9, 9, generator=torch.Generator().manual_seed(2))
    found = torch.autograd.grad(ours(x), wanted, upstream, is_grads_batched=True)
    plain = nn.Conv2d.forward(ours, x)
    expected = torch.autograd.grad(plain, wanted, upstream, is_grads_batched=True)
    for one, other in zip(found, expected, strict=True):
        assert error(one, other) < 1e-6


def test_a_traced_one_is_pytorchs(filtered):
    ours, x = conv(padding=1), images().requires_grad_()
    traced = torch.jit.trace(ours, x)
    assert not filtered.called
    assert error(traced(x), nn.Conv2d.forward(ours, x)) < 1e-6


def test_a_compiled_one_is_pytorchs(filtered):
    ours, x = conv(padding=1), images().requires_grad_()
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph

    found = torch.compile(ours, backend=backend, fullgraph=True)(x)
    assert error(found, nn.Conv2d.forward(ours, x)) < 1e-6
    assert len(graphs) == 1
    assert not filtered.called


def test_the_number_of_pixels_decides():
    ours = conv(padding=1)
    side = 4
    fewest = FEWEST_PIXELS // side**2
    assert ours.tiles((fewest, 6, side, side)) == Tiles(4, 4, 4)
    assert ours.tiles((fewest - 1, 6, side, side)) == Tiles(0, 0, 0)


def test_the_form_of_a_gradient_is_measured_and_kept(monkeypatch):
    monkeypatch.setenv("NCSN_FAST_CONV", "auto")
    measured.forget()
    measured.cache_file().unlink(missing_ok=True)
    geometry = Geometry((8, 8), (8, 8), (1, 1), (1, 1), False, 4)
    taken = []

    def times(forms, x):
        taken.append([tuple(form(x)[0].shape) for form in forms.values()])
        return dict(zip(forms, (1.0, 0.5, 0.4), strict=True))

    monkeypatch.setattr(conv_forms, "_times", times)
    assert gradient_tile_of(geometry) == 4
    assert gradient_tile_of(geometry) == 4
    assert taken == [[(8, 8, 3, 3)] * 3]
    assert list(measured.decisions("weight_gradient").values()) == [4]
    measured.forget()
    measured.cache_file().unlink()


def test_the_forms_of_a_network_are_told():
    net = network("NCSNv2", ngf=8)
    found = forms(net, (8, 3, 8, 8))
    convolutions = {n for n, m in net.named_modules() if isinstance(m, nn.Conv2d)}
    assert set(found) == convolutions
    assert set(found.values()) == {Tiles(4, 4, 4), Tiles(0, 0, 0)}
    assert set(forms(net, (1, 3, 8, 8)).values()) == {Tiles(0, 0, 0)}


def test_a_step_agrees_with_direct_convolutions(monkeypatch, filtered):
    net = network("NCSNv2", ngf=8).to(memory_format=LAST)
    x, _ = inputs(net, 8)
    grads = []
    for asked in ("F4", "direct"):
        monkeypatch.setenv("NCSN_FAST_CONV", asked)
        filtered.reset_mock()
        net.zero_grad()
        nf.dsm_loss(net, x, net.sigmas, seed=0).backward()
        assert filtered.called == (asked == "F4")
        grads.append(torch.cat([p.grad.flatten() for p in net.parameters()]))
    assert error(grads[0], grads[1].double()) < 2e-5


def test_networks_without_gradients_are_bit_for_bit_as_before(filtered):
    net = network("NCSN", ngf=8)
    plain = copy.deepcopy(net)
    for module in plain.modules():
        if isinstance(module, TrainedConv):
            module.__class__ = nn.Conv2d
    with torch.no_grad():
        assert torch.equal(net(*inputs(net, 8)), plain(*inputs(net, 8)))
    assert net.state_dict().keys() == plain.state_dict().keys()
    assert isinstance(pickle.loads(pickle.dumps(net)).begin_conv, TrainedConv)
    assert not filtered.called
