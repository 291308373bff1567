"""CIFAR-10 as its authors publish it, in the binary version.

A file is a sequence of rows of 3,073 bytes: a label from 0 to 9, then 3 × 32 × 32 pixels (red,
green, blue; rows from the top). ``data_batch_1.bin`` to ``data_batch_5.bin`` hold the 50,000
training images, ``test_batch.bin`` the 10,000 held-out ones.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ncsn_fast.device.memory import check_host_memory
from ncsn_fast.support.parsers import read_text

CIFAR_FILES = {
    "train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
    "test": ("test_batch.bin",),
}
_SHAPE = (3, 32, 32)
_ROW_BYTES = 1 + 3 * 32 * 32
_CLASSES = 10
_NAMES = "batches.meta.txt"
_LONGEST_NAME = 100


def cifar_files(path: Path, split: str | None) -> list[Path] | None:
    """The files of the wanted split, or None where ``path`` is not CIFAR-10.

    Args:
        path: a ``.bin`` file, a folder with the binary version's files, or the folder around it.
        split: "train" or "test", None for "train"; a single file has no split.

    Raises:
        ValueError: for the version that holds Python pickles, a missing file, or the split of a
            single file.
    """
    if path.is_file() and path.suffix.lower() == ".bin":
        if split is not None:
            raise ValueError(f"split = {split!r} chooses among CIFAR-10's files; {path} is one")
        return [path]
    names = [name for split_names in CIFAR_FILES.values() for name in split_names]
    for folder in (path, path / "cifar-10-batches-bin"):
        if any((folder / name).is_file() for name in names):
            files = [folder / name for name in CIFAR_FILES[split or "train"]]
            missing = [file.name for file in files if not file.is_file()]
            if missing:
                raise ValueError(
                    f"{folder} lacks {', '.join(missing)}: unpack CIFAR-10's binary version again"
                )
            return files
    _refuse_pickles(path)
    return None


def read_cifar(files: list[Path]) -> tuple[np.ndarray, np.ndarray]:
    """The images of these files, one after another, and their labels: uint8 (N, 3, 32, 32), (N,).

    Raises:
        ValueError: for a file that is not made of whole rows with labels from 0 to 9.
    """
    needed = sum(file.stat().st_size for file in files)
    check_host_memory(needed, f"{files[0]}", "CIFAR-10 has 10,000 images in a file")
    rows = [_read_rows(file) for file in files]
    pixels = np.concatenate([part[:, 1:] for part in rows]).reshape(-1, *_SHAPE)
    return pixels, np.concatenate([part[:, 0] for part in rows])


def cifar_names(folder: Path) -> tuple[str, ...]:
    """The names of the ten classes by ``batches.meta.txt``; "0" to "9" where it is not there.

    Raises:
        ValueError: for a file of other than ten names.
    """
    file = folder / _NAMES
    if not file.is_file():
        return tuple(map(str, range(_CLASSES)))
    names = tuple(line.strip() for line in read_text(file).splitlines() if line.strip())
    if (
        len(names) != _CLASSES
        or len({*names}) != _CLASSES
        or len(max(names, key=len)) > _LONGEST_NAME
    ):
        raise ValueError(
            f"{file} has {len(names)} lines that are not the names of {_CLASSES} classes: unpack "
            "it again, or remove it to call them 0 to 9"
        )
    return names


def _read_rows(file: Path) -> np.ndarray:
    size = file.stat().st_size
    if size == 0 or size % _ROW_BYTES:
        raise ValueError(
            f"{file} has {size:,} bytes, but CIFAR-10's binary files are whole rows of "
            f"{_ROW_BYTES:,} (published: 10,000 rows, {10_000 * _ROW_BYTES:,} bytes): "
            "download or unpack it again"
        )
    rows = np.fromfile(file, dtype=np.uint8).reshape(-1, _ROW_BYTES)
    if rows[:, 0].max() >= _CLASSES:
        raise ValueError(
            f"{file} has the label {rows[:, 0].max()}, but CIFAR-10's are 0 to {_CLASSES - 1}: it "
            "is damaged or something else; save other images as .npy, uint8 (N, 3, H, W)"
        )
    return rows


def _refuse_pickles(path: Path) -> None:
    inside = ("data_batch_1", "cifar-10-batches-py/data_batch_1")
    if path.name in ("data_batch_1", "test_batch") or any((path / p).is_file() for p in inside):
        raise ValueError(
            f"{path} is the Python version of CIFAR-10, whose pickles are never loaded because "
            "loading them can run code: take the 'CIFAR-10 binary version (suitable for C "
            "programs)', cifar-10-binary.tar.gz, from https://www.cs.toronto.edu/~kriz/cifar.html"
        )


__all__ = ["CIFAR_FILES", "cifar_files", "cifar_names", "read_cifar"]
