"""Samplers in the style of k-diffusion, on the denoiser of a Gaussian."""

import inspect
import math

import numpy as np
import pytest
import torch

import ncsn_fast as nf
from ncsn_fast.compat import k_diffusion
from ncsn_fast.methods.levels import best_step_size

SIGMAS = torch.cat([nf.geometric_sigmas(20, 0.05, 60), torch.zeros(1)])
MEAN, VARIANCE = 0.5, 0.25
OTHERS = ["sample_euler", "sample_heun", "sample_dpmpp_2m", "sample_euler_ancestral"]


def denoiser(x, sigma, shift=0.0):
    """E[x₀ | x] for x₀ ~ N(mean, variance) per coordinate."""
    assert sigma.shape == (len(x),)
    assert sigma.dtype == torch.float32
    s2 = sigma.view(-1, 1).square()
    return (VARIANCE * x + s2 * (MEAN + shift)) / (VARIANCE + s2)


def start(n):
    torch.manual_seed(0)
    return torch.randn(n, 2) * SIGMAS[0]


def test_it_equals_annealed_langevin_dynamics_on_the_denoiser():
    x = start(5)
    torch.manual_seed(3)
    found = k_diffusion.sample_annealed_langevin(
        denoiser, x, SIGMAS, steps_per_level=2, step_size=2e-4, noise="torch"
    )
    torch.manual_seed(3)
    for sigma in SIGMAS[:-1]:
        alpha = 2e-4 * (sigma / SIGMAS[-2]) ** 2
        for _ in range(2):
            score = (denoiser(x, sigma.expand(5)) - x) / sigma**2
            x = x + alpha * score + (2 * alpha).sqrt() * torch.randn_like(x)
    assert torch.allclose(found, denoiser(x, SIGMAS[-2].expand(5)), rtol=1e-5, atol=1e-5)


def test_without_a_final_zero_the_last_step_is_left_out():
    x = start(4)
    calls = []

    def count(info):
        calls.append(info)

    keywords = {"steps_per_level": 3, "seed": 0, "callback": count}
    k_diffusion.sample_annealed_langevin(denoiser, x, SIGMAS, **keywords)
    k_diffusion.sample_annealed_langevin(denoiser, x, SIGMAS[:-1], **keywords)
    assert [info["i"] for info in calls] == [*range(181), *range(180)]


def test_the_default_step_size_is_that_of_the_published_rule():
    x = start(4)
    ratio = float(SIGMAS[-3] / SIGMAS[-2])
    rule = best_step_size(ratio, float(SIGMAS[-2]), 5)
    found = k_diffusion.sample_annealed_langevin(denoiser, x, SIGMAS, seed=1)
    given = k_diffusion.sample_annealed_langevin(denoiser, x, SIGMAS, step_size=rule, seed=1)
    assert torch.allclose(found, given, atol=1e-5)
    with pytest.raises(ValueError, match="ratio of noise levels, of which there is one"):
        k_diffusion.sample_annealed_langevin(denoiser, x, [1.0, 0.0])


@pytest.mark.parametrize("name", ["sample_annealed_langevin", *OTHERS])
def test_samples_have_the_mean_of_the_data(name):
    sample = getattr(k_diffusion, name)
    x = sample(denoiser, start(2000), SIGMAS, disable=True)
    assert torch.allclose(x.mean(0), torch.full((2,), MEAN), atol=0.05)
    assert (x.std(0) - VARIANCE**0.5).abs().max() < 0.1


@pytest.mark.parametrize("name", ["sample_annealed_langevin", *OTHERS])
def test_the_callback_sees_state_and_denoised_state_of_every_evaluation(name):
    seen = []

    def keep(info):
        assert set(info) == {"x", "i", "sigma", "sigma_hat", "denoised"}
        seen.append(info["i"])
        sigma = info["sigma"].expand(len(info["x"]))
        assert info["sigma_hat"].item() == info["sigma"].item()
        expected = denoiser(info["x"], sigma)
        assert torch.allclose(info["denoised"], expected, rtol=1e-4, atol=1e-4)

    getattr(k_diffusion, name)(denoiser, start(3), SIGMAS, None, keep, True)
    assert seen == list(range(len(seen)))
    assert len(seen) >= len(SIGMAS) - 1


