"""Settings for a network that is there: its own levels, and what its score is like on the data."""

import re

import pytest
import torch

import ncsn_fast as nf
from ncsn_fast.evaluation.seen_score import look, steepness
from ncsn_fast.methods.levels import best_step_size

SIGMAS = nf.geometric_sigmas(20, 0.05, 12)
DATA = torch.randn(500, 8, generator=torch.Generator().manual_seed(0))


def exact(x, sigma):
    """The score of N(0, I)."""
    return -x / (1 + sigma[:, None] ** 2)


def test_an_exact_score_has_no_remarks_and_the_step_size_of_the_rule():
    score = nf.Score(exact, "score", "sigma", SIGMAS)
    schedule = nf.auto_schedule(DATA, score=score, steps_per_level=3)
    assert schedule.warnings == ()
    assert torch.equal(schedule.sigmas, SIGMAS)
    ratio = float(SIGMAS[0] / SIGMAS[-1]) ** (1 / 11)
    assert schedule.step_size == pytest.approx(best_step_size(ratio, float(SIGMAS[-1]), 3))
    assert steepness(score, DATA[:64], SIGMAS) == pytest.approx(0.0025 / 1.0025, rel=1e-3)
    for one in look(score, DATA, SIGMAS):
        share = one.sigma**2 / (1 + one.sigma**2)
        assert one.error == pytest.approx(1 - share, abs=0.06)
        assert one.length == pytest.approx(1, abs=0.1) or one.doubt < 4


@pytest.mark.parametrize(
    ("score", "said"),
    [
        (lambda x, sigma: 0.5 * exact(x, sigma), r"would have to be .* times as long .* its kind"),
        (lambda x, sigma: -exact(x, sigma), "no nearer to the noise than 0 would be"),
        (lambda x, sigma: exact(x, sigma) / sigma[:, None], "kind"),
        (lambda x, sigma: exact(x, sigma) * torch.nan, "the score is not finite"),
        (lambda x, sigma: 0 * x, "the score is 0 everywhere: have the weights been loaded"),
    ],
)
def test_a_score_that_is_not_of_this_data_is_told(score, said):
    warnings = nf.auto_schedule(DATA, score=nf.Score(score, "score", "sigma", SIGMAS)).warnings
    assert any(re.search(said, one) for one in warnings)


def test_a_steep_score_gets_a_smaller_step():
    def rough(x, sigma):
        return exact(x, sigma) + 20 / sigma[:, None] * torch.sin(10 * x / sigma[:, None])

    schedule = nf.auto_schedule(DATA, score=nf.Score(rough, "score", "sigma", SIGMAS))
    steep = steepness(nf.Score(rough, "score", "sigma", SIGMAS), DATA[::8][:64], SIGMAS)
    assert steep > 50
    assert schedule.step_size < float(SIGMAS[-1]) ** 2 / 50
    assert any("times as steep as 1/σ²" in one for one in schedule.warnings)


def test_a_network_whose_levels_end_below_the_data_is_told():
    data = torch.cat([DATA, DATA + 100])
    warnings = nf.auto_schedule(data, score=nf.Score(exact, "score", "sigma", SIGMAS)).warnings
    assert any("largest level is 20, two data points are" in one for one in warnings)


def test_a_network_without_levels_is_looked_at_on_those_of_the_data():
    plain = nf.auto_schedule(DATA, sigma_min=0.1)
    found = nf.auto_schedule(DATA, sigma_min=0.1, score=nf.Score(exact, "score", "sigma"))
    assert torch.equal(found.sigmas, plain.sigmas)
    assert found.step_size == plain.step_size
