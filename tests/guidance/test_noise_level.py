"""The noise level that a state says it has."""

import functools

import pytest
import torch
from helpers.blind import SIGMAS, SPREAD, Blind, pictures
from torch import nn

import ncsn_fast as nf
from ncsn_fast.guidance.noise_level import excess, held, holds_noise
from ncsn_fast.methods.tables import ancestral, annealed_langevin, dpmpp_2m, euler
from ncsn_fast.models.score import Score, as_score

MEANS = pictures()
BLIND = Blind(MEANS)


def states(noise: float, number: int = 60, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    z, own = torch.randn(2, number, MEANS.shape[1], generator=generator)
    z = z * (MEANS.shape[1] ** 0.5 / z.norm(dim=1, keepdim=True))
    return MEANS[torch.arange(number) % len(MEANS)] + SPREAD * own + noise * z


@pytest.mark.parametrize("sigma", [5.0, 2.0, 0.5])
@pytest.mark.parametrize("ratio", [0.7, 1.0, 1.4])
def test_a_state_says_its_own_noise_level(sigma, ratio):
    x = states(ratio * sigma)
    found = 1 + excess(x, BLIND(x), sigma) / sigma
    assert float(found.mean()) == pytest.approx(ratio, abs=0.09)
    assert float(found.std()) < 0.1  # of the order of 1/√D, D = 256


def test_where_the_image_hides_the_noise_the_table_is_believed():
    x = states(0.01)
    assert float(excess(x, BLIND(x), 0.01).abs().max()) < 0.5 * 0.01
    points = torch.randn(50, 2)  # two numbers say nothing of a level
    assert float(excess(points, -torch.randn(50, 2), 1.0).abs().max()) < 0.5


@pytest.mark.parametrize(("noise", "told"), [(100.0, 1.0), (1e-6, 1.0)])
def test_no_more_is_believed_than_half_and_double(noise, told):
    x = states(noise)
    found = excess(x, BLIND(x), told)
    assert -0.5 * told <= float(found.min())
    assert float(found.max()) <= told


def test_no_state_depends_on_those_beside_it():
    x = states(1.5)
    n, mask = BLIND(x), torch.rand(x.shape, generator=torch.Generator().manual_seed(2)) < 0.5
    for imposed in (None, mask):
        whole = excess(x, n, 1.0, imposed)
        parts = [
            excess(x[i : i + 1], n[i : i + 1], 1.0, None if imposed is None else imposed[i : i + 1])
            for i in range(len(x))
        ]
        assert torch.equal(whole, torch.cat(parts))


def test_what_is_imposed_has_no_say_and_stays():
    x = states(1.3)
    mask = torch.zeros_like(x, dtype=torch.bool)
    mask[:, :100] = True
    n = BLIND(x)
    level = excess(x, n, 1.0, mask)
    assert float(level.mean()) == pytest.approx(0.3, abs=0.06)
    torch.manual_seed(0)
    other = torch.where(mask, torch.randn_like(x), x)
    torch.testing.assert_close(excess(other, torch.where(mask, 7.0, n), 1.0, mask), level)
    moved = held(x, n, level, mask)
    assert torch.equal(moved[mask], x[mask])
    assert torch.equal(moved[~mask], held(x, n, level)[~mask])
    everything = torch.ones_like(mask)
    assert torch.equal(held(x, n, excess(x, n, 1.0, everything), everything), x)


def test_a_number_of_the_device_does_what_one_of_the_host_does():
    x = states(1.2)
    n = BLIND(x)
    assert torch.equal(excess(x, n, 0.3), excess(x, n, torch.tensor(0.3, dtype=torch.float64)))


def test_the_level_is_held_where_that_makes_sense():
    ode, sde, langevin = euler(SIGMAS), ancestral(SIGMAS), annealed_langevin(SIGMAS, 1e-5, 2)
    blind = Score(BLIND, "normalized", "none")
    assert holds_noise(None, blind, ode)
    assert holds_noise(True, blind, ode)
    assert holds_noise(None, Score(lambda x: -BLIND(x), "epsilon", "none"), ode)
    assert not holds_noise(False, blind, ode)
    for eta in (0.0, 0.5, 1.0):
        assert holds_noise(None, blind, dpmpp_2m(SIGMAS, eta=eta))
    assert not holds_noise(None, blind, sde)  # its steps make up for errors themselves
    assert holds_noise(True, blind, sde)
    net = nf.NCSNv2(channels=1, image_size=8, ngf=4, sigmas=SIGMAS)
    assert nf.Sampler(net, method="heun").hold_noise
    assert not nf.Sampler(net, method="heun", hold_noise=False).hold_noise
    for score, table, why in (
        (blind, langevin, "do not leave states at the level"),
        (Score(BLIND, "score", "none"), ode, "returns 'score' and is told 'none'"),
        (Score(BLIND, "denoiser", "none"), ode, "returns 'denoiser'"),
        (Score(BLIND, "denoiser", "label", SIGMAS), ode, "returns 'denoiser'"),
        (Score(BLIND, "normalized", "sigma"), ode, "is told the noise level"),
        (as_score(nf.MLPScore(sigmas=SIGMAS)), ode, "is told the noise level"),
        (Score(BLIND, "epsilon", "none", sigma_data=1.0), ode, "returns 'epsilon'"),
    ):
        assert not holds_noise(None, score, table)
        with pytest.raises(ValueError, match=f"hold_noise=True: .*{why}.*Leave it out"):
            holds_noise(True, score, table)
    official = Score(lambda x, labels: BLIND(x) / SIGMAS[labels], "score", "label", SIGMAS)
    assert not holds_noise(None, official, ode)  # it may see the label
    assert holds_noise(True, official, ode)
    for wrapped in (net.forward, functools.partial(net), nn.DataParallel(net)):
        assert holds_noise(None, as_score(wrapped), ode)
    with pytest.raises(ValueError, match="hold_noise = 'yes'"):
        nf.Sampler(net, method="heun", hold_noise="yes")
