"""What a network is told and how its answer is read."""

import pickle

import pytest
import torch

import ncsn_fast as nf
from ncsn_fast.methods.tables import annealed_langevin
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
        ({"sigma_data": 0.0}, "sigma_data = 0.0: the scale of data is finite and positive"),
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
    "score", [nf.Score.ddpm(abs, [0.9, 0.5]), nf.Score.vp(abs), nf.Score.edm(abs)]
)
def test_scores_survive_pickling(score):
    again = pickle.loads(pickle.dumps(score))
    table = Table.of([0.5])
    assert torch.equal(again.conditions(table, "cpu"), score.conditions(table, "cpu"))
    assert again.fold(table) == score.fold(table)
