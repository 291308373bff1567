"""Classifier-free guidance: two networks in one, in the loop and in a captured one."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from torch import nn

import ncsn_fast as nf
from ncsn_fast.guidance.classifier_free import Guided, guided
from ncsn_fast.methods.tables import annealed_langevin, dpmpp_2m
from ncsn_fast.models.base import ScoreNetwork
from ncsn_fast.sampling import loop as loop_module
from ncsn_fast.sampling.chain import Chain
from ncsn_fast.sampling.graph_cache import Graphs

pytest_plugins = ["helpers.recorded_capture"]

SIGMAS = nf.geometric_sigmas(5, 0.02, 8)
TABLE = annealed_langevin(SIGMAS, 1e-4, 2)
CLASSES = torch.tensor([0, 2, 1, 0])
NOBODY = 3  # the class of no condition
CALL = {"seed": 5, "extra": {"y": CLASSES}}


class Conditional(nn.Module):
    """The denoiser of a Gaussian around its class's mean, seen as EDM and DDPM networks see it."""

    def __init__(self):
        super().__init__()
        self.means = nn.Parameter(torch.tensor([[2.0, 0], [0, 2], [-2, -2], [0, 0]]))
        self.batches = []

    def forward(self, x, sigma, y=None):
        self.batches.append(len(x))
        y = torch.full_like(sigma, NOBODY, dtype=torch.int64) if y is None else y
        sigma = sigma.view(-1, 1)
        x = x * (1 + sigma**2).sqrt()
        return x + sigma**2 * (self.means[y] - x) / (1 + sigma**2)


def conditional():
    return nf.Score(Conditional(), "denoiser", "sigma", sigma_data=1.0)


def run(score, table=TABLE, *, n=4, graph=False, **call):
    return nf.Sampler(score, (2,), SIGMAS, table, graph=graph)(n, **{**CALL, **call})


def test_the_ends_of_the_scale_are_exact():
    values = torch.tensor([1e8, -3.0, 0.1, 7.7])
    score = nf.Score(lambda x, sigma, y: x + values[y].view(-1, 1), "denoiser", "sigma")
    x, sigma = torch.zeros(4, 2), torch.ones(4)
    for scale, y in ((0, torch.zeros(4, dtype=torch.int64)), (1, torch.arange(4))):
        found = guided(score, scale, unconditional={"y": 0})(x, sigma, y=torch.arange(4))
        assert torch.equal(found, score(x, sigma, y=y))


@pytest.mark.parametrize("unconditional", [NOBODY, torch.tensor(NOBODY), torch.tensor([NOBODY])])
@pytest.mark.parametrize("table", [TABLE, dpmpp_2m(SIGMAS)], ids=["noise", "history"])
def test_guidance_is_the_combination_of_both_outputs(unconditional, table):
    score = conditional()

    def by_hand(x, sigma, y):
        without, with_it = score.fn(x, sigma, torch.full_like(y, NOBODY)), score.fn(x, sigma, y)
        return without + 2.5 * (with_it - without)

    expected = run(nf.Score(by_hand, "denoiser", "sigma", sigma_data=1.0), table)
    found = run(guided(score, 2.5, unconditional={"y": unconditional}), table)
    # lerp sums in another order; a state of 20 has a spacing of 2e-6.
    assert torch.allclose(found, expected, atol=1e-5)


def test_what_differs_per_sample_is_computed_in_one_batch():
    score = guided(conditional(), 2.0, unconditional={"y": NOBODY})
    run(score)
    assert set(score.fn.batches) == {8}
    assert len(score.fn.batches) == len(TABLE)


@pytest.mark.parametrize(
    ("unconditional", "given"),
    [({"y": None}, CLASSES), ({"y": NOBODY}, 2), ({"y": torch.tensor(NOBODY)}, torch.tensor(2))],
    ids=["no input", "a number for all", "a tensor for all"],
)
def test_what_fits_no_common_batch_takes_two_calls(unconditional, given):
    class Either(Conditional):
        def forward(self, x, sigma, y=None):
            return super().forward(x, sigma, None if y is None else y + torch.zeros(len(x)).long())

    score = nf.Score(Either(), "denoiser", "sigma", sigma_data=1.0)
    found = run(guided(score, 2.0, unconditional=unconditional), extra={"y": given})
    assert set(score.fn.batches) == {4}
    assert len(score.fn.batches) == 2 * len(TABLE)
    whole = given if isinstance(given, torch.Tensor) and given.ndim else torch.full((4,), 2)
    one = guided(score, 2.0, unconditional={"y": NOBODY})
    assert torch.equal(found, run(one, extra={"y": whole}))


