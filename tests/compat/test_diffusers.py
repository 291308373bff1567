"""The scheduler for diffusers, in the loop that its pipelines run."""

import importlib
import inspect
import sys

import pytest
import torch

import ncsn_fast as nf
from ncsn_fast.methods.by_name import METHODS
from ncsn_fast.methods.levels import best_step_size

pytest.importorskip("diffusers", reason="diffusers is not installed: pip install diffusers")

from diffusers import (
    DDPMPipeline,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    UNet2DModel,
)

from ncsn_fast.compat import diffusers_configs as configs
from ncsn_fast.compat.diffusers import NCSNScheduler

SIGMAS = nf.geometric_sigmas(5, 0.05, 20)
SHAPE = (2, 4, 4)


class TinyUNet(torch.nn.Module):
    """Takes (sample, timestep) as diffusers' networks do; the timestep matters."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = torch.nn.Conv2d(2, 8, 3, padding=1)
        self.out = torch.nn.Conv2d(8, 2, 3, padding=1)

    @torch.no_grad()
    def forward(self, x, t):
        t = torch.as_tensor(t).expand(len(x)).view(-1, 1, 1, 1)
        return self.out(torch.tanh(self.conv(x) + 0.05 * t)) + 0.5 * x / (1 + x.abs())


def pipeline(scheduler, net, x, steps=None, generator=None):
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        output = net(scheduler.scale_model_input(x, t), t)
        x = scheduler.step(output, t, x, generator=generator).prev_sample
    return x


def start(n=3):
    return SIGMAS[0] * torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(1))


def scheduler_of(**keywords):
    return NCSNScheduler(sigmas=SIGMAS.tolist(), **{"seed": 7, **keywords})


PREDICTIONS = [
    ("epsilon", "epsilon", None),
    ("epsilon", "epsilon", 1.0),
    ("sample", "denoiser", None),
    ("v_prediction", "v", 1.0),
    ("score", "score", None),
    ("normalized_score", "normalized", None),
]


@pytest.mark.parametrize(("prediction", "kind", "sigma_data"), PREDICTIONS)
def test_a_pipeline_equals_the_sampler_for_every_prediction(prediction, kind, sigma_data):
    net, x = TinyUNet(), start()
    scheduler = scheduler_of(
        prediction_type=prediction, sigma_data=sigma_data, step_size=1e-4, steps_per_level=2
    )
    score = nf.Score(net, kind, "timestep", SIGMAS, sigma_data=sigma_data, quantize=True)
    sampler = nf.Sampler(score, SHAPE, step_size=1e-4, steps_per_level=2)
    expected = sampler(3, seed=7, initial=x)
    assert torch.allclose(pipeline(scheduler, net, x), expected, rtol=1e-5, atol=1e-5)


SETTINGS = {
    "annealed_langevin": {"step_size": 1e-4, "steps_per_level": 2, "denoise": False},
    "consistent_annealed": {"step_size": 1e-3, "steps_per_level": 2, "denoise": True},
    "predictor_corrector": {"step_size": 1e-4},
}


@pytest.mark.parametrize("method", METHODS)
def test_a_pipeline_equals_the_sampler_for_every_method(method):
    net, x, settings = TinyUNet(), start(), SETTINGS.get(method, {})
    scheduler = scheduler_of(method=method, timestep_type="log_sigma", **settings)
    sampler = nf.Sampler(
        nf.Score(net, "epsilon", "log_sigma", SIGMAS), SHAPE, method=method, **settings
    )
    expected = sampler(3, seed=7, initial=x)
    found = pipeline(scheduler, net, x, steps=1000)  # more than there are levels: all of them
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("timestep_type", ["timestep", "label", "sigma", "log_sigma", "c_noise"])
def test_the_network_is_told_the_noise_level_that_add_noise_adds(timestep_type):
    scheduler = scheduler_of(timestep_type=timestep_type, method="euler")
    scheduler.set_timesteps()
    x, z = torch.rand(20, *SHAPE), torch.randn(20, *SHAPE)
    noisy = scheduler.add_noise(x, z, scheduler.timesteps)
    assert torch.allclose(noisy, x + SIGMAS.view(-1, 1, 1, 1) * z, rtol=1e-5, atol=1e-5)
    counted = {"timestep": 19 - torch.arange(20), "label": torch.arange(20)}
    if timestep_type in counted:
        assert torch.equal(scheduler.timesteps, counted[timestep_type])


@pytest.mark.parametrize("spacing", ["ladder", "karras"])
def test_fewer_steps_visit_fewer_levels(spacing):
    scheduler = scheduler_of(method="dpmpp_2m", spacing=spacing)
    scheduler.set_timesteps(8)
    assert len(scheduler.timesteps) == scheduler.num_inference_steps == 8
    assert float(scheduler.sigmas[-1]) == 0
    scheduler = scheduler_of(steps_per_level=3, spacing=spacing)
    scheduler.set_timesteps(24)
    assert len(scheduler.timesteps) == 22  # 7 levels of 3 steps, and denoising
    assert torch.allclose(scheduler.sigmas[[0, 20]], SIGMAS[[0, -1]])


def test_the_default_step_size_follows_the_levels_that_are_visited():
    scheduler = scheduler_of()
    scheduler.set_timesteps()
    ratio = float(SIGMAS[-2] / SIGMAS[-1])
    epsilon = nf.Sampler(
        lambda x, labels: x,
        SHAPE,
        SIGMAS,
        step_size=best_step_size(ratio, float(SIGMAS[-1]), 5),
        steps_per_level=5,
    ).table
    assert scheduler._table.b == pytest.approx(epsilon.b, rel=1e-4)


def test_a_generator_governs_the_noise_and_else_the_seed():
    net, x = TinyUNet(), start()

    def run(generator_seed=None, **keywords):
        generator = None
        if generator_seed is not None:
            generator = torch.Generator().manual_seed(generator_seed)
        return pipeline(scheduler_of(**keywords), net, x, 50, generator)

    assert torch.equal(run(1), run(1, seed=8))
    assert not torch.equal(run(1), run(2))
    assert torch.equal(run(), run())
    assert not torch.equal(run(), run(seed=8))
    torch.manual_seed(0)
    first, second = run(seed=None), run(seed=None)
    torch.manual_seed(0)
    assert torch.equal(run(seed=None), first)
    assert not torch.equal(first, second)


def test_one_generator_per_sample_makes_samples_independent_of_the_batch():
    net, x = TinyUNet(), start()
    generators = [torch.Generator().manual_seed(i) for i in range(3)]
    whole = pipeline(scheduler_of(), net, x, 50, generators)
    alone = pipeline(scheduler_of(), net, x[1:2], 50, [torch.Generator().manual_seed(1)])
    assert torch.allclose(whole[1:2], alone, rtol=1e-5, atol=1e-5)


def test_it_is_saved_and_loaded(tmp_path):
    scheduler = scheduler_of(
        prediction_type="sample", method="predictor_corrector", settings={"snr": 0.16}
    )
    scheduler.save_pretrained(tmp_path)
    loaded = NCSNScheduler.from_pretrained(tmp_path)
    for name in inspect.signature(NCSNScheduler.__init__).parameters.keys() - {"self"}:
        assert loaded.config[name] == scheduler.config[name]
    net, x = TinyUNet(), start()
    assert torch.equal(pipeline(loaded, net, x, 10), pipeline(scheduler, net, x, 10))


def test_a_chain_may_begin_at_a_later_timestep_or_row():
    net, x = TinyUNet(), start()
    scheduler = scheduler_of(method="euler")
    scheduler.set_timesteps()
    later = scheduler.timesteps[12]
    by_timestep = scheduler.step(net(x, later), later, x, return_dict=False)[0]
    scheduler.set_timesteps()
    scheduler.set_begin_index(12)
    by_row = scheduler.step(net(x, later), later, x).prev_sample
    expected = x - (SIGMAS[12] - SIGMAS[13]) * net(x, later)
    assert torch.allclose(by_timestep, expected, atol=1e-5)
    assert torch.equal(by_row, by_timestep)
    assert scheduler.step_index == 13


def test_the_state_keeps_the_dtype_of_the_network():
    scheduler = scheduler_of(method="euler")
    scheduler.set_timesteps()
    x = start().half()
    assert scheduler.step(x, scheduler.timesteps[0], x).prev_sample.dtype == torch.float16


def test_use_out_of_order_is_refused():
    scheduler, x = scheduler_of(method="euler"), start()
    with pytest.raises(ValueError, match=r"call set_timesteps\(\) before step"):
        scheduler.step(x, 19, x)
    pipeline(scheduler, TinyUNet(), x, 4)
    with pytest.raises(ValueError, match="all 4 steps are done"):
        scheduler.step(x, 0, x)
    scheduler.set_timesteps(4)
    with pytest.raises(ValueError, match=r"timestep = 3 is none of this chain"):
        scheduler.step(x, 3, x)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prediction_type": "noise"}, "prediction_type = 'noise'"),
        ({"timestep_type": "time"}, "timestep_type = 'time'"),
        ({"method": "magic"}, "method = 'magic'"),
        ({"prediction_type": "v_prediction"}, "give sigma_data=1 for VP"),
        ({"scaled_state": True}, "give sigma_data"),
        ({}, "num_inference_steps = 3: one noise level takes 5"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        scheduler_of(**settings).set_timesteps(3)


def test_without_diffusers_the_import_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers.configuration_utils", None)
    monkeypatch.delitem(sys.modules, "ncsn_fast.compat.diffusers")
    with pytest.raises(ImportError, match="pip install diffusers"):
        importlib.import_module("ncsn_fast.compat.diffusers")


def test_the_config_of_a_scheduler_with_betas_gives_its_noise_levels() -> None:
    theirs = EulerDiscreteScheduler(beta_schedule="scaled_linear")
    ours = NCSNScheduler.from_config(theirs.config, method="euler", seed=1)
    theirs.set_timesteps(1000)
    torch.testing.assert_close(ours.sigmas[:-1].float(), theirs.sigmas[:-1], rtol=1e-4, atol=0)
    assert (ours.config.sigma_data, ours.config.method) == (1.0, "euler")
    assert NCSNScheduler.from_config(ours.config).config.sigmas == ours.config.sigmas


def test_the_config_of_a_scheduler_without_betas_is_refused() -> None:
    config = FlowMatchEulerDiscreteScheduler().config
    with pytest.raises(ValueError, match=r"shift.*names no betas"):
        NCSNScheduler.from_config(config)


def of_ddpm(method="euler", **config):
    return NCSNScheduler.from_config(DDPMScheduler(**config).config, method=method, seed=0)


def unscaled_loop(scheduler, x, first=0):
    """As DDPMPipeline has it, without scale_model_input."""
    net = TinyUNet()
    for t in scheduler.timesteps[first:]:
        x = scheduler.step(net(x, t / 1000), t, x).prev_sample
    return x


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("dpmpp_2m", 2)])
@pytest.mark.parametrize("first", [0, 4])
def test_a_network_with_betas_is_solved_as_by_diffusers(prediction, method, order, first):
    ours = of_ddpm(method, prediction_type=prediction)
    theirs = DPMSolverMultistepScheduler(prediction_type=prediction, solver_order=order)
    ours.set_timesteps(20)
    theirs.set_timesteps(timesteps=ours.timesteps.tolist())
    if first:
        ours.set_begin_index(first)
        theirs.set_begin_index(first)
    x = start() / SIGMAS[0]
    expected = unscaled_loop(theirs, x, first)
    found = unscaled_loop(ours, x, first)
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("method", METHODS)
def test_a_scaled_state_is_the_state_in_other_units(method):
    settings = {"sigma_data": 0.5, "method": method, **SETTINGS.get(method, {})}
    net, x = TinyUNet(), start()
    expected = pipeline(scheduler_of(**settings), net, x)
    scaled = x / (SIGMAS[0] ** 2 + 0.25).sqrt()
    found = pipeline(scheduler_of(scaled_state=True, **settings), net, scaled)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("first", [7, 8])
def test_heuns_method_may_begin_at_either_row_of_a_step(first):
    scheduler = of_ddpm("heun")
    scheduler.set_timesteps(19)
    told = scheduler.timesteps[first:]
    assert (first == 7) == bool(told[0] == told[1])  # the second row of a step, or a first
    levels = torch.cat([scheduler.sigmas[first:-1].unique().flip(0), torch.zeros(1)])
    found = NCSNScheduler.from_config(scheduler.config, sigmas=levels[:-1].tolist())
    found.set_timesteps()
    x = start() / SIGMAS[0]
    scheduler.set_begin_index(first)
    state, net = x, lambda x: torch.tanh(x)
    for t in told:
        state = scheduler.step(net(state), t, state).prev_sample
    expected = x
    for t in found.timesteps:
        expected = found.step(net(expected), t, expected).prev_sample
    torch.testing.assert_close(state, expected, rtol=1e-4, atol=1e-4)


def test_a_diffusers_pipeline_runs_it_is_saved_and_loaded(tmp_path):
    torch.manual_seed(0)
    blocks = {
        "down_block_types": ("DownBlock2D",) * 2,
        "up_block_types": ("UpBlock2D",) * 2,
        "block_out_channels": (8, 8),
        "norm_num_groups": 4,
    }
    unet = UNet2DModel(sample_size=8, layers_per_block=1, **blocks)

    def images(pipe):
        pipe.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        return pipe(2, generator, num_inference_steps=4, output_type="np").images

    pipe = DDPMPipeline(unet, of_ddpm("ancestral"))
    found = images(pipe)
    assert found.shape == (2, 8, 8, 3)
    pipe.save_pretrained(tmp_path)
    loaded = DDPMPipeline.from_pretrained(tmp_path)
    assert isinstance(loaded.scheduler, NCSNScheduler)
    assert (images(loaded) == found).all()


def test_noise_is_added_as_by_ddpm_and_at_the_row_where_a_chain_begins():
    ours = of_ddpm()
    x, z = torch.rand(3, *SHAPE), torch.randn(3, *SHAPE)
    t = torch.tensor([0, 500, 999])
    expected = DDPMScheduler().add_noise(x, z, t)
    assert torch.allclose(ours.add_noise(x, z, t), expected, rtol=1e-5, atol=1e-5)
    between = scheduler_of(spacing="karras", method="euler")
    between.set_timesteps(7)
    between.set_begin_index(3)
    noisy = between.add_noise(x, z, between.timesteps[3:4].expand(3))
    assert torch.allclose(noisy, x + between.sigmas[3] * z)


def test_no_signal_at_the_last_timestep_is_a_large_level():
    ours = of_ddpm(prediction_type="v_prediction", rescale_betas_zero_snr=True)
    assert torch.isfinite(ours.sigmas).all()
    assert float(ours.sigmas[0]) > 1e4
    ours.set_timesteps(10)
    assert unscaled_loop(ours, start() / SIGMAS[0]).abs().max() < 100


def test_what_another_scheduler_told_its_network_is_told_again():
    video = EulerDiscreteScheduler(timestep_type="continuous", prediction_type="v_prediction")
    ours = NCSNScheduler.from_config(video.config, method="euler")
    torch.testing.assert_close(ours.timesteps, video.timesteps, rtol=1e-4, atol=1e-4)


def test_the_initial_state_of_a_scaled_chain_has_unit_variance():
    assert of_ddpm().init_noise_sigma == 1
    assert scheduler_of().init_noise_sigma == pytest.approx(5)


def test_every_row_of_a_chain_has_its_turn_and_another_chain_its_own_scheduler():
    net, x = TinyUNet(), start()
    for method in ("euler", "annealed_langevin"):
        scheduler = scheduler_of(method=method, steps_per_level=2)
        scheduler.set_timesteps(9)
        twice = scheduler.timesteps.repeat_interleave(2)  # as of two chains that take turns

        def run(scheduler=scheduler, twice=twice):
            for t in twice:
                scheduler.step(net(x, t), t, x)

        with pytest.raises(ValueError, match=r"the next one of this chain.*Give each pipeline its"):
            run()
    scheduler.set_timesteps(9)
    t = scheduler.timesteps[0]
    scheduler.step(x, t, x)
    with pytest.raises(ValueError, match="sample has shape"):
        scheduler.step(x[:1], scheduler.timesteps[1], x[:1])


@pytest.mark.parametrize(
    ("config", "wrong"),
    [
        ({"sigma_data": 1.0}, True),
        ({"sigma_data": 0.5}, True),
        ({"sigma_data": 1.0, "scaled_state": True}, False),
        ({}, False),
    ],
)
def test_a_loop_that_does_not_scale_what_the_network_sees_is_told(config, wrong, caplog):
    scheduler = scheduler_of(method="euler", **config)
    heard = []
    for loop in (pipeline, lambda scheduler, net, x, steps: unscaled_loop(scheduler, x)):
        configs.say.cache_clear()
        caplog.clear()
        scheduler.set_timesteps(4)
        loop(scheduler, TinyUNet(), start(), 4)
        heard.append([one.getMessage() for one in caplog.records])
    assert heard[0] == []
    assert len(heard[1]) == int(wrong)  # once
    assert not wrong or "give scaled_state=True" in heard[1][0]


def test_a_scheduler_that_is_done_says_so_wherever_it_is_asked():
    scheduler, x = scheduler_of(method="euler"), start()
    pipeline(scheduler, TinyUNet(), x, 4)
    for t in (scheduler.timesteps[0], None):
        with pytest.raises(ValueError, match=r"all 4 steps are done: call set_timesteps\(\)"):
            scheduler.scale_model_input(x, t)


def test_before_a_chain_the_input_is_scaled_as_in_training_and_nothing_is_begun():
    scheduler = scheduler_of(sigma_data=0.5)
    for t in (3, torch.tensor(7), torch.tensor([3, 3, 3])):
        sigma = SIGMAS.flip(0)[int(torch.as_tensor(t).flatten()[0])]
        x = start()
        expected = x / (sigma**2 + 0.25).sqrt()
        assert torch.allclose(scheduler.scale_model_input(x, t), expected)
    assert scheduler.step_index is None


@pytest.mark.parametrize("method", ["euler", "heun", "annealed_langevin"])
def test_the_levels_to_visit_may_be_given(method):
    levels = SIGMAS[[0, 3, 9, 14]]
    told = 19 - torch.tensor([0, 3, 9, 14])
    expected = NCSNScheduler(sigmas=levels.tolist(), method=method)
    expected.set_timesteps()
    for given in (
        {"sigmas": levels},
        {"sigmas": [*levels.tolist(), 0.0]},
        {"sigmas": levels.numpy()[::-1].copy()[::-1]},
        {"timesteps": told},
        {"timesteps": told.tolist()},
    ):
        scheduler = scheduler_of(method=method)
        scheduler.set_timesteps(**given)
        assert torch.equal(scheduler.sigmas, expected.sigmas)
        assert scheduler.num_inference_steps == len(scheduler.timesteps)
        assert set(scheduler.timesteps.tolist()) == set(told.tolist())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sigmas": [1.0, 2.0]}, "sigmas: .*reverse the list"),
        ({"sigmas": "abc"}, "sigmas is str"),
        ({"timesteps": [3, 7]}, "timesteps: .*reverse the list"),
        ({"timesteps": [30]}, "timestep = 30: the network was trained on the whole numbers"),
        ({"timesteps": [3.5]}, r"timestep = 3\.5"),
        ({"timesteps": [-1]}, "timestep = -1"),
        ({"timesteps": [3], "num_inference_steps": 5}, "num_inference_steps and timesteps given"),
        ({"num_inference_steps": 2.5}, r"num_inference_steps = 2\.5"),
        ({"num_inference_steps": 0}, "num_inference_steps = 0"),
    ],
)
def test_levels_that_cannot_be_visited_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        scheduler_of(method="euler").set_timesteps(**given)


def test_a_step_is_refused_what_does_not_belong_to_it():
    scheduler, x = scheduler_of(method="ancestral"), start()
    scheduler.set_timesteps(5)
    t = scheduler.timesteps[0]
    generator = torch.Generator()
    for given, message in (
        ((x[:, :1], t, x), r"model_output is \(3, 1, 4, 4\)"),
        ((None, t, x), "model_output has to be"),
        ((x, t, x.long()), "sample has to be"),
        ((x, "soon", x), "timestep = 'soon'"),
        ((x, float(t) + 0.5, x), "is none of this chain"),
        ((x, scheduler.timesteps[:2], x), "is none of this chain"),
        ((x, t, x, [generator] * 2), "generator is a list of 2, the samples are 3"),
        ((x, t, x, [1, 2, 3]), "generator has to be"),
        ((x, t, x, "cpu"), "generator has to be"),
    ):
        scheduler.set_timesteps(5)
        with pytest.raises(ValueError, match=message):
            scheduler.step(*given)
    for wrong in (-1, 6, 1.5, None):
        with pytest.raises(ValueError, match="begin_index"):
            scheduler.set_begin_index(wrong)


@pytest.mark.parametrize("kind", [int, float, torch.float16, torch.int32, torch.float64])
def test_a_timestep_may_come_in_any_dtype(kind):
    def chain(kind):
        scheduler, x = scheduler_of(method="euler"), start()
        scheduler.set_timesteps(5)
        for t in scheduler.timesteps:
            told = kind(t) if kind in (int, float) else t.to(kind)
            x = scheduler.step(x, told, x).prev_sample
        return x

    assert torch.equal(chain(kind), chain(torch.int64))


def test_noise_for_training_is_that_of_its_timesteps_after_a_chain_too():
    scheduler = scheduler_of(method="euler")
    x, z, t = torch.rand(3, *SHAPE), torch.randn(3, *SHAPE), torch.tensor([0, 7, 19])
    expected = scheduler.add_noise(x, z, t)
    assert torch.allclose(expected, x + SIGMAS.flip(0)[t].view(-1, 1, 1, 1) * z)
    scheduler.set_timesteps(5)
    scheduler.set_begin_index(0)
    for told in scheduler.timesteps:
        scheduler.step(x, told, x)
    assert torch.equal(scheduler.add_noise(x, z, t), expected)
    for wrong in ([-1, 0, 1], [0, 1, 20], [0.5, 1, 2]):
        with pytest.raises(ValueError, match="the network was trained on the whole numbers"):
            scheduler.add_noise(x, z, torch.tensor(wrong))


MEAN, DEVIATION = 0.5, 0.2


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_few_steps_of_a_ddpm_keep_the_deviation_of_the_data(schedule):
    """The exact network of N(½, 0.2²), told timesteps."""
    deviations = []
    for steps in (10, 20, 50):
        scheduler = NCSNScheduler.from_config(
            DDPMScheduler(beta_schedule=schedule, clip_sample=False).config, method="dpmpp_2m"
        )
        levels = scheduler.sigmas[:-1].double().flip(0)
        scheduler.set_timesteps(steps)
        x = torch.randn(20000, 1, generator=torch.Generator().manual_seed(0))
        for t in scheduler.timesteps:
            sigma = float(levels[int(t)])
            state = x.double() * (1 + sigma**2) ** 0.5
            noise = sigma * (state - MEAN) / (sigma**2 + DEVIATION**2)
            x = scheduler.step(noise.float(), t, x).prev_sample
        assert abs(float(x.mean()) - MEAN) < 0.01
        deviations.append(float(x.std()))
    assert deviations == pytest.approx([DEVIATION] * 3, abs=0.008)
    assert deviations[-1] == pytest.approx(DEVIATION, abs=0.003)
