"""ncsn-fast train as a stranger uses it: settings from presets, files, flags and data."""

import json
import re
import sys

import numpy as np
import pytest
import torch
import yaml
from helpers.command import invoke, succeed
from PIL import Image

import ncsn_fast as nf
from ncsn_fast.checkpoints.official_yaml import run_settings
from ncsn_fast.checkpoints.tensor_file import read_tensors
from ncsn_fast.cli import main
from ncsn_fast.data.digits import digits
from ncsn_fast.inference.automatic import Choice
from ncsn_fast.methods.levels import best_step_size
from ncsn_fast.training import forms
from ncsn_fast.training.presets import PRESETS


def test_help_of_train_shows_every_option_and_preset():
    output = succeed("train", "--help-all")
    for parameter in main.commands["train"].params:
        assert parameter.opts[0] in output
    for name in PRESETS:
        assert f"\n  {name} " in output
    assert "Noise levels and sampling:\n  --schedule" in output


def test_train_then_resume_then_sample(tmp_path):
    run = tmp_path / "run"
    small = ("--ngf", 4, "--batch-size", 8, "--steps-per-level", 1)
    output = succeed("train", "--out", run, "--steps", 3, *small)
    assert "1400 images of (1, 8, 8). Chosen from them: 21 noise levels" in output
    assert f"ncsn-fast sample {run / 'model.safetensors'}" in output
    output = succeed("train", "--out", run, "--resume", "--steps", 12)
    assert "from step 3 to 12" in output
    assert json.loads((run / "log.jsonl").read_text().splitlines()[-1])["step"] == 10
    assert "is at step 12 already" in succeed("train", "--out", run, "--resume")
    Image.open(run / "loss.png").verify()
    succeed("sample", run / "model.safetensors", "-n", 2, "--out", tmp_path / "samples")


def settings_of(run):
    stored = json.loads((run / "run.json").read_text())
    return {**stored["run"], **stored["training"]}


TINY = ("--ngf", 4, "--batch-size", 4, "--steps", 2)


def test_a_preset_sets_what_flags_do_not(tmp_path):
    output = succeed("train", "--preset", "digits", "--out", tmp_path, *TINY)
    assert "Settings: preset digits, data digits, image_size 8, channels 1, network NCS" in output
    assert "Chosen from them: 21 noise levels" in output
    settings = settings_of(tmp_path)
    assert (settings["steps_per_level"], settings["learning_rate"]) == (10, 1e-3)
    assert (settings["ngf"], settings["steps"], settings["preset"]) == (4, 2, "digits")
    assert nf.load_checkpoint(tmp_path / "model.safetensors").sampling["steps_per_level"] == 10


@pytest.mark.parametrize(
    ("given", "cooldown"), [((), 10_000), ((3300,), 2500), ((300,), 227), ((300, 40), 40)]
)
def test_the_rate_falls_in_a_presets_share_of_the_run(tmp_path, monkeypatch, given, cooldown):
    named = [word for pair in zip(("--steps", "--cooldown"), given, strict=False) for word in pair]
    seen = []

    def train(run, config, **told):
        seen.append(config.cooldown)
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["ncsn_fast.runs.train"], "train", train)
    invoke("train", "--preset", "mnist", "--data", tmp_path, "--out", tmp_path / "run", *named)
    assert seen == [cooldown]


def test_published_noise_levels_need_no_rules(tmp_path):
    given = ("--preset", "cifar10", "--channels", 1, "--image-size", 8)
    output = succeed("train", "--out", tmp_path, *given, *TINY, "--no-denoise")
    assert "As given: 232 noise levels from 50 down to 0.01, 5 steps per level" in output
    net = nf.load_checkpoint(tmp_path / "model.safetensors")
    assert torch.equal(net.sigmas, nf.geometric_sigmas(50, 0.01, 232))
    assert (net.sampling["step_size"], net.sampling["denoise"]) == (6.2e-6, False)
    settings = settings_of(tmp_path)
    assert settings["flip"]
    assert not settings["ema_warmup"]


