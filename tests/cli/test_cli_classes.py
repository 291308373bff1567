"""Images of a class from the command line: trained on labels, asked for by name, guided."""

import gzip
import json
import re
import struct

import numpy as np
import pytest
import torch
from helpers.command import invoke, stop_after, succeed

import ncsn_fast as nf
from ncsn_fast.data.digits import digits
from ncsn_fast.runs.training.settings import from_settings

SMALL = ("--ngf", 4, "--batch-size", 8, "--steps", 3, "--steps-per-level", 1, "--sigma-max", 3)
NAMES = "zero,one,two,three,four,five,six,seven,eight,nine"


@pytest.fixture(scope="module")
def idx(tmp_path_factory):
    """The bundled digits as MNIST's files."""
    folder = tmp_path_factory.mktemp("idx")
    for part in ("train", "test"):
        found = digits(part)
        pixels = (found.images * 255).round().byte().numpy()[:, 0]
        header = struct.pack(">IIII", 0x803, *pixels.shape)
        path = folder / f"{part}-images-idx3-ubyte.gz"
        path.write_bytes(gzip.compress(header + pixels.tobytes(), mtime=0))
        labels = found.labels.numpy().astype(np.uint8)
        path = folder / f"{part}-labels-idx1-ubyte"
        path.write_bytes(struct.pack(">II", 0x801, len(labels)) + labels.tobytes())
    return folder


