"""What a network is told and how its answer is read."""

import functools
import math
import pickle

import numpy as np
import pytest
import torch
from torch import nn

import ncsn_fast as nf
from ncsn_fast.compat.ncsnv2 import anneal_Langevin_dynamics
from ncsn_fast.methods.tables import annealed_langevin, euler
from ncsn_fast.models.score import as_score
from ncsn_fast.table import Table

SIGMAS = nf.geometric_sigmas(10, 0.01, 6)
TABLE = annealed_langevin(SIGMAS, 1e-5, 2)


def told(condition):
    return nf.Score(lambda x, c: x, "score", condition, SIGMAS).conditions(TABLE, "cpu")


def test_labels_count_the_ladder():
    labels = told("label")
    assert labels.dtype == torch.int64
    assert labels.tolist() == list(TABLE.level)


def test_noise_levels_are_told_in_the_networks_own_way():
    sigma = torch.tensor(TABLE.sigma, dtype=torch.float64)
    assert torch.allclose(told("sigma").double(), sigma, rtol=1e-6)
    assert torch.allclose(told("log_sigma").double(), sigma.log(), rtol=1e-6)
    assert torch.allclose(told("c_noise").double(), sigma.log() / 4, rtol=1e-6)
    assert nf.Score(lambda x: x, "score", "none").conditions(TABLE, "cpu") is None


def test_every_sample_is_told_its_level():
    seen = []

    def fn(x, sigma):
        seen.append(sigma)
        return -x

    sampler = nf.Sampler(nf.Score(fn, "score", "sigma"), (2,), method=TABLE[:1])
    sampler(3, seed=0)
    assert [(s.shape, s.unique().tolist()) for s in seen] == [((3,), [10.0])]


def test_a_bare_callable_is_a_score_by_label():
    score = as_score(lambda x, labels: x, SIGMAS)
    assert (score.kind, score.condition) == ("score", "label")
    assert torch.equal(score.sigmas, SIGMAS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((3,), "a function or a module, got int"),
        ((len, "noise"), "kind = 'noise' is unknown; choose one of"),
        ((len, "score", "time"), "condition = 'time' is unknown"),
        ((len, "score", "label", [1.0, 2.0]), "noise levels descend"),
        ((len, "v", "sigma"), "kind 'v' belongs to a network that sees a scaled state"),
        ((len, "epsilon", "timestep"), r"needs the noise levels .* nf.Score.ddpm"),
    ],
)
def test_unknown_parametrisations_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        nf.Score(*arguments)


def test_labels_need_a_ladder():
    with pytest.raises(ValueError, match='condition "label" needs the ladder'):
        nf.Sampler(nf.Score(lambda x, y: x), (2,), method=TABLE)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sigma_data": 0.0}, "sigma_data = 0.0: give a finite positive number"),
        ({"sigma_data": float("inf")}, "sigma_data = inf"),
        ({"condition": "sigma", "quantize": True}, "this network is told 'sigma'"),
    ],
)
def test_settings_without_a_meaning_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        nf.Score(len, **settings)


@pytest.mark.parametrize(
    ("alphas", "message"),
    [
        ([0.9, 0.5, 0.0], "strictly between 0 and 1"),
        ([0.5, 0.9], "has to fall with t"),
        ([[0.9, 0.5]], r"shape \(1, 2\): give \(T,\) numbers"),
        ([0.9, float("nan")], "strictly between 0 and 1"),
    ],
)
def test_what_are_no_products_of_alphas_is_refused(alphas, message):
    with pytest.raises(ValueError, match=message):
        nf.Score.ddpm(len, alphas)


def test_betas_out_of_order_are_refused():
    with pytest.raises(ValueError, match="beta_min = 2, beta_max = 1"):
        nf.Score.vp(len, beta_min=2, beta_max=1)


def test_a_condition_of_ones_own_answers_for_every_level():
    with pytest.raises(ValueError, match=r"condition returned .* give a function of σ"):
        nf.Sampler(nf.Score(len, "score", lambda sigma: sigma.sum()), (2,), method=TABLE)


