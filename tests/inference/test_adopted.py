"""Official networks are taken over: they run as ours, with their parameters, or as they are."""

from __future__ import annotations

import copy
import logging
import pickle
import re
from collections.abc import Callable, Iterator

import pytest
import torch
from helpers import networks
from helpers.networks import IMAGE_NETWORKS, SIGMAS, error, other_weights
from helpers.official import ACTIVATIONS, Louder, Official
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

import ncsn_fast as nf
from ncsn_fast import reference
from ncsn_fast.inference.foreign import PreparedModule
from ncsn_fast.inference.prepare import PreparedNetwork

HOW = {"step_size": 1e-5, "steps_per_level": 2}
SHAPE = (3, 8, 8)


@pytest.fixture(autouse=True)
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.INFO, "ncsn_fast"):
        yield caplog


def sampler(net: object, **settings: object) -> nf.Sampler:
    how = {"shape": SHAPE, "precision": "fp32", **HOW, **settings}
    return nf.Sampler(net, **how)  # type: ignore[arg-type]


@pytest.mark.parametrize("rescaled", [False, True])
@pytest.mark.parametrize("name", IMAGE_NETWORKS)
def test_a_sampler_runs_an_official_network_as_ours(name: str, rescaled: bool) -> None:
    net = Official(name, rescaled=rescaled)
    ours = net.behind[0]
    levels = SIGMAS if name == "NCSN" else None  # its tensors do not hold them
    images = sampler(net, shape=ours.shape, sigmas=levels)(3, seed=0)
    assert net.calls == 1  # to be compared
    assert torch.equal(images, sampler(ours, shape=None)(3, seed=0))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_is_recognised(activation: str, lines) -> None:
    prepared = nf.prepare_for_inference(Official(activation=activation), "fp32")
    assert isinstance(prepared, PreparedNetwork)
    assert prepared.source.activation == activation
    assert "Official runs as ncsn_fast's NCSNv2" in lines.text


def test_what_is_prepared_returns_what_the_network_returns() -> None:
    net = Official(sigmas=[3.0, 1.0, 0.3, 0.1])
    x, labels = networks.inputs(net.behind[0])
    prepared = nf.prepare_for_inference(net, "fp32")
    assert error(prepared(x, labels), net(x, labels)) < 1e-5
    images = sampler(prepared)(2, seed=0)
    assert torch.equal(images, sampler(net)(2, seed=0))


def test_what_is_prepared_stands_for_the_network_in_a_loop_of_the_users() -> None:
    net = Official()
    net.config = {"data": "digits"}
    prepared = nf.prepare_for_inference(net, "fp32")
    assert prepared.sigmas is net.sigmas
    assert prepared.config is net.config
    x, labels = networks.inputs(net.behind[0])
    assert torch.equal(prepared(x, y=labels), prepared(x, labels))
    assert torch.equal(prepared(y=labels, x=x), prepared(x, labels))
    with pytest.raises(AttributeError, match="has no 'eval'"):
        prepared.eval()
    for other in (copy.deepcopy(prepared), pickle.loads(pickle.dumps(prepared))):
        assert torch.equal(other(x, y=labels), prepared(x, labels))
        assert torch.equal(other.sigmas, net.sigmas)
    ours = nf.prepare_for_inference(net.behind[0], "fp32")
    assert ours.config == net.behind[0].config
    with pytest.raises(AttributeError, match="calls"):
        _ = ours.calls


PLAIN = {"step_size": None, "steps_per_level": None}
DEFAULTS: dict[str, tuple[dict[str, object], dict[str, object], list[str]]] = {
    "none": ({}, {}, []),
    "rescaled": ({"rescaled": True}, {}, ["range"]),
    "noise": ({}, {"method": "euler", **PLAIN}, ["held", "length"]),
    "all": ({"rescaled": True}, {"method": "euler", **PLAIN}, ["held", "range", "length"]),
    "told": ({}, {"method": "euler", "hold_noise": True, **PLAIN}, ["length"]),
}


