"""Samplers in the style of k-diffusion, on the denoiser of a Gaussian."""

import inspect
import itertools
import math

import numpy as np
import pytest
import torch
from helpers.official import Official

import ncsn_fast as nf
from ncsn_fast.compat import k_diffusion
from ncsn_fast.methods.levels import best_step_size
from ncsn_fast.support import progress

SIGMAS = torch.cat([nf.geometric_sigmas(20, 0.05, 60), torch.zeros(1)])
MEAN, VARIANCE = 0.5, 0.25
OTHERS = [
    *("sample_euler", "sample_heun", "sample_dpm_2", "sample_dpmpp_2m", "sample_lms"),
    *("sample_euler_ancestral", "sample_dpmpp_2m_sde"),
]
SEEDED = ("langevin", "ancestral", "sde")


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


def test_disable_hides_the_progress_bar(capfd, monkeypatch):
    monkeypatch.setattr(progress, "_is_watched", lambda: True)
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
NOISE = {"eta": 1.0, "s_noise": 1.0, "noise_sampler": None}
THEIRS = {
    "sample_euler": CHURN,
    "sample_heun": CHURN,
    "sample_dpm_2": CHURN,
    "sample_dpmpp_2m": {},
    "sample_lms": {"order": 4},
    "sample_euler_ancestral": NOISE,
    "sample_dpmpp_2m_sde": {**NOISE, "solver_type": "midpoint"},
}


@pytest.mark.parametrize("name", THEIRS)
def test_the_positional_arguments_are_those_of_k_diffusion_and_neutral_ones_are_taken(name):
    sample = getattr(k_diffusion, name)
    parameters = inspect.signature(sample).parameters.items()
    found = {n: p.default for n, p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD}
    empty = inspect.Parameter.empty
    expected = {"model": empty, "x": empty, "sigmas": empty, **DEFAULTS, **THEIRS[name]}
    assert list(found.items()) == list(expected.items())
    x, own = start(3), {"seed": 1} if name.endswith(SEEDED) else {}
    given = sample(denoiser, x, SIGMAS, None, None, True, *THEIRS[name].values(), **own)
    assert torch.equal(given, sample(denoiser, x, SIGMAS, **own))


def exact(x, sigma):
    """The denoiser in float64, at one level."""
    s2 = sigma**2
    return (VARIANCE * x + s2 * MEAN) / (VARIANCE + s2)


def published_churn(name, x, levels, s_churn, s_tmin, s_tmax, s_noise):
    """Algorithm 2 of Karras et al. 2022 as k-diffusion runs it, in float64, on torch's noise."""
    like, x = x, x.double()
    levels = levels.double()
    for sigma, following in itertools.pairwise(levels):
        gamma = 0.0
        if s_tmin <= sigma <= s_tmax:
            gamma = min(s_churn / (len(levels) - 1), math.sqrt(2) - 1)
        z = s_noise * torch.randn_like(like).double()
        hat = (1 + gamma) * sigma
        x = x + (hat**2 - sigma**2).sqrt() * z
        slope = (x - exact(x, hat)) / hat
        if name == "sample_euler" or following == 0:
            x = x + (following - hat) * slope
        elif name == "sample_heun":
            ahead = x + (following - hat) * slope
            x = x + (following - hat) * (slope + (ahead - exact(ahead, following)) / following) / 2
        else:
            middle = (hat * following).sqrt()
            ahead = x + (middle - hat) * slope
            x = x + (following - hat) * (ahead - exact(ahead, middle)) / middle
    return x


@pytest.mark.parametrize("name", ["sample_euler", "sample_heun", "sample_dpm_2"])
@pytest.mark.parametrize(
    "churn", [(0.0, 0.0, math.inf, 1.0), (5.0, 0.2, 8.0, 1.01), (1e9, 0.0, math.inf, 0.9)]
)
def test_noise_on_the_way_is_that_of_the_published_algorithm(name, churn):
    levels, x = SIGMAS[::6], start(4)
    torch.manual_seed(7)
    expected = published_churn(name, x, levels, *churn)
    torch.manual_seed(7)
    sample = getattr(k_diffusion, name)
    found = sample(denoiser, x, levels, None, None, True, *churn, noise="torch")
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


def test_churn_asks_the_model_no_more_often_and_tells_the_callback_of_both_levels():
    levels, seen, asked = SIGMAS[::6], [], []

    def model(x, sigma):
        asked.append(float(sigma[0]))
        return denoiser(x, sigma)

    k_diffusion.sample_heun(model, start(2), levels, None, seen.append, True, 5.0, 0.0, 8.0, seed=1)
    assert len(asked) == 2 * 10 - 1
    expected = [1.5 if sigma <= 8 else 1.0 for sigma in levels[:-1].tolist()]
    expected = [min(factor, math.sqrt(2)) for factor in expected]
    factors = [float(info["sigma_hat"] / info["sigma"]) for info in seen]
    assert factors == pytest.approx(expected)
    assert asked[::2] == pytest.approx([float(info["sigma_hat"]) for info in seen])
    assert [info["sigma"].item() for info in seen] == levels[:-1].tolist()
    for info in seen:
        wanted = exact(info["x"].double(), info["sigma_hat"].double())
        torch.testing.assert_close(info["denoised"].double(), wanted, rtol=1e-4, atol=1e-4)