def test_a_condition_of_ones_own_may_be_whole_numbers():
    score = nf.Score(len, "score", lambda sigma: (100 * sigma).round().int())
    told = score.conditions(TABLE[:1], "cpu")
    assert told.dtype == torch.int64
    assert told.tolist() == [1000]


@pytest.mark.parametrize(
    ("score", "scale"),
    [
        (nf.Score(abs, "score", "sigma"), lambda sigma: torch.ones_like(sigma)),
        (nf.Score.ddpm(abs, [0.9, 0.5]), lambda sigma: (1 + sigma**2).rsqrt()),
        (nf.Score.vp(abs), lambda sigma: (1 + sigma**2).rsqrt()),
        (nf.Score.edm(abs, 0.5), lambda sigma: (0.25 + sigma**2).rsqrt()),
        (
            nf.Score(abs, "epsilon", "sigma", input_scale=lambda sigma: 1 / (1 + sigma)),
            lambda sigma: 1 / (1 + sigma),
        ),
    ],
)
@pytest.mark.parametrize("sigma", [0.0, 3.0, torch.tensor([0.0, 0.5, 80.0])])
def test_a_state_is_brought_to_the_units_of_its_network_and_back(score, scale, sigma):
    x = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0))
    factor = scale(torch.as_tensor(sigma).expand(3)).view(3, 1, 1)
    torch.testing.assert_close(score.to_state(x, sigma), factor * x)
    torch.testing.assert_close(score.from_state(factor * x, sigma), x)


def test_units_of_half_precision_are_those_of_the_level():
    x = torch.ones(1, 2, dtype=torch.float16)
    state = nf.Score.vp(abs).to_state(x, 300.0)
    assert state.dtype == torch.float16
    assert float(state[0, 0]) == pytest.approx(1 / 300, rel=1e-3)
    assert float(nf.Score.vp(abs).from_state(state, 300.0)[0, 0]) == pytest.approx(1, rel=1e-3)


def test_a_network_sees_its_state_by_any_factor():
    """VP by ``sigma_data`` and by the same factor as a function: one table, one loss."""
    x, sigma = torch.randn(3, 2), torch.tensor([9.0, 1.0, 0.1])
    for kind in ("score", "epsilon", "denoiser", "normalized"):
        one = nf.Score(lambda x, c: x.tanh(), kind, "sigma", sigma_data=1.0)
        scale = nf.Score(
            one.fn, kind, "sigma", input_scale=lambda sigma: (1 + sigma.square()).rsqrt()
        )
        assert scale.fold(TABLE) == one.fold(TABLE)
        labels = torch.arange(3)
        assert torch.equal(scale.normalized(x, sigma, labels), one.normalized(x, sigma, labels))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"input_scale": 0.5}, "input_scale is float: give the function"),
        ({"input_scale": abs, "sigma_data": 1.0}, "input_scale is given beside sigma_data"),
    ],
)
def test_a_factor_that_is_none_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        nf.Score(abs, "score", "sigma", **settings)


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan"), float("inf")])
def test_a_factor_that_is_not_positive_is_refused(factor):
    score = nf.Score(
        abs, "score", "sigma", input_scale=lambda sigma: torch.where(sigma < 1, factor, 1.0)
    )
    message = rf"input_scale\(\) returned {factor:g} for 0\.5: needed are finite positive"
    for use in (
        lambda: score.to_state(torch.ones(2, 3), torch.tensor([2.0, 0.5])),
        lambda: score.fold(nf.Table.of([2.0, 0.5], b=[1.0, 0.5])),
    ):
        with pytest.raises(ValueError, match=message):
            use()


def test_a_factor_of_another_shape_is_refused():
    score = nf.Score(abs, "score", "sigma", input_scale=lambda sigma: sigma.sum())
    with pytest.raises(ValueError, match="input_scale"):
        nf.Sampler(score, (2,), SIGMAS, "euler")(1, seed=0)


def test_a_chain_may_begin_and_end_in_the_units_of_a_vp_network():
    alphas = torch.linspace(0.999, 0.01, 20)
    score = nf.Score.ddpm(lambda x, t: x, alphas)  # the noise in x where the data are 0
    sampler = nf.Sampler(score, (3,), method="euler")
    z = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    initial = score.from_state(z, sampler.table.sigma[0])  # DDPM begins in N(0, I)
    states = sampler(4, initial=initial, seed=0, every=1)[1]
    for state, sigma in zip(states, sampler.kept_sigmas(1), strict=True):
        torch.testing.assert_close(score.to_state(state, sigma), state / (1 + sigma**2) ** 0.5)
    assert torch.allclose(score.to_state(states[0], sampler.table.sigma[0]), z)