def test_the_schedule_comes_from_the_data_on_demand(tmp_path):
    given = ("--preset", "cifar10", "--channels", 1, "--image-size", 8, *TINY)
    output = succeed("train", "--out", tmp_path / "a", *given, "--schedule", "auto")
    assert "Chosen from them: 21 noise levels from 4.8 down" in output
    # A number beside it is kept, and the others suit it.
    succeed("train", "--out", tmp_path / "b", *given, "--schedule", "auto", "--num-levels", 7)
    net = nf.load_checkpoint(tmp_path / "b" / "model.safetensors")
    assert len(net.sigmas) == 7
    assert float(net.sigmas[0]) == pytest.approx(4.8, abs=0.01)
    assert net.sampling["step_size"] == pytest.approx(
        best_step_size(480 ** (1 / 6), 0.01, 5), rel=1e-3
    )


@pytest.mark.parametrize(
    ("flags", "levels", "step_size"),
    [
        (("--sigma-max", 3), 20, best_step_size(300 ** (1 / 19), 0.01, 5)),
        (("--sigma-max", 3, "--num-levels", 5), 5, best_step_size(300 ** (1 / 4), 0.01, 5)),
        (("--step-size", 1e-5), 21, 1e-5),
    ],
)
def test_numbers_of_the_schedule_that_are_given_are_kept(tmp_path, flags, levels, step_size):
    succeed("train", "--out", tmp_path, *TINY, *flags)
    net = nf.load_checkpoint(tmp_path / "model.safetensors")
    assert len(net.sigmas) == levels
    assert net.sampling["step_size"] == pytest.approx(step_size, rel=1e-3)
    if "--sigma-max" in flags:
        assert float(net.sigmas[0]) == pytest.approx(3)


def test_a_resumed_run_keeps_the_noise_levels_it_chose(tmp_path, monkeypatch):
    succeed("train", "--out", tmp_path, *TINY)
    assert settings_of(tmp_path)["num_levels"] == 21
    # As on another machine, where the rules may round otherwise.
    monkeypatch.setattr("ncsn_fast.runs.train.auto_schedule", None)
    output = succeed("train", "--out", tmp_path, "--resume", "--steps", 3)
    assert "As before: 21 noise levels" in output


def test_settings_from_a_file(tmp_path):
    path = tmp_path / "mine.yml"
    path.write_text(
        "preset: digits\nngf: 4\nsteps: 9\nbatch_size: 4\nlearning_rate: 1e-4\n"
        "flip: yes\nnum_levels: 6\ncrop:\n"
    )
    run = tmp_path / "run"
    succeed("train", "--config", path, "--out", run, "--steps", 2)
    settings = settings_of(run)
    told = ("ngf", "steps", "learning_rate", "flip", "num_levels", "steps_per_level", "preset")
    assert [settings[name] for name in told] == [4, 2, 1e-4, True, 6, 10, "digits"]


def test_what_a_preset_sets_can_be_taken_back(tmp_path):
    images = (255 * digits("train").images[:8]).byte()
    np.save(tmp_path / "faces.npy", images.numpy())
    small = ("--channels", 1, "--image-size", 8, "--schedule", "auto", "--steps-per-level", 1)
    run = tmp_path / "run"
    data = ("--data", tmp_path / "faces.npy", "--preset", "celeba-v1", "--crop", 0)
    succeed("train", *data, "--out", run, "--dequantize", "none", "--no-flip", *small, *TINY)
    settings = settings_of(run)
    assert (settings["crop"], settings["dequantize"], settings["flip"]) == (None, None, False)
    assert (settings["ema"], settings["denoise"], settings["network"]) == (0, False, "NCSN")


