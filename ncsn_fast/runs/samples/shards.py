"""A range of samples as a file, or as a folder of pictures, with its SHA-256 beside it.

The checksum is written first: a shard that is there is whole, and has one.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from ncsn_fast.data.pixels import eight_bits
from ncsn_fast.runs.samples.manifest import (
    MOST_SAMPLES,
    Manifest,
    OtherSamplesError,
    check_identity,
    parsed_identity,
)
from ncsn_fast.runs.samples.ranges import Range, number
from ncsn_fast.support.array_parsers import open_npz
from ncsn_fast.support.files import atomic_folder, atomic_write, sha256_of, write_text
from ncsn_fast.support.parsers import opened, read_text

FOLDER = "shards"
SUM, PARTIAL = ".sha256", ".partial.safetensors"  # what lies beside a shard, or in its place
_SUFFIX = {"npz": ".npz", "tar": ".tar", "png": ""}
_NAME = re.compile(r"(\d{9,15})-(\d{9,15})")
_TAG = "ncsn_fast"  # of the text in a picture that says what it is of
# Which class each of these ids is of, by its number; None where none was asked for.
ClassesOf = Callable[[Sequence[int]], Sequence[int] | None]


def path_of(folder: Path, ids: Range, format_: str) -> Path:
    """Where the shard of a range lies in a folder of samples."""
    return folder / FOLDER / f"{_stem(ids)}{_SUFFIX[format_]}"


def ids_of(path: Path, format_: str) -> Range | None:
    """The ids that a file's name says it has; None for what is no shard."""
    ids = ids_of_name(path.stem)
    ours = path.suffix == _SUFFIX[format_] and path.is_dir() == (not path.suffix)
    return ids if ours else None


def ids_of_name(stem: str) -> Range | None:
    """The ids that the name of a shard says, without its ending; None for another name."""
    found = _NAME.fullmatch(stem)
    if found is None:
        return None
    ids = int(found[1]), int(found[2]) + 1
    return ids if ids[0] < ids[1] and _stem(ids) == stem else None


def present(folder: Path, format_: str) -> dict[Range, Path]:
    """The shards of a folder of samples, by their ids."""
    found = {ids_of(path, format_): path for path in (folder / FOLDER).glob("[0-9]*")}
    return {ids: found[ids] for ids in sorted(one for one in found if one is not None)}


def write(
    path: Path, first: int, images: np.ndarray, manifest: Manifest, classes: ClassesOf
) -> None:
    """Put the images of neighbouring ids, the first of which is given, in a shard.

    Args:
        images: (N, *shape) of the layout's dtype.

    Raises:
        OSError, ValueError: where it cannot be written; nothing is left of it then.
    """
    ids = range(first, first + len(images))
    if manifest.layout.format == "png":
        with atomic_folder(path) as temporary:
            for i, image in zip(ids, images, strict=True):
                (temporary / _picture(i)).write_bytes(_png(image, manifest.tag))
            _write_sum(path, _lines(path.name, temporary))
        return
    with atomic_write(path) as temporary:
        if manifest.layout.format == "npz":
            write_npz(temporary, np.asarray(ids), images, manifest.identity)
        else:
            _write_tar(temporary, ids, images, manifest.tag, classes(ids))
        _write_sum(path, [f"{sha256_of(temporary)}  {path.name}"])


def write_npz(path: Path, ids: np.ndarray, images: np.ndarray, identity: dict[str, Any]) -> None:
    """Write samples and what they are of into an .npz."""
    settings = np.array(json.dumps(identity))
    np.savez(path, images=images, sample_ids=ids.astype(np.int64), settings=settings)


def read_npz(path: Path, manifest: Manifest) -> tuple[np.ndarray, np.ndarray]:
    """The ids (N,) int64 and images (N, *shape) of an .npz of samples.

    Raises:
        OtherSamplesError: where they are of other settings.
        ValueError, KeyError, TypeError, OSError: where it holds anything else.
    """
    with open_npz(path) as stored:
        check_identity(path, parsed_identity(str(stored["settings"])), manifest.identity)
        ids, images = stored["sample_ids"], stored["images"]
    check_ids(ids)
    check_images(images, len(ids), manifest.layout.shape, manifest.layout.dtype)
    return ids, images


def read(path: Path, ids: Range, manifest: Manifest) -> np.ndarray:
    """The images (N, *shape) of a shard.

    Raises:
        OtherSamplesError, ValueError, KeyError, TypeError, OSError: as :func:`read_npz`.
    """
    shape = manifest.layout.shape
    if manifest.layout.format == "npz":
        found, images = read_npz(path, manifest)
        if not np.array_equal(found, np.arange(*ids)):
            raise ValueError("its ids are not those of its name")
        return images
    images = np.empty((number([ids]), *shape), np.uint8)
    if path.is_dir():
        for image, i in zip(images, range(*ids), strict=True):
            with opened(path / _picture(i)) as file:
                image[:] = _pixels(file, shape, manifest.tag)
        return images
    with opened(path) as file, tarfile.open(fileobj=file, mode="r:") as archive:
        for image, i in zip(images, range(*ids), strict=True):
            member = archive.extractfile(_picture(i))
            if member is None:
                raise ValueError(f"{_picture(i)} is no file")
            image[:] = _pixels(member, shape, manifest.tag)
    return images