def test_extra_arguments_reach_the_model():
    x = start(500)
    shifted = k_diffusion.sample_euler(denoiser, x, SIGMAS, {"shift": 3.0})
    assert torch.allclose(shifted.mean(0), torch.full((2,), MEAN + 3), atol=0.1)


def test_disable_hides_the_progress_bar(capfd):
    k_diffusion.sample_euler(denoiser, start(2), SIGMAS, disable=True)
    assert "step" not in capfd.readouterr().err
    k_diffusion.sample_euler(denoiser, start(2), SIGMAS, disable=False)
    assert "step" in capfd.readouterr().err


def test_a_list_that_does_not_end_in_zero_is_refused_where_the_method_goes_there():
    with pytest.raises(ValueError, match=r"sigmas end in 0\.05: this method goes to 0"):
        k_diffusion.sample_euler(denoiser, start(2), SIGMAS[:-1])


def test_unknown_noise_and_a_seed_beside_torch_noise_are_refused():
    with pytest.raises(ValueError, match="choose 'philox' or 'torch'"):
        k_diffusion.sample_annealed_langevin(denoiser, start(2), SIGMAS, noise="numpy")
    with pytest.raises(ValueError, match=r"torch\.manual_seed governs"):
        k_diffusion.sample_euler_ancestral(denoiser, start(2), SIGMAS, noise="torch", seed=1)


DEFAULTS = {"extra_args": None, "callback": None, "disable": None}
CHURN = {"s_churn": 0.0, "s_tmin": 0.0, "s_tmax": math.inf, "s_noise": 1.0}
THEIRS = {
    "sample_euler": CHURN,
    "sample_heun": CHURN,
    "sample_dpmpp_2m": {},
    "sample_euler_ancestral": {"eta": 1.0, "s_noise": 1.0, "noise_sampler": None},
}


@pytest.mark.parametrize("name", THEIRS)
def test_the_positional_arguments_are_those_of_k_diffusion_and_neutral_ones_are_taken(name):
    sample = getattr(k_diffusion, name)
    parameters = inspect.signature(sample).parameters.items()
    found = {n: p.default for n, p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD}
    empty = inspect.Parameter.empty
    expected = {"model": empty, "x": empty, "sigmas": empty, **DEFAULTS, **THEIRS[name]}
    assert list(found.items()) == list(expected.items())
    x, own = start(3), {"seed": 1} if "ancestral" in name else {}
    given = sample(denoiser, x, SIGMAS, None, None, True, *THEIRS[name].values(), **own)
    assert torch.equal(given, sample(denoiser, x, SIGMAS, **own))


def test_noise_on_the_way_is_refused():
    with pytest.raises(ValueError, match=r"s_churn = 40.*sample_euler_ancestral adds noise"):
        k_diffusion.sample_heun(denoiser, start(2), SIGMAS, s_churn=40)


@pytest.mark.parametrize(("eta", "s_noise"), [(1.0, 1.0), (0.0, 1.0), (0.4, 1.2), (1.5, 1.0)])
def test_the_noise_of_a_step_is_what_eta_and_s_noise_say(eta, s_noise):
    levels, x = SIGMAS[::6], start(4)
    asked = []

    def sampler(sigma, following):
        asked.append((float(sigma), float(following)))
        return torch.full_like(x, float(sigma) - 1)

    found = k_diffusion.sample_euler_ancestral(
        denoiser, x, levels, None, None, True, eta, s_noise, sampler
    )
    expected = x.double()
    for sigma, following in zip(levels[:-1].double(), levels[1:].double(), strict=True):
        up = following * (sigma**2 - following**2).sqrt() / sigma
        up = min(following, eta * up)
        drift = (expected - denoiser(expected, sigma.float().expand(4))) / sigma
        expected = expected + drift * ((following**2 - up**2).sqrt() - sigma)
        if following > 0:
            expected = expected + (sigma - 1) * s_noise * up
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)
    pairs = list(zip(levels[:-2].tolist(), levels[1:-1].tolist(), strict=True))
    assert asked == (pairs if eta else [])


