"""Images in, and their classes: the bundled digits and a user's own images.

Images are float32 tensors (N, C, H, W) with values in [0, 1], or their 8-bit pixels. A network
works on *model space*; ``models/space.py`` goes there and back.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ncsn_fast.data.array_files import ARRAY_SUFFIXES, LAYOUTS, VALUES, read_array_file
from ncsn_fast.data.cifar import CIFAR_FILES, cifar_files, cifar_names, read_cifar
from ncsn_fast.data.digits import digits
from ncsn_fast.data.idx_files import idx_images
from ncsn_fast.data.image_file import readable_endings
from ncsn_fast.data.image_folder import read_folder
from ncsn_fast.data.labels import (
    Classes,
    as_classes,
    classes_by_folder,
    given_labels,
    labels_beside,
)
from ncsn_fast.data.pixels import unit_interval
from ncsn_fast.data.samples import dark
from ncsn_fast.support.checks import choice, count
from ncsn_fast.support.first_bytes import told_by_first_bytes

_log = logging.getLogger("ncsn_fast")


def load_images(
    path: str | os.PathLike[str],
    *,
    layout: str | None = None,
    key: str | None = None,
    image_size: int | tuple[int, int] | None = None,
    crop: int | None = None,
    damaged: str = "refuse",
    split: str | None = None,
    values: str = "unit",
) -> Tensor:
    """Load a user's images as floats: those of :func:`load_pixels`, 8-bit values divided by 255.

    Takes what :func:`load_pixels` takes and raises what it raises. Logs a warning where the largest
    8-bit value is a quarter of white or less, as it is where 1 or 16 was meant to be white.

    Returns:
        float32 (N, C, H, W) in [0, 1], contiguous, on the CPU.
    """
    pixels = load_pixels(
        path,
        layout=layout,
        key=key,
        image_size=image_size,
        crop=crop,
        damaged=damaged,
        split=split,
        values=values,
    )
    if pixels.dtype == np.uint8:
        if told := dark(float(pixels.max()), torch.uint8):
            _log.warning("%s: %s", path, told)
        return unit_interval(torch.from_numpy(np.require(pixels, requirements=["C", "W"])))
    return torch.from_numpy(np.array(pixels, dtype=np.float32, order="C"))


def load_pixels(
    path: str | os.PathLike[str],
    *,
    layout: str | None = None,
    key: str | None = None,
    image_size: int | tuple[int, int] | None = None,
    crop: int | None = None,
    damaged: str = "refuse",
    split: str | None = None,
    values: str = "unit",
) -> np.ndarray:
    """Load a user's images as they are stored: a quarter of the memory of :func:`load_images`.

    - A folder of image files, searched with its subfolders and where links lead in the order of
      the file names; each file is taken once. How many of other types, hidden or met twice are
      passed over is logged. If all files are grey the result has one channel, else three; camera
      rotation (EXIF) is applied, colour profiles are not. Damage is seen where it can be: PNG has
      checksums, most other formats have none.
    - An array file: ``.npy``, which is memory-mapped and not read whole, or ``.npz``.
    - IDX, the files of MNIST and its relatives, by whatever name, gzipped or not (then it is
      memory-mapped): one file, the folder of the four, or torchvision's folder around that.
    - CIFAR-10, binary version: its folder, the folder around it, or one of its ``.bin`` files.

    Args:
        path: the folder or file.
        layout: axes of the array, "NHW", "NCHW" or "NHWC". Default: recognised, taking an axis of
            at most 4 for the channels; a shape that can be read in two ways is refused.
        key: name of the array in an ``.npz``. Default: its only array, or the one named "images".
        image_size: side, or (H, W), of the result: of each file in a folder the largest centred
            rectangle of this aspect is shrunk to it (antialiased), never enlarged. Arrays, IDX and
            CIFAR-10 must have this size already.
        crop: side in pixels of the centred square that is cut out of each file before that, 140
            for CelebA as published.
        damaged: what to do with files of a folder that cannot be used (unreadable, of several
            pages or frames, of more than 8 bits, partly transparent, too small, links that lead
            nowhere): "refuse" them all by name, or "skip" them with a warning.
        split: "train" (default) or "test" images of a folder of CIFAR-10 or MNIST.
        values: of an array, "unit" for [0, 1] (uint8: 0 to 255), or "signed" for x in [-1, 1],
            which becomes (x + 1) / 2: a network with ``rescaled=True`` then sees x itself. Complex
            images (N, H, W) are signed ones of two channels, real and imaginary part.

    Returns:
        (N, C, H, W): uint8 from 8-bit sources, else the file's floating-point type, in [0, 1].

    Raises:
        FileNotFoundError: if there is nothing at ``path``.
        ValueError: for an unreadable file, an empty folder, images of different sizes without
            ``image_size``, an array of Python objects, CIFAR-10's pickles, or a shape, data type,
            range or setting that is not one of the above.
    """
    return _read(path, layout, key, image_size, crop, damaged, split, values).pixels


class _Found(NamedTuple):
    """Images, and what tells of their classes where the source knows them."""

    pixels: np.ndarray
    classes: Callable[[], Classes | None]


def _read(
    path: str | os.PathLike[str],
    layout: str | None = None,
    key: str | None = None,
    image_size: int | tuple[int, int] | None = None,
    crop: int | None = None,
    damaged: str = "refuse",
    split: str | None = None,
    values: str = "unit",
) -> _Found:
    path = Path(path)
    size = _check_settings(layout, image_size, crop, damaged, split, values)
    if not path.exists():
        raise FileNotFoundError(f"no such file or folder: {path}")
    cifar = cifar_files(path, split)
    idx = None if cifar else idx_images(path, split)
    if split is not None and not cifar and not idx:
        raise ValueError(
            f"split = {split!r} is for CIFAR-10, and for MNIST's files in a folder, and {path} is "
            "not one of them"
        )
    if cifar or path.is_dir():
        if layout is not None or key is not None:
            raise ValueError(f"layout and key describe an array file, but {path} is none")
        if values != "unit":
            raise ValueError(f"values={values!r} is for an array file; {path} holds 8-bit pixels")
    path = idx or path
    classes: Callable[[], Classes | None]
    if cifar:
        pixels, labels = read_cifar(cifar)
        classes = partial(_of_cifar, labels, cifar[0].parent)
    elif path.is_dir():
        pixels, files, left_out = read_folder(path, size, crop, skip=damaged == "skip")
        return _Found(pixels, partial(classes_by_folder, path, files, left_out))
    elif idx or (path.suffix.lower() in ARRAY_SUFFIXES and path.is_file()):
        pixels = read_array_file(path, layout, key, values)
        classes = partial(labels_beside, path, key, len(pixels))
    elif path.is_file() and path.suffix.lower() in readable_endings():
        raise ValueError(
            f"{path} is a single picture: give the folder of all of them, such as "
            f"{path.absolute().parent}"
        )
    else:
        told = told_by_first_bytes(path) if path.is_file() else "no file: a pipe or device"
        raise ValueError(
            f"cannot load images from {path}: give a {' or '.join(ARRAY_SUFFIXES)} file, a folder "
            "of image files, an IDX file (MNIST's) or CIFAR-10's binary version (unpacked)"
            + (f"; this is {told}" if told else "")
        )
    if crop is not None or size not in (None, pixels.shape[2:]):
        raise ValueError(
            f"the images of {path} are {pixels.shape[2:]} (H, W); crop and image_size change files "
            "of a folder only: resize the array first, e.g. torch.nn.functional.interpolate("
            "images, size, mode='bilinear', antialias=True)"
        )
    return _Found(pixels, classes)


def _of_cifar(labels: np.ndarray, folder: Path) -> Classes:
    return as_classes(labels, len(labels), folder, cifar_names(folder))


def pixels_of(data: str, **settings: Any) -> np.ndarray:
    """The images that commands call ``data``: the word "digits", for the training part of these,
    or what :func:`load_pixels` takes, with its settings.

    Raises:
        ValueError, FileNotFoundError: as ``load_pixels``, and for settings that the digits cannot
            meet; their size, 8×8, is not looked at.
    """
    return _find(data, settings).pixels


def labelled_pixels_of(
    data: str, labels: str | None = None, **settings: Any
) -> tuple[np.ndarray, Classes | None]:
    """The images that commands call ``data``, as :func:`pixels_of` gives them, and their classes.

    Args:
        data: "digits", or what :func:`load_pixels` takes.
        labels: a file of labels, ``.npy`` of (N,) whole numbers or IDX, or the name of an array of
            the ``.npz`` that the images are in. Default: what the source says itself. That is the
            digits' and CIFAR-10's labels, the file beside IDX images
            (``train-labels-idx1-ubyte.gz``), an array called "labels" or "y" of an ``.npz``, and
            of a folder the direct subfolders, each of them a class, where all images lie in them.
        settings: of :func:`load_pixels`.

    Returns:
        The images, and ``Classes(indices, names)``, None where the source says nothing of them.
        Classes are called as their subfolders or by CIFAR-10's ``batches.meta.txt``, else "0",
        "1", ...; those without an image are told in the log.

    Raises:
        ValueError, FileNotFoundError: as ``pixels_of``; and for labels that are not there, damaged,
            not one whole number from 0 to 9,999 for each image, or could be two things: an array
            and a file of one name, two arrays, files of labels that differ, images in subfolders
            and beside them.
    """
    given = None if labels is None else given_labels(labels, Path(data))
    found = _find(data, settings)
    if given is None:
        return found.pixels, found.classes()
    return found.pixels, as_classes(given, len(found.pixels), labels)


def _find(data: str, settings: dict[str, Any]) -> _Found:
    if data != "digits":
        return _read(data, **settings)
    if Path(data).exists():
        _log.warning("digits are the bundled digits; what lies here by this name is ./digits")
    for name in ("crop", "key", "layout", "values"):
        if settings.get(name) not in (None, "unit"):
            raise ValueError(f"the digits are no file: {name}={settings[name]!r} is not for them")
    images, labels = digits(settings.get("split") or "train")
    return _Found(images.numpy(), lambda: as_classes(labels.numpy(), len(images), data))


def _check_settings(
    layout: str | None,
    image_size: int | tuple[int, int] | None,
    crop: int | None,
    damaged: str,
    split: str | None,
    values: str,
) -> tuple[int, int] | None:
    """Refuse unknown settings; return the wanted (H, W), if any."""
    if layout is not None:
        choice("layout", layout, tuple(LAYOUTS), "not a known order of axes")
    choice("values", values, VALUES, "not a known range")
    choice("damaged", damaged, ("refuse", "skip"), "not a known way")
    if split is not None:
        choice("split", split, tuple(CIFAR_FILES), "not a known part")
    side = None if crop is None else count("crop", crop)
    if image_size is None:
        return None
    sides = image_size if isinstance(image_size, tuple | list) else (image_size, image_size)
    if len(sides) != 2:
        raise ValueError(f"image_size = {image_size!r}: give one side, or (height, width)")
    height, width = (count("image_size", value) for value in sides)
    if side is not None and max(height, width) > side:
        raise ValueError(
            f"image_size = {image_size} would enlarge the crop of {side}×{side} pixels: give a "
            "smaller image_size or a larger crop"
        )
    return height, width


__all__ = ["labelled_pixels_of", "load_images", "load_pixels", "pixels_of"]