@pytest.fixture(scope="module")
def run(idx, tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    output = succeed(
        *("train", "--data", idx / "train-images-idx3-ubyte.gz", "--conditional", *SMALL),
        *("--class-names", NAMES, "--held-out", idx / "test-images-idx3-ubyte.gz"),
        *("--sample-every", 2, "--samples", 10, "--out", out),
    )
    assert "images of (1, 8, 8) in 10 classes" in output
    return out


def samples(folder):
    with np.load(folder / "samples.npz") as stored:
        return torch.from_numpy(stored["images"])


def test_a_conditional_run_knows_its_classes(run, idx):
    net = nf.load_checkpoint(run / "model.safetensors")
    assert ",".join(net.classes) == NAMES
    (distance,) = [json.loads(line) for line in (run / "log.jsonl").open() if "distance" in line]
    assert distance["step"] == 2
    assert (run / "best.safetensors").exists()
    settings = json.loads((run / "run.json").read_text())["run"]
    assert settings["data"] == str(idx / "train-images-idx3-ubyte.gz")
    assert settings["held_out"] == str(idx / "test-images-idx3-ubyte.gz")


def test_it_goes_on_where_its_files_lie_elsewhere(run, idx, tmp_path):
    for name in ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte"):
        (tmp_path / name).write_bytes((idx / name).read_bytes())
    again = ("train", "--out", run, "--resume", "--steps", 4)
    assert "from step 3 to 4" in succeed(*again, "--data", tmp_path / "train-images-idx3-ubyte.gz")
    labels = tmp_path / "train-labels-idx1-ubyte"
    data = bytearray(labels.read_bytes())
    data[100] = (data[100] + 1) % 10
    labels.write_bytes(data)
    result = invoke(*again[:-1], 5)
    assert result.exit_code == 1
    assert "belongs to another run (classes: other labels there, " in result.output


def test_images_of_the_classes_that_were_asked_for(run, tmp_path):
    model, common = run / "model.safetensors", ("-n", 4, "--method", "dpmpp_2m", "--steps", 3)
    output = succeed("sample", model, *common, "--label", "two, 3", "--out", tmp_path / "a")
    assert "Sampling of two, three by dpmpp_2m" in output
    net = nf.load_checkpoint(model)
    call = {"seed": 0, "method": "dpmpp_2m", "steps": 3}
    classes = torch.tensor([2, 3, 2, 3])
    expected = nf.sample(net, 4, extra={"classes": classes}, **call)
    assert torch.allclose(samples(tmp_path / "a"), expected, atol=1e-4)

    guided = ("--label", "all", "--guidance", 3, "--gif")
    output = succeed("sample", model, *common, *guided, "--out", tmp_path / "b")
    assert "guided by 3" in output
    score = nf.guided(net, 3.0)
    expected = nf.sample(score, 4, extra={"classes": torch.arange(4)}, **call)
    assert torch.allclose(samples(tmp_path / "b"), expected, atol=1e-4)
    assert (tmp_path / "b" / "chain.gif").exists()

    # More of them continue the order of the classes.
    more = ("--first-id", 4, "--label", "all", "--guidance", 3)
    output = succeed("sample", model, *common, *more, "--out", tmp_path / "b")
    assert "Sampling of four, five, six, seven, guided by 3," in output
    ids = {"extra": {"classes": torch.arange(4, 8)}, "sample_ids": range(4, 8)}
    expected = nf.sample(score, 4, **ids, **call)
    assert torch.allclose(samples(tmp_path / "b")[4:], expected, atol=1e-4)


def test_images_are_of_each_class_in_its_turn_unless_others_are_asked_for(run, tmp_path):
    model, common = run / "model.safetensors", ("-n", 3, "--method", "euler", "--steps", 2)
    output = succeed("sample", model, *common, "--out", tmp_path / "all")
    assert "Sampling of zero, one, two by euler" in output
    output = succeed("sample", model, *common, "--label", "none", "--out", tmp_path / "none")
    assert "Sampling by euler" in output
    net, call = nf.load_checkpoint(model), {"seed": 0, "method": "euler", "steps": 2}
    expected = nf.sample(net, 3, extra={"classes": torch.arange(3)}, **call)
    assert torch.allclose(samples(tmp_path / "all"), expected, atol=1e-4)
    assert torch.allclose(samples(tmp_path / "none"), nf.sample(net, 3, **call), atol=1e-4)
    assert not torch.equal(samples(tmp_path / "all"), samples(tmp_path / "none"))
    # What made them is written down whole; samples of no class are as those of before there were
    # classes unasked, and are gone on with by asking for none.
    words = json.loads((tmp_path / "all" / "manifest.json").read_text())["about"]["command"]
    assert words[words.index("--label") + 1] == "all"
    told = json.loads((tmp_path / "none" / "manifest.json").read_text())["identity"]
    assert (told["labels"], told["guidance"]) == (None, None)
    result = invoke("sample", model, *common, "--out", tmp_path / "none")
    assert result.exit_code == 1
    assert "(labels differ): give --label none, as they are of no class, or choose" in result.output


def test_parts_of_a_run_that_was_stopped_are_of_their_classes(tmp_path, monkeypatch):
    net = nf.NCSNv2(channels=1, image_size=8, ngf=4, sigmas=[3, 1, 0.3, 0.1], classes=3)
    for module in net.modules():
        if isinstance(module, torch.nn.Embedding):
            torch.nn.init.normal_(module.weight[:3].detach(), 0, 0.5)
    net.sampling = {"method": "annealed_langevin", "step_size": 1e-3, "steps_per_level": 1}
    path = nf.save_checkpoint(net, tmp_path / "net")
    command = ("sample", path, "-n", 5, "--label", "all", "--guidance", 2, "--batch-size", 2)
    with monkeypatch.context() as patch:
        stop_after(patch, 8)  # in the second of three parts
        assert invoke(*command, "--out", tmp_path / "out").exit_code == 130
    assert "0 of 5 samples are in" in succeed(*command, "--out", tmp_path / "out")
    classes = torch.arange(5) % 3
    expected = nf.sample(nf.guided(net, 2.0), 5, seed=0, extra={"classes": classes})
    assert torch.allclose(samples(tmp_path / "out"), expected, atol=1e-3)
    others = nf.sample(nf.guided(net, 2.0), 5, seed=0, extra={"classes": classes.flip(0)})
    assert not torch.allclose(others, expected, atol=0.1)


@pytest.mark.parametrize(
    ("first", "then", "differ"),
    [
        ((), ("--label", "two"), "labels differ"),
        ((), ("--label", "two", "--guidance", 2), "labels, guidance differ"),
        (("--label", "two"), ("--label", "two", "--guidance", 2), "guidance differ"),
        (("--label", "two,one"), ("--label", "one,two"), "labels differ"),
    ],
)
def test_samples_of_other_classes_are_not_mixed(run, tmp_path, first, then, differ):
    few = ("sample", run / "model.safetensors", "-n", 1, "--method", "euler", "--steps", 2)
    succeed(*few, *first, "--out", tmp_path)
    result = invoke(*few, *then, "--out", tmp_path)
    assert result.exit_code == 1
    assert f"other settings ({differ})" in result.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--label", "ten"), "class 'ten' is unknown; there are zero, one, two"),
        (("--label", "10"), "class '10' is unknown; there are zero"),
        (("--guidance", "2", "--label", "none"), "guidance = 2 goes towards a class: say which"),
        (("--guidance", "nan", "--label", "two"), "scale = nan: give a finite number"),
        (("--label", "two,"), "class '' is unknown"),
    ],
)
def test_what_is_no_class_is_refused(run, tmp_path, options, message):
    result = invoke("sample", run / "model.safetensors", *options, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert message in result.output


@pytest.mark.parametrize(
    ("options", "asked"),
    [(("--label", "3"), "label '3'"), (("--guidance", "2"), "guidance = 2")],
)
def test_labels_of_a_network_without_classes_are_refused(tmp_path, options, asked):
    result = invoke("sample", "digits", *options, "--out", tmp_path / "out")
    assert f"{asked}: this network knows no classes; leave it out" in result.output


def test_classes_called_as_a_word_of_the_command_are_asked_for_by_number(tmp_path):
    """Folders may be called anything."""
    net = nf.NCSNv2(channels=1, image_size=8, ngf=4, sigmas=[3, 1, 0.1], classes=["None", "ALL"])
    net.sampling = {"method": "euler"}
    path = nf.save_checkpoint(net, tmp_path / "net")
    for label, meant in (
        ("none", "no class too: .* number of the class, 0"),
        ("All", "each class"),
    ):
        result = invoke("sample", path, "--label", label, "--out", tmp_path / "out")
        assert result.exit_code == 1
        assert re.search(
            f"label '{label}': a class of this network is called so.* {meant}", result.output
        )
    output = succeed("sample", path, "-n", 1, "--label", "1", "--out", tmp_path / "out")
    assert "classes: 2 (None, ALL)" in output
    assert "Sampling of ALL by euler" in output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--conditional", "--network", "NCSN"), "NCSN knows no classes: NCSNv2 does"),
        (("--labels", "l.npy"), "labels and class_names are for --conditional: add it"),
        (("--conditional", "--class-names", "a,b"), "names 2 classes, and there are 10"),
        (("--conditional", "--class-names", "a," * 9 + "b"), "two classes are called 'a'"),
        (("--conditional", "--class-names", "a,b,,d,e,f,g,h,i,j"), "class '': a name has 1 to 100"),
    ],
)
def test_runs_whose_classes_cannot_be_are_refused(tmp_path, options, message, monkeypatch):
    def compared(*_):
        raise AssertionError("the images were compared before the classes were looked at")

    monkeypatch.setattr("ncsn_fast.runs.train._with_schedule", compared)
    result = invoke("train", *SMALL, *options, "--out", tmp_path / "run")
    assert result.exit_code == 1
    assert message in result.output