def test_other_inputs_go_to_both_networks():
    def fn(x, sigma, y, image, shift, power):
        return x / (1 + y.view(-1, 1)) + (image + shift) ** power

    image, shift = torch.rand(4, 2), torch.rand(1, 2)
    extra = {"y": CLASSES, "image": image, "shift": shift, "power": 2}
    score = nf.Score(fn, "denoiser", "sigma")
    sigma = torch.full((4,), 0.5)
    found = guided(score, 3.0, unconditional={"y": 7})(image, sigma, **extra)
    without, with_it = (
        score(image, sigma, **{**extra, "y": CLASSES * 0 + 7}),
        score(image, sigma, **extra),
    )
    assert torch.allclose(found, without + 3 * (with_it - without))


@pytest.mark.parametrize("unconditional", [NOBODY, None])
def test_samples_do_not_depend_on_the_batch(unconditional):
    score = guided(conditional(), 2.0, unconditional={"y": unconditional})
    whole = run(score)
    assert torch.equal(run(score, batch_size=3), whole)
    assert torch.equal(run(score, n=1, extra={"y": CLASSES[2:3]}, sample_ids=[2]), whole[2:3])


@pytest.mark.parametrize("call", [{}, {"clip": 0.5}, {"every": 5}, {"batch_size": 3}], ids=str)
@pytest.mark.parametrize("unconditional", [NOBODY, torch.tensor([NOBODY]), None], ids=str)
def test_replay_equals_eager_bit_for_bit(recorded, unconditional, call):
    score = guided(conditional(), 2.0, unconditional={"y": unconditional})
    eager, captured = (run(score, graph=graph, **call) for graph in (False, True))
    pairs = zip(eager, captured, strict=True) if "every" in call else [(eager, captured)]
    assert all(torch.equal(a, b) for a, b in pairs)
    assert recorded.captured


@pytest.mark.gpu
@pytest.mark.parametrize("unconditional", [NOBODY, torch.tensor([NOBODY]), None], ids=str)
def test_a_replay_on_a_gpu_equals_eager(unconditional):
    if isinstance(unconditional, torch.Tensor):
        unconditional = unconditional.cuda()
    plain = nf.Score(Conditional().cuda(), "denoiser", "sigma", sigma_data=1.0)
    score = guided(plain, 2.0, unconditional={"y": unconditional})
    eager, captured = (
        nf.Sampler(score, (2,), SIGMAS, TABLE, graph=graph) for graph in (False, True)
    )
    for classes in (CLASSES.cuda(), CLASSES.flip(0).cuda()):
        call = {"seed": 5, "extra": {"y": classes}}
        assert torch.equal(captured(4, **call), eager(4, **call))


def test_other_classes_need_no_other_graph(recorded):
    score = guided(conditional(), 2.0, unconditional={"y": NOBODY})
    sampler = nf.Sampler(score, (2,), SIGMAS, TABLE, graph=True)
    for classes in (CLASSES, CLASSES.flip(0)):
        found = sampler(4, seed=5, extra={"y": classes})
        assert torch.equal(found, run(score, extra={"y": classes}))
    assert len(recorded.captured) == 1


def test_another_scale_or_unconditional_input_is_another_graph(recorded):
    plain, graphs = conditional(), Graphs(True)
    x, ids = torch.rand(4, 2), torch.arange(4)
    for scale, nobody in ((2.0, NOBODY), (3.0, NOBODY), (3.0, 1), (3.0, torch.tensor(0))):
        score = guided(plain, scale, unconditional={"y": nobody})
        settings = {"shape": (2,), "device": torch.device("cpu"), "seed": 1, "n": 4}
        one = Chain(score, TABLE, extra={"y": CLASSES}, **settings)
        found = loop_module.run(one, x, ids, graphs=graphs)
        assert torch.equal(found, loop_module.run(one, x, ids))
    assert len(recorded.captured) == 4


def change_in_place(net):
    net.means.data.add_(0.3)


def change_by_another_tensor(net):
    net.means = nn.Parameter(net.means.detach() + 0.3)


@pytest.mark.parametrize("change", [change_in_place, change_by_another_tensor])
def test_changed_weights_are_followed(recorded, change):
    score = guided(conditional(), 2.0, unconditional={"y": NOBODY})
    sampler = nf.Sampler(score, (2,), SIGMAS, TABLE, graph=True)
    before = sampler(4, **CALL)
    change(score.fn)
    after = sampler(4, **CALL)
    assert not torch.equal(after, before)
    assert torch.equal(after, run(score))


