"""A folder of image files: found, decoded, cropped and resized to one size.

Resizing is Pillow's BILINEAR, which averages over the shrunken pixels' area (antialiasing): it is
what torchvision's ``Resize`` does to photos, by which the data of the published networks were made,
and unlike LANCZOS it invents no bright or dark rims.
"""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ncsn_fast.data.folder_walk import FolderWalk
from ncsn_fast.data.image_file import Decoded, Unusable, decode, readable_endings
from ncsn_fast.device.memory import check_host_memory
from ncsn_fast.support.checks import printable

_MOST_NAMED = 10
_GREY = "are grey among colour ones: their values are repeated over the three channels"
_COPY = "have the same pixels as another one"
_log = logging.getLogger("ncsn_fast")


class FolderImages(NamedTuple):
    """What a folder holds.

    Attributes:
        pixels: uint8 (N, C, H, W), one channel if all files are grey, else three.
        files: of these images, N.
        left_out: what was found and could not be used.
    """

    pixels: np.ndarray
    files: list[Path]
    left_out: list[Path]


def read_folder(
    folder: Path, size: tuple[int, int] | None, crop: int | None, *, skip: bool
) -> FolderImages:
    """The images of a folder and its subfolders in the order of their names.

    Links are followed, and what is met under several names is taken once. What is passed over, and
    what a user may not expect of the files, is logged as warnings.

    Args:
        folder: files of other types and hidden ones are passed over.
        size: (H, W) of the result; None asks for files of one size.
        crop: side of the centred square that is cut out first.
        skip: leave out files that cannot be used, with one warning that names them.

    Raises:
        ValueError: if there are no files, some of them cannot be used and ``skip`` is False, none
            can be used, or their sizes differ and ``size`` is None.
    """
    endings = readable_endings()
    found = FolderWalk(folder, endings)
    if passed := found.passed_over():
        _log.warning("in %s are passed over: %s", folder, passed)
    if not found.files and not found.unusable:
        told = f", not at {passed}" if passed else ""
        raise ValueError(f"found no image files in {folder}: looked for {', '.join(endings)}{told}")
    first: tuple[Path, np.ndarray] | None = None
    pixels: list[np.ndarray] = []
    files: list[Path] = []
    unusable, notes = dict(found.unusable), Counter[str]()
    digests: set[bytes] = set()
    for file, taken in _read_all(found.files, size, crop):
        if isinstance(taken, Unusable):
            unusable[file] = str(taken)
            continue
        if first is None:
            first = file, taken.pixels
            needed = taken.pixels.nbytes * len(found.files)
            otherwise = "give a smaller image_size, or save the images as one .npy of uint8"
            check_host_memory(
                needed, f"{len(found.files):,} files like {printable(file)}", otherwise
            )
        # At once: a whole folder of large photos may not fit into memory.
        if taken.pixels.shape[1:] != first[1].shape[1:]:
            raise _sizes_differ(*first, file, taken.pixels)
        digest = hashlib.sha256(taken.pixels.tobytes()).digest()
        notes.update(taken.notes)
        notes[_COPY] += digest in digests
        digests.add(digest)
        pixels.append(taken.pixels)
        files.append(file)
    if unusable:
        _report(folder, unusable, len(pixels), skip)
    grey = sum(len(image) == 1 for image in pixels)
    notes[_GREY] = 0 if grey == len(pixels) else grey
    for note, number in notes.items():
        if number:
            _log.warning("%d of %d image files in %s %s", number, len(pixels), folder, note)
    return FolderImages(_stack(pixels), files, list(unusable))


def _read_all(
    files: list[Path], size: tuple[int, int] | None, crop: int | None
) -> Iterator[tuple[Path, Decoded | Unusable]]:
    """Each file with its pixels; decoded on all cores, since Pillow lets other threads run."""
    from PIL.Image import DecompressionBombWarning

    with warnings.catch_warnings(), ThreadPoolExecutor() as pool:
        # Up to Pillow's limit files are read, above they are refused: there is nothing to warn of.
        warnings.simplefilter("ignore", DecompressionBombWarning)
        try:
            results = pool.map(partial(_attempt, size=size, crop=crop), files)
            yield from zip(files, results, strict=True)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _attempt(file: Path, size: tuple[int, int] | None, crop: int | None) -> Decoded | Unusable:
    try:
        return decode(file, size, crop)
    except Unusable as error:
        return error


def _sizes_differ(one: Path, a: np.ndarray, other: Path, b: np.ndarray) -> ValueError:
    sizes = (f"{image.shape[2]}×{image.shape[1]}" for image in (a, b))
    told = ", but ".join(
        f"{printable(file)} is {size}" for file, size in zip((one, other), sizes, strict=True)
    )
    return ValueError(
        f"the images differ in size: {told} (width×height); give image_size, e.g. image_size=32, "
        "to cut and shrink them all to one size"
    )


def _report(folder: Path, unusable: dict[Path, str], remain: int, skip: bool) -> None:
    told = (f"{printable(path.relative_to(folder))} {unusable[path]}" for path in sorted(unusable))
    named = "; ".join(islice(told, _MOST_NAMED))
    if len(unusable) > _MOST_NAMED:
        named += f"; and {len(unusable) - _MOST_NAMED} more"
    what = f"{len(unusable)} of {len(unusable) + remain} image files in {folder} cannot be used"
    if not remain:
        raise ValueError(f"{what}, which leaves none: {named}")
    if not skip:
        raise ValueError(f"{what}: {named}. Take them out, or leave them out with damaged='skip'")
    _log.warning("%s and are left out, %d remain: %s", what, remain, named)


def _stack(pixels: list[np.ndarray]) -> np.ndarray:
    # Grey images among colour ones are broadcast over the three channels.
    channels = max(len(image) for image in pixels)
    images = np.empty((len(pixels), channels, *pixels[0].shape[1:]), dtype=np.uint8)
    for row in images[::-1]:
        row[:] = pixels.pop()  # from the end, freeing each: memory holds them once
    return images


__all__ = ["FolderImages", "read_folder"]
