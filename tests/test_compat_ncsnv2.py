"""The official sampler's signature and return value."""

import inspect

import numpy as np
import pytest
import torch

from ncsn_fast.compat.ncsnv2 import anneal_Langevin_dynamics

SIGMAS = np.exp(np.linspace(np.log(5.0), np.log(0.01), 6)).astype(np.float32)


def scorenet(x, labels):
    assert labels.dtype == torch.int64
    assert labels.shape == (len(x),)
    return -x / (1 + torch.from_numpy(SIGMAS)[labels].view(-1, 1, 1, 1) ** 2)


def published_formula(x, steps, epsilon, denoise):
    """Annealed Langevin dynamics, algorithm 1 with the code's α, one torch draw per step."""
    states = []
    for level, sigma in enumerate(SIGMAS):
        alpha = epsilon * (sigma / SIGMAS[-1]) ** 2
        labels = torch.full((len(x),), level)
        for _ in range(steps):
            z = torch.randn_like(x)
            x = x + alpha * scorenet(x, labels) + np.sqrt(2 * alpha) * z
            states.append(x)
    if denoise:
        states.append(x + SIGMAS[-1] ** 2 * scorenet(x, labels))
    return states


def test_the_positional_arguments_are_the_official_ones():
    parameters = inspect.signature(anneal_Langevin_dynamics).parameters
    official = {
        name: p.default for name, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD
    }
    empty = inspect.Parameter.empty
    assert official == {
        "x_mod": empty,
        "scorenet": empty,
        "sigmas": empty,
        "n_steps_each": 200,
        "step_lr": 8e-6,
        "final_only": False,
        "verbose": False,
        "denoise": True,
    }


@pytest.mark.parametrize("denoise", [True, False])
def test_with_torch_noise_it_equals_the_published_formula(denoise):
    x = torch.rand(3, 1, 4, 4)
    torch.manual_seed(1)
    expected = published_formula(x, 4, 8e-6, denoise)
    torch.manual_seed(1)
    states = anneal_Langevin_dynamics(x, scorenet, SIGMAS, 4, 8e-6, denoise=denoise, noise="torch")
    assert len(states) == len(expected) == 24 + denoise
    for found, wanted in zip(states, expected, strict=True):
        assert torch.allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_final_only_returns_a_list_of_the_last_state():
    x = torch.rand(3, 1, 4, 4)
    every = anneal_Langevin_dynamics(x, scorenet, SIGMAS, 4, seed=2)
    last = anneal_Langevin_dynamics(x, scorenet, SIGMAS, 4, final_only=True, seed=2)
    assert isinstance(last, list)
    assert len(last) == 1
    assert torch.equal(last[0], every[-1])
    assert last[0].device.type == "cpu"


def test_the_initial_states_are_left_alone():
    x = torch.rand(2, 1, 4, 4)
    before = x.clone()
    anneal_Langevin_dynamics(x, scorenet, SIGMAS, 2)
    assert torch.equal(x, before)


def test_philox_noise_follows_torch_or_the_seed():
    x = torch.rand(2, 1, 4, 4)

    def run(**keywords):
        return anneal_Langevin_dynamics(x, scorenet, SIGMAS, 2, final_only=True, **keywords)[0]

    torch.manual_seed(0)
    a, b = run(), run()
    torch.manual_seed(0)
    assert torch.equal(run(), a)
    assert not torch.equal(a, b)
    assert torch.equal(run(seed=5), run(seed=5))


def test_unknown_noise_and_a_seed_beside_torch_noise_are_refused():
    x = torch.rand(1, 1, 4, 4)
    with pytest.raises(ValueError, match="noise = 'numpy': choose 'philox' or 'torch'"):
        anneal_Langevin_dynamics(x, scorenet, SIGMAS, noise="numpy")
    with pytest.raises(ValueError, match=r"torch\.manual_seed governs"):
        anneal_Langevin_dynamics(x, scorenet, SIGMAS, noise="torch", seed=1)


def test_a_batch_that_does_not_fit_is_cut_only_where_that_changes_nothing():
    def small(x, labels):
        if len(x) > 2:
            raise torch.OutOfMemoryError("does not fit")
        return scorenet(x, labels)

    x = torch.rand(4, 1, 4, 4)
    (cut,) = anneal_Langevin_dynamics(x, small, SIGMAS, 2, final_only=True, seed=1)
    (whole,) = anneal_Langevin_dynamics(x, scorenet, SIGMAS, 2, final_only=True, seed=1)
    assert torch.allclose(cut, whole, atol=1e-5)
    for keywords in ({"seed": 1}, {"noise": "torch", "final_only": True}):
        with pytest.raises(
            RuntimeError, match="4 samples at once do not fit in memory: give fewer"
        ):
            anneal_Langevin_dynamics(x, small, SIGMAS, 2, **keywords)