@pytest.mark.parametrize("name", DEFAULTS)
def test_other_defaults_than_those_of_the_original_are_named(name: str, lines) -> None:
    network, settings, named = DEFAULTS[name]
    net = Official(**network)
    run = sampler(net, **settings)
    told = " ".join(text for text in lines.messages if "samples as ncsn_fast's" in text)
    assert [word for word in ("held", "range", "length") if word in told] == named
    assert run.hold_noise == ("method" in settings)
    lines.clear()
    sampler(net.behind[0], shape=None, **settings)
    sampler(net, **{**settings, "hold_noise": None}, adopt=False)
    assert "samples as" not in lines.text


def test_with_the_same_start_and_noise_adoption_changes_no_more_than_rounding() -> None:
    net = Official(rescaled=True)
    x = 3 * torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    how = {"method": "dpmpp_2m", **PLAIN, "hold_noise": False}
    images = sampler(net, **how)(2, seed=0, initial=x)
    assert error(images, sampler(net, **how, adopt=False)(2, seed=0, initial=x)) < 1e-5


def test_its_own_levels_are_its_ladder_and_any_other_may_be_visited() -> None:
    net = Official()
    assert torch.equal(sampler(net).score.sigmas, net.sigmas)
    table = nf.Sampler(net, SHAPE, method="dpmpp_2m", steps=7, spacing="karras").table
    assert len(table) == 7  # a network of others is told its own levels only


def test_a_score_of_one_keeps_its_meaning() -> None:
    net = Official()
    score = nf.Score(net, "score", "label")
    run = sampler(score)
    images = run(2, seed=0)
    assert net.calls == 1
    assert run.score.kind == "score"
    assert error(images, sampler(score, adopt=False)(2, seed=0)) < 1e-5
    assert net.calls > 1


def test_a_network_that_is_not_divided_is_read_as_the_caller_reads_it() -> None:
    net = Official()
    del net.sigmas
    score = nf.Score(net, "normalized", "label", SIGMAS)
    assert torch.equal(sampler(score)(2, seed=0), sampler(net.behind[0])(2, seed=0))
    plain = {"sigmas": SIGMAS, "method": "ancestral", "step_size": None, "steps_per_level": None}
    images = sampler(net, **plain)(2, seed=0)
    assert net.calls == 2
    assert error(images, sampler(net, **plain, adopt=False)(2, seed=0)) < 1e-5


def undivided(net: Official) -> Official:
    del net.sigmas
    return net


def in_float64(net: Official) -> Official:
    net.sigmas = net.sigmas.double()
    return net


def centred(net: Official) -> Official:
    del net.rescaled, net.logit_transform
    net.centered = True
    return net


def empty_settings(net: Official) -> Official:
    net.logit_transform = net.rescaled = {}  # of a configuration that makes up what it has not
    return net


def other_parts(net: Official) -> Official:
    net.sig = nn.Sigmoid()
    net.res2[0].conv2.avg = nn.AvgPool2d(2)
    return net