def test_the_network_is_evaluated_as_without_guidance():
    class Notes(Conditional):
        def forward(self, x, sigma, y):
            assert not self.training
            return super().forward(x, sigma, y)

    net = Notes().train()
    score = guided(nf.Score(net, "denoiser", "sigma"), 2.0, unconditional={"y": NOBODY})
    assert score.module is net
    assert nf.Sampler(score, (2,), SIGMAS, TABLE).device == net.means.device
    run(score)
    assert net.training


class OfThisPackage(ScoreNetwork):
    """A conditional network of this package: a body that does not see σ."""

    def __init__(self):
        super().__init__(SIGMAS)
        self.means = nn.Parameter(torch.randn(4, 2, generator=torch.Generator().manual_seed(0)))

    @property
    def config(self):
        return {}

    @property
    def shape(self):
        return (2,)

    def normalized(self, x, labels=None, y=None):
        return torch.tanh(self.means[y] - x)


def test_networks_of_this_package_are_guided(recorded):
    net = OfThisPackage()
    score = guided(net, 2.0, unconditional={"y": NOBODY})
    assert score.module is net
    assert torch.equal(score.sigmas, SIGMAS)

    def by_hand(x, labels, y):
        without, with_it = net.normalized(x, y=y * 0 + NOBODY), net.normalized(x, y=y)
        return without + 2 * (with_it - without)

    expected = run(nf.Score(by_hand, "normalized", "label", SIGMAS))
    assert torch.allclose(run(score), expected, atol=1e-5)
    assert torch.equal(run(score, graph=True), run(score))


def test_a_sampler_gives_a_guided_score_its_ladder():
    net = nf.Score(lambda x, labels, y: -x * y.view(-1, 1), "score", "label")
    assert run(guided(net, 2.0, unconditional={"y": 0})).shape == (4, 2)


def test_outputs_in_16_bits_are_combined_in_32():
    def fn(x, sigma, y):
        return (x + y.view(-1, 1)).half()

    score = guided(nf.Score(fn, "denoiser", "sigma"), 3.0, unconditional={"y": 0})
    x = torch.rand(4, 2)
    with_it, without = fn(x, None, CLASSES).float(), fn(x, None, CLASSES * 0).float()
    found = score(x, torch.ones(4), y=CLASSES)
    assert found.dtype == torch.float32
    assert torch.allclose(found, without + 3 * (with_it - without), atol=1e-6)


def test_a_guided_score_survives_pickling():
    score = pickle.loads(pickle.dumps(guided(conditional(), 2.0, unconditional={"y": NOBODY})))
    assert isinstance(score, Guided)
    assert (score.scale, score.unconditional) == (2.0, {"y": NOBODY})


@pytest.mark.parametrize(
    ("scale", "unconditional", "message"),
    [
        (float("nan"), {"y": 1}, "scale = nan: give a finite number"),
        ("3", {"y": 1}, "scale = '3'"),
        (2.0, {}, "unconditional = {}: say what the network's inputs are"),
        (2.0, 10, "unconditional = 10"),
    ],
)
def test_guidance_without_a_meaning_is_refused(scale, unconditional, message):
    with pytest.raises(ValueError, match=message):
        guided(conditional(), scale, unconditional=unconditional)


def test_guidance_of_a_guided_score_is_refused():
    score = guided(conditional(), 2.0, unconditional={"y": NOBODY})
    with pytest.raises(ValueError, match="guided already"):
        guided(score, 2.0, unconditional={"y": NOBODY})


def test_a_condition_that_is_not_given_is_asked_for():
    score = guided(conditional(), 2.0, unconditional={"y": NOBODY})
    with pytest.raises(ValueError, match=r"needs the conditional \['y'\] too: .* extra="):
        run(score, extra={})
    with pytest.raises(ValueError, match="training takes the network without guidance"):
        nf.dsm_loss(score, torch.rand(4, 2), SIGMAS)


@pytest.mark.parametrize(
    ("unconditional", "message"),
    [
        (torch.full((3,), NOBODY), r"shape \(3,\), .* give that of one sample"),
        (torch.full((4,), NOBODY), r"shape \(4,\), .* give that of one sample"),
        (torch.tensor(3, device="meta"), "is on meta, the conditional one on cpu: move it"),
    ],
)
def test_an_unconditional_input_per_sample_or_elsewhere_is_refused(unconditional, message):
    with pytest.raises(ValueError, match=message):
        run(guided(conditional(), 2.0, unconditional={"y": unconditional}))


@pytest.mark.parametrize("given", [np.float32(2), np.int64(2), torch.tensor(2.0), 2])
def test_a_scale_may_be_a_number_of_any_library(given):
    assert nf.guided(abs, given, unconditional={"y": 0}).scale == 2.0


