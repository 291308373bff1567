"""benchmarks.studies.classifier: what it trains is what it stores and judges."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ncsn_fast.benchmarks.studies import classifier as study
from ncsn_fast.checkpoints.tensor_file import read_tensors
from ncsn_fast.data.digits import digits
from ncsn_fast.evaluation.classifier import load_classifier
from ncsn_fast.evaluation.features import seen


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs the study on the bundled digits, and gives back what it prints."""
    for split in ("train", "test"):
        images, labels = digits(split)
        pixels = (255 * images).round().byte().numpy()
        np.savez(tmp_path / f"{split}.npz", images=pixels, labels=labels.numpy())
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)  # of this process's tests

    def run(*options):
        data = ["--data", "train.npz", "--test", "test.npz", "--out", "net.safetensors"]
        monkeypatch.setattr(sys, "argv", ["classifier", *data, "--quiet", *options])
        study.main()
        return json.loads(capsys.readouterr().out)

    monkeypatch.chdir(tmp_path)
    return run


def test_it_learns_the_digits_and_judges_what_it_has_stored(run):
    told = run("--epochs", "8", "--classes", "a,b,c,d,e,f,g,h,i,j")
    net, held_out = load_classifier("net.safetensors"), digits("test")
    assert net.classes == tuple("abcdefghij")
    found = seen(net, (255 * held_out.images).round().byte()).probabilities
    right = found.argmax(1) == held_out.labels
    assert told["accuracy"] == pytest.approx(float(right.double().mean()), abs=1e-12)
    assert told["accuracy"] > 0.9
    sure = found.amax(1) > 0.9
    assert told["confident"] == pytest.approx(float(sure.double().mean()), abs=1e-12)
    assert told["confident_accuracy"] == pytest.approx(float(right[sure].double().mean()))
    assert told["mean_probability"] == pytest.approx(float(found.amax(1).double().mean()))
    facts = read_tensors("net.safetensors")[1]["facts"]
    assert facts == {name: told[name] for name in ("images", "epochs", "seed")}


def test_the_same_command_gives_the_same_file(run):
    def file(*options):
        run("--epochs", "1", *options)
        return Path("net.safetensors").read_bytes()

    assert file() == file() != file("--seed", "1")


def test_images_are_moved_by_two_pixels_at_most_and_not_changed():
    images = torch.zeros(200, 1, 9, 7, dtype=torch.uint8)
    images[:, :, 4, 3] = 255
    places = study.shifted(images, torch.Generator().manual_seed(0)).nonzero()
    assert len(places) == 200
    moved = {(int(row) - 4, int(column) - 3) for _, _, row, column in places}
    assert moved == {(y, x) for y in range(-2, 3) for x in range(-2, 3)}


@pytest.mark.parametrize("names", ["a,b", "a,b,c,d,e,f,g,h,i,j,k"])
def test_names_that_are_not_as_many_as_classes_are_refused(run, names):
    with pytest.raises(ValueError, match=r"train\.npz has 10 classes, test\.npz 10, and"):
        run("--classes", names)