@pytest.mark.parametrize(
    ("sigma", "message"),
    [
        (-1.0, "not finite numbers of at least 0"),
        (math.nan, "not finite numbers"),
        (torch.ones(2), r"of shape \(2,\): give a noise level for all samples, or 3"),
        (torch.ones(3, 1), r"of shape \(3, 1\)"),
        ("1", "sigma is a str that is no array of numbers"),
    ],
)
def test_levels_of_other_shapes_and_kinds_have_no_units(sigma, message):
    for convert in (nf.Score.vp(abs).to_state, nf.Score(abs).from_state):
        with pytest.raises(ValueError, match=message):
            convert(torch.ones(3, 2), sigma)


@pytest.mark.parametrize(
    "score", [nf.Score.ddpm(abs, [0.9, 0.5]), nf.Score.vp(abs), nf.Score.edm(abs)]
)
def test_scores_survive_pickling(score):
    again = pickle.loads(pickle.dumps(score))
    table = Table.of([0.5])
    assert torch.equal(again.conditions(table, "cpu"), score.conditions(table, "cpu"))
    assert again.fold(table) == score.fold(table)


# --- The ladder that labels count.


class Official(nn.Module):
    """A network as NCSNv2 has published it: its labels count its own noise levels."""

    def __init__(self, sigmas=SIGMAS):
        super().__init__()
        self.register_buffer("sigmas", torch.as_tensor(sigmas))
        self.scale = nn.Parameter(torch.ones(()))
        self.seen = []

    def forward(self, x, y):
        self.seen += y.tolist()
        return -x / (1 + self.sigmas[y][:, None] ** 2)

    score = forward


class Held:
    """No module, with a ladder of its own as an array of float64."""

    def __init__(self):
        self.sigmas, self.net = SIGMAS.double().numpy(), Official()

    def __call__(self, x, labels):
        return self.net(x, labels)


NETWORKS = {
    "module": lambda net: net,
    "method": lambda net: net.forward,
    "another method": lambda net: net.score,
    "partial": lambda net: functools.partial(net),
    "partial of a method": lambda net: functools.partial(net.forward),
    "without gradients": lambda net: torch.no_grad()(net.forward),
    "several devices": nn.DataParallel,
    "averaged": lambda net: torch.optim.swa_utils.AveragedModel(net),
    "compiled": lambda net: torch.compile(net, backend="eager"),
    "compiled function": lambda net: torch.compile(net.forward, backend="eager"),
    "wrapped twice": lambda net: nn.DataParallel(torch.compile(net, backend="eager")),
    "score": lambda net: nf.Score(net, "score", "label"),
    "guided": lambda net: nf.guided(net, 1.0, unconditional={"c": 0}),
}
PARTS = {
    "the end": SIGMAS[2:],
    "thinned": SIGMAS[::2],
    "a list": SIGMAS[1:4].tolist(),
    "float64": np.geomspace(10, 0.01, 6)[3:],
    "whole": SIGMAS,
    "its own": None,
}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("made", NETWORKS)
def test_labels_of_a_part_of_the_ladder_count_the_networks_own(made, part):
    given = PARTS[part]
    whole = SIGMAS.double() if given is None else torch.as_tensor(given).double()
    expected = [int((SIGMAS.double() - sigma).abs().argmin()) for sigma in whole]
    score = as_score(NETWORKS[made](Official()), given)
    assert score.conditions(euler(whole), "cpu").tolist() == expected


def test_samples_of_a_part_of_the_ladder_are_those_of_its_noise_levels():
    net = Official()
    told = nf.Score(lambda x, sigma: -x / (1 + sigma[:, None] ** 2), "score", "sigma")
    for part in (SIGMAS[2:], SIGMAS[::3]):
        keywords = {"method": "euler", "precision": "fp32", "graph": False}
        found = nf.Sampler(net, (2,), part, **keywords)(3, seed=0)
        assert torch.allclose(found, nf.Sampler(told, (2,), part, **keywords)(3, seed=0))
    assert set(net.seen) == {0, 2, 3, 4, 5}