@pytest.mark.parametrize("scale", [True, "3", None, torch.ones(3), np.ones(2), [1.0], 1j])
def test_a_scale_that_is_no_number_for_all_samples_is_refused(scale):
    with pytest.raises(ValueError, match="scale = "):
        nf.guided(abs, scale, unconditional={"y": 0})


def test_unconditional_inputs_may_be_arrays():
    x, c = torch.randn(4, 2), torch.arange(4)

    def net(x, told, y):
        return x * (y[:, None] + 1.0)

    score = nf.Score(lambda x, y: net(x, None, y), "normalized", "none")
    expected = nf.guided(score, 3.0, unconditional={"y": 7})(x, None, y=c)
    for value in (np.int64(7), np.array([7])):
        found = nf.guided(score, 3.0, unconditional={"y": value})
        assert torch.equal(found(x, None, y=c), expected)
    with pytest.raises(ValueError, match="give names of the network's inputs"):
        nf.guided(score, 3.0, unconditional={7: 7})


# Our own networks.


def own(size=8, **changes):
    torch.manual_seed(0)
    net = nf.NCSNv2(channels=1, image_size=size, ngf=4, sigmas=SIGMAS, classes=["a", "b"])
    for module in net.modules():
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight[:2].detach(), 0, 0.3)
    net.sampling = {"method": "dpmpp_2m", **changes}
    return net.eval()


def test_our_networks_say_what_no_class_is():
    net = own()
    x = torch.rand(3, *net.shape)
    classes = torch.tensor([0, 1, 1])
    score = guided(net, 3.0)
    assert score.unconditional == {"classes": 2}
    with torch.no_grad():
        found = score(x, None, classes=classes)
        without, with_it = net.normalized(x), net.normalized(x, classes=classes)
    assert torch.allclose(found, without + 3 * (with_it - without), atol=1e-5)


def test_our_networks_are_prepared_with_guidance_too():
    net = own()
    call = {"seed": 3, "precision": "fp32", "extra": {"classes": torch.tensor([0, 1, 2, 0])}}
    plain = nf.sample(guided(net, 2.0), 4, prepare=False, **call)
    sampler = nf.Sampler(guided(net, 2.0), precision="fp32")
    with sampler._runner.running(torch.device("cpu")) as running:
        assert running.prepared
        assert isinstance(running.score, Guided)
        assert running.score.scale == 2.0
    assert torch.allclose(nf.sample(guided(net, 2.0), 4, **call), plain, atol=1e-4)
    assert not torch.allclose(nf.sample(net, 4, **call), plain, atol=1e-2)


def test_an_image_of_a_class_is_the_same_in_any_batch():
    net, classes = own(), torch.tensor([0, 1, 2, 0, 1])
    whole = nf.sample(guided(net, 2.0), 5, seed=1, extra={"classes": classes})
    for batch in (1, 2):
        parts = nf.sample(guided(net, 2.0), 5, seed=1, extra={"classes": classes}, batch_size=batch)
        assert torch.allclose(parts, whole, atol=1e-4)


def test_one_class_for_all_may_be_a_number():
    net = own()
    of_each = nf.sample(guided(net, 2.0), 3, seed=1, extra={"classes": torch.tensor([1, 1, 1])})
    for given in ({"extra": {"classes": net.class_of("b")}}, {"shared": {"classes": 1}}):
        found = nf.sample(guided(net, 2.0), 3, seed=1, **given)
        assert torch.allclose(found, of_each, atol=1e-4)


@pytest.mark.parametrize("scale", [None, 2.0])
def test_classes_of_our_networks_need_no_other_graph(recorded, scale):
    net = own()
    score = net if scale is None else guided(net, scale)
    eager, captured = (nf.Sampler(score, graph=graph) for graph in (False, True))
    for classes in (torch.tensor([0, 1, 2]), torch.tensor([1, 1, 0])):
        call = {"seed": 5, "extra": {"classes": classes}}
        assert torch.equal(captured(3, **call), eager(3, **call))
    assert len(recorded.captured) == 1
    for number in (0, "1", [2], [1, 0, 2]):  # numbers and names are one for each image too
        call = {"seed": 5, "extra": {"classes": number}}
        assert torch.equal(captured(3, **call), eager(3, **call))
    assert len(recorded.captured) == 1


def test_a_network_without_classes_has_no_guidance_by_itself():
    net = nf.NCSNv2(channels=1, image_size=8, ngf=4, sigmas=SIGMAS)
    with pytest.raises(ValueError, match="this network knows no classes, and so there is nothing"):
        guided(net, 2.0)
    for unconditional in (None, 10, torch.zeros(2)):
        with pytest.raises(ValueError, match="say what the network's inputs are without"):
            guided(lambda x, labels: x, 2.0, unconditional=unconditional)
