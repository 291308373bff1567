"""ncsn-fast evaluate --inception: the whole path with a network of random weights."""

import base64
import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.command import invoke, stop_after, succeed
from helpers.inception import some_torchvision
from helpers.together import together

from ncsn_fast.data.pixels import eight_bits
from ncsn_fast.evaluation.inception import figures as figures_of_inception
from ncsn_fast.evaluation.inception.network import load_inception
from ncsn_fast.evaluation.pixel_distance import pixel_frechet_distance


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Images 8×8 in files: 8 samples in floats, 9 to compare with, 8 trained on."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    samples = random.random((8, 1, 8, 8), dtype=np.float32)
    np.save("samples.npy", samples)
    sets = {"samples": samples}
    for name, number in (("reference", 9), ("train", 8)):
        sets[name] = random.integers(0, 256, (number, 1, 8, 8), dtype=np.uint8)
        np.save(f"{name}.npy", sets[name])
    return sets


def figures(folder="evaluation"):
    with open(f"{folder}/evaluation.json", encoding="utf-8") as file:
        return json.load(file)


def line(weights, reference="reference.npy"):
    given = ("--inception", weights.path, "--inception-sha256", weights.sha256)
    return ("evaluate", "samples.npy", "--reference", reference, *given)


@pytest.mark.slow
def test_the_whole_path(data, torch_fidelity, random_weights):
    words = succeed(*line(random_weights), "--save-stats", "stats.npz")
    found = figures()
    net = load_inception(random_weights.path, "cpu", random_weights.sha256)
    seen = {
        name: net(eight_bits(data[name])).features.double() for name in ("samples", "reference")
    }
    expected = pixel_frechet_distance(*seen.values())
    inception = found["inception"]
    assert inception["samples"]["fid"] == pytest.approx(expected, rel=1e-6)
    assert expected > 0.01
    assert inception["weights"]["sha256"] == random_weights.sha256
    assert inception["weights"]["published"] is False
    assert (inception["samples"]["images"], inception["samples"]["compared"]) == (8, 8)
    assert (found["quality"], found["nearness"], inception["real"]) == (None, None, None)
    assert found["reference"]["images"] == 9
    for told in (
        f"{inception['samples']['fid']:.4f}",
        "299×299, bilinear as in TensorFlow 1",
        "float32, sums in float64",
        random_weights.sha256 + " (not those of the published figures)",
        "compare them with others of 8 only",
        "The reference has 9 images",
        "So few images do not fill the 2,048 features",
    ):
        assert told in words, told
    page = Path("evaluation/evaluation.html").read_text(encoding="utf-8")
    assert f"{inception['samples']['fid']:.4f}" in page
    assert random_weights.sha256 in page
    (picture,) = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert base64.b64decode(picture) == Path("evaluation/samples.png").read_bytes()

    # The statistics in place of the images give the same distance.
    words = succeed(*line(random_weights, "stats.npz"), "--out", "second")
    second = figures("second")
    fid = inception["samples"]["fid"]
    assert second["inception"]["samples"]["fid"] == pytest.approx(fid, rel=1e-9)
    assert second["inception"]["samples"]["kid"] is None
    assert second["reference"] == {"data": "stats.npz", "statistics": True, "images": 9}
    assert "statistics of 9 images" in words

    # Of other weights they are refused.
    with np.load("stats.npz") as stored:
        arrays = {**stored, "weights": np.array("ab" * 32)}
    np.savez("other.npz", **arrays)
    result = invoke(*line(random_weights, "other.npz"), "--out", "third")
    assert result.exit_code == 1
    assert "other.npz is of Inception weights with the SHA-256 abab" in result.output


def test_training_images_stand_beside_the_samples(data, torch_fidelity, random_weights):
    np.save("samples.npy", data["train"])
    words = succeed(*line(random_weights), "--train", "train.npy")
    found = figures()["inception"]
    assert found["real"] == found["samples"]
    assert figures()["nearness"]["copies"] == 1
    assert "training images" in words


