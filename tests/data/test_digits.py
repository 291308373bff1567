"""The bundled digits: what they are, and that damage is found."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

# The room hands the function on by the file's own name.
data = importlib.import_module("ncsn_fast.data.digits")


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


def flipped(whole: bytes) -> bytes:
    return whole[:5000] + bytes(255 - byte for byte in whole[5000:5004]) + whole[5004:]


@pytest.mark.parametrize(
    "damage", [*(lambda whole, keep=keep: whole[:keep] for keep in (0, 100, 20_000, -10)), flipped]
)
def test_digits_refuses_a_damaged_file(
    damage: Callable[[bytes], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = tmp_path / "digits.npz"
    damaged.write_bytes(damage(data._DIGITS_FILE.read_bytes()))
    monkeypatch.setattr(data, "_DIGITS_FILE", damaged)
    with pytest.raises(ValueError, match=r"bundled digits .* reinstall"):
        data.digits()


def test_digits_licence_names_source_and_licence() -> None:
    text = (data._DIGITS_FILE.parent / "DIGITS_LICENSE.md").read_text(encoding="utf-8")
    for fact in ("Alpaydin", "Kaynak", "10.24432/C50P49", "CC BY 4.0", "UCI", "1998"):
        assert fact in text
