"""Networks of others on a CPU: their convolutions run on packed weights, the rest as it is."""

from __future__ import annotations

import copy
import logging
import pickle
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ncsn_fast as nf
from ncsn_fast.inference import foreign
from ncsn_fast.inference.foreign import PackedCalls, PreparedModule
from ncsn_fast.inference.forms import forms
from ncsn_fast.models import packed_conv
from ncsn_fast.models.packed_conv import PackedConv
from ncsn_fast.ops import conv3x3

SIGMAS = nf.geometric_sigmas(10, 0.1, 6)
SHAPE = (2, 8, 8)
WORTH = foreign._WORTH  # as it is outside of tests


class Net(nn.Module):
    """A small score network of somebody else's."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, width, 3, padding=1)
        self.norm = nn.GroupNorm(4, width)
        self.wide = nn.Conv2d(width, width, 3, padding=2, dilation=2)
        self.down = nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False)
        self.last = nn.Conv2d(width, 2, 1)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        h = F.silu(self.wide(F.silu(self.norm(self.first(x)))))
        h = h + F.interpolate(self.down(h), scale_factor=2)
        return self.last(h) / SIGMAS[labels].view(-1, 1, 1, 1)


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture
def packed(monkeypatch: pytest.MonkeyPatch) -> list[PackedConv]:
    """The packed convolutions that are called, one entry for each call."""
    calls: list[PackedConv] = []
    run = PackedConv._form

    def counted(self: PackedConv, x: Tensor) -> Any:
        calls.append(self)
        return run(self, x)

    monkeypatch.setattr(PackedConv, "_form", counted)
    return calls


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def inputs(n: int = 3) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    return torch.randn(n, *SHAPE, generator=draw), torch.arange(n) % len(SIGMAS)


def assert_near(found: Tensor, expected: Tensor) -> None:
    assert float((found - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


def runs_packed(calls: Callable[..., Any], packed: list[PackedConv], *given: Any) -> int:
    """How many convolutions of a call are packed, once it has been compared."""
    calls(*given)
    packed.clear()
    calls(*given)
    return len(packed)


# What runs packed.


def test_a_prepared_module_returns_what_the_module_returns(net, packed) -> None:
    prepared = nf.prepare_for_inference(net)
    assert isinstance(prepared, PreparedModule)
    assert prepared.precision == "fp32"
    for _ in range(2):
        assert_near(prepared(*inputs()), net(*inputs()))
    assert len(packed) == 8  # four convolutions in either call


def test_the_module_is_left_as_it_is(net) -> None:
    before = {name: value.clone() for name, value in net.state_dict().items()}
    net.train()
    nf.prepare_for_inference(net)(*inputs())
    assert net.training
    assert all(type(module) is not PackedConv for module in net.modules())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_it_computes_in_evaluation_mode(packed) -> None:
    module = nn.Sequential(nn.Conv2d(2, 2, 3), nn.Dropout(0.5)).train()
    prepared = nf.prepare_for_inference(module)
    found = prepared(inputs()[0])
    assert_near(found, module[0](inputs()[0]))
    assert packed


def test_a_function_that_calls_a_module_runs_packed(net, packed) -> None:
    calls = PackedCalls(lambda x, labels: 2 * net(x, labels))
    assert runs_packed(calls, packed, *inputs()) == 4
    assert_near(calls(*inputs()), 2 * net(*inputs()))


def test_weights_that_are_used_by_hand_or_shared_run_packed(packed) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(2, 2, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            weight = self.conv.weight
            return F.conv2d(self.conv(x), weight, padding=3, dilation=3) + weight.sum()

    module = Tied()
    assert runs_packed(PackedCalls(module), packed, inputs()[0]) == 2
    assert_near(PackedCalls(module)(inputs()[0]), module(inputs()[0]))


class Locked(nn.Module):
    """Cannot be copied, has a hook, and takes its weight in a type that it has already."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.lock = nn.Conv2d(2, 2, 3), threading.Lock()
        self.conv.register_forward_hook(lambda module, given, y: 2 * y)

    def forward(self, x: Tensor) -> Tensor:
        with self.lock:
            y = self.conv(x)
        return F.conv2d(input=y, weight=self.conv.weight.to(y.dtype), stride=[2, 1], padding=[1])


