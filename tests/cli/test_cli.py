"""The command line as a stranger uses it: the files it makes and what it says."""

import json
import re

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from helpers.command import invoke, stop_after, succeed
from helpers.networks import network
from PIL import Image

import ncsn_fast as nf
from ncsn_fast.checkpoints.tensor_file import read_tensors
from ncsn_fast.cli import main
from ncsn_fast.cli.common import Command
from ncsn_fast.runs import demo
from ncsn_fast.support.progress import Progress


def test_help_names_every_command():
    output = succeed("--help")
    for command in ("demo", "train", "sample", "bench", "profile", "convert", "doctor"):
        assert command in output
        assert "Usage" in succeed(command, "--help")
        assert f"Examples:\n    ncsn-fast {command}" in succeed(command, "--help")


def test_without_a_command_three_commands_are_told_that_work():
    result = invoke()
    assert result.exit_code == 0
    told = re.findall(r"^  ncsn-fast (\w+)(.*?)(?:   |$)", result.output, re.MULTILINE)
    assert [name for name, _ in told] == ["sample", "demo", "train"]
    for name, options in told:
        main.commands[name].make_context(name, options.split())
    assert "ncsn-fast --help" in result.output


def test_commands_are_listed_under_headings_each_once_and_whole():
    output = succeed("--help")
    headings = [re.search(rf"^{title}:$", output, re.MULTILINE) for title in ("Start here", "Work")]
    assert all(headings)
    for name in main.commands:
        assert len(re.findall(rf"^  {name}  ", output, re.MULTILINE)) == 1
    assert "..." not in output.split("Start here:")[1]


MANY = ("train", "sample", "evaluate")


@pytest.mark.parametrize("name", MANY)
def test_a_command_of_many_options_shows_those_that_matter_first(name):
    first, every = succeed(name, "--help"), succeed(name, "--help-all")
    flags = [o.opts[-1] for o in main.commands[name].params if isinstance(o, click.Option)]
    shown = [flag for flag in flags if re.search(rf"^  (-n, )?{flag}\b", first, re.MULTILINE)]
    assert 7 <= len(shown) <= 11
    assert f"All {len(flags) + 1} options" in first  # and --help
    assert all(flag in every for flag in flags)
    assert first.split("Main options")[0] == every.split("Main options")[0]


def test_the_eight_options_of_train_that_matter_are_its_help():
    output = succeed("train", "--help").split("Main options:")[1]
    assert re.findall(r"^  (--[\w-]+)", output, re.MULTILINE) == [
        *("--data", "--image-size", "--out", "--preset", "--steps"),
        *("--conditional", "--resume", "--device"),
    ]


def test_an_option_that_is_missing_says_what_it_is():
    assert "Missing option '--out'. Folder of the run, such as runs/" in invoke("train").output


@pytest.mark.parametrize(
    ("name", "option"), [("train", "--data"), ("demo", "--out"), ("tour", "--step")]
)
def test_a_value_without_its_option_is_told_how_to_give_it(name, option):
    result = invoke(name, "photos")
    assert result.exit_code == 2
    assert f"'photos' stands alone: say what it is, as in {option} photos" in result.output
    assert "unexpected extra argument (b)" in invoke("verify", "a", "b").output


def test_a_command_of_few_options_shows_all():
    output = succeed("demo", "--help")
    assert "--quiet" in output
    assert "--help-all" not in output


