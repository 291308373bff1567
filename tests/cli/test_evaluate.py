"""ncsn-fast evaluate: the figures are those of the library, and what does not fit is refused."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.command import invoke, stop_after, succeed
from helpers.networks import network
from PIL import Image

import ncsn_fast as nf
from ncsn_fast.cli import common
from ncsn_fast.data.digits import digits
from ncsn_fast.evaluation.classifier import Classifier, load_classifier, save_classifier
from ncsn_fast.evaluation.features import seen
from ncsn_fast.evaluation.neighbours import nearest
from ncsn_fast.evaluation.pixel_distance import pixel_frechet_distance
from ncsn_fast.evaluation.precision_recall import precision_recall
from ncsn_fast.runs import evaluate as work
from ncsn_fast.runs.evaluation import words as evaluation_words
from ncsn_fast.runs.evaluation.words import asked as classes_of


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Three sets of 8-bit images 8×8 in files: 30 samples, 40 to compare with, 60 trained on."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    sets = {
        name: random.integers(0, 256, (number, 8, 8), dtype=np.uint8)
        for name, number in (("samples", 30), ("reference", 40), ("train", 60))
    }
    for name, pixels in sets.items():
        np.save(f"{name}.npy", pixels)
    return {name: torch.from_numpy(pixels)[:, None] for name, pixels in sets.items()}


ALL = ("evaluate", "samples.npy", "--reference", "reference.npy", "--train", "train.npy")


def figures(folder="evaluation"):
    with open(f"{folder}/evaluation.json", encoding="utf-8") as file:
        return json.load(file)


def test_the_figures_are_those_of_the_library(data):
    words = succeed(*ALL)
    found = figures()
    chosen = np.sort(np.random.default_rng(0).choice(40, 30, replace=False))
    reference = data["reference"][chosen]
    quality = found["quality"]["samples"]
    frechet = pixel_frechet_distance(data["samples"] / 255, reference / 255)
    assert quality["frechet"] == pytest.approx(frechet, rel=1e-9)
    assert (quality["precision"], quality["recall"]) == precision_recall(reference, data["samples"])
    distances = nearest(data["samples"], data["train"]).distances / 255
    assert found["nearness"]["samples"] == pytest.approx(float(distances.mean()))
    assert found["quality"]["real"]["images"] == 30
    assert found["train"] == {"data": "train.npy", "images": 60}
    assert f"{frechet:.3f}" in words
    assert "compare them with others of 30 only" in words
    for name in ("samples", "nearest"):
        Image.open(f"evaluation/{name}.png").verify()


def test_training_images_given_for_samples_are_seen_as_copies(data):
    np.save("samples.npy", data["train"][:30].numpy())
    succeed(*ALL)
    near = figures()["nearness"]
    assert (near["samples"], near["smallest"], near["near"]) == (0, 0, 1)
    assert (near["copies"], near["held_out_copies"]) == (1, 0)
    assert near["held_out_smallest"] > 1


def test_a_reference_that_was_trained_on_is_said(data):
    np.save("reference.npy", data["train"][:40].numpy())
    words = succeed(*ALL)
    assert "100.0% of the reference are training images themselves" in words
    assert words.count("themselves") == 1
    assert figures()["nearness"]["held_out_copies"] == 1


def test_without_training_images_it_says_what_is_missing(data):
    words = succeed(*ALL[:4])
    assert "training images" not in words.split("\n\n")[1]
    assert "What real images reach is not known: give training images by --train." in words
    assert (figures()["nearness"], figures()["quality"]["real"]) == (None, None)


def test_a_network_is_sampled_once(checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = ("evaluate", checkpoint, "-n", 9, "--reference", "digits", "--seed", 3)
    few = ("--method", "ancestral", "--steps", 3, "--eta", 0.5)
    succeed(*line, *few)
    images = np.load("evaluation/samples/samples.npz")["images"]
    told = {"method": "ancestral", "steps": 3, "eta": 0.5}
    expected = nf.sample(nf.load_checkpoint(checkpoint), 9, seed=3, **told)
    np.testing.assert_allclose(images, expected.numpy(), atol=1e-5)
    first = figures()
    assert first["sampling"]["settings"]["given"] == {"steps": 3, "eta": 0.5}
    assert (first["sampling"]["seed"], first["sampling"]["sample_ids"]["made_now"]) == (3, 9)
    made = stop_after(monkeypatch, -1)
    assert "9 of 9 samples are in" in succeed(*line, *few)
    assert not made
    assert figures()["quality"] == first["quality"]
    held_out = digits("test").images
    chosen = np.sort(np.random.default_rng(0).choice(397, 9, replace=False))
    pixels = [(255 * x).round() / 255 for x in (torch.from_numpy(images), held_out[chosen])]
    found = first["quality"]["samples"]["frechet"]
    assert found == pytest.approx(pixel_frechet_distance(*pixels), rel=1e-5)


def test_a_stopped_one_goes_on(checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = ("evaluate", checkpoint, "-n", 9, "--reference", "digits", "--batch-size", 3)
    with monkeypatch.context() as patch:
        stop_after(patch, 20)
        assert invoke(*line).exit_code == 130
    assert not (tmp_path / "evaluation" / "evaluation.json").exists()
    words = succeed(*line)
    assert "0 of 9 samples are in" in words
    assert "already, others are begun" in words
    shutil.rmtree("evaluation/samples")
    stopped = figures()
    succeed(*line)
    assert stopped["quality"] == figures()["quality"]


def test_a_folder_of_samples_is_taken(checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    succeed("sample", checkpoint, "-n", 10, "--out", "drawn", "--steps-per-level", 1)
    succeed("evaluate", "drawn", "--reference", "digits")
    succeed("evaluate", "drawn/samples.npz", "--reference", "digits", "--out", "other", "-n", 8)
    assert (figures()["samples"], figures()["quality"]["samples"]["images"]) == ("drawn", 10)
    assert figures("other")["quality"]["samples"]["images"] == 8


def test_the_folder_of_a_run_stands_for_its_network(checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    shutil.copy(checkpoint, "run/model.safetensors")
    few = ("--method", "ancestral", "--steps", 2)
    succeed("evaluate", "run", "-n", 8, "--reference", "digits", *few)
    assert figures()["sampling"]["settings"]["method"] == "ancestral"


def test_digits_are_the_held_out_and_the_training_ones(checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("samples.npy", digits("test").images.numpy())
    succeed("evaluate", "samples.npy", "--reference", "digits", "--train", "digits")
    found = figures()
    assert found["quality"]["samples"]["frechet"] < 1e-6
    assert found["quality"]["samples"]["precision"] == 1
    assert (found["train"]["images"], found["reference"]["images"]) == (1400, 397)
    assert found["nearness"]["samples"] == found["nearness"]["held_out"]
    assert 0.005 < found["nearness"]["near"] <= 0.011  # as it is meant


def test_a_folder_of_pictures_is_brought_to_the_size_of_the_samples(data):
    Path("photos").mkdir()
    for number in range(9):
        pixels = np.random.default_rng(number).integers(0, 256, (16, 24), dtype=np.uint8)
        Image.fromarray(pixels).save(f"photos/{number}.png")
    succeed("evaluate", "samples.npy", "--reference", "photos")
    assert figures()["reference"]["images"] == 9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--method", "heun"), "holds images that are drawn already: --method heun, for a network"),
        (("--seed", "0", "--steps", "4"), "drawn already: --seed 0, for a network"),
        (("--classifier", "mnist"), "--classifier mnist is of images (1, 28, 28), the samples"),
        (
            ("--classifier", "letters"),
            "there is no classifier letters: give digits, mnist, fashion or a",
        ),
        (("--classifier", "train.npy"), "train.npy is damaged, incomplete or not a safetensors"),
        (("--train", "colour.npy"), "holds images of shape (3, 8, 8), the samples have (1, 8, 8)"),
        (("--train", "large.npy"), "the images of large.npy are (16, 16) (H, W)"),
        (("--train", "few.npy"), "few.npy holds 7 images: needed are at least 8"),
        (("--train", "nowhere"), "no such file or folder: nowhere"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_work(data, tmp_path, options, message):
    np.save("colour.npy", np.zeros((9, 3, 8, 8), np.uint8))
    np.save("large.npy", np.zeros((9, 16, 16), np.uint8))
    np.save("few.npy", np.zeros((7, 8, 8), np.uint8))
    result = invoke(*ALL[:4], *options)
    assert result.exit_code == 1, result.output
    assert message in result.output
    assert not (tmp_path / "evaluation").exists()


def test_a_network_is_not_sampled_for_data_that_do_not_fit(checkpoint, data, tmp_path, monkeypatch):
    np.save("reference.npy", np.zeros((9, 16, 16), np.uint8))
    made = stop_after(monkeypatch, -1)
    assert invoke("evaluate", checkpoint, *ALL[2:4]).exit_code == 1
    assert not made
    assert not (tmp_path / "evaluation").exists()


def test_with_a_classifier_classes_are_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    for name, number in (("samples", 12), ("reference", 20), ("train", 25)):
        np.save(f"{name}.npy", random.integers(0, 256, (number, 28, 28), dtype=np.uint8))
    words = succeed(*ALL, "--classifier", "mnist")
    assert "precision (k = 3, the classifier's features)" in words
    assert "given a class with probability above 0.9" in words
    found = figures()
    assert found["classifier"] == {"name": "mnist", "classes": list("0123456789")}
    net = load_classifier("mnist")
    expected = seen(net, torch.from_numpy(np.load("samples.npy"))[:, None])
    quality = found["quality"]["samples"]
    assert quality["counts"] == expected.counts.tolist()
    assert quality["confident"] == expected.confident
    assert sum(quality["counts"]) == sum(found["reference"]["counts"]) == 12
    share = quality["counts"][0] / 12
    assert quality["standard_errors"][0] == pytest.approx((share * (1 - share) / 12) ** 0.5)
    worst = max(map(abs, quality["proportions"]["deviations"]))
    assert f"{worst:.1f} standard errors" in words


def test_a_class_that_was_asked_for_is_looked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["bag", "boot", "coat"]
    net = network(channels=1, ngf=4, sigmas=nf.geometric_sigmas(5, 0.01, 6), classes=names)
    nf.save_checkpoint(net.eval(), "net.safetensors")
    judge = Classifier((1, 8, 8), ["Coat", "Bag", "Boot"]).eval()
    save_classifier("judge.safetensors", judge, {})
    line = ("evaluate", "net.safetensors", "-n", 9, "--reference", "digits", "--steps", 3)
    line = (*line, "--method", "ancestral", "--classifier", "judge.safetensors")
    words = succeed(*line, "--label", "boot, coat", "--guidance", 2)
    assert "given the class that was asked for" in words
    assert "Classes were asked for: their proportions are not the network's own." in words
    images = torch.from_numpy(np.load("evaluation/samples/samples.npz")["images"])
    found = seen(load_classifier("judge.safetensors"), (255 * images).round() / 255)
    asked = torch.tensor([2, 0, 2, 0, 2, 0, 2, 0, 2])
    right = (found.probabilities.argmax(1) == asked).double().mean()
    assert figures()["as_asked"] == float(right)
    assert figures()["sampling"]["settings"]["guidance"] == 2
    assert re.search("of the classes, in turn +boot, coat\n *guided towards them by +2", words)
    # The same of the folder that was drawn, and of one that does not begin with the first class.
    judged = ("--reference", "digits", "--classifier", "judge.safetensors", "--out", "again")
    words = succeed("evaluate", "evaluation/samples", *judged)
    assert figures("again")["as_asked"] == float(right)
    assert "Classes were asked for: their proportions are not the network's own." in words
    assert re.search("of the classes, in turn +boot, coat\n *guided towards them by +2", words)
    drawn = ("--steps", 3, "--method", "ancestral", "--label", "boot, coat", "--out", "later")
    succeed("sample", "net.safetensors", "--first-id", 5, "-n", 9, *drawn)
    images = torch.from_numpy(np.load("later/samples.npz")["images"])
    found = seen(load_classifier("judge.safetensors"), (255 * images).round() / 255)
    succeed("evaluate", "later", *judged)
    right = (found.probabilities.argmax(1) == 2 - asked).double().mean()  # id 5 is a coat
    assert figures("again")["as_asked"] == float(right)
    words = succeed(*line, "--label", "none", "--out", "other")
    assert figures("other")["as_asked"] is None
    assert "not the network's own" not in words
    # Fewer samples than classes:
    few = (*line[:3], 8, *line[4:], "--label", "coat," + 8 * "boot," + "bag", "--out", "few")
    assert "There are no samples of 1 of the classes." in succeed(*few)
    # A class that the classifier does not know:
    save_classifier("judge.safetensors", Classifier((1, 8, 8), ["Coat", "Bag"]).eval(), {})
    words = succeed(*line, "--out", "third")
    assert figures("third")["as_asked"] is None
    assert "not the network's own" in words


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["boot", "none"], ["boot", "none"]),
        (["none"], []),  # of no class, as older versions had it
        (None, []),
        ("boot", []),
        ({"boot": 1}, []),
        ([3, None], ["3", "None"]),
    ],
)
def test_what_a_folder_says_of_its_classes_may_be_anything(labels, classes):
    assert classes_of({"sampling": None, "identity": {"labels": labels}}) == classes
    assert classes_of({"sampling": None, "identity": None}) == []


def test_files_of_others_are_not_replaced(data, tmp_path):
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "samples.png").write_text("mine")
    result = invoke(*ALL)
    assert result.exit_code == 1
    assert "samples.png is there already and not of ncsn-fast evaluate" in result.output
    assert (tmp_path / "evaluation" / "samples.png").read_text() == "mine"


def test_each_process_of_torchrun_looks_on_its_own_gpu(checkpoint, tmp_path, monkeypatch):
    for name, value in {"RANK": 1, "WORLD_SIZE": 2, "LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(common.torch, "zeros", lambda *_, **__: 0)
    monkeypatch.setattr(common.backends, "wished", lambda: ("auto", ""))
    asked = []
    monkeypatch.setattr(work, "evaluate", lambda *_, device, **__: asked.append(device) or {})
    invoke("evaluate", checkpoint, "--reference", "digits", "--out", tmp_path / "out")
    assert asked == ["cuda:1"]


def test_classes_that_the_classifier_does_not_know_are_told():
    quality = {
        "counts": [3, 5],
        "images": 8,
        "proportions": {"deviations": [0.1, -0.1]},
    }
    report = {
        "sampling": {"settings": {"labels": ["boot", "bag"]}},
        "classifier": {"name": "mnist", "classes": ["0", "1"]},
        "reference": {"confident": 0.9, "counts": [4, 4], "compared": 8},
        "quality": {"samples": quality},
    }
    told = evaluation_words._of_classes(report)
    assert told[1].startswith("None of the classes that were asked for is one of the classifier, ")
    report["classifier"]["classes"] = ["bag", "boot"]
    assert evaluation_words._of_classes(report) == [told[0], told[2].replace("is 0:", "is bag:")]
    report["reference"]["confident"] = 0.4
    few = evaluation_words._of_classes(report)[1]
    assert few == "That is less than half of them: the classifier is hardly of such images."