@pytest.mark.parametrize("wrap", [lambda module: module, nn.DataParallel, lambda m: m.forward])
def test_modules_of_every_make_run_packed(wrap, packed) -> None:
    module, x = Locked(), inputs()[0]
    calls = PackedCalls(wrap(module))
    assert runs_packed(calls, packed, x) == 2
    assert_near(calls(x), module(x))
    assert_near(calls(x.transpose(2, 3)[:, :, 1::2]), module(x.transpose(2, 3)[:, :, 1::2]))


def test_the_imaginary_part_of_an_output_is_compared_too(monkeypatch) -> None:
    conv = nn.Conv2d(2, 2, 1)

    def turned(x: Tensor) -> Tensor:
        y = conv(x)
        return torch.complex(x, y)

    monkeypatch.setattr(PackedConv, "forward", lambda self, x: F.conv2d(x, self.weight) * 0)
    assert torch.equal(PackedCalls(turned)(inputs()[0]), turned(inputs()[0]))


@pytest.mark.parametrize("what", ["tuple", "dict", "dataclass", "of diffusers"])
def test_outputs_of_every_make_are_compared_and_returned(net, packed, what) -> None:
    @dataclass
    class Output:
        sample: Tensor

    def wrapped(x: Tensor, labels: Tensor) -> Any:
        y = net(x, labels)
        if what == "of diffusers":
            unets = pytest.importorskip("diffusers.models.unets.unet_2d")
            return unets.UNet2DOutput(sample=y)
        return {"tuple": (y, 3), "dict": {"sample": y}, "dataclass": Output(y)}[what]

    calls = PackedCalls(wrapped)
    assert runs_packed(calls, packed, *inputs()) == 4
    found = calls(*inputs())
    found = found[0] if what == "tuple" else found["sample"] if what == "dict" else found.sample
    assert_near(found, net(*inputs()))


def test_another_size_of_images_is_compared_anew(net, packed, monkeypatch) -> None:
    calls = PackedCalls(net)
    runs_packed(calls, packed, *inputs())
    monkeypatch.setattr(PackedConv, "forward", lambda self, x: F.conv2d(x, self.weight) * 0)
    x, labels = inputs()
    large = torch.cat([x, x], 2)
    assert torch.equal(calls(large, labels), net(large, labels))


# What does not.


def grouped() -> nn.Module:
    return nn.Conv2d(2, 2, 3, groups=2)


def parametrised() -> nn.Module:
    return nn.utils.parametrizations.weight_norm(nn.Conv2d(2, 2, 3))


def padded_by_name() -> nn.Module:
    return nn.Conv2d(2, 2, 3, padding="same")


def double() -> nn.Module:
    module = nn.Conv2d(2, 2, 3).double()
    module.register_forward_pre_hook(lambda _, given: (given[0].double(),))
    return module


def scripted() -> nn.Module:
    return torch.jit.script(nn.Conv2d(2, 2, 3))  # type: ignore[no-any-return]


def compiled() -> nn.Module:
    return torch.compile(nn.Conv2d(2, 2, 3), backend="eager")  # type: ignore[return-value]


def compiled_inside() -> nn.Module:
    module = nn.Sequential(nn.Conv2d(2, 2, 3))
    module[0].compile(backend="eager")
    return module


@pytest.mark.parametrize(
    "make",
    [grouped, parametrised, padded_by_name, double, scripted, compiled, compiled_inside],
)
def test_what_cannot_be_packed_runs_as_it_is_and_a_line_says_why(make, packed, caplog) -> None:
    module, x = make(), inputs()[0]
    expected = module(x)
    with caplog.at_level(logging.INFO, "ncsn_fast"):
        calls = PackedCalls(module)
        assert torch.equal(calls(x), expected)
        assert torch.equal(calls(x), expected)
    assert not packed
    (said,) = [record.message for record in caplog.records if record.name == "ncsn_fast"]
    assert said.startswith("the network runs as it is: ")


def test_a_compiled_module_in_a_function_is_seen(packed) -> None:
    module = compiled()
    assert torch.equal(PackedCalls(lambda x: module(x))(inputs()[0]), module(inputs()[0]))
    assert not packed


def test_under_autocast_a_network_keeps_its_precision(net, packed) -> None:
    def half(x: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return net.last(net.first(x))

    found = PackedCalls(half)(*inputs())
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, half(*inputs()))
    assert not packed
    with torch.autocast("cpu", torch.bfloat16):
        found = nf.prepare_for_inference(net)(*inputs())
    assert_near(found, net(*inputs()))


