"""benchmarks.studies.gallery, guidance, progress: of a network that knows classes."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ncsn_fast as nf
from ncsn_fast.benchmarks.studies import gallery, guidance, progress
from ncsn_fast.benchmarks.studies.common import DISTANCES, Judged, plain_ticks
from ncsn_fast.data.digits import digits
from ncsn_fast.evaluation.neighbours import nearest
from ncsn_fast.evaluation.quality import Quality
from ncsn_fast.pictures.curves import new_figure


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    net = nf.NCSNv2(channels=1, image_size=8, ngf=4, sigmas=[3.0, 1.0, 0.3, 0.1], classes=3)
    net.sampling = {"method": "annealed_langevin", "step_size": 1e-3, "steps_per_level": 1}
    return str(nf.save_checkpoint(net, tmp_path_factory.mktemp("net") / "net"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "images.npy"
    np.save(path, (255 * digits("test").images[:30]).round().byte().numpy())
    return str(path)


def test_few_images_fill_their_rows(model, data, tmp_path):
    report = gallery.measure(model, data, tmp_path, images=3, samples=2, number=6)
    assert report["images"] == 3
    assert all(math.isfinite(v) for row in report["errors"].values() for v in row.values())
    for name in ("middle_lost", "blurred", "half_the_size"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            width, height = picture.size
        # Of each image the real one, what was measured, the mean and two samples.
        assert width / height == pytest.approx((3 * 9 - 1) / (5 * 9 - 1), rel=0.01)
    for name in ("samples", "chain", "between", "guidance", "temperature", "clip"):
        assert (tmp_path / f"{name}.png").exists()
    table = gallery.as_markdown(report)
    assert "| middle lost |" in table
    assert "| temperature, 6 images | precision | recall | Fréchet distance |" in table
    assert list(report["temperatures"]) == ["0.5", "0.8", "1", "1.2"]


def test_rows_of_scales_and_columns_of_classes(model):
    net = nf.load_checkpoint(model)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, torch.nn.Embedding):
                module.weight[:3].normal_(0, 0.3)
    shown = gallery.by_guidance(net, steps=4, method="euler").unflatten(0, (-1, 3))
    classes = torch.arange(3)
    for scale, row in zip(gallery.SCALES, shown, strict=True):
        score = nf.guided(net, scale)
        settings = {"seed": 4, "method": "euler", "steps": 4, "extra": {"classes": classes}}
        assert torch.equal(row, nf.sample(score, 3, **settings))


@pytest.mark.slow
def test_colder_images_are_nearer_to_those_of_the_training(monkeypatch):
    monkeypatch.setattr(gallery, "TEMPERATURES", (0.5, 1.2))
    found = gallery.at_temperatures(nf.load_checkpoint("digits"), 16)
    train = digits("train").images
    distances = {one: float(nearest(x, train).distances.mean()) for one, x in found.items()}
    assert distances[0.5] < distances[1.2]


@pytest.mark.slow
def test_a_clip_below_the_length_of_the_last_scores_leaves_noise(monkeypatch):
    monkeypatch.setattr(gallery, "CLIPS", (1 / 32, 1 / 2, 1.0))
    net = nf.load_checkpoint("digits")
    found = gallery.clipped(net, 4)
    free = nf.sample(net, 4, seed=5)
    bitten = [share for share, _ in found.values()]
    off = [float((images - free).square().mean().sqrt()) for _, images in found.values()]
    assert bitten[0] > bitten[1] > bitten[2] == 0
    assert off[0] > off[1] > off[2] == 0


def test_chains_of_a_steep_score_run_off_and_clip_holds_them():
    lost, held = gallery.far(None), gallery.far(100.0)
    assert lost.shape == (5, 8)
    assert lost.isfinite().all()
    assert float(lost[-1].abs().max()) > 1e20
    assert held.shape == (61, 8)
    assert float(held[-1].abs().max()) < 3
    assert held[1, 0] - held[0, 0] == pytest.approx(2, abs=1)  # 100 steps of 0.02, and noise


def test_a_network_whose_method_adds_no_noise_is_warmed_by_another(model):
    net = nf.load_checkpoint(model)
    net.sampling = {"method": "euler"}
    assert set(gallery.at_temperatures(net, 2)) == set(gallery.TEMPERATURES)


def test_more_samples_than_real_images_are_refused_before_any_is_drawn(model, data, monkeypatch):
    monkeypatch.setattr(nf, "sample", None)
    with pytest.raises(SystemExit, match="give -n at most 15"):
        guidance.measure(model, "mnist", data, 16, 0, {})


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, {"method": "dpmpp_2m", "eta": 1.0, "steps": 3, "evaluations": 3}),
        ({"eta": 0.0}, {"method": "dpmpp_2m", "steps": 3, "eta": 0.0, "evaluations": 3}),
        ({"method": "euler"}, {"method": "euler", "evaluations": 4}),
    ],
)
def test_the_study_of_scales_says_what_it_draws_with(model, data, given, told, monkeypatch):
    net = nf.load_checkpoint(model)
    net.sampling = {"method": "dpmpp_2m", "eta": 1.0, "steps": 3}
    monkeypatch.setattr(nf, "load_checkpoint", lambda _: net)
    monkeypatch.setattr(guidance, "SCALES", (2.0,))
    monkeypatch.setattr(guidance, "load_classifier", lambda _: None)
    drawn = []

    class Judge:
        of_real = None

        def __init__(self, *_):
            pass

        def __call__(self, images, classes=None):
            drawn.append(images)

    monkeypatch.setattr(guidance, "Judge", Judge)
    report = guidance.measure(model, "mnist", data, 3, 0, given)
    assert report.sampling == told
    settings = {name: value for name, value in told.items() if name != "evaluations"}
    assert torch.equal(drawn[0], nf.sample(net, 3, seed=0, **settings))


@pytest.mark.parametrize(
    ("values", "ticks"), [((0.9, 6), [1, 2, 5]), ((2.81, 3.36), [2.8, 3, 3.2, 3.4])]
)
def test_an_axis_has_numbers_whatever_it_reaches(values, ticks):
    axes = new_figure(3, 2, dpi=50).add_subplot()
    axes.set(yscale="log", ylim=(values[0] - 0.05, values[1] + 0.05))
    plain_ticks(axes.yaxis, DISTANCES)
    assert axes.get_yticks() == pytest.approx(ticks)
    assert [axes.yaxis.get_major_formatter()(tick) for tick in ticks] == [f"{t:g}" for t in ticks]


def test_progress_measures_what_a_run_keeps_and_nothing_twice(model, data, tmp_path, monkeypatch):
    run, out = tmp_path / "run", tmp_path / "out"
    run.mkdir()
    (run / "levels.json").write_text('{"step": 30}')
    for name in ("model_0000020", "model"):
        (run / f"{name}.safetensors").write_bytes(Path(model).read_bytes())
    assert list(progress.networks(run)) == [20, 30]

    def judge(images, classes=None):
        assert torch.equal(classes, torch.arange(6) % 3)
        return Judged(0.5, Quality(len(images), 2.0, 0.25, 0.75, 0.125))

    judge.of_real = Judged(None, Quality(6, 1.0, 0.9, 0.9, 1.0))
    monkeypatch.setattr(progress, "Judge", lambda *_: judge)
    drawn = []
    real_sample = nf.sample

    def sample(net, number, **settings):
        drawn.append(settings)
        return real_sample(net, number, **settings)

    monkeypatch.setattr(nf, "sample", sample)
    command = ["progress", str(run), "--data", data, "--classifier", "mnist", "-n", "6"]
    monkeypatch.setattr(sys, "argv", [*command, "--steps", "3", "--out", str(out)])
    progress.main()
    assert [settings["steps"] for settings in drawn] == [3, 3]
    (run / "levels.json").write_text('{"step": 40}')
    progress.main()
    assert len(drawn) == 3
    table = (out / "progress.md").read_text()
    for step in (20, 30, 40):
        assert f"| {step} | 50.0 % | 12.5 % | 25.0 % | 75.0 % | 2.00 |" in table
    assert "| real images |  | 100.0 % | 90.0 % | 90.0 % | 1.00 |" in table
    assert (out / "progress.png").exists()
    monkeypatch.setattr(sys, "argv", [*command, "--steps", "4", "--out", str(out)])
    with pytest.raises(SystemExit, match="another --out"):
        progress.main()