def test_demo_makes_pictures_and_figures(tmp_path, monkeypatch):
    # A narrower network and a shorter chain than a user's.
    monkeypatch.setattr(demo, "_NGF", 4)
    monkeypatch.setattr(demo, "_STEPS_PER_LEVEL", 2)
    monkeypatch.setattr(demo, "_SHOWN", 4)
    out = tmp_path / "demo"
    output = succeed("demo", "--seconds", 1, "--samples", 20, "--out", out, "--preview")
    metrics = json.loads((out / "metrics.json").read_text())
    distance = metrics["pixel_frechet_distance_to_held_out"]
    assert set(distance) == {"generated", "training_images", "noise"}
    assert distance["training_images"] < distance["generated"]
    assert metrics["images_compared"] == 20
    assert metrics["training_steps"] >= 1
    for name in ("samples.png", "chain.gif", "loss.png"):
        Image.open(out / name).verify()
        assert str(out / name) in output
    assert "▀" in output
    with Image.open(out / "chain.gif") as gif:
        assert gif.n_frames > 30
    assert f"{distance['generated']:.3f}" in output
    assert "20 images each" in output
    images = nf.sample(nf.load_checkpoint(out / "model.safetensors"), 2, seed=0)
    assert images.shape == (2, 1, 8, 8)
    # A second demo replaces the first.
    succeed("demo", "--seconds", 1, "--samples", 4, "--out", out)
    assert json.loads((out / "metrics.json").read_text())["images_compared"] == 4


def test_sample_writes_images_and_goes_on_where_it_was(tmp_path, checkpoint):
    out = tmp_path / "samples"
    output = succeed("sample", checkpoint, "-n", 6, "--out", out, "--seed", 3, "--gif")
    assert str(out / "samples.npz") in output
    for name in ("grid.png", "chain.gif"):
        Image.open(out / name).verify()
    with np.load(out / "samples.npz", allow_pickle=False) as stored:
        first, ids = stored["images"], stored["sample_ids"]
    assert ids.tolist() == list(range(6))
    expected = nf.sample(nf.load_checkpoint(checkpoint), 6, seed=3).numpy()
    np.testing.assert_allclose(first, expected, atol=1e-5)

    more = ("sample", checkpoint, "-n", 8, "--out", out, "--seed", 3)
    refused = invoke(*more, "--batch-size", 1)
    assert "stored otherwise (chunk is 1000 there, here 1): leave that out" in refused.output
    assert "6 of 8 samples are in" in succeed(*more)
    with np.load(out / "samples.npz") as stored:
        assert np.array_equal(stored["images"][:6], first)
        assert stored["sample_ids"].tolist() == list(range(8))


def test_sample_refuses_a_folder_of_other_settings(tmp_path, checkpoint):
    succeed("sample", checkpoint, "-n", 1, "--out", tmp_path)
    result = invoke("sample", checkpoint, "-n", 1, "--out", tmp_path, "--seed", 1)
    assert result.exit_code == 1
    assert "holds samples of other settings (seed differ): choose another --out" in result.output
    result = invoke("sample", checkpoint, "-n", 1, "--out", tmp_path, "--no-denoise")
    assert "(table differ)" in result.output


def test_sample_refuses_a_folder_of_another_network(tmp_path):
    net = network(channels=1, ngf=4)
    official = tmp_path / "checkpoint.pth"
    torch.save({f"module.{k}": v for k, v in net.state_dict().items()}, official)
    known = ("--step-size", 2e-5, "--steps-per-level", 1, "--out", tmp_path / "out")
    succeed("sample", official, "-n", 1, "--image-size", 8, *known)
    result = invoke("sample", official, "-n", 1, "--image-size", 12, *known)
    assert "(network differ)" in result.output


