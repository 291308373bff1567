"""Configurations of schedulers, there and back: no setting that images depend on is lost."""

import logging

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers", reason="diffusers is not installed: pip install diffusers")

import diffusers

from ncsn_fast.compat import diffusers_configs
from ncsn_fast.compat.diffusers import NCSNScheduler

CLASSES = ["DDIM", "DDPM", "PNDM", "EulerDiscrete", "EulerAncestralDiscrete", "HeunDiscrete"]
CLASSES += ["DPMSolverMultistep", "DPMSolverSinglestep", "UniPCMultistep", "DEISMultistep", "LCM"]
CLASSES += ["LMSDiscrete", "KDPM2Discrete"]
BETAS = {
    "default": {},
    "latent": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "cosine": {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"},
    "trained": {"trained_betas": np.linspace(1e-4, 0.03, 50).tolist(), "num_train_timesteps": 50},
}
NETWORK = ("beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type")


def of(name, **settings):
    return getattr(diffusers, f"{name}Scheduler")(**settings)


@pytest.fixture
def warnings(caplog):
    diffusers_configs.say.cache_clear()
    with caplog.at_level(logging.WARNING, logger="ncsn_fast"):
        yield caplog


def settings_of(scheduler):
    return {name: one for name, one in scheduler.config.items() if not name.startswith("_")}


def has_all_of(found, theirs):
    return {name: found.config[name] for name in settings_of(theirs)} == settings_of(theirs)


@pytest.mark.parametrize("betas", BETAS)
@pytest.mark.parametrize("name", CLASSES)
def test_betas_come_and_go_with_every_class(name, betas, tmp_path):
    theirs = of(name, **BETAS[betas])
    ours = NCSNScheduler.from_config(theirs.config)
    alphas = theirs.alphas_cumprod.double()
    expected = ((1 - alphas) / alphas).sqrt().flip(0)
    torch.testing.assert_close(ours.sigmas[:-1].double(), expected, rtol=1e-5, atol=0)
    assert has_all_of(type(theirs).from_config(ours.config), theirs)
    ours.save_pretrained(tmp_path)
    loaded = NCSNScheduler.from_pretrained(tmp_path)
    for config in (ours.config, loaded.config):
        for other in ("DDIM", "HeunDiscrete", "DPMSolverMultistep", name):
            back = type(of(other)).from_config(config, algorithm_type="dpmsolver++")
            assert torch.equal(back.alphas_cumprod, theirs.alphas_cumprod)
            assert all(back.config[one] == theirs.config[one] for one in NETWORK)
            again = NCSNScheduler.from_config(back.config)
            assert torch.equal(again.sigmas, ours.sigmas)


def test_a_file_of_another_class_is_read(tmp_path):
    theirs = of("DDIM", **BETAS["latent"], clip_sample=False)
    theirs.save_pretrained(tmp_path)
    loaded = NCSNScheduler.from_pretrained(tmp_path, method="heun")
    assert torch.equal(loaded.sigmas, NCSNScheduler.from_config(theirs.config).sigmas)
    assert loaded.config.method == "heun"


def test_a_pipeline_that_takes_another_scheduler_has_its_betas():
    theirs = of("DDIM", **BETAS["latent"], prediction_type="v_prediction", clip_sample=False)
    ours = NCSNScheduler.from_config(theirs.config, method="dpmpp_2m")
    pipe = diffusers.DDIMPipeline(torch.nn.Identity(), ours)
    assert torch.equal(pipe.scheduler.alphas_cumprod, theirs.alphas_cumprod)
    assert has_all_of(pipe.scheduler, theirs)


def unet():
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    return diffusers.UNet2DModel(8, 3, 3, block_out_channels=(32,), **blocks)


def test_a_pipeline_of_ddim_keeps_it_where_it_is_put_back():
    theirs = of("DDIM", **BETAS["latent"], clip_sample=False)
    ours = NCSNScheduler.from_config(theirs.config, method="dpmpp_2m", seed=1)
    pipe = diffusers.DDIMPipeline(unet(), ours)
    assert isinstance(pipe.scheduler, diffusers.DDIMScheduler)
    pipe.scheduler = ours
    pipe.set_progress_bar_config(disable=True)
    arguments = {"num_inference_steps": 5, "output_type": "pt"}
    images = pipe(2, torch.Generator().manual_seed(3), **arguments).images
    loop = diffusers.DDPMPipeline(pipe.unet, ours)
    loop.set_progress_bar_config(disable=True)
    expected = loop(2, torch.Generator().manual_seed(3), num_inference_steps=5, output_type="np")
    assert ours.step_index == 5
    assert np.allclose(images.permute(0, 2, 3, 1), expected.images, atol=1e-6)
    for wrong in ({"eta": 0.5}, {"use_clipped_model_output": True}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} = .*: that is DDIM's"):
            pipe(1, **arguments, **wrong)
    with pytest.raises(TypeError, match="unexpected keyword argument 'etta'"):
        ours.step(torch.ones(1, 3), 1, torch.ones(1, 3), etta=0)


@pytest.mark.parametrize("given", [{"snr": 0.2, "correct_steps": 2}, {}], ids=["given", "default"])
def test_a_pipeline_of_score_sde_runs_corrector_and_predictor(given):
    theirs = of("ScoreSdeVe", num_train_timesteps=30, sigma_max=5.0, **given)
    rows = 6 * (1 + theirs.config.correct_steps)
    ours = NCSNScheduler.from_config(theirs.config, seed=1)
    pipe = diffusers.ScoreSdeVePipeline(unet(), ours)
    pipe.set_progress_bar_config(disable=True)
    told = []
    forward = pipe.unet.forward

    def told_of(x, sigma, **keywords):
        told.append(float(sigma[0]))
        output = forward(x, sigma, **keywords)
        output.sample = output.sample / sigma[0]
        return output

    pipe.unet.forward = told_of
    images = pipe(2, 6, torch.Generator().manual_seed(3), "np").images
    assert len(told) == rows
    ours.set_timesteps(rows)
    assert told == pytest.approx(ours.sigmas[:-1].tolist())
    x = ours.init_noise_sigma * torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(3)
    torch.randn(2, 3, 8, 8, generator=generator)
    with torch.no_grad():
        for t in ours.timesteps:
            output = pipe.unet(x, t.expand(2)).sample
            x = ours.step(output, t, x, generator=generator).prev_sample
    assert np.allclose(images, x.clamp(0, 1).permute(0, 2, 3, 1), atol=1e-5)


def test_a_pipeline_of_score_sde_refuses_methods_that_do_not_correct():
    theirs = of("ScoreSdeVe", num_train_timesteps=30)
    for ours in (NCSNScheduler(), NCSNScheduler.from_config(theirs.config, method="dpmpp_2m")):
        with pytest.raises(ValueError, match="ScoreSdeVePipeline corrects before it predicts"):
            diffusers.ScoreSdeVePipeline(unet(), ours)(1, 12)


@pytest.mark.parametrize(
    "own",
    [
        {},
        {"sigmas": [3.0, 1.0, 0.1]},
        {"sigmas": [3.0, 1.0, 0.1], "sigma_data": 1.0, "scaled_state": True},
        {"sigma_schedule": "karras", "sigma_data": 0.5, "timestep_type": "c_noise"},
    ],
)
def test_where_there_are_no_betas_no_other_class_takes_its_own(own):
    ours = NCSNScheduler(**own)
    for name in CLASSES:
        with pytest.raises(NotImplementedError, match="no betas is not implemented"):
            type(of(name)).from_config(ours.config)
    if "sigma_schedule" not in own:
        with pytest.raises(ValueError, match="sigma_schedule"):
            diffusers.EDMEulerScheduler.from_config(ours.config)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("schedule", ["karras", "exponential"])
def test_a_network_of_edm_comes_and_goes(schedule, prediction):
    theirs = of("EDMEuler", sigma_schedule=schedule, prediction_type=prediction, sigma_max=20.0)
    ours = NCSNScheduler.from_config(theirs.config, method="euler")
    assert has_all_of(diffusers.EDMEulerScheduler.from_config(ours.config), theirs)
    theirs.set_timesteps(9)
    ours.set_timesteps(9)
    torch.testing.assert_close(ours.sigmas, theirs.sigmas.float(), rtol=1e-5, atol=0)
    torch.testing.assert_close(ours.timesteps, theirs.timesteps.float(), rtol=1e-5, atol=1e-6)
    x = 20 * torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    states = []
    for scheduler in (ours, theirs):
        state = x
        for t in scheduler.timesteps:
            output = torch.tanh(scheduler.scale_model_input(state, t)) * (1 + 0.1 * float(t))
            state = scheduler.step(output, t, state).prev_sample
        states.append(state)
    torch.testing.assert_close(*states, rtol=1e-4, atol=1e-4)


def test_a_network_of_score_sde_comes_and_goes():
    theirs = of("ScoreSdeVe", num_train_timesteps=30, sigma_max=50.0, snr=0.2, correct_steps=2)
    ours = NCSNScheduler.from_config(theirs.config)
    config = ours.config
    assert (config.prediction_type, config.timestep_type) == ("score", "sigma")
    assert config.settings == {"snr": 0.2, "corrector_steps": 2}
    torch.testing.assert_close(ours.sigmas[:-1], theirs.sigmas, rtol=1e-3, atol=0)
    assert has_all_of(diffusers.ScoreSdeVeScheduler.from_config(config), theirs)
    ours.set_timesteps()
    assert len(ours.timesteps) == 30 * 3
    with pytest.raises(ValueError, match=r"sampling_eps = 0\.1"):
        NCSNScheduler.from_config(of("ScoreSdeVe", sampling_eps=0.1).config)


def test_what_euler_tells_a_network_of_video_is_kept():
    theirs = of("EulerDiscrete", timestep_type="continuous", prediction_type="v_prediction")
    back = diffusers.EulerDiscreteScheduler.from_config(
        NCSNScheduler.from_config(theirs.config).config
    )
    assert torch.equal(back.timesteps, theirs.timesteps)


@pytest.mark.parametrize(
    ("given", "spacing"),
    [("use_karras_sigmas", "karras"), ("use_exponential_sigmas", "geometric")],
)
def test_other_classes_spacings_are_followed(given, spacing):
    theirs = of("EulerDiscrete", **{given: True})
    ours = NCSNScheduler.from_config(theirs.config, method="euler")
    theirs.set_timesteps(7)
    ours.set_timesteps(7)
    assert ours.config.spacing == spacing
    torch.testing.assert_close(ours.sigmas, theirs.sigmas, rtol=1e-3, atol=0)


def test_what_is_not_followed_is_named_once(warnings):
    chosen = {"timestep_spacing": "trailing", "steps_offset": 1, "set_alpha_to_one": False}
    theirs = of("DDIM", **chosen, clip_sample=False)
    for _ in range(2):
        NCSNScheduler.from_config(theirs.config)
    (record,) = warnings.records
    for name, value in chosen.items():
        assert f"{name} = {value!r}" in record.getMessage()
    NCSNScheduler.from_config(of("LCM", timestep_scaling=5.0).config)
    assert "timestep_scaling = 5.0" in warnings.records[1].getMessage()
    NCSNScheduler.from_config(of("EulerDiscrete").config)
    assert len(warnings.records) == 2


@pytest.mark.parametrize(
    ("theirs", "message"),
    [
        (of("UniPCMultistep", use_flow_sigmas=True), "use_flow_sigmas = True"),
        (of("CogVideoXDDIM"), "snr_shift_scale = 3.0"),
        (
            of("EulerDiscrete", sigma_max=700.0, sigma_min=0.002),
            "sigma_max = 700.0.*sigmas=",
        ),
        (of("HeunDiscrete", beta_schedule="exp"), "beta_schedule = 'exp'"),
        (of("CMStochasticIterative"), "names no betas"),
        (of("IPNDM"), "names no betas"),
        (of("DDPM", trained_betas=[0.1, 0.2]), "trained_betas are 2, num_train_timesteps = 1000"),
    ],
)
def test_other_noise_levels_than_betas_say_are_refused(theirs, message):
    with pytest.raises(ValueError, match=message):
        NCSNScheduler.from_config(theirs.config)


def test_levels_and_betas_take_each_others_place():
    vp = NCSNScheduler.from_config(of("DDIM").config, sigmas=[3.0, 1.0])
    assert vp.config.beta_schedule == "no betas"
    assert vp.sigmas.tolist() == [3.0, 1.0, 0.0]
    back = NCSNScheduler.from_config(vp.config, beta_schedule="linear", num_train_timesteps=1000)
    assert torch.equal(back.sigmas, NCSNScheduler.from_config(of("DDIM").config).sigmas)
    for more in ({"sigmas": [3.0, 1.0]}, {"sigma_max": 3.0}):
        with pytest.raises(ValueError, match="each says the noise levels"):
            NCSNScheduler(beta_schedule="linear", **more)


def test_a_clip_that_was_chosen_is_followed_and_a_default_one_is_named(warnings):
    chosen = NCSNScheduler.from_config(of("DDPM", clip_sample=True).config)
    assert chosen.config.clip_sample
    assert not warnings.records
    default = NCSNScheduler.from_config(of("DDPM").config)
    assert not default.config.clip_sample
    assert "clip_sample = True, a default of the other scheduler" in warnings.text
    for ours in (chosen, default):
        assert diffusers.DDPMScheduler.from_config(ours.config).config.clip_sample
    assert NCSNScheduler.from_config(of("DDPM").config, clip_sample=True).config.clip_sample


LIMITS = [
    {"clip_sample": True},
    {"clip_sample": True, "clip_sample_range": 0.5},
    {"clip_sample": False, "thresholding": True, "sample_max_value": 1.5},
]


@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_x0_is_limited_as_by_ddpm(limits, prediction):
    theirs = of("DDPM", prediction_type=prediction, **limits)
    ours = NCSNScheduler.from_config(theirs.config, method="ancestral", spacing="ladder")
    ours.set_timesteps()
    theirs.set_timesteps(1000)
    x = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    output = 2 * torch.tanh(x).flip(0)
    for row in (0, 500, 998):
        t = theirs.timesteps[row]
        assert t == ours.timesteps[row]
        ours.set_timesteps()
        pairs = []
        for scheduler in (ours, theirs):
            generator = torch.Generator().manual_seed(1)
            pairs.append(scheduler.step(output, t, x, generator=generator).prev_sample)
        torch.testing.assert_close(*pairs, rtol=1e-4, atol=1e-4)


def test_a_predicted_variance_is_left_out_where_the_network_has_one():
    x, output = torch.randn(2, 3, 4, 4), torch.randn(2, 6, 4, 4)
    learned = NCSNScheduler.from_config(
        of("DDPM", variance_type="learned_range").config, method="euler"
    )
    plain = NCSNScheduler.from_config(of("DDPM").config, method="euler")
    for scheduler in (learned, plain):
        scheduler.set_timesteps(5)
    found = learned.step(output, learned.timesteps[0], x).prev_sample
    with pytest.raises(ValueError, match=r'variance_type="learned"'):
        plain.step(output, plain.timesteps[0], x)
    assert torch.equal(found, plain.step(output[:, :3], plain.timesteps[0], x).prev_sample)


def test_a_configuration_has_plain_numbers_whatever_was_given(tmp_path):
    given = NCSNScheduler(
        sigmas=torch.tensor([3.0, 1.0, 0.5]),
        method="predictor_corrector",
        settings={"snr": np.float32(0.25), "corrector_steps": np.int64(1)},
        seed=np.int64(3),
        sigma_data=torch.tensor(1.0),
    )
    views = NCSNScheduler(sigmas=np.array([0.5, 1.0, 3.0])[::-1])
    betas = NCSNScheduler(trained_betas=torch.linspace(0.1, 0.2, 5), num_train_timesteps=5)
    for scheduler in (given, views, betas):
        scheduler.save_pretrained(tmp_path)
        loaded = NCSNScheduler.from_pretrained(tmp_path)
        assert settings_of(loaded) == settings_of(scheduler)
        assert torch.equal(loaded.sigmas, scheduler.sigmas)
    assert given.config.num_train_timesteps == 3