def test_a_noise_sampler_makes_the_noise_alone():
    with pytest.raises(ValueError, match="noise_sampler given beside seed = 1"):
        k_diffusion.sample_euler_ancestral(
            denoiser, start(2), SIGMAS, noise_sampler=lambda *_: start(2), seed=1
        )


def test_heuns_method_calls_back_once_a_step_at_its_first_evaluation():
    seen = []
    k_diffusion.sample_heun(denoiser, start(2), SIGMAS, callback=seen.append, disable=True)
    assert [info["i"] for info in seen] == list(range(60))
    assert [info["sigma"].item() for info in seen] == SIGMAS[:-1].tolist()
    x = seen[0]["x"]
    for info, following in zip(seen, SIGMAS[1:], strict=True):
        assert torch.allclose(info["x"], x, rtol=1e-4, atol=1e-4)
        sigma = info["sigma"]
        drift = (x - denoiser(x, sigma.expand(2))) / sigma
        moved = x + (following - sigma) * drift
        if following > 0:
            second = (moved - denoiser(moved, following.expand(2))) / following
            moved = x + (following - sigma) * (drift + second) / 2
        x = moved


@pytest.mark.parametrize("name", ["sample_annealed_langevin", *OTHERS])
def test_levels_may_be_numbers_tensors_and_views_of_arrays(name):
    sample = getattr(k_diffusion, name)
    own = {"seed": 1} if name.endswith(("langevin", "ancestral")) else {}
    up = np.append(0.0, np.geomspace(0.05, 20, 30))
    x = start(3)
    expected = sample(denoiser, x, torch.from_numpy(up[::-1].copy()), **own)
    for given in (up[::-1], up[::-1].tolist(), up.astype(">f8")[::-1], list(up[::-1])):
        assert torch.equal(sample(denoiser, x, given, **own), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", ["sample_annealed_langevin", *OTHERS])
def test_the_model_is_shown_the_dtype_of_x_which_is_that_of_the_result(name, dtype):
    model = torch.nn.Linear(2, 2).to(dtype)
    seen = []

    class Model(torch.nn.Module):
        def forward(self, x, sigma):
            assert x.dtype == sigma.dtype == dtype
            return torch.tanh(model(x))

    net, x = Model().train(), start(3)
    given = {"callback": seen.append, "disable": True}
    given |= {"seed": 1} if name.endswith(("langevin", "ancestral")) else {}
    found = getattr(k_diffusion, name)(net, x.to(dtype), SIGMAS, **given)
    assert found.dtype == seen[0]["x"].dtype == seen[0]["denoised"].dtype == dtype
    assert torch.equal(seen[0]["x"], x.to(dtype))
    assert torch.isfinite(found).all()
    assert net.training


@pytest.mark.parametrize(
    ("name", "steps"),
    [("sample_heun", 60), ("sample_euler", 60), ("sample_annealed_langevin", 301)],
)
def test_the_bar_counts_steps(name, steps, capfd):
    getattr(k_diffusion, name)(denoiser, start(7), SIGMAS, disable=False)
    assert f"/{steps} " in capfd.readouterr().err


def test_what_is_seen_or_made_for_the_whole_batch_is_not_cut():
    def small(x, sigma):
        if len(x) > 2:
            raise torch.OutOfMemoryError("does not fit")
        return denoiser(x, sigma)

    x, seen = start(4), []
    whole = k_diffusion.sample_euler_ancestral(denoiser, x, SIGMAS, seed=1)
    cut = k_diffusion.sample_euler_ancestral(small, x, SIGMAS, seed=1)
    assert torch.allclose(cut, whole, atol=1e-5)
    for one in ({"noise": "torch"}, {"callback": seen.append}):
        with pytest.raises(RuntimeError, match="4 samples at once do not fit in memory"):
            k_diffusion.sample_euler_ancestral(small, x, SIGMAS, **one)
    assert not seen