def test_a_network_without_convolutions_is_called_once(packed) -> None:
    count = []

    def score(x: Tensor, labels: Tensor) -> Tensor:
        count.append(len(x))
        return -x

    nf.Sampler(score, SHAPE, SIGMAS, "ancestral")(2, seed=0)
    assert count == [2] * len(SIGMAS)


# Comparison.


def test_a_network_that_returns_something_else_runs_as_it_is(net, monkeypatch, caplog) -> None:
    forward = PackedConv.forward
    monkeypatch.setattr(PackedConv, "forward", lambda self, x: forward(self, x) * (1 + 1e-4))
    calls = PackedCalls(net)
    with caplog.at_level(logging.WARNING, "ncsn_fast"):
        assert torch.equal(calls(*inputs()), net(*inputs()))
        assert torch.equal(calls(*inputs()), net(*inputs()))
    assert caplog.text.count("the network runs as it is: with packed weights it differs by") == 1


@pytest.mark.parametrize("flat", [lambda y: y.view(len(y), -1), lambda y: y.as_strided((2,), (3,))])
def test_a_network_that_depends_on_the_layout_of_memory_runs_as_it_is(flat) -> None:
    conv = nn.Conv2d(2, 8, 3)
    calls, x = PackedCalls(lambda x: flat(conv(x))), inputs()[0]
    for _ in range(2):
        assert torch.equal(calls(x), flat(conv(x)))


def test_a_result_in_memory_that_is_used_again_is_compared(net, monkeypatch) -> None:
    kept = torch.empty(3, *SHAPE)
    monkeypatch.setattr(PackedConv, "forward", lambda self, x: F.conv2d(x, self.weight) * 0)
    conv = nn.Conv2d(2, 2, 1)
    calls = PackedCalls(lambda x: kept.copy_(conv(x)))
    assert torch.equal(calls(inputs()[0]), conv(inputs()[0]))


def test_a_network_that_draws_noise_sees_the_same_twice_and_goes_on_behind_it(net, packed) -> None:
    def noisy(x: Tensor, labels: Tensor) -> Tensor:
        return net(x + torch.randn_like(x), labels)

    torch.manual_seed(5)
    expected = [noisy(*inputs()) for _ in range(3)]
    torch.manual_seed(5)
    calls = PackedCalls(noisy)
    for one in expected:
        assert_near(calls(*inputs()), one)
    assert packed


def test_a_network_that_draws_from_a_generator_of_its_own_runs_as_it_is(net, packed) -> None:
    draw = torch.Generator().manual_seed(0)
    calls = PackedCalls(lambda x, labels: net(x + torch.randn(x.shape, generator=draw), labels))
    assert runs_packed(calls, packed, *inputs()) == 0


def test_a_form_that_there_is_not_is_refused(net, monkeypatch) -> None:
    monkeypatch.setenv("NCSN_FAST_CONV", "F3")
    with pytest.raises(ValueError, match="NCSN_FAST_CONV = 'F3' is unknown"):
        nf.Sampler(net, SHAPE, SIGMAS, "ancestral")(1, seed=0)


def test_values_that_are_not_finite_decide_nothing(net, packed) -> None:
    calls = PackedCalls(net)
    x, labels = inputs()
    assert calls(x / 0, labels).isnan().any()
    assert not packed
    assert runs_packed(calls, packed, x, labels) == 4


def test_a_module_that_changes_itself_or_its_input_is_called_once(packed) -> None:
    batch_norm = nn.Sequential(nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2)).train()
    calls = PackedCalls(batch_norm)
    calls(inputs()[0])
    assert int(batch_norm[1].num_batches_tracked) == 1
    PackedCalls(lambda x: batch_norm(x))(inputs()[0])
    assert int(batch_norm[1].num_batches_tracked) == 2

    conv, x = nn.Conv2d(2, 2, 3), inputs()[0]
    PackedCalls(lambda x: conv(x.add_(1)))(x)
    assert torch.equal(x, inputs()[0] + 1)
    assert not packed


# Weights that change.


@pytest.mark.parametrize(
    "change",
    [
        lambda conv: conv.weight.mul_(2),
        lambda conv: conv.bias.add_(1),
        lambda conv: setattr(conv, "weight", nn.Parameter(conv.weight + 1)),
        lambda conv: setattr(conv, "bias", nn.Parameter(conv.bias + 1)),
        lambda conv: setattr(conv.weight, "data", conv.weight.data + 1),
        lambda conv: conv.load_state_dict({k: v + 1 for k, v in conv.state_dict().items()}),
    ],
)
def test_weights_that_change_are_followed_at_once(net, change) -> None:
    prepared = nf.prepare_for_inference(net)
    prepared(*inputs())
    before = net(*inputs())
    change(net.last)
    assert not torch.allclose(net(*inputs()), before, rtol=1e-3)
    assert_near(prepared(*inputs()), net(*inputs()))