VARIANTS: dict[str, Callable[[], Official]] = {
    "AdversarialConsistentScoreMatching": lambda: undivided(Official()),
    "its modules without weights": lambda: other_parts(Official()),
    "csgm-mri-langevin": lambda: other_parts(Official("NCSNv2Deepest", channels=2)),
    "score-based-channels": lambda: empty_settings(Official("NCSNv2Deepest", channels=2)),
    "score_sde": lambda: centred(in_float64(Official(rescaled=True))),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_what_code_bases_made_of_it_runs_as_ours(name: str, lines) -> None:
    net = VARIANTS[name]()
    shape = (*net.behind[0].shape[:1], 16, 48)
    kind = "normalized" if name == "AdversarialConsistentScoreMatching" else "score"
    score = nf.Score(net, kind, "label", SIGMAS)
    images = sampler(score, shape=shape)(2, seed=0)
    assert net.calls == 1
    assert " runs as ncsn_fast's NCSNv2" in lines.text
    assert error(images, sampler(score, shape=shape, adopt=False)(2, seed=0)) < 1e-5


WRAPPERS: dict[str, Callable[[nn.Module], Callable[..., Tensor]]] = {
    "DataParallel": nn.DataParallel,
    "AveragedModel": torch.optim.swa_utils.AveragedModel,
    "both": lambda net: nn.DataParallel(torch.optim.swa_utils.AveragedModel(net)),
    "forward": lambda net: net.forward,
}


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_wrappers_are_looked_through(wrap: str, lines) -> None:
    net = Official()
    images = sampler(WRAPPERS[wrap](net))(2, seed=0)
    assert "runs as ncsn_fast's NCSNv2" in lines.text
    assert torch.equal(images, sampler(net)(2, seed=0))


def swap(net: nn.Module, new: dict[str, Tensor]) -> None:
    for name, parameter in net.named_parameters():
        parameter.data.copy_(new[name])


def replace(net: nn.Module, new: dict[str, Tensor]) -> None:
    net.load_state_dict(new, assign=True)


def load(net: nn.Module, new: dict[str, Tensor]) -> None:
    net.load_state_dict(new)


def back_and_forth(net: nn.Module, new: dict[str, Tensor]) -> None:
    load(net, new)
    net.to(torch.float64).to(torch.float32)


@pytest.mark.parametrize("change", [load, swap, replace, back_and_forth])
def test_weights_that_change_are_followed(change) -> None:
    net = Official()
    run, prepared = sampler(net), nf.prepare_for_inference(net, "fp32")
    before = run(2, seed=0)
    change(net, other_weights(net))
    images = run(2, seed=0)
    assert not torch.equal(images, before)
    assert torch.equal(images, sampler(copy.deepcopy(net))(2, seed=0))
    x, labels = networks.inputs(net.behind[0])
    prepared.refresh()
    assert error(prepared(x, labels), net(x, labels)) < 1e-5


def test_the_network_is_left_as_it_is_and_may_be_trained() -> None:
    net = Official().train()
    before = copy.deepcopy(net.state_dict())
    run = sampler(net)
    run(2, seed=0)
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(parameter.requires_grad for parameter in net.parameters())
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
    net(*networks.inputs(net.behind[0])).square().mean().backward()
    optimiser.step()
    assert torch.equal(run(2, seed=0), sampler(copy.deepcopy(net))(2, seed=0))


def test_samplers_of_one_can_be_copied() -> None:
    run = sampler(Official())
    images = run(2, seed=0)
    for other in (copy.deepcopy(run), pickle.loads(pickle.dumps(run))):
        assert torch.equal(other(2, seed=0), images)


class AtTheEnd(Official):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return super().forward(x, y) * torch.where(y == 3, 1.001, 1.0).view(-1, 1, 1, 1)


class InTheMiddle(Official):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return super().forward(x, y) * torch.where(y == 1, 1.001, 1.0).view(-1, 1, 1, 1)


class OfLargeImages(Official):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        scores = super().forward(x, y)
        return 2 * scores if x.shape[-1] > 100 else scores


class Steered(Official):
    def forward(self, x: Tensor, y: Tensor, cond: Tensor | None = None) -> Tensor:
        scores = super().forward(x, y)
        return scores if cond is None else cond.view(-1, 1, 1, 1) * scores


class Norm(nn.Module):
    """InstanceNorm++ with an ε of its own, which its attributes do not tell."""

    def __init__(self, like: nn.Module, eps: float) -> None:
        super().__init__()
        self.gamma, self.alpha, self.beta = like.gamma, like.alpha, like.beta
        self.chosen = [eps]

    def forward(self, x: Tensor, labels: None, activation: str, statistics: Tensor) -> Tensor:
        own = self.gamma, self.alpha, self.beta
        return reference.instance_norm_plus(x, *own, self.chosen[0], activation)


class TorchsNorm(Norm):
    """The same, with the ε of PyTorch's layer, as in the official code."""

    def __init__(self, like: nn.Module, eps: float) -> None:
        super().__init__(like, 1e-5)
        self.instance_norm = nn.InstanceNorm2d(len(self.gamma), eps=eps)


def normed(kind: type[Norm], eps: float) -> Official:
    net = Official()
    net.res1[0].normalize1 = kind(net.res1[0].normalize1, eps)
    return net


class Conv(nn.Module):
    """A convolution with a dilation that its attributes do not tell."""

    def __init__(self, like: nn.Conv2d, dilation: int) -> None:
        super().__init__()
        self.weight, self.bias, self.chosen = like.weight, like.bias, [[dilation]]

    def forward(self, x: Tensor) -> Tensor:
        (dilation,) = self.chosen[0]
        return nn.functional.conv2d(x, self.weight, self.bias, padding=dilation, dilation=dilation)


def convolved(dilation: int) -> Official:
    net = Official()
    net.res4[1].conv2 = Conv(net.res4[1].conv2, dilation)
    return net


def conv_set(name: str, **settings: object) -> Callable[[Official], Official]:
    def change(net: Official) -> Official:
        for setting, value in settings.items():
            setattr(net.get_submodule(name), setting, value)
        return net

    return change


class Broken(Official):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        raise RuntimeError("not today")


class Mixed(Official):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return super().forward(x, y).sum()


def hooked(net: Official) -> Official:
    net.res1[0].register_forward_hook(lambda module, given, output: output)
    return net


def patched(net: Official) -> Official:
    forward = net.end_conv.forward
    net.end_conv.forward = lambda x: forward(x)
    return net


def parametrised(net: Official) -> Official:
    nn.utils.parametrizations.weight_norm(net.begin_conv)
    return net


def other_activation(net: Official) -> Official:
    net.act = nn.Tanh()
    return net


def says_otherwise(net: Official) -> Official:
    net.rescaled = True
    return net


def infinite(net: Official) -> Official:
    nn.init.constant_(net.end_conv.bias, float("inf"))
    return net


def ascending(net: Official) -> Official:
    net.sigmas = net.sigmas.flip(0)
    return net


# In stages that see a small image as a few pixels, and one that the first images may not reach.
farther = conv_set("res4.0.conv1", dilation=(3, 3), padding=(3, 3))
farther_still = conv_set("res4.1.conv2", dilation=(8, 8), padding=(8, 8))
around = conv_set("refine1.crp.convs.0", padding_mode="circular")

OTHERS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "louder": (lambda: Louder(), "at noise level 0 the two differ by"),
    "in the middle": (lambda: InTheMiddle(), "at noise level 1 the two differ by"),
    "of large images": (lambda: OfLargeImages(), "written over that of Official, which would fit"),
    "steered": (lambda: Steered(), r"its forward takes \(x.*, y.*, cond.*\), not an image"),
    "dilation": (lambda: farther(Official()), r"res4.0.conv1 has dilation=\(3, 3\), not \(4, 4\)"),
    "more dilation": (lambda: farther_still(Official()), r"res4.1.conv2 has dilation=\(8, 8\)"),
    "padding": (lambda: around(Official()), "convs.0 has padding_mode=circular, not zeros"),
    "hidden dilation": (lambda: convolved(3), "at noise level 0 the two differ by"),
    "ε": (lambda: normed(TorchsNorm, 1e-7), "instance_norm has eps=1e-07, not 1e-05"),
    "hidden ε": (lambda: normed(Norm, 9e-6), "at noise level 3 the two differ by"),
    "at the end": (lambda: AtTheEnd(), "at noise level 3 the two differ by"),
    "broken": (lambda: Broken(), r"called as fn\(x, labels\) it fails \(not today\)"),
    "mixed": (lambda: Mixed(), "something else than a score"),
    "hooks": (lambda: hooked(Official()), "it has hooks"),
    "hooks of a wrapper": (lambda: hooked(nn.DataParallel(Official()).module), "it has hooks"),
    "patched": (lambda: patched(Official()), "its forward has been replaced"),
    "parametrised": (lambda: parametrised(Official()), "it is parametrised"),
    "activation": (lambda: other_activation(Official()), "its activation is another one"),
    "range": (lambda: says_otherwise(Official()), "at noise level 0 the two differ by"),
    "infinite": (lambda: infinite(Official()), "values that are not finite"),
    "float64": (lambda: Official().double(), "its weights are float64"),
    "ascending": (lambda: ascending(Official()), "descend"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_something_else_runs_as_it_is_and_a_line_says_why(name: str, lines) -> None:
    make, reason = OTHERS[name]
    net = make()
    prepared = nf.prepare_for_inference(net)
    assert isinstance(prepared, PreparedModule)
    (line,) = [text for text in lines.messages if "looks like an official network" in text]
    lines.clear()
    assert re.search(reason, line)
    assert "adopt=False" in line
    assert isinstance(nf.prepare_for_inference(net, adopt=False), PreparedModule)
    assert not lines.messages


def test_levels_of_the_first_version_have_to_be_known(lines) -> None:
    net = Official("NCSN")
    assert isinstance(nf.prepare_for_inference(net), PreparedModule)
    assert "its noise levels are not known" in lines.text
    sampler(net, sigmas=SIGMAS[:2])
    assert "it is told 4 noise levels, and 2 are given" in lines.text


def test_networks_of_others_are_not_spoken_of(lines) -> None:
    nf.prepare_for_inference(nn.Conv2d(1, 1, 3))
    sampler(lambda x, labels: -x, sigmas=SIGMAS)
    assert "official" not in lines.text


def test_it_may_be_left_as_it_is() -> None:
    net = Official()
    sampler(net, adopt=False)(2, seed=0)
    assert net.calls > 8
    for make in (sampler, nf.prepare_for_inference):
        with pytest.raises(ValueError, match="adopt = 'no'"):
            make(net, adopt="no")


def other_epsilon(net: Official) -> Official:
    net.res1[0].normalize1.instance_norm.eps = 1e-6
    return net


def without_bias(net: Official) -> Official:
    net.begin_conv.bias = None
    return net


def wider(net: Official) -> Official:
    net.end_conv.weight = nn.Parameter(torch.zeros(3, 8, 5, 5))
    return net


CHANGES = [
    hooked,
    patched,
    other_activation,
    says_otherwise,
    farther,
    around,
    other_epsilon,
    without_bias,
    wider,
]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (farther, "res4.0.conv1.padding"),
        (says_otherwise, "rescaled"),
        (without_bias, "begin_conv.bias"),
        (wider, "end_conv.weight"),
        (other_parts, "sig"),
    ],
)
def test_what_changed_is_named(change, named) -> None:
    net = Official()
    run = sampler(net)
    change(net)
    with pytest.raises(ValueError, match=rf"other parts or settings \({named}\)"):
        run(1, seed=0)


