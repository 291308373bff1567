"""Other libraries' networks and operators: what they compute, told to this engine in one line.

Those of a package that is not installed are skipped by name.
"""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

import ncsn_fast as nf
from ncsn_fast.compat.adapters import azula, deepinv, diffusers, sbi, torchebm
from ncsn_fast.compat.adapters.times import Clock
from ncsn_fast.methods import tables
from ncsn_fast.methods.by_name import make_table
from ncsn_fast.reference import per_sample


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """sbi keeps a log where it trains."""
    monkeypatch.chdir(tmp_path)


class Backbone(nn.Module):
    """A small network of a state and a number per sample."""

    def __init__(self, size):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(size + 1, 32), nn.SiLU(), nn.Linear(32, size))

    def forward(self, x, told, **extra):
        told = told.expand(len(x)) if told.ndim == 0 else told
        shift = sum(extra.values()) if extra else 0
        return self.body(torch.cat([x, told[:, None]], 1)) + shift


def denoised(score, x, sigma, **extra):
    """D(x) = x + σn, as the engine reads a score."""
    level = torch.full((len(x),), sigma)
    return x + sigma * score.normalized(x, level, torch.zeros(len(x)), **extra)


class Rising:
    """A schedule: α = 1 - t, σ = t."""

    def __call__(self, t):
        return 1 - t, t


def test_a_clock_says_the_time_of_a_level():
    clock = Clock(Rising(), 0.0, 1.0)
    assert len(clock.sigmas) == 998  # the ends have no noise, or nothing else
    times = torch.tensor([0.9, 0.5, 0.01], dtype=torch.float64)
    torch.testing.assert_close(clock(times / (1 - times)), times, atol=1e-12, rtol=1e-12)
    assert clock(torch.tensor([1.0])).dtype == torch.float32


def test_a_clock_refuses_levels_beyond_its_schedule_and_schedules_that_fall():
    clock = Clock(Rising(), 0.2, 0.8)
    with pytest.raises(ValueError, match=r"σ = 5, but .* from 4 to 0.25: stay between them"):
        clock(torch.tensor([1.0, 5.0]))
    with pytest.raises(ValueError, match="has to rise with the time"):
        Clock(lambda t: (torch.ones_like(t), 1 - t), 0.0, 1.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: azula.score(nn.Linear(2, 2)), "denoiser is a Linear: give a denoiser of azula"),
        (lambda: deepinv.score("DRUNet"), "denoiser is a str: give a denoiser of deepinv"),
        (lambda: deepinv.Physics(nn.Linear(2, 2), (2,)), "physics is a Linear: give linear"),
        (lambda: sbi.score(nn.Linear(2, 2)), "posterior is a Linear: give what NPSE"),
        (lambda: torchebm.score(lambda x: x), "energy is a function: give a model of torchebm"),
        (lambda: diffusers.score(nn.Linear(2, 2)), "unet is a Linear: give a model of diffusers"),
    ],
)
def test_what_is_none_of_a_library_is_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()