def test_weights_changed_through_data_are_followed_at_a_refresh(net) -> None:
    prepared = nf.prepare_for_inference(net)
    prepared(*inputs())
    for weight in net.parameters():
        weight.data.mul_(1.5)
    prepared.refresh()
    assert_near(prepared(*inputs()), net(*inputs()))


def test_a_sampler_follows_weights_changed_through_data(net) -> None:
    sampler = nf.Sampler(net, SHAPE, SIGMAS, "ancestral")
    sampler(1, seed=0)
    for weight in net.parameters():
        weight.data.mul_(0.5)
    found = sampler(2, seed=0)
    assert_near(found, nf.Sampler(net, SHAPE, SIGMAS, "ancestral", prepare=False)(2, seed=0))


@pytest.mark.parametrize("wrap", [lambda p: p, lambda p: lambda x, labels: p(x, labels)])
def test_a_sampler_of_a_prepared_module_follows_it_too(net, packed, wrap) -> None:
    sampler = nf.Sampler(wrap(nf.prepare_for_inference(net)), SHAPE, SIGMAS, "ancestral")
    sampler(1, seed=0)
    for weight in net.parameters():
        weight.data.mul_(0.5)
    packed.clear()
    found = sampler(2, seed=0)
    assert len(packed) == 4 * len(SIGMAS)
    assert_near(found, nf.Sampler(net, SHAPE, SIGMAS, "ancestral", prepare=False)(2, seed=0))


def test_weights_that_have_changed_do_not_spoil_the_comparison(net, packed) -> None:
    prepared = nf.prepare_for_inference(net)
    x, labels = inputs()
    prepared(x, labels)
    for weight in net.parameters():
        weight.data.mul_(1.5)
    large = torch.cat([x, x], 2)
    assert runs_packed(prepared, packed, large, labels) == 4
    assert_near(prepared(large, labels), net(large, labels))


def test_a_weight_packed_again_takes_the_room_of_the_one_before(convolutions, monkeypatch) -> None:
    conv, x = nn.Conv2d(2, 2, 3), inputs()[0]
    monkeypatch.setattr(packed_conv, "MOST_BYTES", conv3x3.transformed_bytes(2, 2, 4))
    calls = PackedCalls(conv)
    calls(x)
    before = forms(calls.convolutions())
    assert before.startswith("F(4×4) 1" if convolutions == "F4" else "direct")
    conv.weight.mul_(2)
    calls(x)
    assert forms(calls.convolutions()) == before


def test_what_is_packed_goes_with_its_weight() -> None:
    conv = nn.Conv2d(2, 2, 3)
    calls = PackedCalls(lambda x: conv(x))
    calls(inputs()[0])
    assert len(calls._kept) == 1
    conv.weight = nn.Parameter(conv.weight + 1)
    assert len(calls._kept) == 0


# Gradients.


def test_gradients_flow_to_the_input(net) -> None:
    prepared = nf.prepare_for_inference(net)
    x, labels = inputs()
    prepared(x, labels)
    with torch.enable_grad():
        x.requires_grad_()
        (found,) = torch.autograd.grad(prepared(x, labels).square().sum(), x)
        (expected,) = torch.autograd.grad(net(x, labels).square().sum(), x)
    assert_near(found, expected)