@pytest.mark.parametrize("change", CHANGES)
def test_one_that_becomes_another_is_refused(change) -> None:
    net = normed(TorchsNorm, 1e-5)
    run, prepared = sampler(net), nf.prepare_for_inference(net, "fp32")
    run(1, seed=0)
    change(net)
    with pytest.raises(ValueError, match="was taken over, and is another one now"):
        run(1, seed=0)
    with pytest.raises(ValueError, match="was taken over, and is another one now"):
        prepared.refresh()


def test_another_part_is_refused() -> None:
    net = Official()
    run = sampler(net)
    net.begin_conv = copy.deepcopy(net.begin_conv)
    with pytest.raises(ValueError, match=r"other parts or settings \(begin_conv\)"):
        run(1, seed=0)


def test_a_class_that_becomes_another_is_refused(monkeypatch) -> None:
    class Own(Official):
        forward = Official.forward

    run = sampler(Own())
    run(1, seed=0)
    monkeypatch.setattr(Own, "forward", Louder.forward)
    with pytest.raises(ValueError, match="was taken over, and is another one now"):
        run(1, seed=0)


def test_a_hook_of_all_modules_is_heeded(lines) -> None:
    net = Official()
    run = sampler(net)
    hook = register_module_forward_hook(lambda module, given, output: None)
    try:
        with pytest.raises(ValueError, match="another one now: all modules have hooks"):
            run(1, seed=0)
        lines.clear()
        sampler(net)
        assert "runs as it is: all modules have hooks" in lines.text
    finally:
        hook.remove()
    run(1, seed=0)