def test_a_file_that_asks_for_the_data_s_schedule_keeps_its_own_numbers(tmp_path):
    path = tmp_path / "mine.yml"
    path.write_text("preset: cifar10\nchannels: 1\nimage_size: 8\nschedule: auto\nnum_levels: 7\n")
    succeed("train", "--config", path, "--out", tmp_path / "run", *TINY)
    assert settings_of(tmp_path / "run")["num_levels"] == 7
    assert settings_of(tmp_path / "run")["sigma_max"] == pytest.approx(4.8, abs=0.01)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ngf: 0", "mine.yml: ngf: 0 is not in the range 1 or more"),
        ("ngf: 2.5", "mine.yml: ngf: '2.5' is not a valid whole number"),
        ("ngf: [4]", "mine.yml: ngf is [4], where one value is expected"),
        ("flip: maybe", "mine.yml: flip: 'maybe' is not a valid boolean"),
        ("preset: cifar", "mine.yml: preset: 'cifar' is not one of 'digits'"),
        (
            "learning-rate: 1",
            "mine.yml sets learning-rate (learning_rate?): known are ",
        ),
        ("out: a", "mine.yml sets out: known are"),
        ("- 3", "holds a list, not the sections (data:, model:, …)"),
        ("data: {channels: 1}", "mine.yml: the configuration has no section 'model'"),
    ],
)
def test_settings_in_a_file_are_checked_as_flags_are(tmp_path, text, message):
    (tmp_path / "mine.yml").write_text(text)
    result = invoke("train", "--out", tmp_path / "run", "--config", tmp_path / "mine.yml")
    assert result.exit_code in (1, 2)
    assert message in result.output


OFFICIAL = """\
training: {batch_size: 4, n_iters: 2, anneal_power: 1, snapshot_freq: 1000}
sampling: {step_lr: 5.0e-6, n_steps_each: 2, denoise: false}
data: {dataset: CIFAR10, image_size: 8, channels: 1, random_flip: true, rescaled: true}
model: {sigma_begin: 9, sigma_end: 0.01, num_classes: 30, sigma_dist: geometric, ema: true,
  ema_rate: 0.9, normalization: InstanceNorm++, nonlinearity: swish, ngf: 4}
optim: {optimizer: Adam, lr: 0.0003, beta1: 0.8, eps: 1.0e-7}
"""


def test_an_official_configuration_trains(tmp_path):
    path, run = tmp_path / "official.yml", tmp_path / "run"
    path.write_text(OFFICIAL)
    succeed("train", "--config", path, "--out", run)
    net = nf.load_checkpoint(run / "model.safetensors")
    assert torch.equal(net.sigmas, nf.geometric_sigmas(9, 0.01, 30))
    assert (net.config["activation"], net.config["rescaled"]) == ("swish", True)
    assert net.sampling == {
        "method": "annealed_langevin",
        "step_size": 5e-6,
        "steps_per_level": 2,
        "denoise": False,
    }
    settings = settings_of(run)
    told = ("steps", "batch_size", "learning_rate", "beta1", "eps", "ema", "anneal_power", "flip")
    assert [settings[name] for name in told] == [2, 4, 3e-4, 0.8, 1e-7, 0.9, 1, True]
    assert not settings["ema_warmup"]


def test_an_official_configuration_gives_way_to_flags_and_data(tmp_path):
    path = tmp_path / "official.yml"
    path.write_text(OFFICIAL)
    output = succeed(
        "train", "--config", path, "--out", tmp_path / "run", "--schedule", "auto", "--ngf", 6
    )
    # The data are rescaled, so their distances are twice as long.
    assert "Chosen from them: 23 noise levels from 9.6" in output
    assert nf.load_checkpoint(tmp_path / "run" / "model.safetensors").config["ngf"] == 6


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("denoise: false", "consistent: true", "sampling.consistent: True"),
        ("geometric", "uniform", "model.sigma_dist: uniform"),
        ("image_size: 8", "image_size: [8, 9]", "data.image_size is [8, 9]"),
        ("Adam", "SGD", "only plain Adam"),
    ],
)
def test_official_settings_that_are_not_ours_are_refused(tmp_path, old, new, message):
    assert old in OFFICIAL
    (tmp_path / "o.yml").write_text(OFFICIAL.replace(old, new))
    result = invoke("train", "--config", tmp_path / "o.yml", "--out", tmp_path / "run")
    assert result.exit_code == 2
    assert "o.yml: " in result.output
    assert message in result.output