@pytest.mark.slow
def test_how_a_network_was_sampled_is_told(checkpoint, data, torch_fidelity, random_weights):
    given = ("--inception", random_weights.path, "--inception-sha256", random_weights.sha256)
    words = succeed(
        "evaluate", checkpoint, "-n", 8, "--reference", "reference.npy", "--seed", 3, *given
    )
    drawn = figures()["sampling"]
    evaluations = drawn["settings"]["network_evaluations"]
    for title, value in (
        ("method", "annealed_langevin"),
        ("network evaluations an image", str(evaluations)),
        ("denoised in the end", "yes"),
        ("seed", "3"),
        ("network weights, SHA-256", drawn["checkpoint"]["sha256"]),
    ):
        assert re.search(rf"^{title} +{value}", words, re.MULTILINE), title
    # The folder of these samples says what it knows.
    succeed(
        "evaluate", "evaluation/samples", "--reference", "reference.npy", *given, "--out", "again"
    )
    again = figures("again")
    assert (again["sampling"], again["identity"]["seed"]) == (None, 3)
    assert again["inception"]["samples"] == figures()["inception"]["samples"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("--reference", "stats.npz"),
            "holds statistics of Inception's features: give --inception",
        ),
        (("--save-stats", "new.npz"), "statistics of the reference, but there is no --inception"),
        (("--inception-sha256", "ab"), "--inception-sha256 ab is of a file: give it by"),
        (("--inception", "none.pth"), "there is no file none.pth: it has to be https://github.com"),
        (("--inception", "w.pth", "--save-stats", "x.npy"), "FID takes torch-fidelity"),
        (
            ("--reference", "stats.npz", "--inception", "w.pth", "--train", "train.npy"),
            "holds statistics and no images, which --train and --classifier take",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_the_work(
    checkpoint, data, tmp_path, monkeypatch, options, message
):
    np.savez("stats.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    (tmp_path / "w.pth").write_bytes(b"any")
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    made = stop_after(monkeypatch, -1)
    where = () if "--reference" in options else ("--reference", "reference.npy")
    result = invoke("evaluate", checkpoint, *where, *options)
    assert result.exit_code == 1, result.output
    assert message in result.output
    assert not made
    assert not (tmp_path / "evaluation").exists()


def test_what_inception_cannot_see_and_files_of_others_are_refused(
    data, tmp_path, torch_fidelity, random_weights
):
    np.save("samples.npy", np.zeros((8, 2, 8, 8), np.uint8))
    np.save("two.npy", np.zeros((9, 2, 8, 8), np.uint8))
    result = invoke(*line(random_weights, "two.npy"))
    assert (result.exit_code, "images of 2 channels" in result.output) == (1, True)
    np.savez("mine.npz", images=np.zeros(3))
    np.save("samples.npy", data["samples"])
    result = invoke(*line(random_weights), "--save-stats", "mine.npz")
    assert "mine.npz is there already and holds no statistics" in result.output
    result = invoke(*line(random_weights), "--save-stats", "stats.txt")
    assert "its name must end in .npz" in result.output
    torch.save({"a": torch.zeros(2)}, "w.pth")
    result = invoke("evaluate", "samples.npy", "--reference", "two.npy", "--inception", "w.pth")
    assert "that of the published weights of FID is 6726825d" in result.output
    assert "say so by --inception-sha256" in result.output
    assert not (tmp_path / "evaluation").exists()


def evaluated(folder, out, weights):
    """What a process of several says; torch-fidelity is imported anew in each."""
    os.chdir(folder)
    with some_torchvision():
        import torch_fidelity  # noqa: F401
    given = ("--inception", weights.path, "--inception-sha256", weights.sha256)
    return succeed(
        "evaluate", "samples", "-n", 20, "--reference", "reference.npy", "--train", "train.npy",
        *given, "--save-stats", f"{out}.npz", "--out", out,
    )  # fmt: skip


@pytest.mark.slow
def test_two_processes_find_what_one_finds(data, torch_fidelity, random_weights, monkeypatch):
    """In a folder of three shards, of which no process reads one that it does not look at."""
    monkeypatch.setattr(figures_of_inception, "BATCH_SIZE", 4)
    succeed(
        "sample",
        "-n",
        24,
        "--out",
        "samples",
        "--shard-size",
        9,
        "--steps",
        2,
        "--method",
        "dpmpp_2m",
    )
    folder = Path.cwd()
    succeed_alone = evaluated(folder, "alone", random_weights)
    first, second = together(2, evaluated, folder, "both", random_weights)
    assert second == ""
    assert "FID" in first
    assert first.replace("both", "alone") == succeed_alone
    alone, both = figures("alone"), figures("both")
    for name, value in alone["inception"]["samples"].items():
        assert both["inception"]["samples"][name] == pytest.approx(value, rel=1e-6), name
    with np.load("alone.npz") as one, np.load("both.npz") as two:
        np.testing.assert_allclose(two["mu"], one["mu"], rtol=1e-6)
        np.testing.assert_allclose(
            two["sigma"], one["sigma"], atol=1e-6 * np.abs(one["sigma"]).max()
        )
        assert two["images"] == one["images"] == 9
    for found in (alone, both):
        del found["inception"]
    assert both == alone
