"""The official configurations: plain values out of them, nothing in them executed."""

from __future__ import annotations

import re
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.checkpoints import network
from helpers.golden import geometric
from hostile.inputs import WRONG_VALUES

from ncsn_fast.checkpoints.load_save import load_checkpoint
from ncsn_fast.checkpoints.official_keys import passed_over
from ncsn_fast.checkpoints.official_yaml import (
    network_settings,
    noise_levels,
    official_config,
    read_official_yaml,
    run_settings,
    sampling_settings,
    training_settings,
)
from ncsn_fast.sampling.sampler import Sampler
from ncsn_fast.training.config import TrainConfig

CIFAR10 = """\
training: {batch_size: 128, n_epochs: 500000, n_iters: 300001, snapshot_freq: 5000, anneal_power: 2}
sampling: {batch_size: 100, step_lr: 0.0000062, n_steps_each: 5, denoise: true}
data:
  dataset: "CIFAR10"
  image_size: 32
  channels: 3
  logit_transform: false
  uniform_dequantization: false
  gaussian_dequantization: false
  random_flip: true
  rescaled: false
model:
  sigma_begin: 50
  num_classes: 232
  ema: true
  ema_rate: 0.999
  spec_norm: false
  sigma_dist: geometric
  sigma_end: 0.01
  normalization: InstanceNorm++
  nonlinearity: elu
  ngf: 128
optim: {weight_decay: 0.000, optimizer: "Adam", lr: 0.0001, beta1: 0.9, amsgrad: false, eps: 1e-8}
"""

DUMPED_V1 = """\
!!python/object:argparse.Namespace
data: !!python/object:argparse.Namespace
  channels: 1
  dataset: MNIST
  image_size: 28
  logit_transform: false
  random_flip: false
device: !!python/object/apply:torch.device
- cuda
dtype: !!python/name:torch.float32 ''
model: !!python/object:argparse.Namespace
  batch_norm: false
  ngf: 64
  num_classes: 10
  sigma_begin: 1
  sigma_end: 0.01
optim: !!python/object:argparse.Namespace
  amsgrad: false
  betas: !!python/tuple
  - 0.9
  - 0.999
  beta1: 0.9
  lr: 0.001
  optimizer: !!python/unicode Adam
  weight_decay: 0.0
training: !!python/object:argparse.Namespace
  algo: dsm
  anneal_power: 2.0
  batch_size: 128
  n_iters: 200001
  ngpu: !!python/long 1
  snapshot_freq: 5000
"""


@pytest.fixture
def read(tmp_path: Path) -> Any:
    def read_text(text: str) -> dict[str, Any]:
        path = tmp_path / "config.yml"
        path.write_text(text, encoding="utf-8")
        return read_official_yaml(path)

    return read_text


def test_published_configuration(read: Any) -> None:
    config = read(CIFAR10)
    assert network_settings(config) == {
        "network": "NCSNv2",
        "channels": 3,
        "image_size": 32,
        "ngf": 128,
        "activation": "elu",
        "rescaled": False,
        "logit_transform": False,
    }
    assert sampling_settings(config) == {
        "method": "annealed_langevin",
        "step_size": 6.2e-6,
        "steps_per_level": 5,
        "denoise": True,
    }
    assert torch.equal(noise_levels(config), torch.from_numpy(geometric(50, 0.01, 232)))


def test_training_settings_are_those_of_our_trainer(read: Any) -> None:
    settings = training_settings(read(CIFAR10))
    assert settings == {
        "steps": 300_001,
        "batch_size": 128,
        "learning_rate": 1e-4,
        "beta1": 0.9,
        "beta2": 0.999,
        "eps": 1e-8,
        "ema": 0.999,
        "anneal_power": 2.0,
        "dequantize": None,
        "flip": True,
        "checkpoint_every": 5000,
    }
    assert TrainConfig(**settings).eps == 1e-8


def test_python_objects_are_read_as_plain_values(read: Any) -> None:
    config = read(DUMPED_V1)
    assert config["data"]["channels"] == 1
    assert config["device"] == ["cuda"]
    assert config["dtype"] == "torch.float32"
    assert config["optim"]["betas"] == [0.9, 0.999]
    assert config["optim"]["optimizer"] == "Adam"
    assert config["training"]["ngpu"] == 1


def test_first_version_has_the_settings_of_its_code(read: Any) -> None:
    config = read(DUMPED_V1)
    settings = network_settings(config)
    assert (settings["network"], settings["ngf"], settings["activation"]) == ("NCSN", 64, "elu")
    assert sampling_settings(config) == {
        "method": "annealed_langevin",
        "step_size": 2e-5,
        "steps_per_level": 100,
        "denoise": False,
    }
    assert torch.equal(noise_levels(config), torch.from_numpy(geometric(1, 0.01, 10)))
    training = training_settings(config)
    assert (training["dequantize"], training["ema"], training["flip"]) == ("uniform", 0.0, False)