def test_a_callable_object_has_a_ladder_of_its_own_too():
    score = as_score(Held(), SIGMAS[4:])
    assert score.conditions(euler(SIGMAS[4:]), "cpu").tolist() == [4, 5]


def test_a_bare_function_without_a_ladder_counts_the_samplers_levels():
    net = Official()
    score = as_score(lambda x, labels: net(x, labels), SIGMAS[2:])
    assert score.conditions(euler(SIGMAS[2:]), "cpu").tolist() == [0, 1, 2, 3]
    told = nf.Score(lambda x, labels: net(x, labels), "score", "label", net.sigmas)
    assert as_score(told, SIGMAS[2:]).conditions(euler(SIGMAS[2:]), "cpu").tolist() == [2, 3, 4, 5]


def test_levels_off_the_networks_own_ladder_are_refused_with_what_to_do():
    with pytest.raises(ValueError, match=r"knows only its 6 levels .* nf.Score\(fn, kind, cond"):
        nf.Sampler(Official(), (2,), nf.geometric_sigmas(10, 0.01, 7), method="euler")
    with pytest.raises(ValueError, match=r"4 sigmas from .* labels count 6 levels"):
        nf.dsm_loss(Official(), torch.zeros(2, 2), SIGMAS[2:])


def test_a_part_that_is_said_to_be_the_whole_ladder_is_refused():
    with pytest.raises(ValueError, match=r"sigmas are 4 of the 6 levels .* from label 2 on"):
        nf.Score(Official(), "score", "label", SIGMAS[2:])
    first = nf.Score(Official(), "score", "label", SIGMAS[:3])  # counted alike
    others = nf.Score(Official(), "score", "label", 2 * SIGMAS)  # it is said so
    assert (len(first.sigmas), float(others.sigmas[0])) == (3, 20)


class Around(nn.Module):
    """A wrapper of somebody's, which hides the network's ladder."""

    def __init__(self, net):
        super().__init__()
        self.inner = nn.Sequential(net)

    def forward(self, x, labels):
        return self.inner[0](x, labels)


def around_in_no_module(net):
    held = Held()
    held.net = Around(net)
    del held.sigmas
    return held


@pytest.mark.parametrize("made", [Around, around_in_no_module])
def test_a_later_part_of_the_ladder_of_a_network_in_a_wrapper_is_refused(made):
    net, x = made(Official()), torch.zeros(2, 2)
    for part, first in ((SIGMAS[2:], 2), (SIGMAS[::2], 0), (SIGMAS[3:4].tolist(), 3)):
        for build in (
            lambda part=part: nf.Sampler(net, (2,), part, method="euler"),
            lambda part=part: nf.log_likelihood(net, x, part),
            lambda part=part: nf.dsm_loss(net, x, part),
            lambda part=part: anneal_Langevin_dynamics(x, net, part, 1, 1e-6),
        ):
            with pytest.raises(ValueError, match=rf"of the 6 .* Official in .* label {first} on"):
                build()
    for other in (SIGMAS, SIGMAS[:3], 2 * SIGMAS[2:]):  # counted alike, or none of those
        assert torch.equal(as_score(net, other).sigmas, other)
    for own in (SIGMAS.flip(0), SIGMAS[:, None], torch.cat([SIGMAS, torch.zeros(1)])):
        with pytest.raises(ValueError, match="would be counted from 0"):
            as_score(made(Official(own)), SIGMAS[2:])
    net.sigmas = SIGMAS  # as the message says
    assert as_score(net, SIGMAS[2:]).conditions(euler(SIGMAS[2:]), "cpu").tolist() == [2, 3, 4, 5]