SCHEDULES = ("VESchedule", "VPSchedule", "CosineSchedule", "RectifiedSchedule", "DecaySchedule")


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_denoiser_of_azula_denoises_as_it_does_there(schedule):
    pytest.importorskip("azula", reason="azula is not installed")
    from azula import denoise, noise

    schedule = getattr(noise, schedule)()
    net = denoise.KarrasDenoiser(Backbone(4), schedule).eval()
    score, x = azula.score(net), torch.randn(3, 4)
    for time in (0.2, 0.5, 0.9):
        alpha, sigma = schedule(torch.tensor(time, dtype=torch.float64))
        with torch.no_grad():
            expected = net(x * alpha.float(), torch.full((3,), time), y=0.5).mean
            found = denoised(score, x, float(sigma / alpha), y=0.5)
        state = score.to_state(x, float(sigma / alpha))  # in azula's units
        torch.testing.assert_close(state, x * alpha.float(), atol=2e-4, rtol=2e-4)
        torch.testing.assert_close(found.float(), expected, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_chain_of_azula_is_the_same_from_the_same_noise(schedule):
    pytest.importorskip("azula", reason="azula is not installed")
    from azula import denoise, noise, sample

    schedule = getattr(noise, schedule)()
    net = denoise.KarrasDenoiser(Backbone(4), schedule).eval()
    theirs = sample.EulerSampler(net, steps=24, silent=True, dtype=torch.float64)
    alpha, sigma = schedule(theirs.timesteps)
    start = sigma[0] * torch.randn(5, 4, dtype=torch.float64)
    net.double()
    expected = theirs(start) / alpha[-1]
    net.float()
    sampler = nf.Sampler(azula.score(net), (4,), sigma / alpha, "euler")
    # Theirs ends at the smallest level, ours goes on to 0.
    _, states = sampler(5, initial=(start / alpha[0]).float(), every=1)
    torch.testing.assert_close(states[-2].double(), expected, atol=1e-4, rtol=1e-4)


def test_azulas_denoiser_of_one_time_for_all_is_refused():
    pytest.importorskip("azula", reason="azula is not installed")
    from azula import denoise, linalg, noise

    covariance = linalg.covariance.IsotropicCovariance(torch.ones(()))
    gaussian = denoise.GaussianDenoiser(torch.zeros(4), covariance, noise.VPSchedule())
    with pytest.raises(ValueError, match="a GaussianDenoiser takes one time for all samples"):
        azula.score(gaussian)


class Halving(nn.Module):
    """Physics of deepinv's interface: A(x, mask=...) keeps the mask that it was given last."""

    def __init__(self, mask):
        super().__init__()
        self.register_buffer("mask", mask)

    def A(self, x, mask=None):
        self.mask = self.mask if mask is None else mask
        return 0.5 * (x * self.mask)[:, :, ::2]

    def A_adjoint(self, y, mask=None):
        self.mask = self.mask if mask is None else mask
        return 0.5 * torch.stack([y, torch.zeros_like(y)], 3).flatten(2) * self.mask


def check_operator(operator, forward):
    n = operator.samples if operator.samples > 1 else 3
    x, y = torch.randn(n, *operator.shape), torch.randn(n, *operator.measured)
    torch.testing.assert_close(operator.forward(x), forward(x))
    left = (operator.forward(x) * y).flatten(1).sum(1)
    torch.testing.assert_close(
        left, (x * operator.adjoint(y)).flatten(1).sum(1), atol=1e-4, rtol=1e-4
    )


def test_physics_is_an_operator_with_parameters_of_each_sample():
    mask = (torch.rand(5, 2, 6, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    physics = Halving(mask[:1])
    check_operator(deepinv.Physics(physics, (2, 6)), lambda x: physics.A(x))
    operator = deepinv.Physics(physics, (2, 6), mask=mask)
    assert (operator.samples, operator.measured) == (5, (2, 3))
    check_operator(operator, lambda x: 0.5 * (x * mask)[:, :, ::2])
    assert torch.equal(physics.mask, mask[:1])  # the user's own is left as it was
    assert operator.norm() == pytest.approx(0.5)
    score = nf.Score(lambda x, sigma: -x / (1 + per_sample(sigma, x) ** 2), "score", "sigma")
    sampler = nf.Sampler(score, (2, 6), nf.geometric_sigmas(1, 0.4, 4), "ancestral")
    y = operator.forward(torch.randn(5, 2, 6))
    guidance = nf.posterior.gaussian_likelihood(operator, y, 0.5)
    whole, cut = (sampler(5, seed=0, guidance=guidance, batch_size=size) for size in (5, 2))
    torch.testing.assert_close(cut, whole, atol=1e-5, rtol=1e-5)


def test_physics_that_measures_complex_numbers_is_refused():
    physics = Halving(torch.ones(1, 2, 6))
    physics.A = lambda x: torch.complex(x, x)
    with pytest.raises(ValueError, match=r"measures torch.complex64: needed are real tensors"):
        deepinv.Physics(physics, (2, 6))


class Unheeding(Halving):
    """One that takes any name, as deepinv's do, and looks at the mask."""

    def A(self, x, mask=None, **others):
        return super().A(x, mask)

    def A_adjoint(self, y, mask=None, **others):
        return super().A_adjoint(y, mask)


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_parameters_that_physics_does_not_look_at_are_refused(value):
    physics, masks = Unheeding(torch.ones(1, 2, 6)), torch.full((3, 2, 6), value)
    deepinv.Physics(physics, (2, 6), mask=masks)
    with pytest.raises(ValueError, match=r"same whatever maks is: its parameters are \['mask'\]"):
        deepinv.Physics(physics, (2, 6), mask=masks, maks=masks)
    with pytest.raises(ValueError, match=r"Halving.A of real numbers \(2, 2, 6\), maks= fails"):
        deepinv.Physics(Halving(torch.ones(1, 2, 6)), (2, 6), maks=masks)
    with pytest.raises(ValueError, match=r"of real numbers .*, mask= fails"):
        deepinv.Physics(physics, (2, 6), mask=torch.ones(3, 5, 5))


class Made(nn.Module):
    """Physics of deepinv's interface, of two functions."""

    def __init__(self, A, A_adjoint):
        super().__init__()
        self.A, self.A_adjoint = A, A_adjoint


@pytest.mark.parametrize(
    ("forward", "adjoint", "message"),
    [
        (lambda x: x**2, lambda y: y, r"Made is no linear .*not linear.*nf\.guidance\.Nonlinear"),
        (lambda x: 2 * x, lambda y: y / 2, "Made is no linear .*is not the adjoint"),
        (
            lambda x: x,
            lambda y: torch.complex(y, y),
            "adjoint returned torch.complex64",
        ),
        (
            lambda x: x @ torch.ones(9),
            lambda y: y,
            r"Made.A of .* fails: .*nf\.guidance\.Nonlinear",
        ),
    ],
)
def test_physics_that_is_not_linear_is_refused_when_it_is_given(forward, adjoint, message):
    with pytest.raises(ValueError, match=message):
        deepinv.Physics(Made(forward, adjoint), (2, 6))


def test_physics_keeps_its_precision_under_autocast():
    matrix = torch.rand(6, 6, generator=torch.Generator().manual_seed(0))
    operator = deepinv.Physics(Made(lambda x: x @ matrix, lambda y: y @ matrix.T), (2, 6))
    x = torch.randn(3, 2, 6)
    y, back = operator.forward(x), operator.adjoint(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(operator.forward(x), y)
        assert torch.equal(operator.adjoint(x), back)


def test_physics_of_deepinv_that_is_not_linear_and_names_it_has_not_are_refused():
    dinv = pytest.importorskip("deepinv", reason="deepinv is not installed")
    kernels = torch.rand(3, 1, 3, 3)
    blur = dinv.physics.Blur(filter=kernels[:1], padding="circular")
    deepinv.Physics(blur, (1, 8, 8), filter=kernels)
    with pytest.raises(ValueError, match=r"same whatever filtr is: its .* \['filter'\]"):
        deepinv.Physics(blur, (1, 8, 8), filtr=kernels)
    with pytest.raises(ValueError, match=r"Ptychography is no linear .*nf\.guidance\.Nonlinear"):
        deepinv.Physics(dinv.physics.Ptychography(img_size=(1, 16, 16)), (1, 16, 16))
    retrieval = dinv.physics.RandomPhaseRetrieval(m=100, img_size=(1, 8, 8))
    with pytest.raises(ValueError, match=r"Retrieval.A of real .* fails: .*of complex images"):
        deepinv.Physics(retrieval, (1, 8, 8))


def test_physics_of_deepinv_is_an_operator():
    dinv = pytest.importorskip("deepinv", reason="deepinv is not installed")
    mask = (torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    physics = dinv.physics.Inpainting((1, 8, 8), mask=mask[0])
    operator = deepinv.Physics(physics, (1, 8, 8), mask=mask)
    check_operator(operator, lambda x: x * mask)
    kernel = torch.rand(1, 1, 3, 3)
    blur = dinv.physics.Blur(filter=kernel, padding="circular")
    check_operator(deepinv.Physics(blur, (1, 8, 8)), blur.A)
    scan = dinv.physics.MRI(mask=mask[0].expand(2, 8, 8), img_size=(2, 8, 8))
    check_operator(deepinv.Physics(scan, (2, 8, 8)), scan.A)


def test_a_denoiser_of_deepinv_denoises_as_it_does_there():
    dinv = pytest.importorskip("deepinv", reason="deepinv is not installed")
    torch.manual_seed(0)
    net = dinv.models.DRUNet(1, 1, nc=[8, 8, 8, 8], nb=1, pretrained=None).eval()
    x = torch.rand(2, 1, 16, 16)
    with torch.no_grad():
        expected = net(x, torch.full((2,), 0.3))
        torch.testing.assert_close(denoised(deepinv.score(net), x, 0.3).float(), expected)
    sampler = nf.Sampler(deepinv.score(net), (1, 16, 16), nf.geometric_sigmas(1, 0.1, 4), "euler")
    assert sampler(2, seed=0).isfinite().all()


def test_an_energy_of_torchebm_takes_the_same_steps_from_the_same_noise(monkeypatch):
    pytest.importorskip("torchebm", reason="torchebm is not installed")
    from torchebm.core import DoubleWellModel
    from torchebm.samplers import LangevinDynamics

    energy, drawn, draw = DoubleWellModel(), [], torch.randn_like

    def recorded(*given, **named):
        drawn.append(draw(*given, **named))
        return drawn[-1]

    x = torch.randn(6, 2)
    monkeypatch.setattr(torch, "randn_like", recorded)
    expected = LangevinDynamics(energy, step_size=0.01).sample(x=x.clone(), n_steps=20)
    monkeypatch.undo()
    assert len(drawn) == 20
    score = torchebm.score(energy)
    sampler = nf.Sampler(score, (2,), method=tables.langevin(0.01, 20))
    found = sampler(6, initial=x, noise=lambda row: drawn[row])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert nf.langevin(score, x, 0.01, 20, seed=0).isfinite().all()


class Well(nn.Module):
    """An energy of torchebm's interface."""

    def gradient(self, x, model_kwargs=None):
        return x * (model_kwargs or {"k": 1.0})["k"]


def test_a_score_is_minus_the_gradient_of_an_energy():
    x = torch.randn(3, 2)
    score = torchebm.score(Well())
    assert torch.equal(score(x, None), -x)
    assert torch.equal(score(x, None, k=2.0), -2 * x)
    expected = nf.langevin(lambda x: -x, x, 0.1, 5, seed=0)
    assert torch.equal(nf.langevin(score, x, 0.1, 5, seed=0), expected)
    with pytest.raises(ValueError, match="give a function x"):
        nf.langevin(nf.Score(lambda x, sigma: -x, "score", "sigma"), x, 0.1, 5)


def trained(**settings):
    """An NPSE of a Gaussian, a few epochs old: θ ~ N(2, 3²), x = θ + N(0, 1)."""
    from sbi.inference import NPSE

    torch.manual_seed(0)
    prior = torch.distributions.MultivariateNormal(torch.full((2,), 2.0), 9 * torch.eye(2))
    theta = prior.sample((300,))
    x = theta + torch.randn_like(theta)
    inference = NPSE(prior, show_progress_bars=False, **settings)
    inference.append_simulations(theta, x).train(max_num_epochs=3)
    return inference.build_posterior()


@pytest.mark.parametrize("kind", ["vp", "ve", "subvp"])
def test_an_npse_has_its_own_score_for_every_observation(kind):
    pytest.importorskip("sbi", reason="sbi is not installed")
    posterior = trained(sde_type=kind)
    estimator, score = posterior.vector_field_estimator, sbi.score(posterior)
    theta, x = torch.randn(4, 2), torch.randn(4, 2)
    for time in (0.3, 0.8):
        t = torch.full((4,), time)
        alpha, std = estimator.mean_t_fn(t), estimator.std_fn(t)
        with torch.no_grad():
            expected = std * estimator.score(alpha * theta, x, t)
            sigma = float(std[0] / alpha[0])
            found = (denoised(score, theta, sigma, condition=x) - theta) / sigma
        torch.testing.assert_close(found.float(), expected, atol=1e-3, rtol=1e-3)


class Matching(nn.Module):
    """An estimator of sbi's interface, whose score is of one time for all as FMPE's is."""

    t_min, t_max, condition_shape = 0.01, 1.0, (2,)

    def __init__(self, size):
        super().__init__()
        self.input_shape = (size,)

    def mean_t_fn(self, times):
        return 1 - 0.9 * times[:, None]

    def std_fn(self, times):
        return times[:, None]

    def score(self, theta, condition, t):
        return (-(1 - t) * theta - theta) / t


@pytest.mark.parametrize("size", [1, 2, 3])
def test_an_estimator_of_one_time_for_all_is_refused(size):
    for use in (sbi.score, lambda estimator: sbi.sample(estimator, 2, torch.ones(1, 2))):
        with pytest.raises(ValueError, match=r"Matching\.score of . samples .* each fails"):
            use(Matching(size))


def test_asking_an_estimator_takes_few_samples_of_many_values():
    class Large(Matching):
        asked = 0

        def score(self, theta, condition, t):
            Large.asked = max(Large.asked, len(theta))
            return -theta * t[:, None]

    assert sbi.score(Large(50_000)).input_scale is not None
    assert Large.asked == 2


def test_an_fmpe_is_refused():
    pytest.importorskip("sbi", reason="sbi is not installed")
    from sbi.inference import FMPE

    torch.manual_seed(0)
    prior = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
    theta = prior.sample((300,))
    inference = FMPE(prior, show_progress_bars=False)
    inference.append_simulations(theta, theta).train(max_num_epochs=1)
    with pytest.raises(ValueError, match=r"score of 3 samples .* fails: .* FMPE's has not"):
        sbi.score(inference.build_posterior())


def test_samples_of_an_npse_are_where_its_own_ode_leads():
    pytest.importorskip("sbi", reason="sbi is not installed")
    posterior = trained()
    estimator, x = posterior.vector_field_estimator, torch.tensor([[0.0, 0.0], [4.0, 6.0]])
    found = sbi.sample(posterior, 3, x, method="heun", steps=399, seed=1)
    assert found.shape == (3, 2, 2)
    sampler = nf.Sampler(sbi.score(posterior), (2,), method="heun", steps=399)
    z = sampler.first_noise(1, torch.arange(6))
    theta = (estimator.mean_base + estimator.std_base * z).detach()
    times = torch.linspace(estimator.t_max, estimator.t_min, 2001)
    condition = x.repeat(3, 1)
    with torch.no_grad():
        for now, then in pairwise(times):
            slope = estimator.ode_fn(theta, condition, now.expand(6))
            ahead = estimator.ode_fn(theta + (then - now) * slope, condition, then.expand(6))
            theta = theta + (then - now) * (slope + ahead) / 2
    if estimator.compose_enabled:
        theta = estimator.from_z(theta)
    torch.testing.assert_close(found, theta.view(3, 2, 2), atol=2e-2, rtol=2e-2)


def unet(**changes):
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    small = {"sample_size": 8, "in_channels": 3, "out_channels": 3, "norm_num_groups": 4}
    return UNet2DModel(**{**small, "block_out_channels": (8, 8), **changes}).eval()


def ncsnpp():
    """NCSN++ as the hub's checkpoints of score_sde's VE networks have it, with fewer channels."""
    return unet(
        time_embedding_type="fourier",
        freq_shift=16,
        flip_sin_to_cos=True,
        downsample_padding=0,
        mid_block_scale_factor=math.sqrt(2),
        norm_eps=1e-6,
        norm_num_groups=32,
        block_out_channels=(32, 32),
        attention_head_dim=None,
        down_block_types=("SkipDownBlock2D", "AttnSkipDownBlock2D"),
        up_block_types=("AttnSkipUpBlock2D", "SkipUpBlock2D"),
    )


def test_an_ncsnpp_takes_the_steps_of_score_sde_from_the_same_noise():
    from diffusers import ScoreSdeVeScheduler

    scheduler, net = ScoreSdeVeScheduler(num_train_timesteps=12, sigma_max=50.0), ncsnpp()
    scheduler.set_timesteps(12)
    scheduler.set_sigmas(12)
    score = diffusers.score(net, scheduler)
    assert len(score.sigmas) == 12
    x = 50 * torch.randn(2, 3, 8, 8)
    generator = torch.Generator().manual_seed(0)
    noise = [torch.randn(x.shape, generator=generator) for _ in range(12)]
    generator.manual_seed(0)
    state = x
    with torch.no_grad():
        for i, t in enumerate(scheduler.timesteps):
            sigma = scheduler.sigmas[i].expand(2)
            step = scheduler.step_pred(net(state, sigma).sample, t, state, generator=generator)
            state = step.prev_sample
    sampler = nf.Sampler(score, (3, 8, 8), method="reverse_diffusion")
    found = sampler(2, initial=x, noise=lambda row: noise[row])
    torch.testing.assert_close(found, step.prev_sample_mean, atol=2e-2, rtol=2e-4)


@pytest.mark.parametrize(
    ("prediction", "kind"), [("epsilon", "epsilon"), ("sample", "denoiser"), ("v_prediction", "v")]
)
def test_a_unet_of_timesteps_is_read_by_its_scheduler(prediction, kind):
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(prediction_type=prediction)
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    net, twice = unet(**blocks), unet(**blocks, out_channels=6)
    score = diffusers.score(net, scheduler)
    assert (score.kind, score.condition, score.quantize) == (kind, "timestep", False)
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([10, 10])
    with torch.no_grad():
        assert torch.equal(score(x, t), net(x, t).sample)
        assert torch.equal(diffusers.score(twice, scheduler)(x, t), twice(x, t).sample[:, :3])


def test_a_unet_of_timesteps_without_their_noise_is_refused():
    from diffusers import EDMEulerScheduler

    with pytest.raises(ValueError, match=r"NoneType has .* no alphas_cumprod: give the pipeline's"):
        diffusers.score(
            unet(down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2)
        )
    with pytest.raises(ValueError, match=r"EDMEulerScheduler has .* no alphas_cumprod"):
        diffusers.score(
            unet(down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2),
            EDMEulerScheduler(),
        )


def drawn_there(posterior, n, x, steps, method, **settings):
    """Samples of sbi's own loop, by our predictor; of its own where there is no method."""
    ours = {"predictor": "ncsn_fast", "predictor_params": {"method": method, **settings}}
    return posterior.sample(
        (n,), x=x, steps=steps, show_progress_bars=False, reject_outside_prior=False,
        **(ours if method else {}),
    )  # fmt: skip


@pytest.mark.parametrize("method", ["euler", "heun", "ancestral", "predictor_corrector"])
@pytest.mark.parametrize("kind", ["vp", "ve", "subvp"])
def test_sbis_loop_takes_the_steps_of_this_engine(kind, method):
    pytest.importorskip("sbi", reason="sbi is not installed")
    sbi.register()
    posterior = trained(sde_type=kind)
    settings = {"snr": 0.1} if method == "predictor_corrector" else {}
    estimator, score, x = posterior.vector_field_estimator, sbi.score(posterior), torch.ones(1, 2)
    torch.manual_seed(4)
    found = drawn_there(posterior, 3, x, 9, method, **settings)

    torch.manual_seed(4)
    begin = torch.randn(3, 1, 2)
    times = estimator.solve_schedule(9)
    alpha, std = (of(times)[:, 0].double() for of in (estimator.mean_t_fn, estimator.std_fn))
    table = make_table(method, std / alpha, settings, {})
    table = table[: -len(make_table(method, std[-1:] / alpha[-1:], settings, {}))]
    sampler = nf.Sampler(score, (2,), method=table, precision="fp32")
    expected = sampler(
        3,
        seed=0,
        initial=((estimator.mean_base + estimator.std_base * begin) / alpha[0]).float().view(3, 2),
        noise=lambda row: torch.randn(3, 1, 2).view(3, 2),
        extra={"condition": x},
    )
    theta = (alpha[-1] * expected).float()
    if estimator.compose_enabled:
        theta = estimator.from_z(theta)
    torch.testing.assert_close(found, theta, atol=5e-3, rtol=5e-3)


def test_in_sbis_loop_samples_have_the_law_of_the_posterior(monkeypatch):
    """Of an exact score; 200 evenly spaced times leave some per cent of the deviation."""
    pytest.importorskip("sbi", reason="sbi is not installed")
    sbi.register()
    posterior, mean, deviation = trained(), torch.tensor([1.0, -1.0]), 0.5
    estimator = posterior.vector_field_estimator

    def gradient(self, theta, time, track_gradients=False):
        alpha, std = estimator.mean_t_fn(time.reshape(1)), estimator.std_fn(time.reshape(1))
        return (alpha * mean - theta) / (alpha**2 * deviation**2 + std**2)

    monkeypatch.setattr(type(posterior.potential_fn), "gradient", gradient)
    monkeypatch.setattr(type(estimator), "compose_enabled", False, raising=False)
    torch.manual_seed(0)
    found = drawn_there(posterior, 4000, torch.ones(1, 2), 200, "ancestral")
    torch.testing.assert_close(found.mean(0), mean, atol=0.04, rtol=0)
    assert found.std(0).tolist() == pytest.approx([deviation] * 2, rel=0.05)


def test_in_sbis_loop_several_observations_make_one_posterior():
    pytest.importorskip("sbi", reason="sbi is not installed")
    sbi.register()
    posterior = trained()
    x = torch.tensor([[3.0, 1.0], [3.2, 0.8], [2.9, 1.2]])
    found, theirs = (drawn_there(posterior, 500, x, 100, method) for method in ("heun", None))
    assert found.shape == (500, 2)
    assert (found.mean(0) - theirs.mean(0)).abs().max() < 2 * float(theirs.std())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "dpmpp_2m"}, "method = 'dpmpp_2m': a step needs nothing of the one before"),
        ({"method": "euler", "steps": 3}, "steps: which times are visited is said to sbi"),
        ({"method": "euler", "eta": 0.5}, "method 'euler' takes no eta"),
        ({"method": "ancestral", "eta": -1}, "eta = -1"),
    ],
)
def test_what_is_no_step_of_its_own_is_refused_by_sbis_predictor(settings, message):
    pytest.importorskip("sbi", reason="sbi is not installed")
    sbi.register("ours")
    with pytest.raises(ValueError, match=message):
        trained().sample((2,), x=torch.ones(1, 2), predictor="ours", predictor_params=settings)


@pytest.mark.parametrize(
    "scheduler", ["DDPMScheduler", "EDMEulerScheduler", "FlowMatchEulerDiscreteScheduler", "config"]
)
def test_an_ncsnpp_takes_the_scheduler_of_its_kind_alone(scheduler):
    import diffusers as library

    name = "ScoreSdeVeScheduler" if scheduler == "config" else scheduler
    given = getattr(library, name)()
    given = given.config if scheduler == "config" else given
    with pytest.raises(ValueError, match=rf"a {type(given).__name__} is no ScoreSdeVeScheduler"):
        diffusers.score(ncsnpp(), given)
    assert diffusers.score(ncsnpp()).sigmas is None