def test_consistent_annealed_sampling_is_recognised(read: Any) -> None:
    text = CIFAR10.replace("n_steps_each: 5, denoise: true", "nsigma: 3, consistent: true")
    settings = sampling_settings(read(text))
    assert settings["method"] == "consistent_annealed"
    assert (settings["steps_per_level"], settings["denoise"]) == (3, True)


def test_sampling_settings_may_be_incomplete(read: Any) -> None:
    settings = sampling_settings(read(CIFAR10.replace("n_steps_each: 5, ", "")))
    assert "steps_per_level" not in settings
    assert settings["step_size"] == 6.2e-6


@pytest.mark.parametrize(
    ("dataset", "network"),
    [("CELEBA", "NCSNv2"), ("LSUN", "NCSNv2Deeper"), ("FFHQ", "NCSNv2Deepest")],
)
def test_network_follows_the_data_set(read: Any, dataset: str, network: str) -> None:
    assert network_settings(read(CIFAR10.replace("CIFAR10", dataset)))["network"] == network


def test_uniform_noise_levels(read: Any) -> None:
    levels = noise_levels(read(CIFAR10.replace("geometric", "uniform")))
    torch.testing.assert_close(levels, torch.linspace(50, 0.01, 232))


def test_numbers_that_yaml_takes_for_words(read: Any) -> None:
    config = read(CIFAR10.replace("0.0000062", "62e-7"))
    assert config["sampling"]["step_lr"] == "62e-7"
    assert sampling_settings(config)["step_size"] == 62e-7


@pytest.mark.parametrize(
    "payload",
    [
        "!!python/object/apply:os.system ['touch {}']",
        "!!python/object/apply:subprocess.check_output [['touch', '{}']]",
        "!!python/object/new:os.system ['touch {}']",
        "!!python/object/apply:builtins.open ['{}', 'w']",
        "!!python/object/apply:builtins.eval [\"open('{}', 'w')\"]",
        "!!python/object/new:type {{args: ['z', [], {{extend: !!python/name:exec ''}}], "
        "listitems: \"open('{}', 'w')\"}}",
        "!!python/module:antigravity ''",
    ],
)
def test_nothing_in_a_configuration_is_executed(read: Any, tmp_path: Path, payload: str) -> None:
    trace = tmp_path / "executed"
    config = read(f"data: {payload.format(trace)}\nmodel: {{ngf: {payload.format(trace)}}}\n")
    assert not trace.exists()
    assert "antigravity" not in sys.modules
    with pytest.raises(ValueError, match=r"section|value|expected"):
        network_settings(config)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1, 2", "cannot be read as YAML"),
        ("just words", "not the sections"),
        ("", "not the sections"),
        ("a: !unknown 3", "cannot be read as YAML"),
        ("a: " + "[" * 1000 + "]" * 1000, "cannot be read as YAML"),
        ("a: " + "x" * (1 << 20), "larger than 1 MiB"),
    ],
)
def test_files_that_are_no_configuration_are_refused(read: Any, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        network_settings(read(text))


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no configuration file .*absent\.yml"):
        read_official_yaml(tmp_path / "absent.yml")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("InstanceNorm++", "VarianceNorm", "normalization 'VarianceNorm'"),
        ("spec_norm: false", "spec_norm: true", "spectral"),
        ("ngf: 128", "ngf: wide", "model.ngf is 'wide', where a whole number is expected"),
        ("ngf: 128", "ngf: 12.5", "whole number"),
        ("ngf: 128", "", "no value model.ngf"),
        ("channels: 3", "channels: yes", "data.channels is True"),
        ("rescaled: false", "rescaled: 1", "true or false"),
        ("data:", "dates:", "no section 'data'"),
        ("sigma_end: 0.01", "sigma_end: 0", "must be positive"),
        ("sigma_end: 0.01", "sigma_end: .nan", "model.sigma_end is nan"),
        ("sigma_dist: geometric", "sigma_dist: cosine", "unknown sigma_dist 'cosine'"),
        ("n_steps_each: 5, ", "n_steps_each: few, ", "sampling.n_steps_each is 'few'"),
        ('optimizer: "Adam"', "optimizer: SGD", "only plain Adam"),
        ("amsgrad: false", "amsgrad: true", "only plain Adam"),
        (
            "uniform_dequantization: false\n  gaussian_dequantization: false",
            "uniform_dequantization: true\n  gaussian_dequantization: true",
            "exclude one another",
        ),
    ],
)
def test_unusable_values_are_refused(read: Any, old: str, new: str, message: str) -> None:
    assert old in CIFAR10
    config = read(CIFAR10.replace(old, new))

    def all_settings() -> None:
        for settings in (network_settings, noise_levels, sampling_settings, training_settings):
            settings(config)

    with pytest.raises(ValueError, match=message):
        all_settings()


