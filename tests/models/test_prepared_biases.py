"""Biases in prepared networks on a GPU, where PyTorch adds one in a pass of its own."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers.networks import error, inputs, short
from helpers.recorded_capture import Tape
from torch.autograd import forward_ad

import ncsn_fast as nf
from ncsn_fast.device import backends
from ncsn_fast.inference.prepare import PreparedNetwork
from ncsn_fast.models import packed_conv

CONVOLUTION = torch.ops.aten.convolution.default
ADDITIONS = (torch.ops.aten.add.Tensor, torch.ops.aten.add.out)


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is packed, and Triton's kernels run."""
    pytest.importorskip("triton", reason="Triton is not installed")
    monkeypatch.setattr(packed_conv, "can_pack", lambda weight: False)


@pytest.mark.parametrize(
    ("name", "precision", "most"),
    [
        ("NCSNv2", "fp32", 1e-5),
        ("NCSNv2", "fp16", 2e-3),
        ("NCSNv2", "bf16", 2e-2),
        ("NCSN", "fp32", 1e-5),
    ],
)
def test_few_have_a_pass_of_their_own(name: str, precision: str, most: float) -> None:
    net = short(name)
    for module in net.modules():
        if isinstance(module, torch.nn.Conv2d) and module.bias is not None:
            torch.nn.init.normal_(module.bias)
    x, labels = inputs(net, 1)
    exact = copy.deepcopy(net).double().normalized(x.double(), labels)
    prepared = PreparedNetwork(net, precision)
    with nf.use_backend("triton"), torch.no_grad(), Tape() as tape:
        found = prepared.normalized(x, labels)
    assert error(found, exact) < most
    convolutions = [args for func, args, *_ in tape.calls if func is CONVOLUTION]
    with_bias = [args[1].shape[0] for args in convolutions if args[2] is not None]
    assert with_bias == [net.channels]  # the last one
    added = [
        args[0].shape
        for func, args, *_ in tape.calls
        if func in ADDITIONS and args[0].ndim == 4 and args[1].ndim == 3
    ]
    assert len(convolutions) > 20
    # Of the first one, where it is rounded, and of images of one size, whose sum is PyTorch's.
    assert len(added) == 2


def test_with_gradients_they_are_pytorchs() -> None:
    net = short("NCSNv2")
    x, labels = inputs(net, 1)
    exact = copy.deepcopy(net).double()
    wanted, given = x.double().requires_grad_(), x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(exact.normalized(wanted, labels).square().sum(), wanted)
    prepared = PreparedNetwork(net, "fp32")
    (found,) = torch.autograd.grad(prepared.normalized(given, labels).square().sum(), given)
    assert error(found, expected) < 1e-5


@torch.no_grad()
def test_a_forward_derivative_goes_through() -> None:
    net = short("NCSNv2")
    prepared = nf.prepare_for_inference(net, "fp32")
    x, labels = inputs(net)
    with backends.use_backend("torch"), forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        found, expected = (
            forward_ad.unpack_dual(one.normalized(dual, labels)).tangent for one in (prepared, net)
        )
    assert error(found, expected) < 1e-4
