"""The mixtures of the tour: their score is that of their density, their points are of their law."""

import pytest
import torch

from ncsn_fast.tour.mixture import TWO_MODES, Mixture

LINE = Mixture((0.3, 0.7), ((-2.0,), (1.5,)), 0.5)


@pytest.mark.parametrize("law", [TWO_MODES, LINE])
@pytest.mark.parametrize("sigma", [0.0, 1.5, torch.linspace(0.1, 3, 50)])
def test_the_score_is_the_slope_of_the_logarithm(law, sigma):
    x = law.sample(50).double() + 1
    slope = torch.func.grad(lambda x: law.density(x, sigma).log().sum())(x)
    torch.testing.assert_close(law.score(x, sigma), slope)


@pytest.mark.parametrize("sigma", [0.0, 2.0])
def test_the_density_integrates_to_one(sigma):
    x = torch.linspace(-20, 20, 4001, dtype=torch.float64)
    assert float(torch.trapezoid(LINE.density(x[:, None], sigma), x)) == pytest.approx(1)


def test_points_have_the_weights_the_means_and_the_spread():
    n = 20_000
    component, _ = TWO_MODES.nearest(x := TWO_MODES.sample(n))
    assert float((component == 0).float().mean()) == pytest.approx(0.2, abs=4 * 0.4 / n**0.5)
    right = x[component == 1]
    torch.testing.assert_close(right.mean(0), torch.tensor([5.0, 5.0]), atol=0.04, rtol=0)
    torch.testing.assert_close(right.std(0), torch.ones(2), atol=0.03, rtol=0)


def test_points_are_a_function_of_their_seed():
    assert torch.equal(TWO_MODES.sample(8, seed=1), TWO_MODES.sample(20, seed=1)[:8])
    assert not torch.equal(TWO_MODES.sample(8, seed=1), TWO_MODES.sample(8, seed=2))