def test_a_share_without_classes_is_refused_where_there_are_none(tmp_path):
    result = invoke("train", *SMALL, "--class-dropout", 0.5, "--out", tmp_path / "run")
    assert result.exit_code == 2
    assert "--class-dropout is for --conditional" in result.output


def test_a_preset_that_is_told_classes_does_without(tmp_path):
    np.save(tmp_path / "images.npy", digits("train").images.numpy()[:20])
    command = ("train", "--preset", "fashion", *SMALL, "--no-conditional", "--image-size", 8)
    succeed(*command, "--data", tmp_path / "images.npy", "--out", tmp_path / "run")
    run = json.loads((tmp_path / "run" / "run.json").read_text())["run"]
    assert (run["preset"], run["class_names"]) == ("fashion", None)
    assert nf.load_checkpoint(tmp_path / "run" / "model.safetensors").classes == ()


def test_a_run_of_other_classes_is_told_in_a_few_words(tmp_path):
    np.save(tmp_path / "images.npy", digits("train").images.numpy()[:20])
    np.save(tmp_path / "labels.npy", np.arange(20) % 3)
    data = ("--data", tmp_path / "images.npy", "--labels", tmp_path / "labels.npy")
    succeed("train", *SMALL, *data, "--conditional", "--out", tmp_path / "run")
    np.save(tmp_path / "labels.npy", np.arange(20) * 50)
    result = invoke("train", "--out", tmp_path / "run", "--resume", "--steps", 4)
    assert "network: {'classes': ['0', '1', '2']} there, {'classes': ['0', '1'," in result.output
    assert len(result.output) < 2000