def test_faces_of_an_official_configuration_are_cropped():
    config = yaml.safe_load(OFFICIAL)
    assert run_settings(config)["crop"] is None
    config["data"]["dataset"] = "CELEBA"
    assert run_settings(config)["crop"] == 140


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--preset", "cifar10"),
            "the images of digits have 1 channel, but preset cifar10 is for 3: choose yours with "
            "--data FOLDER, or say --channels 1 to train on them as they are",
        ),
        (("--preset", "mnist-v1"), "digits are 8×8, but preset mnist-v1 is for 28×28"),
        (("--image-size", 16), "the settings are for 16×16: choose yours"),
        (("--schedule", "preset"), "--schedule preset takes the noise levels of a --preset"),
        (("--preset", "digits", "--schedule", "preset"), "give one that has them"),
        (("--sigma-max", 0.001), "sigma_max = 0.001, sigma_min = 0.01"),
        (("--step-size", 1), "step_size = 1: annealed Langevin dynamics needs 0 < ε <"),
        (("--rescaled", "--logit-transform"), "rescaled and logit_transform exclude each other"),
        (("--accumulate", 3), "accumulate = 3 does not divide batch_size = 64"),
        (("--data", "PHOTOS"), "give image_size, e.g. --image-size 32, to cut"),
        (("--data", "PHOTOS", "--image-size", 13), "leave them out with --damaged skip"),
        (("--data", "ARRAY", "--preset", "celeba"), "has crop 140, which is for a folder of files"),
        (("--layout", "NHW"), "the digits are no file: --layout NHW is not for them"),
        (("--data", "ARRAY", "--key", "a"), "--key a names an array of an .npz file"),
        (("--data", "ARRAY", "--values", "signed"), "sees them as they are: add --rescaled"),
        (("--data", "ODD"), "NCSNv2 cannot take images of 9×14"),
        (("--data", "ODD", "--network", "NCSNv2Deepest"), "e.g. to 16×16"),
        (("--data", "ONE"), "holds 1 image: noise levels come from distances between images"),
        (("--data", "UNCLEAR"), "say so with --layout NHW"),
        (("--data", "SEVERAL"), "only x_train, y_train: say which one to load with --key NAME"),
    ],
)
def test_data_and_settings_that_do_not_fit_are_refused_before_work_begins(
    tmp_path, arguments, message
):
    photos, array = tmp_path / "photos", tmp_path / "images.npy"
    photos.mkdir()
    for i, size in enumerate([(16, 12), (20, 20), (12, 30)]):
        Image.new("RGB", size).save(photos / f"{i}.png")
    np.save(array, np.zeros((4, 64, 64, 3), np.uint8))
    places = {"PHOTOS": photos, "ARRAY": array}
    for name, shape in (("ODD", (4, 1, 9, 14)), ("UNCLEAR", (4, 8, 8)), ("ONE", (1, 1, 8, 8))):
        places[name] = tmp_path / f"{name}.npy"
        np.save(places[name], np.arange(np.prod(shape), dtype=np.uint8).reshape(shape))
    places["SEVERAL"] = tmp_path / "several.npz"
    np.savez(places["SEVERAL"], x_train=np.zeros((4, 8, 8), np.uint8), y_train=np.zeros(4))
    given = (places.get(argument, argument) for argument in arguments)
    result = invoke("train", "--out", tmp_path / "run", *given)
    assert result.exit_code in (1, 2)
    assert message in result.output
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["train", "schedule"])
def test_sizes_that_no_network_takes_are_refused_before_images_are_compared(
    command, tmp_path, monkeypatch
):
    np.save(tmp_path / "a.npy", np.zeros((4, 1, 9, 14), np.uint8))
    for module in ("train", "schedule"):
        monkeypatch.setattr(f"ncsn_fast.runs.{module}.auto_schedule", None)
    data = ("--data",) if command == "train" else ()
    result = invoke(command, *data, tmp_path / "a.npy", "--out", tmp_path / "run")
    assert result.exit_code == 1
    assert "each side must be a multiple of 2. Resize or pad the images, e.g. to 10×14" in (
        result.output
    )