def test_the_first_id_continues_a_set(tmp_path, checkpoint):
    succeed("sample", checkpoint, "-n", 2, "--first-id", 5, "--out", tmp_path)
    with np.load(tmp_path / "samples.npz") as stored:
        assert stored["sample_ids"].tolist() == [5, 6]
        expected = nf.sample(nf.load_checkpoint(checkpoint), 2, seed=0, sample_ids=[5, 6])
        np.testing.assert_allclose(stored["images"], expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("batch", [1, 4])
def test_an_interrupted_sample_goes_on_within_its_chains(tmp_path, checkpoint, monkeypatch, batch):
    # 13 rows a chain; interrupted in the third chain of four, or in the only chunk.
    steps = 2 * 13 + 7 if batch == 1 else 7
    stop_after(monkeypatch, steps)
    arguments = ("sample", checkpoint, "-n", 4, "--out", tmp_path, "--batch-size", batch)
    result = invoke(*arguments)
    assert result.exit_code == 130
    assert "stopped: interrupted after" in result.output
    (partial,) = (tmp_path / "shards").glob("*.partial.safetensors")
    assert len(read_tensors(partial)[0]["images"]) == (2 if batch == 1 else 0)
    monkeypatch.undo()

    # What is left: 2 chains from row 6 on, the last of them whole, or one chunk from row 6 on.
    left = (13 - 6) + 13 if batch == 1 else 13 - 6
    stop_after(monkeypatch, left)
    found, count = [], Progress.found
    monkeypatch.setattr(Progress, "found", lambda bar, n: (found.append(n), count(bar, n)))
    output = succeed(*arguments)
    assert sum(found) == 4 * 13 - batch * left  # of these the time that is left knows nothing
    assert f"0 of 4 samples are in {tmp_path} already, others are begun" in output
    monkeypatch.undo()
    with np.load(tmp_path / "samples.npz") as stored:
        expected = nf.sample(nf.load_checkpoint(checkpoint), 4, seed=0).numpy()
        np.testing.assert_allclose(stored["images"], expected, atol=1e-5)
    assert not (tmp_path / "shards").exists()


def test_chains_under_way_are_saved_now_and_then(tmp_path, checkpoint, monkeypatch):
    from ncsn_fast.runs.samples import store

    save, levels = store.SampleStore._save, []

    def spy(self):
        save(self)
        for path in (tmp_path / "shards").glob("*.partial.safetensors"):
            tensors, metadata = read_tensors(path)
            levels.append((metadata["ids"], metadata["level"], len(tensors["states"])))

    monkeypatch.setattr(store, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(store.SampleStore, "_save", spy)
    succeed("sample", checkpoint, "-n", 2, "--out", tmp_path)
    assert levels == [([0, 2], level, 2) for level in (1, 2, 3, 4, 5)]


def test_interrupted_again_at_once_nothing_is_lost(tmp_path, checkpoint, monkeypatch):
    arguments = ("sample", checkpoint, "--out", tmp_path, "-n", 4)
    for steps in (9, 0, 0):  # the second and third run are stopped in their first network call
        stop_after(monkeypatch, steps)
        assert invoke(*arguments).exit_code == 130
        monkeypatch.undo()
    stop_after(monkeypatch, 13 - 8)
    succeed(*arguments)
    monkeypatch.undo()
    with np.load(tmp_path / "samples.npz") as stored:
        expected = nf.sample(nf.load_checkpoint(checkpoint), 4, seed=0).numpy()
        np.testing.assert_allclose(stored["images"], expected, atol=1e-5)


def test_chains_of_other_settings_are_refused(tmp_path, checkpoint, monkeypatch):
    stop_after(monkeypatch, 9)
    invoke("sample", checkpoint, "--out", tmp_path, "-n", 2)
    monkeypatch.undo()
    result = invoke("sample", checkpoint, "--out", tmp_path, "-n", 2, "--seed", 1)
    manifest = tmp_path / "manifest.json"
    assert f"{manifest} holds samples of other settings (seed differ)" in result.output
    (partial,) = (tmp_path / "shards").glob("*.partial.safetensors")
    partial.write_bytes(b"cut")
    result = invoke("sample", checkpoint, "--out", tmp_path, "-n", 2)
    assert "partial.safetensors is damaged" in result.output


def test_a_second_process_is_kept_out(tmp_path, checkpoint):
    from ncsn_fast.support.locks import folder_lock

    with folder_lock(tmp_path):
        result = invoke("sample", checkpoint, "-n", 1, "--out", tmp_path)
    assert "another process is writing to" in result.output
    succeed("sample", checkpoint, "-n", 1, "--out", tmp_path)


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 cut"])
def test_a_damaged_set_of_samples_is_refused_clearly(tmp_path, checkpoint, content):
    (tmp_path / "samples.npz").write_bytes(content)
    result = invoke("sample", checkpoint, "-n", 1, "--out", tmp_path)
    assert result.exit_code == 1
    assert "is damaged or not of ncsn-fast sample" in result.output
    assert (tmp_path / "samples.npz").read_bytes() == content


def test_sample_takes_the_bundled_network(tmp_path, checkpoint, monkeypatch):
    from ncsn_fast.checkpoints.load_save import BUNDLED

    monkeypatch.setitem(BUNDLED, "digits", checkpoint)
    succeed("sample", "-n", 1, "--out", tmp_path)
    assert "1 of 1 samples are in" in succeed("sample", "digits", "-n", 1, "--out", tmp_path)
    monkeypatch.setitem(BUNDLED, "digits", tmp_path / "absent.safetensors")
    result = invoke("sample", "-n", 1, "--out", tmp_path)
    assert result.exit_code == 1
    assert "comes with ncsn_fast is missing" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sample", "nothing.pth"), "nothing.pth"),
        (("train", "--out", "OUT", "--data", "nowhere"), "no such file or folder: "),
        (("train", "--out", "OUT", "--resume"), "holds no training run"),
        (("train", "--out", "OUT", "--ngf", "1"), "ngf"),
        (("train", "--out", "OUT", "--steps", "-1"), "-1 is not in the range 1 or more"),
        (("demo", "--samples", "401"), "401 is not in the range 4 to 400"),
        (("demo", "--out", "FILE"), "choose another"),
        (("train", "--out", "FILE"), "choose another"),
        (("train", "--out", "OUT", "--sigma-min", "0"), "sigma_min = 0.0: the smallest level"),
        (("train", "--out", "OUT", "--device", "sofa"), "--device sofa cannot be used here"),
        (("demo", "--out", "OUT", "--device", "meta"), "--device meta cannot be used here"),
        (("demo", "--out", "OUT", "--seed", str(10**23)), "is not in the range"),
    ],
)
def test_refusals_are_one_clear_line(tmp_path, arguments, message):
    (tmp_path / "file").write_text("")
    places = {"OUT": tmp_path / "out", "FILE": tmp_path / "file"}
    result = invoke(*(places.get(argument, argument) for argument in arguments))
    assert result.exit_code in (1, 2)
    assert message in result.output
    assert "Traceback" not in result.output
    assert isinstance(result.exception, SystemExit)


