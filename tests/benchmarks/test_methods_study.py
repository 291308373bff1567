"""benchmarks.studies.methods: what it measures, and how it is shown."""

import numpy as np
import pytest
import torch
from PIL import Image

import ncsn_fast as nf
from ncsn_fast.benchmarks.studies import methods
from ncsn_fast.data.digits import digits
from ncsn_fast.evaluation.classifier import load_classifier
from ncsn_fast.evaluation.features import seen


@pytest.fixture(scope="module")
def report():
    full = methods.Point(methods.FULL_CHAIN, "ladder", 211, [0.2, 0.24])
    points = [
        methods.Point("ancestral", "karras", steps, [distance, distance + 0.02])
        for steps, distance in ((5, 0.5), (20, 0.21))
    ]
    spacings = [
        methods.Point("ancestral", spacing, 20, [0.25])
        for spacing in ("ladder", "geometric", "karras", "linear")
    ]
    starts = [methods.Point("as drawn, held", "karras", 20, [0.3])]
    training = methods.Point("training images", "", 0, [0.1])
    return methods.Report({"precision": "fp32"}, 400, training, [full, *points], spacings, starts)


def test_the_tables_compare_with_the_full_chain(report):
    lines = methods.as_markdown(report).splitlines()
    assert lines[0].startswith("precision fp32. Mean ± standard deviation over 2 seeds of 400")
    assert "| annealed_langevin (full chain) | 211 | 0.220 ± 0.028 | 1.00 |" in lines
    assert "| ancestral | 20 | 0.220 ± 0.014 | 1.00 |" in lines
    assert "| linear | 0.250 |" in lines
    assert "| as drawn, held | 0.300 |" in lines


def test_the_picture_has_a_line_per_method(report, tmp_path):
    figure = methods.picture(report)
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert set(names) == {"ancestral", methods.FULL_CHAIN, "training images"}
    figure.savefig(tmp_path / "methods.png")
    with Image.open(tmp_path / "methods.png") as image:
        assert image.width > 600


def test_every_few_step_method_is_measured_as_it_is_called(monkeypatch):
    held_out = digits("test").images
    drawn = []

    def sample(net, number, **settings):
        drawn.append((number, settings))
        return held_out[:number]

    monkeypatch.setattr(nf, "sample", sample)
    begun = []

    def sampled(self, number, *, seed, initial, extra):
        begun.append((self.hold_noise, seed, initial.flatten(1).norm(dim=1)))
        return held_out[:number]

    monkeypatch.setattr(nf.Sampler, "__call__", sampled)
    told = ["digits", "-n", "5", "--seeds", "2", "--precision", "fp32"]
    found = methods.measure(methods.options_of().parse_args(told))
    assert {p.evaluations for p in found.points if p.name == "dpmpp_2m"} == {5, 10, 20, 40}
    assert {p.evaluations for p in found.points if p.name == "heun"} == {5, 9, 19, 39}
    assert len(drawn) == 2 * (len(found.points) + len(found.spacings) + 2)
    assert [point.name for point in found.starts[2:]] == ["as drawn, held", "as drawn, not held"]
    assert [(hold, seed) for hold, seed, _ in begun] == [
        (True, 0),
        (True, 1),
        (False, 0),
        (False, 1),
    ]
    assert torch.equal(begun[0][2], begun[2][2])
    assert begun[0][2].std() > 0.02 * begun[0][2].mean()  # a normal draw of 64 values: 0.09
    assert {(number, settings["seed"]) for number, settings in drawn} == {(5, 0), (5, 1)}
    assert len({point.mean for point in found.points}) == 1
    assert torch.isfinite(torch.tensor(found.training.mean))
    assert drawn[0][1]["method"] == "annealed_langevin"
    assert "step_size" not in drawn[0][1]  # it is the checkpoint's


