"""The presets against the published settings, and against the rules these came from."""

import inspect

import pytest
import torch

from ncsn_fast.checkpoints.official_yaml import run_settings
from ncsn_fast.methods.levels import best_step_size, geometric_sigmas
from ncsn_fast.models.by_name import build
from ncsn_fast.runs.convert import official_config
from ncsn_fast.training.config import TrainConfig, TrainRun
from ncsn_fast.training.presets import PRESETS

# name: network, ngf, channels, size, σ₁, L, T, ε, learning rate, batch, steps
PUBLISHED = {
    "mnist-v1": ("NCSN", 64, 1, 28, 1, 10, 100, 2e-5, 1e-3, 128, 200_000),
    "cifar10-v1": ("NCSN", 128, 3, 32, 1, 10, 100, 2e-5, 1e-3, 128, 200_000),
    "celeba-v1": ("NCSN", 128, 3, 32, 1, 10, 100, 2e-5, 1e-3, 128, 200_000),
    "cifar10": ("NCSNv2", 128, 3, 32, 50, 232, 5, 6.2e-6, 1e-4, 128, 300_000),
    "celeba": ("NCSNv2", 128, 3, 64, 90, 500, 5, 3.3e-6, 1e-4, 128, 210_000),
    "church": ("NCSNv2Deeper", 128, 3, 96, 140, 788, 4, 4.9e-6, 1e-4, 128, 200_000),
    "bedroom": ("NCSNv2Deeper", 128, 3, 128, 190, 1086, 3, 1.8e-6, 1e-4, 128, 150_000),
    "tower": ("NCSNv2Deeper", 128, 3, 128, 190, 1086, 3, 1.8e-6, 1e-4, 128, 150_000),
    "ffhq": ("NCSNv2Deepest", 128, 3, 256, 348, 2311, 3, 9e-7, 1e-4, 32, 80_000),
}
BUNDLED = {"digits", "mnist", "fashion"}
VERSION_1 = {name for name in PUBLISHED if name.endswith("-v1")}


def test_the_presets_are_the_published_ones_and_those_of_the_bundled_networks():
    assert set(PRESETS) == {*PUBLISHED, *BUNDLED}


@pytest.mark.parametrize("name", PUBLISHED)
def test_numbers_are_those_of_the_papers(name):
    p = PRESETS[name]
    assert PUBLISHED[name] == (
        p.network,
        p.ngf,
        p.channels,
        p.image_size,
        p.sigma_max,
        p.num_levels,
        p.steps_per_level,
        p.step_size,
        p.learning_rate,
        p.batch_size,
        p.steps,
    )
    assert p.sigma_min == 0.01
    assert not p.ema_warmup
    assert p.eps == (1e-3 if name == "ffhq" else 1e-8)


@pytest.mark.parametrize("name", PUBLISHED)
def test_first_version_dequantises_and_second_averages_and_denoises(name):
    p = PRESETS[name]
    first = name in VERSION_1
    assert (p.dequantize, p.ema, p.denoise) == (
        ("uniform", 0.0, False) if first else (None, 0.999, True)
    )


def test_only_faces_are_cropped_and_only_grey_pictures_are_not_mirrored():
    assert {name for name, p in PRESETS.items() if p.crop} == {"celeba", "celeba-v1"}
    assert PRESETS["celeba"].crop == PRESETS["celeba-v1"].crop == 140
    assert {name for name, p in PRESETS.items() if not p.flip} == {*BUNDLED, "mnist-v1"}


# Church's published step size does not come from the rule.
@pytest.mark.parametrize("name", sorted(set(PUBLISHED) - VERSION_1 - {"church"}))
def test_step_sizes_follow_from_the_levels(name):
    p = PRESETS[name]
    ratio = (p.sigma_max / p.sigma_min) ** (1 / (p.num_levels - 1))
    best = best_step_size(ratio, p.sigma_min, p.steps_per_level)
    assert p.step_size == pytest.approx(best, rel=0.02)


@pytest.mark.parametrize("name", ["mnist-v1", "cifar10-v1", "cifar10", "celeba", "bedroom", "ffhq"])
def test_an_official_configuration_says_the_same(name):
    p = PRESETS[name]
    sigmas = geometric_sigmas(p.sigma_max, p.sigma_min, p.num_levels)
    config = {key: getattr(p, key) for key in ("network", "ngf", "channels", "image_size")}
    with torch.device("meta"):
        net = build(config, sigmas)
    if name not in VERSION_1:
        net.sampling = {
            "method": "annealed_langevin",
            "step_size": p.step_size,
            "steps_per_level": p.steps_per_level,
            "denoise": p.denoise,
        }
    told = run_settings(official_config(net))
    expected = {**p.settings(), "steps": p.steps + 1}
    assert {key: told[key] for key in expected} == expected
    assert told["crop"] == p.crop


@pytest.mark.parametrize("name", PRESETS)
def test_every_setting_is_one_of_a_run(name):
    known = {*inspect.signature(TrainRun).parameters, *inspect.signature(TrainConfig).parameters}
    settings = PRESETS[name].settings()
    assert set(settings) <= known
    assert None not in settings.values()


def test_the_larger_bundled_networks_are_told_classes():
    for name in BUNDLED - {"digits"}:
        settings = PRESETS[name].settings()
        assert settings["conditional"]
        assert settings["image_size"] == 28
        assert not {"sigma_max", "num_levels", "step_size", "dequantize"} & set(settings)
    assert PRESETS["fashion"].class_names.split(",")[9] == "Boot"


def test_the_digits_leave_their_noise_levels_to_the_data():
    settings = PRESETS["digits"].settings()
    assert not {"sigma_max", "num_levels", "step_size", "dequantize"} & set(settings)
    assert (settings["ngf"], settings["steps"], settings["batch_size"]) == (32, 10_000, 64)
    assert (settings["steps_per_level"], settings["learning_rate"]) == (10, 1e-3)
    assert settings["ema_warmup"]
