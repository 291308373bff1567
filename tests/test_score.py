"""What a network is told and how its answer is read."""

import pytest
import torch

import ncsn_fast as nf
from ncsn_fast.samplers import annealed_langevin
from ncsn_fast.score import as_score
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


def test_a_network_that_knows_labels_only_refuses_other_levels():
    with pytest.raises(ValueError, match=r"row 1 .* σ = 0.3, .* only its 6 levels from 10 to 0.01"):
        nf.Sampler(lambda x, y: x, (2,), SIGMAS, method=Table.of([10.0, 0.3]))


def test_a_network_of_the_second_kind_takes_any_level():
    net = nf.NCSNv2(channels=1, image_size=8, ngf=4, sigmas=SIGMAS)
    states = nf.Sampler(net, method=Table.of([9.0, 0.3], b=0.1))(2, seed=0)
    assert states.shape == (2, 1, 8, 8)


def test_a_bare_callable_is_a_score_by_label():
    score = as_score(lambda x, labels: x, SIGMAS)
    assert (score.kind, score.condition) == ("score", "label")
    assert torch.equal(score.sigmas, SIGMAS)


@pytest.mark.parametrize("kind", ["score", "normalized", "epsilon", "denoiser"])
@pytest.mark.parametrize("condition", ["label", "sigma", "log_sigma", "c_noise"])
def test_training_reads_every_parametrisation_alike(kind, condition):
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))

    def fn(x, c):
        sigma = {
            "label": lambda: SIGMAS[c],
            "sigma": lambda: c,
            "log_sigma": lambda: c.exp(),
            "c_noise": lambda: (4 * c).exp(),
        }[condition]()[:, None]
        score = -x / (1 + sigma**2)
        return {
            "score": score,
            "normalized": sigma * score,
            "epsilon": -sigma * score,
            "denoiser": x + sigma**2 * score,
        }[kind]

    labels = torch.arange(6)
    n = nf.Score(fn, kind, condition, SIGMAS).normalized(x, SIGMAS, labels)
    sigma = SIGMAS[:, None]
    # n from a denoiser is a difference divided by σ, so its rounding error grows as x/σ.
    expected = -sigma * x / (1 + sigma**2)
    assert torch.allclose(n, expected, atol=3e-5 if kind == "denoiser" else 1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((3,), "a function or a module, got int"),
        ((len, "noise"), "kind = 'noise' is unknown; choose one of"),
        ((len, "score", "time"), "condition = 'time' is unknown"),
        ((len, "score", "label", [1.0, 2.0]), "noise levels descend"),
    ],
)
def test_unknown_parametrisations_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        nf.Score(*arguments)


def test_labels_need_a_ladder():
    with pytest.raises(ValueError, match='condition "label" needs the ladder'):
        nf.Sampler(nf.Score(lambda x, y: x), (2,), method=TABLE)