# Keys that nothing reads, and those that ask for another method.

CONSISTENT = CIFAR10.replace("n_steps_each: 5, denoise: true", "nsigma: 3, consistent: true")
ADVERSARIAL = CIFAR10.replace("n_steps_each: 5, denoise: true", "nsigma: 3, noise_first: true")


def test_published_keys_are_read_without_a_word(read: Any, caplog: Any) -> None:
    text = ADVERSARIAL.replace("ngf: 128", "ngf: 128\n  unet: false\n  dropout: 0.0")
    text += "adversarial: {D_steps: 1}\nbiggan: {ch: 64}\nfast_fid: {batch_size: 50}\n"
    for one in (CIFAR10, DUMPED_V1, text):
        official_config(read(one))
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("lr: 0.0001", "lr: 0.0001, learning_rat: 3", "optim.learning_rat"),
        ("ema_rate:", "ema_rat:", r"model.ema_rat \(is model.ema_rate meant\?\)"),
        ("anneal_power:", "aneal_power:", r"\(is training.anneal_power meant\?\)"),
        ("random_flip:", "random_flipp:", r"\(is data.random_flip meant\?\)"),
        ("step_lr:", "step_llr:", r"\(is sampling.step_lr meant\?\)"),
        ("optim:", "optimm:", r"optimm \(is optim meant\?\)"),
        ("optim:", "sde: {kind: vp}\noptim:", "sde"),
        ("step_lr:", "data_init: true, step_lr:", "sampling.data_init: true"),
    ],
)
def test_keys_that_nothing_reads_are_named(
    read: Any, caplog: Any, old: str, new: str, named: str
) -> None:
    assert old in CIFAR10
    official_config(read(CIFAR10.replace(old, new, 1)))
    assert len(caplog.messages) == 1
    assert re.search(f"passed over: .*{named}", caplog.text)


@pytest.mark.parametrize("text", [CIFAR10, DUMPED_V1], ids=["NCSNv2", "NCSN"])
def test_each_value_in_turn_may_be_anything(read: Any, text: str) -> None:
    config = read(text)
    places = [(s, k) for s, values in config.items() if isinstance(values, dict) for k in values]
    refused = 0
    for (section, key), value in product(places, WRONG_VALUES):
        wrong = {**config, section: {**config[section], key: value}}
        "".join(passed_over(wrong)).encode()  # no half of a character
        for function in (
            network_settings,
            noise_levels,
            sampling_settings,
            training_settings,
            run_settings,
        ):
            try:
                function(wrong)
            except ValueError:
                refused += 1
    assert refused > len(places)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("ngf: 128", "ngf: 128\n  unet: true", r"U-Net \(model.unet: true\)"),
        ("anneal_power: 2", "anneal_power: 2, algo: ssm", r"trains by 'ssm' \(training.algo\)"),
        ("step_lr:", "sigma_dist: linear, step_lr:", "samples on 'linear' noise levels"),
        ("step_lr:", "noise_first: 1, step_lr:", "true or false"),
    ],
)
def test_another_method_is_refused(read: Any, old: str, new: str, message: str) -> None:
    assert old in CIFAR10
    with pytest.raises(ValueError, match=message):
        run_settings(read(CIFAR10.replace(old, new)))


def test_sampling_of_the_code_of_consistent_sampling_is_honoured(read: Any) -> None:
    settings = sampling_settings(read(ADVERSARIAL))
    assert settings["method"] == "annealed_langevin"
    assert (settings["noise_first"], settings["denoise"]) == (True, "last")
    linear = read(CONSISTENT.replace("nsigma: 3,", "nsigma: 3, sigma_dist: linear,"))
    assert sampling_settings(linear)["spacing"] == "linear"
    same = read(CONSISTENT.replace("nsigma: 3,", "nsigma: 3, sigma_dist: geometric,"))
    assert "spacing" not in sampling_settings(same)


def test_what_is_honoured_is_sampled(read: Any, tmp_path: Path) -> None:
    config = read(ADVERSARIAL)
    config["data"] |= {"channels": 2, "image_size": 8}
    config["model"] |= {"ngf": 4, "sigma_begin": 20, "num_classes": 7}
    torch.save([network(divided=False).state_dict(), {}], tmp_path / "c.pth")
    net = load_checkpoint(tmp_path / "c.pth", config)
    sampler = Sampler(net)
    # 7 levels of 3 steps, a row of noise before them, and no further one for denoising.
    assert len(sampler.table) == 22
    other = {key: net.sampling[key] for key in ("step_size", "steps_per_level")}
    usual = Sampler(net, method="annealed_langevin", denoise=True, noise_first=False, **other)
    assert usual.table != sampler.table