def test_what_people_count_in_a_network_is_no_setting() -> None:
    net = Official()
    run = sampler(net)
    net.seconds, net.losses = 0.5, [3.0]
    run(1, seed=0)
    net.seconds, net.losses = 1.5, [3.0, 2.0]
    net.res1[0].register_full_backward_hook(lambda module, given, output: None)
    run(1, seed=0)


class Remembers(nn.Conv2d):
    """A part that sets and counts in its calls, as some do for hooks of their own."""

    calls = 0
    seen = None

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen = x.shape
        return super().forward(x)


def remembering() -> Official:
    net = Official()
    old = net.begin_conv
    net.begin_conv = net.behind[0].begin_conv = Remembers(3, old.out_channels, 3, padding=1)
    net.begin_conv.load_state_dict(old.state_dict())
    net.begin_conv.calls, net.begin_conv.seen = 0, None
    return net


def test_what_a_part_remembers_of_its_calls_is_no_setting() -> None:
    net = remembering()
    run = sampler(net)
    assert run.network is not None
    run(1, seed=0)
    net(torch.zeros(7, 3, 16, 16), torch.zeros(7, dtype=torch.long))
    run(1, seed=0)
    net.begin_conv.stride = (2, 2)
    with pytest.raises(ValueError, match=r"other parts or settings \(begin_conv.stride\)"):
        run(1, seed=0)


