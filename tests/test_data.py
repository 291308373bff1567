from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ncsn_fast import data

# --- digits ---------------------------------------------------------------------------------------


def test_digits_splits_have_the_published_sizes() -> None:
    assert [len(data.digits(split).images) for split in ("train", "test", "all")] == [
        1400,
        397,
        1797,
    ]


def test_digits_splits_are_the_permutation_cut_in_two() -> None:
    train, test, everything = (data.digits(split) for split in ("train", "test", "all"))
    assert torch.equal(torch.cat([train.images, test.images]), everything.images)
    assert torch.equal(torch.cat([train.labels, test.labels]), everything.labels)
    with np.load(data._DIGITS_FILE) as archive:
        first = np.random.RandomState(0).permutation(1797)[0]
        expected = archive["images"][first] / 16
    np.testing.assert_array_equal(train.images[0, 0].numpy(), expected)


def test_digits_are_float32_images_of_17_greys_with_int64_labels() -> None:
    images, labels = data.digits("all")
    assert images.shape == (1797, 1, 8, 8)
    assert images.dtype == torch.float32
    assert torch.equal(images.unique(), torch.arange(17) / 16)
    assert labels.dtype == torch.int64
    # The counts that the UCI repository gives for the test part of the set.
    assert labels.bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_digits_refuses_an_unknown_split() -> None:
    with pytest.raises(ValueError, match=r"unknown split 'valid': choose one of 'train', 'test'"):
        data.digits("valid")


def test_digits_refuses_one_altered_pixel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with np.load(data._DIGITS_FILE) as archive:
        images, labels = archive["images"], archive["labels"]
    images[3, 4, 5] ^= 1
    altered = tmp_path / "digits.npz"
    np.savez_compressed(altered, images=images, labels=labels)
    monkeypatch.setattr(data, "_DIGITS_FILE", altered)
    with pytest.raises(ValueError, match=r"damaged or altered.*reinstall"):
        data.digits()


@pytest.mark.parametrize("keep", [0, 100, 20_000, -10])
def test_digits_refuses_a_truncated_file(
    keep: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = tmp_path / "digits.npz"
    cut.write_bytes(data._DIGITS_FILE.read_bytes()[:keep])
    monkeypatch.setattr(data, "_DIGITS_FILE", cut)
    with pytest.raises(ValueError, match=r"bundled digits .* reinstall"):
        data.digits()


def test_digits_refuses_flipped_bytes_in_the_compressed_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = bytearray(data._DIGITS_FILE.read_bytes())
    damaged[5000:5004] = bytes(255 - byte for byte in damaged[5000:5004])
    (tmp_path / "digits.npz").write_bytes(damaged)
    monkeypatch.setattr(data, "_DIGITS_FILE", tmp_path / "digits.npz")
    with pytest.raises(ValueError, match=r"bundled digits .* reinstall"):
        data.digits()


def test_digits_licence_names_source_and_licence() -> None:
    text = (data._DIGITS_FILE.parent / "DIGITS_LICENSE.md").read_text(encoding="utf-8")
    for fact in ("Alpaydin", "Kaynak", "10.24432/C50P49", "CC BY 4.0", "UCI", "1998"):
        assert fact in text


# --- images ---------------------------------------------------------------------------------------


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