def test_complex_images_are_trained_on_and_sampled(tmp_path):
    random = np.random.default_rng(0)
    images = random.uniform(-0.7, 0.7, (20, 8, 8)) + 1j * random.uniform(-0.7, 0.7, (20, 8, 8))
    np.savez(tmp_path / "a.npz", x_train=images, y_train=np.zeros(20))
    signed = ("--values", "signed", "--rescaled", "--key", "x_train")
    output = succeed("schedule", tmp_path / "a.npz", *signed, "--out", tmp_path / "levels")
    assert "--key x_train --values signed" in output
    assert " --rescaled" in output
    small = ("--ngf", 4, "--batch-size", 8, "--num-levels", 3, "--steps-per-level", 1)
    often = ("--steps", 2, "--sample-every", 1, "--samples", 2)
    run = ("--data", tmp_path / "a.npz", *signed, *small, *often, "--out", tmp_path / "run")
    output = succeed("train", *run)
    assert "of samples of this network take 2 * images - 1" in output
    with Image.open(tmp_path / "run" / "samples" / "step_0000002.png") as picture:
        assert picture.width > 1.9 * picture.height / 2  # two samples, each of two channels
        assert picture.mode == "L"
    output = succeed("train", "--out", tmp_path / "run", "--resume", "--steps", 3)
    assert "from step 2 to 3" in output
    model = tmp_path / "run" / "model.safetensors"
    output = succeed("sample", model, "-n", 2, "--gif", "--out", tmp_path / "samples")
    assert "show the 2 channels side by side" in output
    with np.load(tmp_path / "samples" / "samples.npz") as samples:
        assert samples["images"].shape == (2, 2, 8, 8)


def test_a_run_keeps_the_precision_that_was_chosen_for_it(tmp_path, monkeypatch):
    for name in ("bf16", "fp32"):
        choice = Choice(name, "as measured")
        monkeypatch.setattr(forms, "for_training", lambda net, choice=choice: choice)
        go_on = ("--resume", "--steps", 3) if name == "fp32" else (*TINY, "--precision", "auto")
        assert "parameters) in bf16 from step" in succeed("train", "--out", tmp_path, *go_on)
        assert settings_of(tmp_path)["precision"] == "bf16"
    _, metadata = read_tensors(tmp_path / "checkpoint.safetensors")
    assert metadata["training"]["precision"] == "bf16"


def test_options_of_training_reach_the_trainer(tmp_path):
    flags = {
        "precision": "bf16",
        "accumulate": 2,
        "clip_gradient": 5.0,
        "warmup": 3,
        "cooldown": 1,
        "continuous": True,
        "keep_every": 2,
        "checkpoint_every": 1,
        "sample_every": 2,
        "samples": 3,
        "anneal_power": 1.0,
        "beta2": 0.9,
    }
    given = []
    for name, value in flags.items():
        given += ["--" + name.replace("_", "-"), *([] if value is True else [value])]
    succeed("train", "--out", tmp_path, *TINY, "--steps-per-level", 1, *given)
    settings = settings_of(tmp_path)
    assert {name: settings[name] for name in flags} == flags
    # The digits come with held-out ones to compare samples with.
    logged = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert any("pixel_frechet_distance" in entry for entry in logged)