def test_a_conditional_run_needs_labels(tmp_path):
    np.save(tmp_path / "images.npy", digits("train").images.numpy()[:20])
    data = ("--data", tmp_path / "images.npy", "--conditional")
    result = invoke("train", *SMALL, *data, "--out", tmp_path / "run")
    assert "does not say the classes of its images" in result.output
    np.save(tmp_path / "labels.npy", np.arange(20) % 2)
    succeed("train", *SMALL, *data, "--labels", tmp_path / "labels.npy", "--out", tmp_path / "run")


def test_images_behind_a_link_have_the_labels_beside_the_link(idx, tmp_path, monkeypatch):
    """As data that are kept under their checksums lie in folders."""
    for name in ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte"):
        (tmp_path / "kept").mkdir(exist_ok=True)
        (tmp_path / "kept" / name[:9]).write_bytes((idx / name).read_bytes())
        (tmp_path / name).symlink_to(tmp_path / "kept" / name[:9])
    monkeypatch.chdir(tmp_path)
    command = ("train", "--data", "train-images-idx3-ubyte.gz", "--conditional", *SMALL)
    assert "in 10 classes" in succeed(*command, "--out", tmp_path / "run")


def test_labels_that_are_a_key_and_a_file_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("a.npz", images=np.zeros((4, 8, 8), np.uint8), y_train=np.arange(4))
    (tmp_path / "y_train").mkdir()  # which holds no labels
    run, _ = from_settings({"data": "a.npz", "labels": "y_train", "conditional": True}, tmp_path)
    assert (run.data, run.labels) == (str(tmp_path / "a.npz"), "y_train")
    np.save("mine.npy", np.arange(4))
    run, _ = from_settings({"data": "a.npz", "labels": "mine.npy", "conditional": True}, tmp_path)
    assert run.labels == str(tmp_path / "mine.npy")
    (tmp_path / "y_train").rmdir()
    (tmp_path / "y_train").touch()
    command = ("train", "--data", "a.npz", "--conditional", "--labels", "y_train", *SMALL)
    assert "write ./y_train for the file" in invoke(*command, "--out", "run").output
    assert not (tmp_path / "run").exists()


def test_images_to_judge_by_are_refused_where_nothing_is_drawn(idx, tmp_path):
    data = ("--data", idx / "train-images-idx3-ubyte.gz")
    judged = ("--held-out", idx / "test-images-idx3-ubyte.gz")
    result = invoke("train", *SMALL, *data, *judged, "--out", tmp_path / "run")
    assert result.exit_code == 1
    assert "judges the samples" in result.output
    assert "--sample-every" in result.output


def test_images_that_do_not_fit_are_told_as_those_of_the_user(idx, tmp_path):
    data = ("--data", idx / "train-images-idx3-ubyte.gz", "--channels", 3)
    judged = ("--held-out", idx / "test-images-idx3-ubyte.gz", "--sample-every", 1)
    result = invoke("train", *SMALL, *data, *judged, "--out", tmp_path / "run")
    assert result.exit_code == 1
    assert "convert them, or say --channels 1" in result.output
