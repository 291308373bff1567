"""Labels: which class each image of a data set is of, by whatever says so.

Files of labels are IDX, as MNIST's, or ``.npy``; archives hold them beside the images; folders are
named by them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ncsn_fast.data.array_files import is_archive
from ncsn_fast.data.idx_files import idx_labels, is_idx, read_idx
from ncsn_fast.device.memory import check_host_memory
from ncsn_fast.models.ncsnv2 import MOST_CLASSES
from ncsn_fast.support.array_parsers import Npz, open_npy, open_npz
from ncsn_fast.support.checks import printable
from ncsn_fast.support.first_bytes import told_by_first_bytes
from ncsn_fast.support.parsers import shortened, shown

USUAL_NAMES = ("labels", "y")
_SPLITS = {"train", "training", "test", "val", "valid", "validation"}
_MOST_NAMED = 10
_log = logging.getLogger("ncsn_fast")


class Classes(NamedTuple):
    """The classes of a data set: of each image, and by name.

    Attributes:
        indices: int64 (N,), each a position in ``names``.
        names: of all classes, which differ; a class may be without an image.
    """

    indices: np.ndarray
    names: tuple[str, ...]


def as_classes(
    labels: np.ndarray, images: int, source: object, names: Sequence[str] | None = None
) -> Classes:
    """Labels once they are known to be such; classes without an image are told in the log.

    Args:
        labels: (N,) whole numbers from 0.
        images: N, of the images.
        source: what messages call the labels.
        names: of the classes; None: as many as the largest label asks for, called "0", "1", ...

    Raises:
        ValueError: for labels of another shape, number, type or range, and more than 10,000
            classes.
    """
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        mend = "give one whole number for each image"
        if labels.ndim == 1:
            mend += ", e.g. array.astype(numpy.int64)"
        elif labels.ndim == 2:
            mend += ", e.g. array.argmax(axis=1) of scores or array[:, 0] of a column"
        raise ValueError(
            f"the labels of {source} are {labels.dtype} of shape {shortened(labels.shape)}: {mend}"
        )
    if len(labels) != images:
        raise ValueError(
            f"{source} has {len(labels):,} labels for {images:,} images: give one for each image, "
            "in their order"
        )
    most = MOST_CLASSES if names is None else len(names)
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= most or most > MOST_CLASSES:
        what = f"from {low:,} to {high:,}" if most <= MOST_CLASSES else f"of {most:,} classes"
        raise ValueError(
            f"the labels of {source} are {what}: give whole numbers from 0 to "
            f"{min(most, MOST_CLASSES) - 1:,}, e.g. numpy.unique(array, return_inverse=True)[1]"
        )
    chosen = tuple(map(printable, map(str, range(high + 1)) if names is None else names))
    indices = labels.astype(np.int64)
    empty = np.flatnonzero(np.bincount(indices, minlength=len(chosen)) == 0)
    if len(empty):
        named = ", ".join(chosen[i] for i in empty[:_MOST_NAMED])
        more = f" and {len(empty) - _MOST_NAMED:,} more" if len(empty) > _MOST_NAMED else ""
        _log.warning(
            "%d of %d classes of %s have no image: %s%s",
            len(empty),
            len(chosen),
            source,
            named,
            more,
        )
    return Classes(indices, chosen)


def names_array(labels: str, data: Path) -> bool:
    """Whether ``labels``, as commands are told, names an array of the ``.npz`` that the images are
    in, and no file.

    Raises:
        ValueError: where it could be both.
    """
    inside = labels in _members(data)
    if inside and Path(labels).is_file():
        raise ValueError(
            f"labels={labels!r} is the name of an array of {data} and of a file here: write "
            f"./{labels} for the file, or rename it for the array"
        )
    return inside


def given_labels(labels: str, data: Path) -> np.ndarray:
    """What is called ``labels``, as commands are told: an array of the ``.npz`` that the
    images are in, or a file, IDX or ``.npy``.

    Raises:
        FileNotFoundError: where there is neither.
        ValueError: where there are both, and for a file that is damaged or another.
    """
    path = Path(labels)
    if names_array(labels, data):
        with open_npz(data) as archive:
            return _read_member(archive, labels)
    if not path.exists():
        named = ", ".join(map(printable, _members(data)[:_MOST_NAMED]))
        others = f", nor an array of {data}, whose arrays are {shortened(named)}" if named else ""
        raise FileNotFoundError(f"labels={labels!r}: no such file{others}")
    if is_idx(path):
        return read_idx(path)
    told = told_by_first_bytes(path)
    if told and "NumPy array:" not in told:
        raise ValueError(f"{path} holds no labels but is {told}; give an IDX or .npy file")
    return open_npy(path)


def labels_beside(images: Path, key: str | None, number: int) -> Classes | None:
    """The labels that a file of images brings along, None where it has none.

    Args:
        images: IDX, with a file of labels beside it by its usual name; or ``.npz``, with an array
            called "labels" or "y".
        key: name of the array of images in an ``.npz``.
        number: of images.

    Raises:
        ValueError: where two are there, and they are not the same; for what :func:`as_classes`
            refuses.
    """
    if is_idx(images):
        beside = idx_labels(images)
        return None if beside is None else as_classes(read_idx(beside), number, beside)
    if not is_archive(images):
        return None
    with open_npz(images) as archive:
        there = [name for name in USUAL_NAMES if name in archive.names and name != key]
        if len(there) > 1:
            raise ValueError(
                f"{images} has two arrays of labels, {' and '.join(there)}: say which one is meant "
                f"with labels={there[0]}"
            )
        if not there:
            return None
        return as_classes(_read_member(archive, there[0]), number, f"{images}, {there[0]}")


def classes_by_folder(
    folder: Path, files: Sequence[Path], left_out: Iterable[Path]
) -> Classes | None:
    """The classes of images by the direct subfolders in which they lie, at whatever depth.

    Args:
        folder: around all of them, with whose path theirs begin.
        files: of the images, in their order.
        left_out: files that could not be used: a class of theirs is one nonetheless.

    Returns:
        With the subfolders' names, sorted; None where the images are not in several subfolders.

    Raises:
        ValueError: where some images lie in subfolders and some beside them, and for subfolders
            that are called as parts of a data set are: train, test.
    """
    depth = len(folder.parts)
    places = [file.parts[depth:] for file in files]
    beside = [parts[0] for parts in places if len(parts) == 1]
    if len(beside) == len(files):
        return None
    if beside:
        raise ValueError(
            f"{len(beside):,} of {len(files):,} images in {folder} lie beside its subfolders "
            f"({shown(printable(beside[0]))}, ...): classes are subfolders, so move each image "
            "into one"
        )
    others = [parts for file in left_out if len(parts := file.parts[depth:]) > 1]
    names = sorted({parts[0] for parts in [*places, *others]})
    if len(names) == 1:
        return None
    if {name.lower() for name in names} <= _SPLITS:
        raise ValueError(
            f"the subfolders of {folder}, {' and '.join(names)}, are called as parts of a data "
            "set are, not as classes: give one of them"
        )
    positions = {name: i for i, name in enumerate(names)}
    labels = np.array([positions[parts[0]] for parts in places])
    return as_classes(labels, len(files), folder, names)


def _members(data: Path) -> list[str]:
    """The names of the arrays of an .npz; none of other data."""
    if not (data.is_file() and is_archive(data)):
        return []
    with open_npz(data) as archive:
        return archive.names


def _read_member(archive: Npz, name: str) -> np.ndarray:
    what = f"{archive.path}: {shown(name)}"
    check_host_memory(archive.size(name), what, "labels are one whole number for each image")
    return archive[name]


__all__ = [
    "Classes",
    "as_classes",
    "classes_by_folder",
    "given_labels",
    "labels_beside",
    "names_array",
]