def test_a_score_that_is_a_gradient_is_right(packed) -> None:
    conv = nn.Conv2d(2, 4, 3)

    def energy(x: Tensor) -> Tensor:
        return conv(x).square().sum()

    def score(x: Tensor, labels: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            return -torch.autograd.grad(energy(x), x)[0]

    transformed = PackedCalls(torch.func.grad(energy))
    for _ in range(2):
        assert torch.equal(transformed(inputs()[0]), -score(*inputs()))
    assert not packed
    calls = PackedCalls(score)
    for _ in range(2):
        assert_near(calls(*inputs()), score(*inputs()))
    assert len(packed) == 4
    assert len(set(packed)) == 2  # the convolution, and that of its gradient


def test_a_score_that_learns_is_called_once_and_as_it_is(packed) -> None:
    conv = nn.Conv2d(2, 2, 3, padding=1)

    def score(x: Tensor, labels: Tensor) -> Tensor:  # as one is adapted to the samples in its call
        with torch.enable_grad():
            (conv(x) - x).square().sum().backward()
        return conv.weight.grad.sum() * x

    calls, found = PackedCalls(score), []
    for call in (score, calls):
        conv.weight.grad = conv.bias.grad = None
        for _ in range(2):
            value = call(*inputs())
            found.append((value, conv.weight.grad.clone(), conv.bias.grad.clone()))
    torch.testing.assert_close(found[:2], found[2:], rtol=0, atol=0)
    assert not packed


def test_per_sample_transforms_see_pytorchs_convolutions(packed) -> None:
    conv = nn.Conv2d(2, 4, 3)
    conv(inputs()[0])
    calls = PackedCalls(lambda x: torch.func.vmap(lambda one: conv(one[None]))(x))
    assert torch.equal(calls(inputs()[0])[:, 0], torch.func.vmap(conv)(inputs()[0]))
    assert not packed


# The sampler.


@pytest.mark.parametrize("wrap", ["module", "method", "lambda", "score", "guided"])
def test_a_sampler_runs_a_network_of_others_packed(net, packed, wrap) -> None:
    score: Any = {
        "module": net,
        "method": net.forward,
        "lambda": lambda x, labels: net(x, labels),
        "score": nf.Score(net, "score", "label", SIGMAS),
        "guided": nf.guided(
            nf.Score(lambda x, labels, y: net(x, labels) + y, "score", "label", SIGMAS),
            2.0,
            unconditional={"y": 1.0},
        ),
    }[wrap]
    call: dict[str, Any] = {"seed": 0, "shared": {"y": 2.0}} if wrap == "guided" else {"seed": 0}
    found = nf.Sampler(score, SHAPE, SIGMAS, "ancestral")(3, **call)
    assert packed
    packed.clear()
    plain = nf.Sampler(score, SHAPE, SIGMAS, "ancestral", prepare=False)(3, **call)
    assert not packed
    assert torch.allclose(found, plain, rtol=1e-4, atol=1e-4 * float(plain.abs().max()))


def test_a_sampler_gives_the_same_images_again_and_in_every_batch(net) -> None:
    first = nf.Sampler(net, SHAPE, SIGMAS, "ancestral")
    images = first(5, seed=3)
    assert torch.equal(first(5, seed=3), images)
    for size in (1, 2):
        other = nf.Sampler(net, SHAPE, SIGMAS, "ancestral")(5, seed=3, batch_size=size)
        assert torch.allclose(other, images, rtol=1e-5, atol=1e-5 * float(images.abs().max()))


def test_released_it_packs_again(net, packed) -> None:
    sampler = nf.Sampler(net, SHAPE, SIGMAS, "ancestral")
    images = sampler(2, seed=0)
    before = set(map(id, packed))
    sampler.release()
    packed.clear()
    assert torch.equal(sampler(2, seed=0), images)
    assert packed
    assert len(before) == 4


def test_a_network_of_ours_runs_as_it_is_where_that_is_asked_for(packed) -> None:
    ours = nf.NCSNv2(channels=1, image_size=8, ngf=8, sigmas=SIGMAS).eval()
    plain = nf.sample(ours, 2, method="ancestral", seed=0, prepare=False)
    assert not packed
    assert torch.allclose(nf.sample(ours, 2, method="ancestral", seed=0), plain, atol=1e-4)
    assert packed


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_only_float32_is_packed(net, packed, precision) -> None:
    nf.Sampler(net, SHAPE, SIGMAS, "ancestral", precision=precision)(1, seed=0)
    assert bool(packed) == (precision == "fp32")


def test_another_wish_than_true_and_false_is_refused(net) -> None:
    with pytest.raises(ValueError, match="prepare = 'no'"):
        nf.Sampler(net, SHAPE, SIGMAS, "ancestral", prepare="no")  # type: ignore[arg-type]


def test_samplers_and_prepared_modules_can_be_copied(net) -> None:
    sampler = nf.Sampler(net, SHAPE, SIGMAS, "ancestral")
    images = sampler(2, seed=0)
    for other in (copy.deepcopy(sampler), pickle.loads(pickle.dumps(sampler))):
        assert torch.equal(other(2, seed=0), images)
    prepared = nf.prepare_for_inference(net)
    expected = prepared(*inputs())
    for one in (copy.copy(prepared), copy.deepcopy(prepared), pickle.loads(pickle.dumps(prepared))):
        assert torch.equal(one(*inputs()), expected)


def test_a_prepared_module_stands_in_for_one_of_diffusers() -> None:
    diffusers = pytest.importorskip("diffusers")
    blocks: dict[str, Any] = {"block_out_channels": (8, 16), "norm_num_groups": 4}
    blocks |= {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    unet = diffusers.UNet2DModel(sample_size=8, layers_per_block=1, **blocks).eval()
    pipeline = diffusers.DDPMPipeline(unet, diffusers.DDIMScheduler())
    pipeline.set_progress_bar_config(disable=True)

    def images() -> Tensor:
        draw = torch.Generator().manual_seed(0)
        call = {"num_inference_steps": 2, "output_type": "np", "generator": draw}
        return torch.from_numpy(pipeline(**call).images)

    expected = images()
    pipeline.unet = nf.prepare_for_inference(unet)
    assert_near(images(), expected)
    assert pipeline.unet.convolutions()


def test_what_would_change_or_return_the_module_is_left_to_it(net) -> None:
    prepared = nf.prepare_for_inference(net)
    assert prepared.first is net.first
    with pytest.raises(AttributeError, match=r"has no 'eval': use \.source\.eval"):
        prepared.eval()
    with pytest.raises(AttributeError, match="has no attribute 'other'"):
        prepared.other  # noqa: B018


def test_threads_may_share_a_prepared_module(net) -> None:
    prepared = nf.prepare_for_inference(net)
    expected, found = net(*inputs()), []

    def work() -> None:
        with torch.no_grad():
            found.extend(prepared(*inputs()) for _ in range(20))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 60
    for one in found:
        assert_near(one, expected)


def test_another_thread_sees_the_network_as_it_is(net, packed) -> None:
    def score(x: Tensor, labels: Tensor) -> Tensor:
        seen = []
        thread = threading.Thread(target=lambda: seen.append(net(x, labels)))
        thread.start()
        thread.join()
        return seen[0]  # type: ignore[no-any-return]

    calls = PackedCalls(score)
    with torch.enable_grad():
        calls(*inputs())
    assert not packed


# Refusals of prepare_for_inference.


def test_what_cannot_be_prepared_is_refused_with_what_can(net) -> None:
    with pytest.raises(ValueError, match="takes a network, got function"):
        nf.prepare_for_inference(lambda x: x)  # type: ignore[call-overload]
    with pytest.raises(ValueError, match=r"on meta: .* on a CPU are prepared"):
        nf.prepare_for_inference(Net().to("meta"))
    with pytest.raises(ValueError, match=r"precision = 'bf16': .* torch.autocast"):
        nf.prepare_for_inference(net, "bf16")
    with pytest.raises(ValueError, match="precision = 'fp8' is unknown"):
        nf.prepare_for_inference(net, "fp8")
    with pytest.raises(ValueError, match="Conv2d is compiled, scripted or sharded"):
        nf.prepare_for_inference(compiled_inside())
    with pytest.raises(ValueError, match="lazy parameters"):
        nf.prepare_for_inference(nn.LazyConv2d(2, 3))(inputs()[0])


def test_by_default_large_networks_are_packed_and_small_ones_are_not(packed, monkeypatch) -> None:
    monkeypatch.setattr(foreign, "_WORTH", WORTH)
    torch.manual_seed(0)
    x, labels = torch.randn(4, 2, 32, 32), torch.zeros(4, dtype=torch.long)
    for width, large in ((4, False), (64, True)):
        net = Net(width).eval()
        assert_near(PackedCalls(net)(x, labels), net(x, labels))
        assert bool(packed) == large


def test_batches_of_small_convolutions_run_as_they_are(net, packed, monkeypatch, caplog) -> None:
    monkeypatch.setattr(foreign, "_WORTH", 100_000)
    calls = PackedCalls(net)
    few, many = inputs(3), inputs(200)
    with caplog.at_level(logging.INFO, "ncsn_fast"):
        assert torch.equal(calls(*few), net(*few))
    assert "the network runs as it is: its convolutions are small" in caplog.text
    assert not packed
    assert_near(calls(*many), net(*many))
    assert packed
    packed.clear()
    assert torch.equal(calls(*few), net(*few))
    assert not packed
