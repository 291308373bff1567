"""Samplers in the style of k-diffusion, on the denoiser of a Gaussian."""

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
