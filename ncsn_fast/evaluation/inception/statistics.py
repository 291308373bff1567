"""Mean and covariance of Inception features in a file, .npz with ``mu`` and ``sigma``.

pytorch-fid, clean-fid and EDM write and read such files. Ours say besides of how many images
(``images``) and of which weights (``weights``, a SHA-256) they are; the others pass over that.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from ncsn_fast.evaluation.inception.network import FEATURES
from ncsn_fast.evaluation.moments import Gaussian, Moments, gaussian
from ncsn_fast.support.array_parsers import Npz, open_npz
from ncsn_fast.support.files import atomic_write
from ncsn_fast.support.parsers import FileError, shown

_MOST_BYTES = 8 * FEATURES**2 + 4096  # of an array: the covariance in float64, and its header
# Half of what float32 has for digits: those who save such a covariance have rounded it.
_ROUNDING = 1e-4
_LARGEST = 1e30  # Inception's features are below 100


class Statistics(NamedTuple):
    """``of``: the Gaussian; of how many ``images`` and of which ``weights``, None: not said."""

    of: Gaussian
    images: int | None = None
    weights: str | None = None


def are_statistics(path: str | os.PathLike[str]) -> bool:
    """Whether a path is such a file, by the names in it; it may hold others beside them.

    Raises:
        OSError, FileError: for an .npz that cannot be read.
    """
    if Path(path).suffix.lower() != ".npz" or not Path(path).is_file():
        return False
    with open_npz(path) as archive:
        return {"mu", "sigma"} <= set(archive.names)


def read_statistics(path: str | os.PathLike[str]) -> Statistics:
    """Read such a file, in bounded memory.

    Raises:
        OSError: where it cannot be opened.
        FileError: for one that is damaged, of other shapes or types, or that holds values that are
            not finite or no covariance.
    """
    with open_npz(path) as archive:
        mean = _floats(archive, "mu", (FEATURES,))
        covariance = _floats(archive, "sigma", (FEATURES, FEATURES))
        images = _number(archive) if "images" in archive.names else None
        weights = _word(archive) if "weights" in archive.names else None
    largest = float(np.abs(covariance).max())
    if not np.abs(covariance - covariance.T).max() <= _ROUNDING * largest:
        raise FileError(f"{path}: its sigma is not symmetric, as a covariance is")
    found = gaussian(torch.from_numpy(mean), torch.from_numpy(covariance))
    # Rounding leaves small negative eigenvalues, which are taken for 0: the trace tells of others.
    gained = float(found.factor.square().sum()) - float(np.trace(covariance))
    if not gained <= FEATURES * _ROUNDING * largest:
        raise FileError(f"{path}: its sigma has negative eigenvalues, which no covariance has")
    return Statistics(found, images, weights)


def write_statistics(path: str | os.PathLike[str], moments: Moments, weights: str) -> None:
    """Write such a file, atomically; raises what ``support/files.py`` does."""
    with atomic_write(path) as temporary:
        np.savez(
            temporary,
            mu=moments.mean.cpu().numpy(),
            sigma=moments.covariance.cpu().numpy(),
            images=np.array(moments.count),
            weights=np.array(weights),
        )


def _floats(archive: Npz, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """An array of the file as float64."""
    found = _small(archive, name)
    if found.dtype.kind != "f" or found.shape != shape:
        raise FileError(
            f"{archive.path}: its {name} is {found.dtype} of shape {shown(found.shape)}, that of "
            f"Inception's features is floating point {shape}"
        )
    values = np.asarray(found, dtype=np.float64, order="C")
    if not np.abs(values).max() <= _LARGEST:
        raise FileError(
            f"{archive.path}: its {name} holds values that are not finite, or beyond {_LARGEST:g}"
        )
    return values


def _number(archive: Npz) -> int:
    found = _small(archive, "images")
    if found.dtype.kind not in "iu" or found.shape != () or found < 2:
        raise FileError(f"{archive.path}: its images is no number of images, at least 2")
    return int(found)


def _word(archive: Npz) -> str:
    found = _small(archive, "weights")
    if found.dtype.kind != "U" or found.shape != () or found.dtype.itemsize > 4 * 64:
        raise FileError(f"{archive.path}: its weights is no SHA-256")
    return str(found)


def _small(archive: Npz, name: str) -> np.ndarray:
    if archive.size(name) > _MOST_BYTES:
        raise FileError(
            f"{archive.path}: its {name} has {archive.size(name):,} bytes, statistics of 2,048 "
            f"features have at most {_MOST_BYTES:,}"
        )
    return archive[name]


__all__ = ["Statistics", "are_statistics", "read_statistics", "write_statistics"]
