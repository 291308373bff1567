from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ncsn_fast.data import load as data
from ncsn_fast.data.cifar import CIFAR_FILES
from ncsn_fast.device import memory

ROWS = 3


def write_cifar(folder: Path) -> dict[str, np.ndarray]:
    """The six files with a few random images each; returns the rows (N, 3073) of each split."""
    random = np.random.default_rng(0)
    splits = {}
    for split, names in CIFAR_FILES.items():
        rows = random.integers(0, 256, (len(names), ROWS, 3073), dtype=np.uint8)
        rows[..., 0] %= 10
        for name, part in zip(names, rows, strict=True):
            (folder / name).write_bytes(part.tobytes())
        splits[split] = rows.reshape(-1, 3073)
    return splits


@pytest.mark.parametrize(
    ("keywords", "split"),
    [({}, "train"), ({"split": "train"}, "train"), ({"split": "test"}, "test")],
)
def test_a_split_is_read_in_the_order_of_its_files(
    keywords: dict[str, str], split: str, tmp_path: Path
) -> None:
    rows = write_cifar(tmp_path)[split]
    pixels = data.load_pixels(tmp_path, **keywords)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, rows[:, 1:].reshape(-1, 3, 32, 32))
    images = data.load_images(tmp_path, **keywords)
    assert torch.equal(images, torch.from_numpy(pixels.astype(np.float32) / 255))


def test_planes_are_red_green_and_blue_with_rows_from_the_top(tmp_path: Path) -> None:
    row = np.zeros(3073, dtype=np.uint8)
    row[0] = 9
    row[1 + 1024 + 32 * 4 + 7] = 200
    (tmp_path / "mine.bin").write_bytes(row.tobytes())
    pixels = data.load_pixels(tmp_path / "mine.bin")
    assert np.argwhere(pixels).tolist() == [[0, 1, 4, 7]]


def test_the_unpacked_folder_is_found_inside_its_parent(tmp_path: Path) -> None:
    (tmp_path / "cifar-10-batches-bin").mkdir()
    write_cifar(tmp_path / "cifar-10-batches-bin")
    assert len(data.load_pixels(tmp_path)) == 5 * ROWS


def test_one_file_is_read_alone_and_has_no_split(tmp_path: Path) -> None:
    write_cifar(tmp_path)
    assert len(data.load_pixels(tmp_path / "data_batch_2.bin")) == ROWS
    with pytest.raises(ValueError, match=r"split = 'test' chooses among .* is one"):
        data.load_pixels(tmp_path / "data_batch_2.bin", split="test")


@pytest.mark.parametrize("size", [0, 1, 2 * 3073 + 1, 3 * 3073 - 1])
def test_a_file_of_the_wrong_size_is_named(size: int, tmp_path: Path) -> None:
    write_cifar(tmp_path)
    (tmp_path / "data_batch_4.bin").write_bytes(bytes(size))
    with pytest.raises(ValueError, match=rf"data_batch_4\.bin has {size:,} bytes.*rows of 3,073"):
        data.load_pixels(tmp_path)
    assert len(data.load_pixels(tmp_path, split="test")) == ROWS


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    write_cifar(tmp_path)
    (tmp_path / "data_batch_3.bin").unlink()
    with pytest.raises(ValueError, match=r"lacks data_batch_3\.bin: unpack"):
        data.load_pixels(tmp_path)


def test_a_label_that_cifar_does_not_have_is_refused(tmp_path: Path) -> None:
    write_cifar(tmp_path)
    rows = np.zeros((2, 3073), dtype=np.uint8)
    rows[1, 0] = 10
    (tmp_path / "data_batch_5.bin").write_bytes(rows.tobytes())
    with pytest.raises(ValueError, match=r"data_batch_5\.bin has the label 10.*save other images"):
        data.load_pixels(tmp_path)


@pytest.mark.parametrize("path", [".", "cifar-10-batches-py", "cifar-10-batches-py/data_batch_1"])
def test_the_pickled_version_is_refused_and_the_right_one_named(path: str, tmp_path: Path) -> None:
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "cifar-10-batches-py" / "data_batch_1").write_bytes(b"\x80\x04.")
    with pytest.raises(ValueError, match=r"Python version.*cifar-10-binary\.tar\.gz"):
        data.load_pixels(tmp_path / path)


def test_the_binary_version_is_taken_where_both_are(tmp_path: Path) -> None:
    for name in ("cifar-10-batches-py", "cifar-10-batches-bin"):
        (tmp_path / name).mkdir()
    (tmp_path / "cifar-10-batches-py" / "data_batch_1").touch()
    write_cifar(tmp_path / "cifar-10-batches-bin")
    assert len(data.load_pixels(tmp_path)) == 5 * ROWS


def test_the_size_may_be_said_but_not_changed(tmp_path: Path) -> None:
    write_cifar(tmp_path)
    assert len(data.load_pixels(tmp_path, image_size=32)) == 5 * ROWS
    with pytest.raises(ValueError, match=r"are \(32, 32\).*change files of a folder only"):
        data.load_pixels(tmp_path, image_size=16)


def test_a_file_that_does_not_fit_into_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_cifar(tmp_path)
    monkeypatch.setattr(memory, "free_host_bytes", lambda: 3072)
    with pytest.raises(ValueError, match=r"data_batch_2\.bin takes .* GiB of memory"):
        data.load_pixels(tmp_path / "data_batch_2.bin")
