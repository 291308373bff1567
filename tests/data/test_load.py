from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from ncsn_fast.data import load as data


def test_other_paths_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no such file or folder: .*nowhere"):
        data.load_images(tmp_path / "nowhere")
    (tmp_path / "a.pt").touch()
    with pytest.raises(ValueError, match=r"a\.pt: give a \.npy or \.npz file, a folder .*CIFAR"):
        data.load_images(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layout": "CHW"}, r"layout = 'CHW'.*one of \('NHW', 'NCHW', 'NHWC'\)"),
        ({"layout": "NHW"}, r"layout and key describe an array file"),
        ({"key": "images"}, r"layout and key describe an array file"),
        ({"values": "signed"}, r"values='signed' is for an array file"),
        ({"values": "any"}, r"values = 'any'.*one of \('unit', 'signed'\)"),
        ({"damaged": "ignore"}, r"damaged = 'ignore'.*one of \('refuse', 'skip'\)"),
        ({"split": "valid"}, r"split = 'valid'.*one of \('train', 'test'\)"),
        ({"split": "test"}, r"split = 'test' is for CIFAR-10, and .* is not"),
        ({"image_size": 0}, r"image_size = 0: give a whole number"),
        ({"image_size": (8, 2.5)}, r"image_size = 2\.5: give a whole number"),
        ({"image_size": (1, 8, 8)}, r"image_size = \(1, 8, 8\): give one side, or \(height"),
        ({"crop": -1}, r"crop = -1: give a whole number"),
        ({"crop": 8, "image_size": 16}, r"image_size = 16 would enlarge the crop of 8×8"),
    ],
)
def test_settings_of_a_folder_that_cannot_be_met_are_refused(
    settings: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        data.load_images(tmp_path, **settings)


@pytest.mark.parametrize("settings", [{"image_size": 4}, {"crop": 4}])
def test_arrays_are_not_resized(settings: dict[str, int], tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((6, 8, 8), dtype=np.uint8))
    assert len(data.load_pixels(tmp_path / "a.npy", image_size=8)) == 6
    with pytest.raises(ValueError, match=r"are \(8, 8\).*resize the array first.*interpolate"):
        data.load_pixels(tmp_path / "a.npy", **settings)


@pytest.mark.parametrize(
    "settings", [{"crop": 8}, {"key": "a"}, {"layout": "NHW"}, {"values": "signed"}]
)
def test_settings_of_files_are_refused_for_the_digits(settings: dict[str, object]) -> None:
    assert data.pixels_of("digits", image_size=8, values="unit").shape == (1400, 1, 8, 8)
    with pytest.raises(ValueError, match="the digits are no file: "):
        data.pixels_of("digits", **settings)


def test_what_a_file_is_instead_is_told(tmp_path: Path) -> None:
    (tmp_path / "photos.zip").write_bytes(b"PK\x03\x04")
    with pytest.raises(ValueError, match=r"photos\.zip: give a .*; this is a zip archive: unpack"):
        data.load_pixels(tmp_path / "photos.zip")


def test_of_a_single_picture_the_folder_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "a.JPG").touch()
    with pytest.raises(ValueError, match=rf"single picture: give the folder .*{tmp_path}$"):
        data.load_pixels(tmp_path / "a.JPG")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.npy")
    with pytest.raises(ValueError, match=r"a\.npy: .*this is no file: a pipe"):
        data.load_pixels(tmp_path / "a.npy")


def test_the_bundled_digits_are_told_from_a_folder_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    data.pixels_of("digits")
    assert not caplog.records
    (tmp_path / "digits").mkdir()
    data.pixels_of("digits")
    assert "what lies here by this name is ./digits" in caplog.text