def test_methods_can_be_chosen_and_the_full_chain_said(monkeypatch, capsys):
    """Of a network whose own method is another, its settings have to be said."""
    held_out = digits("test").images
    net = nf.load_checkpoint("digits")
    net.sampling = {"method": "ancestral", "steps": 10}
    monkeypatch.setattr(nf, "load_checkpoint", lambda _: net)
    drawn = []

    def sample(net, number, **settings):
        drawn.append(settings)
        return held_out[:number]

    monkeypatch.setattr(nf, "sample", sample)
    monkeypatch.setattr(nf.Sampler, "__call__", lambda self, number, **_: held_out[:number])
    told = ["digits", "-n", "5", "--seeds", "1", "--methods", "euler", "consistent_annealed"]
    with pytest.raises(
        SystemExit, match="--step-size, --steps-per-level: step_size and steps_per_level not given"
    ):
        methods.measure(methods.options_of().parse_args(told))
    chain = ["--step-size", "1e-5", "--steps-per-level", "2"]
    found = methods.measure(methods.options_of().parse_args([*told, *chain]))
    evaluations = [(point.name, point.evaluations) for point in found.points]
    euler = [("euler", steps) for steps in (5, 10, 20, 40)]
    assert evaluations == [(methods.FULL_CHAIN, 43), *euler, ("consistent_annealed", 21)]
    assert (drawn[0]["step_size"], drawn[0]["steps_per_level"]) == (1e-5, 2)
    with pytest.raises(SystemExit):
        methods.options_of().parse_args(["--methods", "eulr"])
    assert "eulr" in capsys.readouterr().err


def test_a_classifier_says_how_many_images_are_of_a_class_for_sure(monkeypatch, tmp_path):
    """Of a network that knows classes the images are of each in its turn."""
    held_out = digits("test").images
    mixed = torch.cat([held_out, held_out.lerp(held_out.roll(1, 0), 0.5)])
    order = seen(load_classifier("digits"), mixed).probabilities.amax(1).argsort()
    unsure, sure = mixed[order[:5]], mixed[order[-5:]]
    classes = []

    def sample(net, number, *, seed, method, extra, **_):
        classes.append(extra["classes"])
        return sure if method == "euler" or seed == 0 else unsure

    def sampled(self, number, *, extra, **_):
        classes.append(extra["classes"])
        return unsure

    levels = nf.load_checkpoint("digits").sigmas.tolist()
    net = nf.NCSNv2(channels=1, image_size=8, ngf=8, sigmas=levels, classes=("odd", "even"))
    net.sampling = {"method": "annealed_langevin", "step_size": 1e-5, "steps_per_level": 1}
    path = nf.save_checkpoint(net, tmp_path / "classes")
    monkeypatch.setattr(nf, "sample", sample)
    monkeypatch.setattr(nf.Sampler, "__call__", sampled)
    np.save(tmp_path / "real.npy", (255 * held_out).round().byte().numpy())
    data = ["--data", str(tmp_path / "real.npy"), "--classifier", "digits"]
    told = [str(path), *data, "-n", "5", "--seeds", "2", "--methods", "euler", "heun"]
    found = methods.measure(methods.options_of().parse_args(told))
    shares = {point.name: point.confident for point in found.points}
    assert shares["euler"] == 1.0
    assert shares["heun"] == 0.5  # those of the first of two seeds
    assert found.starts[-1].confident == 0.0
    assert torch.stack(classes).eq(torch.tensor([0, 1, 0, 1, 0])).all()
    lines = methods.as_markdown(found).splitlines()
    assert "classifier digits, classes in turn" in lines[0]
    assert lines[2].endswith("| of the full chain's | sure of a class (> 0.9) |")
    rows = [line.split("|") for line in lines if line.startswith("| euler |")]
    assert {row[-2].strip() for row in rows} == {"100 %"}


def test_a_classifier_of_other_images_is_refused_before_anything_is_drawn(monkeypatch):
    monkeypatch.setattr(nf, "sample", None)
    told = methods.options_of().parse_args(["digits", "--classifier", "mnist"])
    with pytest.raises(SystemExit, match=r"mnist is of images \(1, 28, 28\), the network's have"):
        methods.measure(told)