def test_what_the_library_calls_a_keyword_is_an_option_of_the_command():
    @click.command(cls=Command)
    @click.option("--resume", is_flag=True)
    @click.option("--image-size")
    def command(**options):
        raise ValueError(
            "resume=True (or resume='auto') or image_size='3', in Python f(x, image_size=3), size=3"
        )

    output = CliRunner().invoke(command).output
    assert (
        "--resume (or resume='auto') or --image-size 3, in Python f(x, image_size=3), size=3"
        in output
    )


def test_the_demo_leaves_a_training_run_alone(tmp_path):
    succeed("train", "--out", tmp_path, "--ngf", 4, "--batch-size", 4, "--steps", 1)
    model = (tmp_path / "model.safetensors").read_bytes()
    result = invoke("demo", "--out", tmp_path, "--seconds", 1)
    assert "holds a training run (run.json): choose another with --out" in result.output
    assert (tmp_path / "model.safetensors").read_bytes() == model
    result = invoke("train", "--out", tmp_path, "--steps", 1)
    assert "go on with the run by --resume, or choose another folder" in result.output


def test_doctor_reports_backend_and_self_test(monkeypatch):
    monkeypatch.setenv("NCSN_FAST_BACKEND", "torch")
    output = succeed("doctor")
    assert re.search(r"backend on cpu +torch \(asked for by NCSN_FAST_BACKEND\)", output)
    assert output.count("ok ") == 4
    assert "Philox4x32-10 gives its known answer" in output


def test_doctor_fails_loudly_where_a_sum_is_wrong(monkeypatch):
    monkeypatch.setattr("ncsn_fast.noise._WEYL", (1, 2))
    result = invoke("doctor")
    assert result.exit_code == 1
    assert re.search(r"BAD noise +ArithmeticError: Philox gave", result.output)