@pytest.mark.parametrize(
    "own", [[0.0, 1.0], [math.nan, 9.0], [-1.0], [[1], [2, 3]], "sigmas", [], [abs]]
)
def test_what_else_a_module_in_a_wrapper_calls_sigmas_is_left_alone(own):
    inner = Official()
    del inner.sigmas
    inner.sigmas = own
    assert torch.equal(as_score(Around(inner), SIGMAS[2:]).sigmas, SIGMAS[2:])


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (SIGMAS.flip(0), r"ladder for its labels: .*these ascend: .*net\.sigmas\.flip\(0\)"),
        (torch.cat([SIGMAS, torch.zeros(1)]), r"sigmas\[6\] = 0.0: .*leave the 0 at the end out"),
        (SIGMAS[:, None], r"shape \(6, 1\)"),
    ],
)
def test_a_network_whose_own_sigmas_are_no_ladder_is_refused(own, message):
    net = Official(own)
    with pytest.raises(ValueError, match=message):
        nf.Sampler(net, (2,), SIGMAS, method="euler")
    if own.ndim == 1 and len(own) == 6:  # as the message says
        told = nf.Score(
            lambda x, i: net(x, len(net.sigmas) - 1 - i),
            "score",
            "label",
            sigmas=net.sigmas.flip(0),
        )
        nf.Sampler(told, (2,), SIGMAS[1:], method="euler", graph=False)(1, seed=0)
        assert net.seen == [4, 3, 2, 1, 0]


@pytest.mark.parametrize("own", [torch.tensor(3.0), None, "sigmas", []])
def test_an_attribute_that_is_no_list_of_levels_is_none(own):
    net = Official()
    del net.sigmas
    net.sigmas = own
    assert torch.equal(as_score(net, SIGMAS).sigmas, SIGMAS)


@pytest.mark.parametrize("name", ["NCSN", "NCSNv2"])
def test_networks_of_this_package_are_told_a_part_of_their_ladder_right(name):
    torch.manual_seed(0)
    net = getattr(nf, name)(channels=1, image_size=8, ngf=4, sigmas=SIGMAS).eval()
    table = euler(SIGMAS[2:])
    x = torch.randn(2, 1, 8, 8)
    keywords = {"method": table, "precision": "fp32", "graph": False}
    expected = nf.Sampler(net, **keywords)(2, seed=0, initial=x)
    for score in (net.forward, net.normalized, nn.DataParallel(net), functools.partial(net)):
        found = nf.Sampler(score, net.shape, SIGMAS[2:], **keywords)(2, seed=0, initial=x)
        assert torch.allclose(found, expected, atol=1e-4)


def test_an_undivided_network_of_this_package_stays_what_it_is_in_a_wrapper():
    net = nf.NCSNv2(channels=1, image_size=8, ngf=4, sigmas=SIGMAS, divided=False).eval()
    for score in (net.forward, nn.DataParallel(net)):
        assert as_score(score).kind == "normalized"
    divided = nf.NCSNv2(channels=1, image_size=8, ngf=4, sigmas=SIGMAS)
    assert [as_score(one).kind for one in (divided.forward, divided.normalized)] == [
        "score",
        "normalized",
    ]


@pytest.mark.parametrize("quantize", [False, True])
def test_a_level_rounded_to_float32_or_float64_is_that_level(quantize):
    score = nf.Score(abs, "score", "label", SIGMAS, quantize=quantize)
    for factor in (1, 1 + 9e-6, 1 - 9e-6):
        told = score.conditions(euler(factor * SIGMAS.double()), "cpu")
        assert told.tolist() == list(range(6))
    between = Table.of([float(SIGMAS[2]) * (1 + 2e-5)])
    if quantize:
        assert score.conditions(between, "cpu").tolist() == [2]
    else:
        with pytest.raises(ValueError, match="row 0 of the table asks for"):
            score.conditions(between, "cpu")


def test_a_level_halfway_between_two_is_told_as_the_even_one():
    score = nf.Score(abs, "score", "label", [16.0, 4.0, 1.0, 0.25], quantize=True)
    assert score.conditions(Table.of([8.0, 2.0, 0.5]), "cpu").tolist() == [0, 2, 2]
    assert score.conditions(Table.of([8.1, 7.9, 2.1, 1.9]), "cpu").tolist() == [0, 1, 1, 2]


# --- What is recognisably read wrong.


class EDM(nn.Module):
    sigma_min, sigma_max, sigma_data = 0.002, 80, 0.5

    def forward(self, x, sigma, class_labels=None):
        return x

    def round_sigma(self, sigma):
        return sigma


