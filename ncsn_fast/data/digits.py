"""The bundled handwritten digits."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ncsn_fast.support.array_parsers import open_npz
from ncsn_fast.support.parsers import FileError

_DIGITS_FILE = Path(__file__).parents[1] / "assets" / "digits.npz"
_DIGITS_SHA256 = "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"
_DIGITS_TRAIN = 1400


class Digits(NamedTuple):
    """Handwritten digits: ``images`` float32 (N, 1, 8, 8) in [0, 1], ``labels`` int64 (N,)."""

    images: Tensor
    labels: Tensor


def digits(split: str = "train") -> Digits:
    """Return the bundled handwritten digits, 8×8 pixels, 17 grey values.

    The 1,797 images are permuted by ``numpy.random.RandomState(0)``; the first 1,400 are the
    training set and the other 397 the held-out set, so that published figures name the same images
    everywhere. Source and licence (CC BY 4.0): ``assets/DIGITS_LICENSE.md``.

    Args:
        split: "train" (1,400 images), "test" (397) or "all" (1,797, in the permuted order).

    Returns:
        ``Digits(images, labels)``: float32 (N, 1, 8, 8) in [0, 1] and int64 (N,) from 0 to 9.

    Raises:
        ValueError: for an unknown split, or a bundled file that is missing, damaged or altered.
    """
    parts = {
        "train": slice(0, _DIGITS_TRAIN),
        "test": slice(_DIGITS_TRAIN, None),
        "all": slice(None),
    }
    if split not in parts:
        raise ValueError(f"unknown split {split!r}: choose one of {', '.join(map(repr, parts))}")
    pixels, labels = _read_digits(_DIGITS_FILE)
    order = np.random.RandomState(0).permutation(len(pixels))[parts[split]]
    images = pixels[order, None].astype(np.float32) / 16
    return Digits(torch.from_numpy(images), torch.from_numpy(labels[order].astype(np.int64)))


def _read_digits(path: Path) -> tuple[np.ndarray, np.ndarray]:
    mend = "reinstall ncsn_fast to get it back"
    try:
        with open_npz(path) as archive:
            pixels, labels = archive["images"], archive["labels"]
    except (OSError, FileError) as error:
        raise ValueError(f"the bundled digits {path} cannot be read ({error}): {mend}") from error
    # The checksum is of the values, so that another zip library may write the same file again.
    found = hashlib.sha256(pixels.tobytes() + labels.tobytes()).hexdigest()
    if found != _DIGITS_SHA256:
        raise ValueError(
            f"the bundled digits {path} are damaged or altered: SHA-256 of the pixels and labels "
            f"is {found}, expected {_DIGITS_SHA256}; {mend}"
        )
    return pixels, labels


__all__ = ["Digits", "digits"]
