"""Convolutions with weights packed for the CPU, and how a prepared network uses them."""

from __future__ import annotations

import pytest
import torch
from helpers.networks import error, network

from ncsn_fast.inference.prepare import PreparedNetwork, prepare_for_inference
from ncsn_fast.models import packed_conv
from ncsn_fast.models.base import ScoreNetwork
from ncsn_fast.models.packed_conv import PackedConv

# Of float32 one kernel of oneDNN or another: the order of a sum. Of bfloat16 also its rounding.
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 4e-3}
PACKS = torch.backends.mkldnn.is_available()
needs_packing = pytest.mark.skipif(not PACKS, reason="this PyTorch has no oneDNN")


@pytest.fixture(autouse=True)
def direct(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other forms round more; tests/inference and test_conv_forms.py hold them to more."""
    monkeypatch.setenv("NCSN_FAST_CONV", "direct")


def wide(size: int = 16, **changes: object) -> ScoreNetwork:
    return network(**{"image_size": size, "ngf": 16, **changes})


def convolutions(prepared: PreparedNetwork) -> list[PackedConv]:
    found = [module for module in prepared.network.modules() if isinstance(module, PackedConv)]
    everything = (m for m in prepared.network.modules() if isinstance(m, torch.nn.Conv2d))
    assert len(found) == len(list(everything)) > 70
    return found


def unpacked(prepared: PreparedNetwork) -> PreparedNetwork:
    for conv in convolutions(prepared):
        conv.packed = None
    return prepared


@needs_packing
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize(
    "settings",
    [
        {"padding": 1},
        {"padding": 2, "dilation": 2, "bias": False},
        {"padding": 1, "stride": 2},
    ],
)
@pytest.mark.parametrize(("height", "width"), [(9, 14), (1, 1), (4, 1)])
@torch.no_grad()
def test_packed_convolution_is_the_convolution(
    dtype: torch.dtype, samples: int, settings: dict[str, int], height: int, width: int
) -> None:
    torch.manual_seed(0)
    conv = PackedConv(5, 7, 3, **settings).to(dtype)
    x = torch.randn(samples, 5, height, width).to(dtype)
    expected = conv(x)
    conv.pack()
    if dtype == torch.float32:
        assert conv.packed is not None
    for layout in (torch.contiguous_format, torch.channels_last):
        found = conv(x.contiguous(memory_format=layout))
        assert found.dtype == dtype
        assert found.is_contiguous(memory_format=torch.channels_last)
        assert error(found, expected) < TOLERANCE[dtype]


@pytest.mark.parametrize("settings", [{"padding": "same"}, {"padding_mode": "circular"}])
@torch.no_grad()
def test_paddings_that_packed_weights_do_not_know_are_pytorchs(settings: dict[str, str]) -> None:
    torch.manual_seed(0)
    conv = PackedConv(4, 4, 3, **{"padding": 1, **settings})
    x = torch.randn(2, 4, 6, 7)
    expected = conv(x)
    conv.pack()
    assert torch.equal(conv(x), expected)


@needs_packing
@torch.no_grad()
def test_weights_are_those_of_the_last_packing() -> None:
    conv = PackedConv(4, 4, 3)
    conv.pack()
    x = torch.randn(2, 4, 6, 6)
    old = conv(x)
    conv.weight.mul_(2)
    assert torch.equal(conv(x), old)
    conv.pack()
    assert error(conv(x) - conv.bias[:, None, None], 2 * (old - conv.bias[:, None, None])) < 1e-6


@needs_packing
def test_autograd_and_the_compiler_see_the_weight() -> None:
    conv = PackedConv(4, 4, 3).requires_grad_(False)
    conv.pack()
    x = torch.randn(2, 4, 6, 6, requires_grad=True)
    conv(x).sum().backward()
    assert x.grad is not None
    compiled = torch.compile(conv, fullgraph=True, backend="aot_eager")
    assert error(compiled(x.detach()), conv(x.detach())) < 1e-6


THREE = {"kernel_size": 3, "padding": 1}
GEOMETRIES = [
    {"kernel_size": 3, "padding": 0, "bias": False},
    {"kernel_size": 3, "padding": 2, "dilation": 2},
    {"kernel_size": 1},
    {"kernel_size": (2, 5), "padding": (1, 3)},
    {"kernel_size": 3, "padding": 1, "stride": 2},
    {"kernel_size": 1, "padding": 1},  # whose gradient no convolution gives
]


@needs_packing
@pytest.mark.parametrize("form", ["direct", "F2", "F4"])
@pytest.mark.parametrize("sides", [(8, 8), (7, 5)])
@pytest.mark.parametrize(
    ("settings", "pooled"), [(THREE, False), (THREE, True), *((one, False) for one in GEOMETRIES)]
)
def test_gradients_are_those_of_the_convolution(monkeypatch, form, sides, pooled, settings) -> None:
    monkeypatch.setenv("NCSN_FAST_CONV", form)
    torch.manual_seed(0)
    conv = PackedConv(5, 7, **settings)
    conv.pooled = pooled
    conv.pack()
    x = torch.randn(2, 5, *sides, requires_grad=True)
    wide = torch.nn.Conv2d(5, 7, **settings).double()
    wide.load_state_dict(conv.state_dict())
    wanted, exact = [x, *conv.parameters()], [x.detach().double().requires_grad_()]
    exact += wide.parameters()
    y, z = conv(x), wide(exact[0])
    z = torch.nn.functional.avg_pool2d(z, 2) if pooled else z
    upstream = torch.randn(y.shape)
    assert conv.pulls(x) == (settings not in GEOMETRIES[-2:])
    for n in (1, len(wanted)):  # of the images alone, too
        found = torch.autograd.grad(y, wanted[:n], upstream, retain_graph=True)
        expected = torch.autograd.grad(z, exact[:n], upstream.double(), retain_graph=True)
        for one, other in zip(found, expected, strict=True):
            assert error(one.double(), other) < (2e-5 if form == "F4" else 2e-6)


@needs_packing
@pytest.mark.parametrize("pooled", [False, True])
def test_second_gradients_are_those_of_the_convolution(pooled: bool) -> None:
    torch.manual_seed(0)
    conv = PackedConv(3, 3, 3, padding=1)
    conv.pooled = pooled
    conv.pack()
    x = torch.randn(2, 3, 6, 6, requires_grad=True)
    found = []
    for packed in (conv.packed, None):
        conv.packed = packed
        (first,) = torch.autograd.grad(conv(x).pow(3).sum(), x, create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), (x, conv.weight)))
    for one, other in zip(*found, strict=True):
        assert error(one, other) < 1e-5


@needs_packing
def test_gradients_of_weights_are_only_computed_where_they_are_wanted(monkeypatch) -> None:
    conv = PackedConv(4, 4, 3, padding=1)
    conv.pack()
    x = torch.randn(2, 4, 6, 6, requires_grad=True)
    monkeypatch.setattr(packed_conv.conv3x3, "aten_gradients", None)
    torch.autograd.grad(conv(x).sum(), x)
    with pytest.raises(TypeError):
        torch.autograd.grad(conv(x).sum(), conv.weight)


@needs_packing
def test_weights_that_change_before_the_gradient_are_noticed() -> None:
    conv = PackedConv(4, 4, 3, padding=1).requires_grad_(False)
    conv.pack()
    x = torch.randn(2, 4, 6, 6, requires_grad=True)
    y = conv(x)
    conv.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(y.sum(), x)
    conv.pack()
    (found,) = torch.autograd.grad(conv(x).sum(), x)  # of the weight as it is now
    x = x.detach().requires_grad_()
    (expected,) = torch.autograd.grad(torch.nn.Conv2d.forward(conv, x).sum(), x)
    assert error(found, expected) < 1e-6


@needs_packing
def test_gradients_are_of_the_weights_that_were_saved() -> None:
    """Hooks that copy what is saved, to compress or to move it, keep those of the forward pass."""
    conv = PackedConv(4, 4, 3, padding=1).requires_grad_(False)
    conv.pack()
    x = torch.randn(2, 4, 6, 6, requires_grad=True)
    (expected,) = torch.autograd.grad(conv(x).sum(), x)
    with torch.autograd.graph.saved_tensors_hooks(torch.clone, lambda kept: kept):
        y = conv(x)
    conv.weight.mul_(2)
    conv.pack()
    (found,) = torch.autograd.grad(y.sum(), x)
    assert error(found, expected) < 1e-6


@needs_packing
def test_a_prepared_network_packs_every_convolution_on_a_cpu() -> None:
    assert all(conv.packed is not None for conv in convolutions(prepare_for_inference(wide())))
    assert not any(isinstance(module, PackedConv) for module in wide().modules())


@needs_packing
@pytest.mark.parametrize("size", [(8, 8), (16, 24)])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@torch.no_grad()
def test_packed_network_computes_what_the_unpacked_one_does(
    precision: str, size: tuple[int, int]
) -> None:
    net = wide(image_size=None)
    x = torch.rand(3, 3, *size)
    found = prepare_for_inference(net, precision).normalized(x)
    expected = unpacked(prepare_for_inference(net, precision)).normalized(x)
    # Roundings add up from convolution to convolution.
    assert error(found, expected) < {"fp32": 2e-6, "bf16": 2e-2}[precision]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@torch.no_grad()
def test_without_onednn_nothing_is_packed_and_the_result_is_the_same(precision: str) -> None:
    net = wide(size=8, ngf=8)
    x = torch.rand(2, *net.shape)
    expected = prepare_for_inference(net, precision).normalized(x)
    with torch.backends.mkldnn.flags(enabled=False):
        prepared = prepare_for_inference(net, precision)
        assert all(conv.packed is None for conv in convolutions(prepared))
        found = prepared.normalized(x)
    assert error(found, expected) < {"fp32": 2e-6, "bf16": 2e-2}[precision]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@torch.no_grad()
def test_an_image_does_not_depend_on_those_beside_it(precision: str) -> None:
    net = wide()
    prepared = prepare_for_inference(net, precision)
    x = torch.rand(5, *net.shape)
    together = prepared.normalized(x)
    for samples in (1, 2, 3):
        found = prepared.normalized(x[:samples])
        assert error(found, together[:samples]) < {"fp32": 2e-6, "bf16": 2e-2}[precision]


@needs_packing
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("overwrite", [False, True])
@torch.no_grad()
def test_a_residual_is_taken_along(dtype: torch.dtype, overwrite: bool) -> None:
    torch.manual_seed(0)
    conv = PackedConv(5, 7, 3, padding=1).to(dtype)
    conv.pack()
    if conv.packed is None:
        pytest.skip("this CPU has no packed convolutions in bfloat16")
    like = {"memory_format": torch.channels_last}
    x, residual = (torch.randn(2, c, 6, 9).to(dtype).contiguous(**like) for c in (5, 7))
    given, expected = residual.clone(), conv(x).double() + residual.double()
    assert conv.takes_along(x, residual)
    (found,) = conv.plus(x, residual, activation=None, overwrite=overwrite)
    assert error(found, expected) < TOLERANCE[dtype]
    assert torch.equal(residual, found if overwrite else given)
    assert (found.data_ptr() == residual.data_ptr()) == overwrite


@needs_packing
def test_a_residual_is_not_taken_along_where_autograd_watches_or_kinds_differ() -> None:
    conv = PackedConv(4, 4, 3, padding=1).requires_grad_(False)
    x = torch.randn(2, 4, 6, 6).contiguous(memory_format=torch.channels_last)
    assert not conv.takes_along(x, x)
    conv.pack()
    assert conv.takes_along(x, x)
    assert not conv.takes_along(x, x.clone().requires_grad_())
    assert not conv.takes_along(x, x.bfloat16())
    assert not conv.takes_along(x, x.contiguous())


@needs_packing
@pytest.mark.parametrize("kind", ["NCSNv2", "NCSN"])
@torch.no_grad()
def test_sums_within_convolutions_change_no_score(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = prepare_for_inference(wide(network=kind), "fp32")
    x, labels = torch.rand(3, 3, 16, 16), torch.tensor([0, 3, 1])
    found = prepared.normalized(x, labels)
    monkeypatch.setattr(PackedConv, "takes_along", lambda *_: False)
    assert error(found, prepared.normalized(x, labels)) < 2e-6
