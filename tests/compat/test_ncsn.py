"""The samplers of the first version's runner: signatures, return values, and their place in it."""

import inspect

import numpy as np
import pytest
import torch
from helpers import networks
from helpers.official import Louder, Official

from ncsn_fast.compat import ncsnv2
from ncsn_fast.compat.ncsn import anneal_Langevin_dynamics, anneal_Langevin_dynamics_inpainting

SIGMAS = np.exp(np.linspace(np.log(1.0), np.log(0.01), 5))


def scorenet(x, labels):
    assert labels.dtype == torch.int64
    return (0.5 - x) / torch.from_numpy(SIGMAS).float()[labels].view(-1, 1, 1, 1) ** 2


def own():
    return networks.network("NCSN", seed=7, sigmas=SIGMAS.astype(np.float32), channels=2).eval()


@torch.no_grad()
def published(score, x, steps, epsilon):
    """The list of the first version: clamped states before each step, none after the last."""
    states = []
    for level, sigma in enumerate(SIGMAS):
        alpha = epsilon * (sigma / SIGMAS[-1]) ** 2
        for _ in range(steps):
            states.append(x.clamp(0, 1))
            z = torch.randn_like(x) * np.sqrt(2 * alpha)
            x = x + alpha * score(x, torch.full((len(x),), level)) + z
    return states


@pytest.mark.parametrize("network", [lambda: scorenet, own])
def test_with_torch_noise_the_list_is_the_official_one(network):
    network, x = network(), 3 * torch.rand(3, 2, 8, 8) - 1
    before = x.clone()
    torch.manual_seed(1)
    expected = published(network, x, 3, 2e-5)
    after = torch.get_rng_state()
    torch.manual_seed(1)
    states = anneal_Langevin_dynamics(x, network, SIGMAS, 3, 2e-5, noise="torch")
    assert torch.equal(torch.get_rng_state(), after)
    assert len(states) == len(expected) == 15
    for state, wanted in zip(states, expected, strict=True):
        torch.testing.assert_close(state, wanted, rtol=1e-5, atol=1e-5)
    assert torch.equal(states[0], before.clamp(0, 1))
    assert torch.equal(x, before)


def inpainted(x, network, sigmas, *given, **named):
    return anneal_Langevin_dynamics_inpainting(x[:, None], x, network, sigmas, *given, **named)


@pytest.mark.parametrize("sample", [anneal_Langevin_dynamics, inpainted])
@pytest.mark.parametrize("noise", ["philox", "torch"])
def test_an_official_network_runs_as_ours_unless_it_shall_not(noise, sample):
    def run(net, **adopt):
        torch.manual_seed(1)
        x = torch.rand(2, 2, 8, 8)
        return torch.stack(sample(x, net, SIGMAS, 2, 8e-8, noise=noise, **adopt))

    net, other = official(Official), official(Official)
    torch.testing.assert_close(run(net), run(other, adopt=False), rtol=1e-5, atol=1e-5)
    assert net.calls == 1  # to be compared
    assert other.calls >= 10


def official(kind):
    return kind("NCSN", seed=7, sigmas=SIGMAS.astype(np.float32), channels=2)


def test_one_that_computes_something_else_runs_as_it_is(caplog):
    net, x = official(Louder), torch.rand(2, 2, 8, 8)
    anneal_Langevin_dynamics(x, net, SIGMAS, 1, 8e-8, seed=0)
    assert net.calls > 5
    (line,) = caplog.messages
    assert "Louder looks like an official network, but runs as it is: at noise level 0" in line


def test_the_list_is_that_of_the_second_version_shifted_by_one():
    x = torch.rand(2, 1, 4, 4)
    states = anneal_Langevin_dynamics(x, scorenet, SIGMAS, 2, seed=3)
    others = ncsnv2.anneal_Langevin_dynamics(x, scorenet, SIGMAS, 2, 2e-5, denoise=False, seed=3)
    for state, other in zip(states[1:], others, strict=False):
        assert torch.equal(state, other.clamp(0, 1))
    assert len(states) == len(others)


def test_the_signatures_are_those_of_the_runner():
    empty = inspect.Parameter.empty
    for function, expected in (
        (
            anneal_Langevin_dynamics,
            {"x_mod": empty, "scorenet": empty, "sigmas": empty}
            | {"n_steps_each": 100, "step_lr": 0.00002},
        ),
        (
            anneal_Langevin_dynamics_inpainting,
            {"x_mod": empty, "refer_image": empty, "scorenet": empty, "sigmas": empty}
            | {"n_steps_each": 100, "step_lr": 0.000008},
        ),
    ):
        parameters = inspect.signature(function).parameters.items()
        found = {n: p.default for n, p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD}
        assert list(found.items()) == list(expected.items())


class AnnealRunner:
    """As the first version's: its sampler is a method that makes no use of it."""

    def anneal_Langevin_dynamics(self, *_):
        raise AssertionError("that of the runner itself")

    def test(self):
        samples = torch.rand(4, 1, 4, 4)
        return self.anneal_Langevin_dynamics(samples, scorenet, SIGMAS, 100, 0.00002)


def test_it_takes_its_place_in_a_runner(monkeypatch):
    place = staticmethod(anneal_Langevin_dynamics)
    monkeypatch.setattr(AnnealRunner, "anneal_Langevin_dynamics", place)
    states = AnnealRunner().test()
    assert len(states) == 500
    assert (states[-1] - 0.5).abs().max() < 0.1


def test_inpainting_is_that_of_the_first_order_for_any_size():
    x, reference = torch.rand(2, 3, 1, 6, 6), torch.rand(2, 1, 6, 6)
    states = anneal_Langevin_dynamics_inpainting(x, reference, scorenet, SIGMAS, 2, seed=4)
    others = ncsnv2.anneal_Langevin_dynamics_inpainting(
        x, reference, scorenet, SIGMAS, 6, 2, order="ncsn", seed=4
    )
    assert all(torch.equal(a, b) for a, b in zip(states, others, strict=True))
    with pytest.raises(ValueError, match=r"x_mod has shape .* needed is \(references, repeats"):
        anneal_Langevin_dynamics_inpainting(x[0], reference, scorenet, SIGMAS)
    with pytest.raises(ValueError, match="x_mod"):
        anneal_Langevin_dynamics_inpainting(None, reference, scorenet, SIGMAS)