def test_photos_of_mixed_sizes_become_a_network_that_samples(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for i in range(200):
        height, width = random.integers(32, 60, 2)
        blocks = Image.fromarray(random.integers(0, 255, (4, 5, 3), dtype=np.uint8))
        blocks.resize((int(width), int(height))).save(f"photos/{i}.{('png', 'jpg')[i % 2]}")
    small = (*TINY, "--steps-per-level", 1, "--overlap", 0.01)
    run = ("--data", "photos", "--image-size", 32, "--schedule", "auto", "--out", "runs/photos")
    output = succeed("train", *run, *small)
    assert "200 images of (3, 32, 32). Chosen from them:" in output
    # No two images of values in [0, 1] are further apart.
    assert settings_of(tmp_path / "runs" / "photos")["sigma_max"] <= 3072**0.5
    command = re.search(r"Now: ncsn-fast (sample \S+)", output)[1].split()
    succeed(*command, "-n", 1)
    with Image.open("samples/grid.png") as grid:
        assert grid.size[0] >= 32


def test_train_on_a_folder_of_images(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, image in enumerate(digits("train").images[:12]):
        pixels = (255 * image[0]).byte().numpy()
        Image.fromarray(pixels).resize((16, 12)).convert("RGB").save(folder / f"{i}.png")
    run = tmp_path / "run"
    flags = ("--flip", "--dequantize", "uniform")
    output = succeed("train", "--data", folder, "--out", run, *TINY, *flags)
    assert "12 images of (3, 12, 16)" in output
    assert nf.load_checkpoint(run / "model.safetensors").shape == (3, 12, 16)


@pytest.mark.parametrize("content", ["{}", "[]", "{", '{"run": {"x": 1}, "training": {}}'])
def test_damaged_settings_of_a_run_are_named(tmp_path, content):
    (tmp_path / "run.json").write_text(content)
    result = invoke("train", "--out", tmp_path, "--resume")
    assert result.exit_code == 1
    assert f"{tmp_path / 'run.json'} is damaged" in result.output


def test_a_run_among_its_images_is_refused(tmp_path):
    Image.fromarray(np.zeros((8, 8), dtype=np.uint8)).save(tmp_path / "a.png")
    for out in (tmp_path, tmp_path / "runs" / "a"):
        result = invoke("train", "--data", tmp_path, "--out", out)
        assert result.exit_code == 1
        assert "lies in the folder of the images" in result.output
        result = invoke("train", "--held-out", tmp_path, "--sample-every", 2, "--out", out)
        assert result.exit_code == 1
        assert "what the run draws would be compared with too" in " ".join(result.output.split())
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_a_run_is_resumed_from_another_folder(tmp_path, monkeypatch):
    np.save(tmp_path / "images.npy", (16 * digits("train").images[:8, 0]).numpy() / 16)
    monkeypatch.chdir(tmp_path)
    small = ("--ngf", 4, "--batch-size", 4, "--steps", 2)
    succeed("train", "--data", "images.npy", "--out", tmp_path / "run", *small)
    monkeypatch.chdir("/")
    output = succeed("train", "--out", tmp_path / "run", "--resume", "--steps", 3)
    assert "from step 2 to 3" in output


def test_resume_refuses_settings_that_the_run_already_has(tmp_path):
    result = invoke("train", "--out", tmp_path, "--resume", "--batch-size", 5, "--flip")
    assert result.exit_code == 2
    assert "--batch-size, --flip cannot change on --resume" in result.output


def test_resume_takes_the_settings_that_may_change(tmp_path):
    succeed("train", "--out", tmp_path, *TINY)
    changed = {
        "steps": 4,
        "learning_rate": 1e-5,
        "accumulate": 2,
        "checkpoint_every": 2,
        "keep_every": 4,
        "sample_every": 4,
        "samples": 3,
    }
    flags = [x for name, value in changed.items() for x in ("--" + name.replace("_", "-"), value)]
    succeed("train", "--out", tmp_path, "--resume", *flags)
    settings = settings_of(tmp_path)
    assert {name: settings[name] for name in changed} == changed
    assert settings["batch_size"] == 4


def test_the_graph_of_the_step_may_change_on_resume(tmp_path):
    succeed("train", "--out", tmp_path, *TINY)
    assert settings_of(tmp_path)["graph"] == "auto"
    succeed("train", "--out", tmp_path, "--resume", "--steps", 3, "--no-graph")
    assert settings_of(tmp_path)["graph"] is False


@pytest.mark.skipif(torch.cuda.is_available(), reason="there it can be captured")
def test_a_graph_without_a_gpu_is_refused(tmp_path):
    result = invoke("train", "--out", tmp_path, "--graph", *TINY)
    assert result.exit_code != 0
    assert "graph = True, but graphs are captured on CUDA devices" in result.output