def in_buffer(net: Official) -> None:
    net.register_buffer("ema_decay", torch.tensor(0.9))


LABELS: dict[str, Callable[[Official], object]] = {
    "word": lambda net: setattr(net, "name", "best"),
    "truth": lambda net: setattr(net, "is_ema", True),
    "function": lambda net: setattr(net, "on_step", print),
    "None": lambda net: setattr(net, "last", torch.zeros(3)),
    "number": lambda net: setattr(net.begin_conv, "count", 3),
    "shape": lambda net: setattr(net.end_conv, "last_shape", torch.Size((1, 2))),
    "buffer": in_buffer,
    "buffer of a part": lambda net: in_buffer(net.begin_conv),
    "mode": lambda net: net.train(),
}


@pytest.mark.parametrize("name", LABELS)
def test_a_label_makes_no_other_network(name: str) -> None:
    net = Official()
    net.last = None
    run, prepared = sampler(net), nf.prepare_for_inference(net, "fp32")
    images = run(1, seed=0)
    LABELS[name](net)
    assert torch.equal(run(1, seed=0), images)
    prepared.refresh()


def test_padding_by_name_is_that_of_so_many_pixels(lines) -> None:
    nf.prepare_for_inference(conv_set("res4.0.conv1", padding="same")(Official()))
    assert "Official runs as ncsn_fast's NCSNv2" in lines.text


@pytest.mark.parametrize(("rescaled", "logit"), [(True, False), (False, True), (True, True)])
def test_the_space_of_its_data_is_that_of_ours(rescaled: bool, logit: bool) -> None:
    net = Official(rescaled=rescaled, logit_transform=logit)
    ours = sampler(net).network
    assert (ours.rescaled, ours.logit_transform) == (rescaled, logit and not rescaled)


def test_sides_that_ours_does_not_take_may_be_those_of_the_original() -> None:
    run = sampler(Official(), shape=(3, 9, 9))
    with pytest.raises(ValueError, match=r"images of 9×9.* or say adopt=False, if the original"):
        run(1, seed=0)


def test_noise_levels_that_change_are_noticed() -> None:
    net = Official()
    run = sampler(net)
    net.sigmas.mul_(2)
    with pytest.raises(ValueError, match="noise levels have changed"):
        run(1, seed=0)