class Wrapper(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("sigmas", SIGMAS.flip(0))

    def sigma_to_t(self, sigma):
        return sigma

    def forward(self, x, sigma):
        return x


class Fourier(Official):
    embedding_type = "fourier"


def of_diffusers():
    made = type("UNet2DModel", (nn.Module,), {"forward": lambda self, x, t: x})
    made.__module__ = "diffusers.models.unets.unet_2d"
    return made()


def with_alphas():
    net = nn.Identity()
    net.alphas_cumprod = torch.tensor([0.9, 0.5])
    return net


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (EDM(), r"EDM has round_sigma and sigma_data.*score\(x, labels\).*nf.Score\(net, \"den"),
        (EDM().forward, 'nf.Score\\(net, "denoiser", "sigma"\\)'),
        (nn.DataParallel(EDM()), "as EDM's preconditioned networks have"),
        (Wrapper(), r"has sigma_to_t, as k-diffusion's have.*nf.Score\(net, \"den.*\"sigma\"\)"),
        (Fourier(), 'embeds σ itself .* nf.Score\\(net, "score", "sigma"\\)'),
        (of_diffusers(), "is a model of diffusers: .*nf.Score.ddpm"),
        (with_alphas(), "has alphas_cumprod"),
    ],
)
def test_a_bare_network_of_another_kind_is_refused(net, message):
    for build in (
        lambda: nf.Sampler(net, (2,), SIGMAS),
        lambda: nf.dsm_loss(net, torch.zeros(2, 2), SIGMAS),
        lambda: nf.Score(net),
        lambda: nf.guided(net, 2.0, unconditional={"y": 0}),
    ):
        with pytest.raises(ValueError, match=message):
            build()


def test_what_it_is_said_to_be_it_is():
    for score in (nf.Score(EDM(), "denoiser", "sigma"), lambda x, labels: EDM()(x, labels)):
        x = nf.Sampler(score, (2,), SIGMAS, method="euler", graph=False)(2, seed=0)
        assert x.shape == (2, 2)


class Answer:
    sample = torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda x: Answer(), r"returned Answer.* take .sample, for example nf.Score.ddpm"),
        (lambda x: (x, x), r"returned tuple.*net\(x, told\)\[0\]"),
        (lambda x: {"out": x}, r"returned dict.* take one"),
        (lambda x: torch.cat([x, x], 1), r"\(2, 6\).* mean and a variance.*\[:, :3\]"),
        (lambda x: x[:, :2], r"returned \(2, 2\) on cpu; needed is \(2, 3\)"),
        (lambda x: x.sum(), r"returned \(\) on cpu"),
        (lambda x: x.long(), "returned torch.int64; needed are floating-point"),
        (lambda x: x.to(torch.complex64), "returned torch.complex64; needed are floating-point"),
        (lambda x: x.to("meta"), r"on meta; needed is"),
        (lambda x: None, "returned NoneType"),
        (lambda x: x.to_sparse(), r"returned torch.sparse_coo; needed are all values"),
    ],
)
def test_an_answer_that_is_no_score_says_what_it_may_be_and_how_it_is_read(answer, message):
    sampler = nf.Sampler(lambda x, labels: answer(x), (3,), SIGMAS, method="euler", graph=False)
    with pytest.raises(ValueError, match=message) as refused:
        sampler(2, seed=0)
    assert "it is called as fn(x, labels) and read as 'score'" in str(refused.value)


@pytest.mark.parametrize(
    ("score", "reading"),
    [
        (lambda x, labels: x * float("nan"), r"fn\(x, labels\) and read as 'score'"),
        (nf.Score(lambda x, s: x / 0, "denoiser", "sigma"), r"fn\(x, sigma\) and read as 'denoi"),
        (nf.Score(lambda x: x / 0, "epsilon", "none"), r"fn\(x\) and read as 'epsilon'"),
        (nf.Score(lambda x, t: x / 0, "epsilon", torch.log), r"fn\(x, condition\(σ\)\) and"),
    ],
)
def test_a_chain_that_is_no_longer_finite_says_how_the_network_is_read(score, reading):
    sampler = nf.Sampler(score, (2,), SIGMAS, method="euler", graph=False)
    with pytest.raises(nf.SamplingError, match=reading):
        sampler(2, seed=0)


