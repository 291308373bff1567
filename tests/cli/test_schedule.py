"""ncsn-fast schedule, and its picture."""

import json
import shlex

import numpy as np
import pytest
import torch
from helpers.command import invoke, succeed
from PIL import Image

import ncsn_fast as nf
from ncsn_fast.data.digits import digits
from ncsn_fast.training import schedule_figure


def test_the_command_writes_what_auto_schedule_chooses(tmp_path):
    output = succeed("schedule", "digits", "--out", tmp_path / "new")
    assert "21 noise levels from 4.8 down to 0.01" in output
    assert "any two of all 1,400 points: exact" in output
    assert "105 network evaluations" in output
    written = json.loads((tmp_path / "new" / "schedule.json").read_text())
    expected = nf.auto_schedule(digits("train").images)
    assert written["sigmas"] == expected.sigmas.tolist()
    assert written["step_size"] == expected.step_size
    assert (written["steps_per_level"], written["exact"], written["warnings"]) == (5, True, [])
    Image.open(tmp_path / "new" / "schedule.png").verify()


def test_the_printed_command_trains_with_the_same_levels(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (120, 8, 8), dtype=np.uint8)
    np.save(tmp_path / "some images.npy", pixels)
    flags = ("--out", tmp_path, "--rescaled", "--overlap", 0.3)
    output = succeed("schedule", tmp_path / "some images.npy", *flags)
    written = json.loads((tmp_path / "schedule.json").read_text())
    words = shlex.split(written["train"])
    assert written["train"] in output
    words[words.index("--out") + 1] = str(tmp_path / "run")
    succeed(*words[1:], "--ngf", 4, "--batch-size", 4, "--steps", 1)
    net = nf.load_checkpoint(tmp_path / "run" / "model.safetensors")
    assert net.sigmas.tolist() == written["sigmas"]
    assert net.sampling["step_size"] == written["step_size"]
    assert net.config["rescaled"]


def test_a_part_of_the_points_is_stated(tmp_path):
    result = invoke("schedule", "digits", "--out", tmp_path, "--max-points", 200, "--seed", 3)
    assert "among 200 points drawn at random from 1,400" in result.output
    written = json.loads((tmp_path / "schedule.json").read_text())
    assert (written["points"], written["of"], written["exact"]) == (200, 1400, False)


def test_data_that_are_not_there_are_one_clear_line(tmp_path):
    result = invoke("schedule", tmp_path / "nowhere", "--out", tmp_path)
    assert result.exit_code == 1
    assert "Error: no such file or folder" in result.output


def test_one_image_has_no_distance(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    result = invoke("schedule", tmp_path, "--out", tmp_path / "new")
    assert result.exit_code == 1
    assert "holds 1 image: noise levels come from distances" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--key", "a"), "the digits are no file: --key a is not for them"),
        (("--image-size", 16), "the digits are 8×8: --image-size 16 is not for them"),
        (("--values", "signed"), "sees them as they are: add --rescaled"),
    ],
)
def test_settings_that_do_not_fit_are_refused(arguments, message, tmp_path):
    result = invoke("schedule", "digits", "--out", tmp_path / "new", *arguments)
    assert result.exit_code == 1
    assert message in result.output


def test_who_is_refused_leaves_no_folder(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((4, 1, 9, 9), np.uint8))
    for data in (tmp_path / "nowhere", tmp_path / "a.npy"):
        assert invoke("schedule", data, "--out", tmp_path / "new").exit_code == 1
        assert not (tmp_path / "new").exists()


def test_images_that_are_dark_are_said(tmp_path, caplog):
    images = np.random.default_rng(0).integers(0, 17, (120, 8, 8), dtype=np.uint8)
    np.save(tmp_path / "a.npy", images)
    succeed("schedule", tmp_path / "a.npy", "--out", tmp_path / "new")
    assert "the largest value is 16, where white is 255" in caplog.text


def test_the_picture_says_where_levels_overlap_at_any_distance(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    titles = []
    monkeypatch.setattr(
        Figure, "savefig", lambda figure, path: titles.append(figure.axes[2].get_title())
    )
    for dimension in (2, 50):
        points = torch.randn(100, dimension, generator=torch.Generator().manual_seed(0))
        schedule_figure.save_schedule(tmp_path / "a.png", nf.auto_schedule(points))
    assert titles == ["In few dimensions all levels overlap", "Fewer levels overlap less"]


def test_help_says_how_to_train_with_the_result():
    assert "trains with exactly these" in " ".join(succeed("schedule", "--help").split())


def test_the_picture_is_of_any_schedule_from_data(tmp_path):
    points = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    schedule_figure.save_schedule(tmp_path / "a.svg", nf.auto_schedule(points))
    assert (tmp_path / "a.svg").stat().st_size > 1000


def test_the_histogram_has_every_pair(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    seen = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path: seen.append(figure))
    schedule_figure.save_schedule(tmp_path / "a.png", nf.auto_schedule(digits("train").images))
    stairs = seen[0].axes[1].patches[0].get_data()
    assert stairs.values.sum() == pytest.approx(100)
    assert stairs.edges[-1] >= 4.8


def test_a_schedule_without_data_has_no_picture(tmp_path):
    given = nf.Schedule(nf.geometric_sigmas(1, 0.01, 5), 1e-5, 5)
    with pytest.raises(ValueError, match="not chosen from data"):
        schedule_figure.save_schedule(tmp_path / "a.png", given)