def check_ids(ids: np.ndarray) -> None:
    """Refuse what are no ids.

    Raises:
        ValueError: saying what is wrong.
    """
    if ids.dtype != np.int64 or ids.ndim != 1 or len(set(ids.tolist())) != len(ids):
        raise ValueError("its ids are no distinct whole numbers")
    if len(ids) and not (ids.min() >= 0 and ids.max() < MOST_SAMPLES):
        raise ValueError("its ids are out of range")


def check_images(images: np.ndarray, n: int, shape: tuple[int, ...], dtype: str) -> None:
    """Refuse what is not one sample for each of n ids.

    Raises:
        ValueError: saying what is wrong.
    """
    if images.dtype != np.dtype(dtype) or images.shape != (n, *shape):
        raise ValueError(
            f"it holds {images.dtype} {images.shape}, which is not one {dtype} sample of "
            f"{shape} for each of {n} ids"
        )
    if dtype == "float32" and not np.isfinite(images).all():
        raise ValueError("it holds values that are not finite")


def sum_of(path: Path) -> str:
    """SHA-256 of a shard: of a file its own, of a folder that of its files' checksums and names."""
    if path.is_dir():
        return _sum_of_lines(_lines(path.name, path))
    return sha256_of(path)


def beside(path: Path) -> Path:
    """Where the checksum of a shard is while the manifest has it not yet."""
    return path.with_name(path.name + SUM)


def stored_sum(path: Path) -> str | None:
    """The checksum that lies beside a shard, None where there is none.

    Raises:
        ValueError: for a file that has none in it.
    """
    if not beside(path).exists():
        return None
    lines = read_text(beside(path), 16 << 20).splitlines()
    if not lines or not all(re.fullmatch(r"[0-9a-f]{64}  \S+", line) for line in lines):
        raise ValueError(f"{beside(path)} holds no checksum")
    return lines[0][:64] if path.suffix else _sum_of_lines(lines)


def stored_as(images: np.ndarray, dtype: str) -> np.ndarray:
    """Images in [0, 1] as they are stored: float32, or rounded to uint8."""
    return images if dtype == "float32" else eight_bits(images).numpy()


def _stem(ids: Range) -> str:
    return f"{ids[0]:09d}-{ids[1] - 1:09d}"


def _write_sum(path: Path, lines: Iterable[str]) -> None:
    write_text(beside(path), "\n".join(lines) + "\n")


def _lines(name: str, folder: Path) -> list[str]:
    """The checksums of a folder's files, as ``sha256sum`` writes them."""
    return [f"{sha256_of(path)}  {name}/{path.name}" for path in sorted(folder.iterdir())]


def _sum_of_lines(lines: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _picture(i: int) -> str:
    return f"{i:09d}.png"


def _png(image: np.ndarray, tag: str) -> bytes:
    """An image (C, H, W) uint8 as a PNG that says what it is of."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    told, file = PngInfo(), io.BytesIO()
    told.add_text(_TAG, tag)
    pixels = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "PNG", pnginfo=told)
    return file.getvalue()


def _pixels(file: IO[bytes], shape: tuple[int, ...], tag: str) -> np.ndarray:
    """The image (C, H, W) of a PNG; nothing of another size is decoded."""
    from PIL import Image

    with Image.open(file, formats=["PNG"]) as image:
        channels, height, width = shape
        if image.size != (width, height) or image.mode != ("L" if channels == 1 else "RGB"):
            raise ValueError(f"it holds a picture {image.size} {image.mode}, not of {shape}")
        if image.info.get(_TAG) != tag:
            raise _of_others()
        return np.asarray(image).reshape(height, width, channels).transpose(2, 0, 1)


def _write_tar(
    path: Path, ids: Sequence[int], images: np.ndarray, tag: str, classes: Sequence[int] | None
) -> None:
    """Pictures and classes by their ids, as webdataset reads them; the same bytes whenever."""
    with tarfile.open(path, "w") as archive:
        for name, content in _members(ids, images, tag, classes):
            about = tarfile.TarInfo(name)
            about.size = len(content)
            archive.addfile(about, io.BytesIO(content))


def _members(
    ids: Sequence[int], images: np.ndarray, tag: str, classes: Sequence[int] | None
) -> Iterator[tuple[str, bytes]]:
    for row, (i, image) in enumerate(zip(ids, images, strict=True)):
        yield _picture(i), _png(image, tag)
        if classes is not None:
            yield f"{i:09d}.cls", str(classes[row]).encode()


def _of_others() -> OtherSamplesError:
    return OtherSamplesError("it holds samples of other settings")


__all__ = [
    "FOLDER",
    "PARTIAL",
    "SUM",
    "ClassesOf",
    "beside",
    "check_ids",
    "check_images",
    "ids_of",
    "ids_of_name",
    "path_of",
    "present",
    "read",
    "read_npz",
    "stored_as",
    "stored_sum",
    "sum_of",
    "write",
    "write_npz",
]