@pytest.mark.parametrize("wrap", [lambda net: net, lambda net: net.forward, functools.partial])
def test_a_network_samples_in_evaluation_mode_however_it_is_given(wrap):
    seen = []

    class Dropping(nn.Module):
        def forward(self, x, labels):
            seen.append(self.training)
            return -x

    net = Dropping().train()
    nf.Sampler(wrap(net), (2,), SIGMAS, method="euler", graph=False)(1, seed=0)
    assert set(seen) == {False}
    assert net.training


class OfOne(nn.Module):
    def forward(self, x):
        return -x


@pytest.mark.parametrize(
    "score",
    [
        lambda x: -x,
        lambda x, labels, text: -x,
        lambda x, *, labels: -x,
        OfOne(),
        nn.Sequential(nn.Linear(2, 2)),
        functools.partial(lambda x, labels: -x, labels=0),
        nf.Score(lambda x, sigma: -x, "score", "none"),
    ],
)
def test_a_network_of_other_arguments_is_told_how_it_is_called(score):
    sampler = nf.Sampler(score, (2,), SIGMAS, method="euler", graph=False)
    with pytest.raises(ValueError, match=r"does not take this: .*it is called as fn\(x") as refused:
        sampler(2, seed=0)
    assert isinstance(refused.value.__cause__, TypeError)


def test_an_error_of_the_networks_own_stays_what_it_is():
    def broken(x, labels):
        return len(3)

    with pytest.raises(TypeError, match="object of type 'int' has no len"):
        nf.Sampler(broken, (2,), SIGMAS, method="euler", graph=False)(2, seed=0)


def test_a_class_in_the_place_of_a_network_is_refused():
    with pytest.raises(ValueError, match="got the class OfOne: make one"):
        nf.Sampler(OfOne, (2,), SIGMAS)


@pytest.mark.parametrize("form", [list, np.asarray, lambda a: a[::-1].copy()[::-1], ">f8"])
def test_alphas_may_be_any_list_or_view_of_an_array(form):
    alphas = np.cumprod(1 - np.linspace(1e-3, 0.2, 20))
    given = alphas.astype(form) if isinstance(form, str) else form(alphas)
    expected = nf.Score.ddpm(len, torch.from_numpy(alphas)).sigmas
    assert torch.equal(nf.Score.ddpm(len, given).sigmas, expected)
    with pytest.raises(ValueError, match="alphas_cumprod"):
        nf.Score.ddpm(len, "abc")


@pytest.mark.parametrize("wrong", ["0.5", True, [0.5], None, np.ones(2), 1j, len, {}, float("nan")])
@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("kind", lambda wrong: nf.Score(abs, wrong, "sigma")),
        ("condition", lambda wrong: nf.Score(abs, "score", wrong)),
        ("sigma_data", lambda wrong: nf.Score(abs, "score", "sigma", sigma_data=wrong)),
        ("sigma_data", lambda wrong: nf.Score.edm(abs, wrong)),
        ("quantize", lambda wrong: nf.Score(abs, "score", "label", quantize=wrong)),
        ("sigmas", lambda wrong: nf.Score(abs, "score", "label", wrong)),
        ("alphas_cumprod", lambda wrong: nf.Score.ddpm(abs, wrong)),
        ("beta_min", lambda wrong: nf.Score.vp(abs, beta_min=wrong)),
        ("beta_max", lambda wrong: nf.Score.vp(abs, beta_max=wrong)),
    ],
)
def test_what_a_score_cannot_be_made_of_is_refused_by_name(name, make, wrong):
    if (wrong is None and name in ("sigma_data", "sigmas")) or (
        name == "quantize" and wrong is True
    ):
        return  # as if it were not given
    if name == "condition" and wrong is len:
        return  # a function of σ
    if name in ("sigmas", "alphas_cumprod") and isinstance(wrong, list):
        assert len(make(wrong).sigmas) == 1
        return
    with pytest.raises(ValueError, match=name) as refused:
        make(wrong)
    assert len(str(refused.value)) < 400