def test_the_noise_on_the_way_belongs_to_the_sample():
    x, levels = start(5), SIGMAS[::6]
    keywords = {"s_churn": 10.0, "disable": True, "seed": 3}
    whole = k_diffusion.sample_euler(denoiser, x, levels, **keywords)
    part = k_diffusion.sample_euler(denoiser, x[:2], levels, **keywords)
    assert torch.allclose(whole[:2], part, atol=1e-6)
    keywords["seed"] = 4
    assert not torch.allclose(k_diffusion.sample_euler(denoiser, x, levels, **keywords), whole)


@pytest.mark.parametrize("wrong", [{"s_churn": -1.0}, {"s_noise": -1.0}, {"s_tmin": math.nan}])
def test_noise_on_the_way_out_of_range_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        k_diffusion.sample_heun(denoiser, start(2), SIGMAS, **wrong)


@pytest.mark.parametrize("solver_type", ["midpoint", "heun"])
@pytest.mark.parametrize(("eta", "s_noise"), [(0.0, 1.0), (1.0, 1.0), (0.6, 1.1)])
def test_the_multistep_solver_of_the_sde_is_the_published_one(eta, s_noise, solver_type):
    levels, x = SIGMAS[::4], start(4)
    torch.manual_seed(5)
    expected, old, last = x.double(), None, 0.0
    for sigma, following in zip(levels[:-1].double(), levels[1:].double(), strict=True):
        denoised = exact(expected, sigma)
        if following == 0:
            expected = denoised
            break
        h = (sigma / following).log()
        grown = (1 + eta) * h
        expected = (-grown).exp() * expected - torch.expm1(-grown) * denoised
        if old is not None:
            ratio = -torch.expm1(-grown) / 2
            if solver_type == "heun":
                ratio = 1 + torch.expm1(-grown) / grown
            expected = expected + ratio * (h / last) * (denoised - old)
        if eta:
            noise = torch.randn_like(x).double()
            expected = expected + s_noise * following * (-torch.expm1(-2 * eta * h)).sqrt() * noise
        old, last = denoised, h
    torch.manual_seed(5)
    found = k_diffusion.sample_dpmpp_2m_sde(
        denoiser, x, levels, None, None, True, eta, s_noise, None, solver_type, noise="torch"
    )
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("order", [1, 2, 3, 4, 7])
def test_the_multistep_method_integrates_the_polynomial_through_its_slopes(order):
    levels, x = SIGMAS[::3], start(4)
    expected, slopes = x.double(), []
    values = levels.double().numpy()
    for i, (sigma, following) in enumerate(itertools.pairwise(values)):
        slopes.insert(0, (expected - exact(expected, sigma)) / sigma)
        known = values[max(0, i - order + 1) : i + 1][::-1]
        for j, own in enumerate(known):
            others = [one for k, one in enumerate(known) if k != j]
            basis = np.poly1d(others, r=True) if others else np.poly1d([1.0])
            whole = (basis / basis(own)).integ()
            expected = expected + (whole(following) - whole(sigma)) * slopes[j]
    found = k_diffusion.sample_lms(denoiser, x, levels, None, None, True, order)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)
    again = k_diffusion.sample_lms(denoiser, x, levels, disable=True, order=order)
    assert torch.equal(found, again)


def test_a_higher_order_of_the_multistep_method_is_nearer_to_the_solution():
    levels, x = torch.cat([nf.geometric_sigmas(20, 0.05, 40), torch.zeros(1)]), start(4)
    scale = math.sqrt(VARIANCE / (VARIANCE + 20**2))
    errors = []
    for order in (1, 2, 4):
        found = k_diffusion.sample_lms(denoiser, x, levels, disable=True, order=order)
        errors.append(float((found - MEAN - scale * (x - MEAN)).abs().max()))
    assert errors[1] < errors[0] / 2
    assert errors[2] < errors[1] / 2


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
    own = {"seed": 1} if name.endswith(SEEDED) else {}
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
    given |= {"seed": 1} if name.endswith(SEEDED) else {}
    found = getattr(k_diffusion, name)(net, x.to(dtype), SIGMAS, **given)
    assert found.dtype == seen[0]["x"].dtype == seen[0]["denoised"].dtype == dtype
    assert torch.equal(seen[0]["x"], x.to(dtype))
    assert torch.isfinite(found).all()
    assert net.training


@pytest.mark.parametrize(
    ("name", "steps"),
    [("sample_heun", 60), ("sample_euler", 60), ("sample_annealed_langevin", 301)],
)
def test_the_bar_counts_steps(name, steps, capfd, monkeypatch):
    monkeypatch.setattr(progress, "_is_watched", lambda: True)
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


def test_an_official_network_inside_a_denoiser_runs_as_ours_where_it_is_prepared():
    net, x = Official(channels=2), torch.rand(2, 2, 8, 8)
    levels = torch.cat([net.sigmas, torch.zeros(1)])

    def run(network):
        def model(x, sigma):
            labels = (sigma[:, None] - net.sigmas).abs().argmin(1)
            return x + sigma.view(-1, 1, 1, 1) ** 2 * network(x, labels)

        return k_diffusion.sample_heun(model, x, levels, disable=True)

    expected, calls = run(net), net.calls
    assert calls >= 7
    found = run(nf.prepare_for_inference(net, "fp32"))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert net.calls == calls + 1  # to be compared
