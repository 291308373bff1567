"""A folder of image files: found, decoded, cropped and resized to one size.

Resizing is Pillow's BILINEAR, which averages over the shrunken pixels' area (antialiasing): it is
what torchvision's ``Resize`` does to photos, by which the data of the published networks were made,
and unlike LANCZOS it invents no bright or dark rims.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
_MOST_NAMED = 10
_log = logging.getLogger("ncsn_fast")


class _Unusable(Exception):
    """Why a file cannot be taken, and what would help."""


def read_folder(
    folder: Path, size: tuple[int, int] | None, crop: int | None, *, skip: bool
) -> np.ndarray:
    """The images of a folder and its subfolders in the order of their names.

    Args:
        folder: files of other types and hidden ones are passed over.
        size: (H, W) of the result; None asks for files of one size.
        crop: side of the centred square that is cut out first.
        skip: leave out files that cannot be used, with one warning that names them.

    Returns:
        uint8 (N, C, H, W): one channel if all files are grey, else three.

    Raises:
        ValueError: if there are no files, some of them cannot be used and ``skip`` is False, none
            can be used, or their sizes differ and ``size`` is None.
    """
    files = _find(folder)
    taken: list[Path] = []
    pixels: list[np.ndarray] = []
    unusable: list[str] = []
    for file, found in _read_all(files, size, crop):
        if isinstance(found, _Unusable):
            unusable.append(f"{file.relative_to(folder)} {found}")
            continue
        taken.append(file)
        pixels.append(found)
        # At once: a whole folder of large photos may not fit into memory.
        if found.shape[1:] != pixels[0].shape[1:]:
            raise _sizes_differ(taken[0], pixels[0], file, found)
    if unusable:
        _report(folder, unusable, len(pixels), skip)
    return _stack(pixels)


def _find(folder: Path) -> list[Path]:
    files = sorted(
        file
        for file in folder.rglob("*")
        if file.suffix.lower() in IMAGE_SUFFIXES
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    )
    if not files:
        raise ValueError(
            f"found no image files in {folder}: looked for {', '.join(IMAGE_SUFFIXES)}"
        )
    return files


def _read_all(
    files: list[Path], size: tuple[int, int] | None, crop: int | None
) -> Iterator[tuple[Path, np.ndarray | _Unusable]]:
    """Each file with its pixels; decoded on all cores, since Pillow lets other threads run."""
    with ThreadPoolExecutor() as pool:
        try:
            results = pool.map(partial(_attempt, size=size, crop=crop), files)
            yield from zip(files, results, strict=True)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _attempt(file: Path, size: tuple[int, int] | None, crop: int | None) -> np.ndarray | _Unusable:
    try:
        return _pixels(file, size, crop)
    except _Unusable as error:
        return error


def _pixels(file: Path, size: tuple[int, int] | None, crop: int | None) -> np.ndarray:
    """uint8 (1 or 3, H, W), upright, cropped, resized."""
    image = _flattened(_decoded(file))
    if crop is not None:
        image = _centre(image, crop, crop, f"crop={crop}")
    if size is not None:
        image = _resized(image, *size)
    array = np.asarray(image)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def _decoded(file: Path) -> Image:
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(file) as opened:
            return ImageOps.exif_transpose(opened)
    except MemoryError:
        raise
    except UnidentifiedImageError as error:
        raise _Unusable("is no image: replace it") from error
    except Exception as error:  # a decoder may stumble over damaged bytes in any way
        raise _Unusable(f"cannot be read ({error}): replace it") from error


def _flattened(image: Image) -> Image:
    """Grey (L) or RGB without transparency."""
    if image.mode not in ("1", "L", "LA", "P", "RGB", "RGBA"):
        raise _Unusable(f"has the pixel type {image.mode}: save it as 8-bit grey or RGB")
    may_be_transparent = "A" in image.mode or "transparency" in image.info
    if may_be_transparent and image.convert("RGBA").getchannel("A").getextrema() != (255, 255):
        raise _Unusable("is partly transparent: put it on a background and save it again")
    return image.convert("L" if image.mode in ("1", "L", "LA") else "RGB")


def _resized(image: Image, height: int, width: int) -> Image:
    """The largest centred rectangle of this aspect, shrunk to this size."""
    from PIL import Image

    wanted = f"image_size={height}" if height == width else f"image_size=({height}, {width})"
    if image.width * height >= image.height * width:
        cut = image.height * width // height, image.height
    else:
        cut = image.width, image.width * height // width
    if cut[0] < width:  # then the height is too small as well: the aspect is the wanted one
        raise _Unusable(f"{_told(image)} and would be enlarged: give a smaller {wanted}")
    return _centre(image, *cut, wanted).resize((width, height), Image.Resampling.BILINEAR)


def _centre(image: Image, width: int, height: int, wanted: str) -> Image:
    if image.width < width or image.height < height:
        raise _Unusable(f"{_told(image)}: give a smaller {wanted}")
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def _told(image: Image) -> str:
    return f"is {image.width}×{image.height} pixels (width×height)"


def _sizes_differ(one: Path, a: np.ndarray, other: Path, b: np.ndarray) -> ValueError:
    return ValueError(
        f"the images differ in size: {one} is {a.shape[2]}×{a.shape[1]}, but {other} is "
        f"{b.shape[2]}×{b.shape[1]} (width×height); give image_size, e.g. image_size=32, to cut "
        "and shrink them all to one size"
    )


def _report(folder: Path, unusable: list[str], remain: int, skip: bool) -> None:
    named = "; ".join(unusable[:_MOST_NAMED])
    if len(unusable) > _MOST_NAMED:
        named += f"; and {len(unusable) - _MOST_NAMED} more"
    told = f"{len(unusable)} of {len(unusable) + remain} image files in {folder} cannot be used"
    if not remain:
        raise ValueError(f"{told}, which leaves none: {named}")
    if not skip:
        raise ValueError(f"{told}: {named}. Take them out, or leave them out with damaged='skip'")
    _log.warning("%s and are left out, %d remain: %s", told, remain, named)


def _stack(pixels: list[np.ndarray]) -> np.ndarray:
    # Grey images among colour ones are broadcast over the three channels.
    channels = max(len(image) for image in pixels)
    images = np.empty((len(pixels), channels, *pixels[0].shape[1:]), dtype=np.uint8)
    for row in images[::-1]:
        row[:] = pixels.pop()  # from the end, freeing each: memory holds them once
    return images


__all__ = ["IMAGE_SUFFIXES", "read_folder"]
