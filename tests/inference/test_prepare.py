"""Prepared networks: exact rewrites, precisions, refusals."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable

import pytest
import torch
from helpers.networks import (
    IMAGE_NETWORKS,
    SIGMAS,
    assert_same,
    error,
    inputs,
    network,
    other_weights,
    points,
    short,
)
from torch import nn
from torch.autograd import forward_ad

import ncsn_fast as nf
from ncsn_fast.data.digits import digits
from ncsn_fast.device import backends
from ncsn_fast.device.precision import PRECISIONS, float32_mode, network_dtype
from ncsn_fast.inference import prepare
from ncsn_fast.inference.automatic import Choice
from ncsn_fast.inference.prepare import obstacle, prepare_for_inference
from ncsn_fast.models.base import ScoreNetwork
from ncsn_fast.models.conv_forms import DIRECT
from ncsn_fast.models.packed_conv import PackedConv

TOLERANCE = {"fp32": 1e-5, "fp16": 1e-3, "bf16": 1e-2}


# What it computes.


@pytest.mark.parametrize("name", IMAGE_NETWORKS)
def test_halving_blocks_convolve_and_take_means_at_once(name: str) -> None:
    net = network(name)
    pooled = {
        module_name
        for module_name, module in prepare_for_inference(net).network.named_modules()
        if isinstance(module, PackedConv) and module.pooled
    }
    assert pooled == {f"{stage.residual}.0.conv2.conv" for stage in net.STAGES if stage.pool}


@torch.no_grad()
@pytest.mark.parametrize("model", ["digits", "NCSN", "NCSNv2Deepest"])
def test_float32_is_within_its_limit_at_every_level(model: str, convolutions: str) -> None:
    net = nf.load_checkpoint(model) if model == "digits" else network(model)
    clean = digits("test").images[:4] if model == "digits" else torch.rand(4, *net.shape)
    exact = copy.deepcopy(net).double()
    prepared = prepare_for_inference(net, "fp32")
    for level, sigma in enumerate(net.sigmas):
        x, labels = clean + sigma * torch.randn_like(clean), torch.full((4,), level)
        expected = exact.normalized(x.double(), labels)
        assert error(prepared.normalized(x, labels), expected) < 1e-5
    packed = [m for m in prepared.network.modules() if isinstance(m, PackedConv)]
    forms = {tile for conv in packed for tile in conv.packed or ()}
    assert forms == (
        {DIRECT} if convolutions == "direct" or not packed[0].packed else {DIRECT, 2, 4}
    )


@pytest.mark.parametrize("name", IMAGE_NETWORKS)
def test_float32_copy_computes_the_same(name: str) -> None:
    net = network(name)
    assert_same(prepare_for_inference(net, "fp32"), net)


@pytest.mark.parametrize(
    "changes", [{"channels": 1}, {"divided": False}, {"rescaled": True}, {"activation": "swish"}]
)
def test_any_setting_computes_the_same(changes: dict[str, object]) -> None:
    net = network(**changes)
    assert_same(prepare_for_inference(net, "fp32"), net)


@torch.no_grad()
def test_calling_it_gives_what_the_source_gives() -> None:
    for net in (network(), network("NCSN"), network(divided=False)):
        found = prepare_for_inference(net, "fp32")(*inputs(net))
        assert error(found, net(*inputs(net))) < 5e-6


def test_network_of_points_computes_the_same() -> None:
    assert_same(prepare_for_inference(points()), points())


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("name", ["NCSN", "NCSNv2", "NCSNv2Deeper"])
@torch.no_grad()
def test_16_bits_err_no_more_than_autocast_at_any_level(name: str, precision: str) -> None:
    net = network(name)
    exact = copy.deepcopy(net).double()
    prepared = prepare_for_inference(net, precision)
    x, _ = inputs(net)
    z = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    for level, sigma in enumerate(SIGMAS):
        labels = torch.full((len(x),), level)
        seen = x + sigma * z
        expected = exact.normalized(seen.double(), labels)
        with torch.autocast("cpu", network_dtype(precision)):
            usual = error(net.normalized(seen, labels), expected)
        found = error(prepared.normalized(seen, labels), expected)
        assert found <= 2 * usual + TOLERANCE[precision]


@torch.no_grad()
def test_first_convolution_sees_the_smallest_noise_exactly_enough() -> None:
    net = network()
    x = torch.full((1, *net.shape), 0.999)
    z = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    prepared = prepare_for_inference(net, "bf16")
    wide = net.begin_conv(x + 0.01 * z).bfloat16()
    assert torch.equal(prepared.network.begin_conv(x + 0.01 * z), wide)


@torch.no_grad()
def test_only_convolutions_hold_16_bits_and_all_are_channels_last() -> None:
    prepared = prepare_for_inference(network(), "fp16")
    for name, tensor in prepared.network.named_parameters():
        norm = name.endswith((".alpha", ".beta", ".gamma")) or name.startswith("begin_conv")
        assert tensor.dtype == (torch.float32 if norm else torch.float16), name
        if tensor.ndim == 4:
            assert tensor.is_contiguous(memory_format=torch.channels_last), name
    n = prepared.normalized(*inputs(prepared.source))
    assert n.dtype == torch.float16
    assert n.is_contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def test_grey_images_are_channels_last_from_the_first_convolution_on() -> None:
    prepared = prepare_for_inference(network(channels=1), "fp16")
    h = prepared.network.begin_conv(inputs(prepared.source)[0])
    assert h.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@torch.no_grad()
def test_autocast_around_it_changes_nothing(precision: str) -> None:
    net = network()
    prepared = prepare_for_inference(net, precision)
    x, labels = inputs(net)
    n, score = prepared.normalized(x), prepared(x, labels)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(prepared.normalized(x), n)
        assert torch.equal(prepared(x, labels), score)


def test_gradients_reach_the_image_and_not_the_weights() -> None:
    prepared = prepare_for_inference(network(), "fp32")
    x = inputs(prepared.source)[0].requires_grad_()
    prepared.normalized(x).square().sum().backward()
    assert x.grad is not None
    assert float(x.grad.abs().sum()) > 0
    assert all(p.grad is None for p in prepared.network.parameters())
    assert all(p.grad is None for p in prepared.source.parameters())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_transforms_of_torch_func_see_the_network(precision: str) -> None:
    """Kernels know nothing of them: a derivative of theirs would be 0."""
    net = network("NCSN")
    prepared = prepare_for_inference(net, precision)
    x, labels = inputs(net)
    v = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))

    def results(one: object) -> list[torch.Tensor]:
        def call(x: torch.Tensor) -> torch.Tensor:
            return one.normalized(x, labels).float()

        def alone(x: torch.Tensor) -> torch.Tensor:
            return one.normalized(x[None], labels[:1])[0].float()

        def length(x: torch.Tensor) -> torch.Tensor:
            return alone(x).square().sum()

        with torch.no_grad(), forward_ad.dual_level():
            tangent = forward_ad.unpack_dual(call(forward_ad.make_dual(x, v))).tangent
        return [
            tangent,
            torch.func.jvp(call, (x,), (v,))[1],
            torch.func.vjp(call, x)[1](v)[0],
            torch.func.vmap(alone)(x),
            torch.func.vmap(torch.func.grad(length))(x),
            torch.func.vmap(alone)(x.clone().requires_grad_()).detach(),
        ]

    for found, expected in zip(results(prepared), results(net), strict=True):
        assert error(found, expected) < (1e-4 if precision == "fp32" else 0.1)


@pytest.mark.parametrize("onednn", [True, False])  # without it biases go with what follows
@pytest.mark.parametrize("name", ["NCSN", "NCSNv2", "NCSNv2Deeper"])
def test_gradients_are_those_of_the_source(name: str, onednn: bool) -> None:
    net = network(name)
    prepared = prepare_for_inference(net, "fp32")
    x, labels = inputs(net)
    upstream = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    found = []
    with torch.backends.mkldnn.flags(enabled=onednn):
        prepared.refresh()
        for one in (prepared, net):
            x = x.detach().requires_grad_()
            found += torch.autograd.grad(one.normalized(x, labels), x, upstream)
    # Where two values differ by less than is rounded, the larger one may be another, and with it
    # where the gradient of an image goes: not of most of them.
    differences = (found[0] - found[1]).abs() / found[1].std()
    assert float(differences.median()) < 1e-5


# The source stays as it is.


def test_source_is_left_alone() -> None:
    net = network().train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    kinds = {name: type(module) for name, module in net.named_modules()}
    state = torch.get_rng_state()
    prepare_for_inference(net, "fp16").refresh()
    assert torch.equal(torch.get_rng_state(), state)
    assert list(net.state_dict()) == list(before)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert {name: type(module) for name, module in net.named_modules()} == kinds
    assert net.training
    assert all(p.requires_grad for p in net.parameters())


# Refusals.


def test_what_cannot_be_prepared_is_refused() -> None:
    net = network()
    with pytest.raises(ValueError, match="takes a network of ncsn_fast, got OptimizedModule"):
        prepare_for_inference(torch.compile(net, backend="eager"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="move it to one device"):
        prepare_for_inference(network().to("meta"))
    with pytest.raises(ValueError, match="MLPScore has no convolutions"):
        prepare_for_inference(points(), "fp16")
    parametrised = network()
    nn.utils.parametrizations.weight_norm(parametrised.end_conv)
    with pytest.raises(ValueError, match="'end_conv' is parametrised"):
        prepare_for_inference(parametrised)
    compiled = network()
    compiled.end_conv = torch.compile(compiled.end_conv, backend="eager")  # type: ignore[assignment]
    with pytest.raises(ValueError, match="'end_conv' is compiled"):
        prepare_for_inference(compiled)
    assert obstacle(net) is None


# Precisions.


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_auto_is_what_is_fast_and_the_log_says_why(
    precision: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(prepare, "automatic", lambda net: Choice(precision, "it is fast"))
    with caplog.at_level(logging.INFO, "ncsn_fast"):
        assert prepare_for_inference(network()).precision == precision
    assert f"NCSNv2 samples in {precision}: it is fast" in caplog.messages


@pytest.mark.parametrize(("wider", "expected"), [(True, "bf16"), (False, "fp32")])
def test_auto_avoids_float16_where_activations_leave_its_range(
    wider: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "automatic", lambda net: Choice("fp16", "as on a GPU"))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: wider)
    net = network()
    state = torch.get_rng_state()
    assert prepare_for_inference(net).precision == "fp16"
    with torch.no_grad():
        net.begin_conv.weight *= 65504 / 2 / 3.0
    assert prepare_for_inference(net).precision == expected
    assert prepare_for_inference(net, "fp16").precision == "fp16"
    assert torch.equal(torch.get_rng_state(), state)


def test_tf32_is_refused_on_a_cpu() -> None:
    with pytest.raises(ValueError, match="'tf32' is a mode of NVIDIA GPUs"):
        prepare_for_inference(network(), "tf32")


# torch.compile.


@pytest.mark.parametrize(("make", "precision"), [(network, "fp16"), (short, "fp32")])
@torch.no_grad()
def test_compiles_as_one_graph_that_follows_the_weights(
    make: Callable[[str], ScoreNetwork], precision: str
) -> None:
    net = make("NCSNv2" if precision == "fp16" else "NCSN")
    prepared = prepare_for_inference(net, precision)
    compiled = torch.compile(prepared.normalized, fullgraph=True, backend="aot_eager")
    arguments = inputs(net)
    for _ in range(2):
        expected = prepared.normalized(*arguments)
        assert error(compiled(*arguments), expected) < 2 * TOLERANCE[precision]
        net.load_state_dict(other_weights(net))
        prepared.refresh()


@pytest.mark.skipif(bool(backends.missing("triton")), reason="needs Triton")
@torch.no_grad()
def test_compiles_with_the_kernels_to_the_same() -> None:
    net = short("NCSNv2", image_size=4, ngf=4)
    prepared = prepare_for_inference(net, "fp16")
    arguments = inputs(net, 1)
    exact = copy.deepcopy(net).double().normalized(arguments[0].double(), arguments[1])
    with backends.use_backend("torch"):
        rounding = error(prepared.normalized(*arguments), exact)
    with backends.use_backend("triton"):
        expected = prepared.normalized(*arguments)
        compiled = torch.compile(prepared.normalized, fullgraph=True, backend="aot_eager")
        assert error(compiled(*arguments), expected) < TOLERANCE["fp16"]
    # They round elsewhere, a bias before or after its sum, so that neither is the other's measure.
    assert error(expected, exact) < 1.5 * rounding


# On a GPU.


@pytest.mark.gpu
@pytest.mark.parametrize("precision", PRECISIONS)
@torch.no_grad()
def test_every_precision_on_a_gpu(precision: str) -> None:
    net = network(ngf=32)
    exact = copy.deepcopy(net).double()
    prepared = prepare_for_inference(net.cuda(), precision)
    x, labels = inputs(net)
    with float32_mode(precision, torch.device("cuda")):
        found = prepared.normalized(x.cuda(), labels.cuda()).cpu()
    bounds = {"fp32": 1e-5, "tf32": 1e-2, "fp16": 1e-2, "bf16": 5e-2}
    assert error(found, exact.normalized(x.double(), labels)) < bounds[precision]
