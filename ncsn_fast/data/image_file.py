"""One image file: decoded, upright, cropped and resized, or the reason why it cannot be used."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ncsn_fast.support.checks import printable
from ncsn_fast.support.first_bytes import told_by_first_bytes
from ncsn_fast.support.parsers import shortened

if TYPE_CHECKING:
    from PIL.Image import Image

# Formats are decoded whatever the ending says, but these alone: some of Pillow's others run
# programs or take any bytes for an image.
_FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jpe": "JPEG",
    ".jfif": "JPEG",
    ".bmp": "BMP",
    ".gif": "GIF",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".ppm": "PPM",
    ".pgm": "PPM",
    ".pbm": "PPM",
    ".pnm": "PPM",
    ".apng": "PNG",
    ".webp": "WEBP",
    ".avif": "AVIF",
}
_OPTIONAL = ("WEBP", "AVIF")
# No image is compressed like this but one of a single colour: decoding is not begun.
_BOMB_BYTES, _BOMB_RATIO = 64 << 20, 500
_BITS, _SAMPLES, _SAMPLE_FORMAT = 258, 277, 339  # tags of TIFF
_PROFILE = "have a colour profile other than sRGB: their values are taken as they are stored"
_FURTHER = "hold further pictures, such as previews: the main one is taken"
_TO_8_BITS = (
    "save it as 8-bit grey or RGB, or all images as one .npy array of floating-point values in "
    "[0, 1]"
)


class Unusable(Exception):
    """Why a file cannot be taken, and what would help."""


class Decoded(NamedTuple):
    """uint8 (1 or 3, H, W), and what is to be said of the file."""

    pixels: np.ndarray
    notes: tuple[str, ...]


def readable_endings() -> tuple[str, ...]:
    """Of the files that this Pillow can read, in lower case."""
    readable = _readable()
    return tuple(ending for ending, name in _FORMATS.items() if name in readable)


def decode(file: Path, size: tuple[int, int] | None, crop: int | None) -> Decoded:
    """The pixels of a file, upright, of the centred square that is cut out first, shrunk to (H, W).

    Raises:
        Unusable: for any file that would not come out as it is meant.
    """
    try:
        with file.open("rb") as opened:
            image, notes = _decoded(file, opened)
        return Decoded(_pixels(image, size, crop), notes)
    except Unusable:
        raise
    except MemoryError as error:
        raise Unusable("needs more memory than there is: shrink it") from error
    except PermissionError as error:
        raise Unusable(f"cannot be opened ({error.strerror})") from error
    except Exception as error:  # a decoder may stumble over damaged bytes in any way
        raise Unusable(f"cannot be read ({printable(shortened(error))}): replace it") from error


@cache
def _readable() -> list[str]:
    from PIL import features

    missing = {
        name
        for name in _OPTIONAL
        if name.lower() not in features.modules or not features.check(name.lower())
    }
    return sorted({*_FORMATS.values()} - missing)


def _decoded(file: Path, opened: IO[bytes]) -> tuple[Image, tuple[str, ...]]:
    """A grey (L) or RGB image, and what is to be said of it."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        image = Image.open(opened, formats=_readable())
    except UnidentifiedImageError as error:
        told = told_by_first_bytes(file)
        raise Unusable(f"is no image{f' but {told}' if told else ': replace it'}") from error
    except Image.DecompressionBombError as error:
        raise _too_large(int(re.findall(r"\d+", str(error))[0])) from error
    _check(file, image)
    notes = []
    if image.format == "MPO":
        notes.append(_FURTHER)
    profile = image.info.get("icc_profile") or b""
    if profile and b"sRGB" not in profile.replace(b"\0", b""):
        notes.append(_PROFILE)
    upright = ImageOps.exif_transpose(image)
    if image.format == "PNG":
        with Image.open(file, formats=["PNG"]) as other:
            other.verify()  # decoding does not look at the checksums of pixels
    return _flattened(upright), tuple(notes)


def _check(file: Path, image: Image) -> None:
    """Refuse what decoding would cut, leave out or fill in."""
    if getattr(image, "is_animated", False) and image.format != "MPO":
        raise Unusable(
            "holds several pictures (pages, or frames of an animation): save those you want as "
            "files of their own"
        )
    packed, unpacked = file.stat().st_size, image.width * image.height * len(image.getbands())
    if unpacked > max(_BOMB_BYTES, _BOMB_RATIO * packed):
        raise Unusable(
            f"{_told(image)}, from {packed:,} bytes, as no picture is: replace it, or save it "
            "without compression"
        )
    if image.mode not in ("1", "L", "LA", "P", "RGB", "RGBA"):
        raise Unusable(f"has the pixel type {image.mode}: {_TO_8_BITS}")
    if _bits(file, image) > 8:
        raise Unusable(f"has more than 8 bits per channel, of which 8 would be read: {_TO_8_BITS}")


def _bits(file: Path, image: Any) -> int:
    """Bits per channel in the file, those of decoded pixels (8) where that is not looked up."""
    if image.format == "TIFF":
        tags = image.tag_v2
        kinds = tags.get(_SAMPLE_FORMAT, (1,))
        if tags.get(_SAMPLES, 1) > len(image.getbands()) or any(kind in (2, 3) for kind in kinds):
            raise Unusable(f"has more than three channels, or signed ones: {_TO_8_BITS}")
        covered = sum((x1 - x0) * (y1 - y0) for _, (x0, y0, x1, y1), *_ in image.tile)
        if covered < image.width * image.height:  # Pillow would fill in black
            raise Unusable(f"{_told(image)}, but does not hold all of them: replace it")
        return max(tags.get(_BITS, (8,)))
    if image.format == "AVIF":
        with file.open("rb") as opened:
            head = opened.read(4096)
        place = head.find(b"av1C")  # the third byte after it has a flag for 10 and 12 bits
        return 10 if 0 < place < len(head) - 6 and head[place + 6] & 0x40 else 8
    for tile in getattr(image, "tile", ()):
        arguments = tile[3] if isinstance(tile[3], tuple) else (tile[3],)
        for told in arguments:  # how PNG's and PPM's decoders are told
            if told in ("RGB;16B", "RGBA;16B", "LA;16B"):
                return 16
            if image.format == "PPM" and isinstance(told, int):  # the largest value
                return told.bit_length()
    return 8


def _too_large(pixels: int) -> Unusable:
    from PIL import Image

    most = 2 * (Image.MAX_IMAGE_PIXELS or 0)
    return Unusable(
        f"has {pixels:,} pixels, more than the {most:,} that are read (a small file can claim any "
        "number): shrink it, or in Python raise PIL.Image.MAX_IMAGE_PIXELS"
    )


def _pixels(image: Image, size: tuple[int, int] | None, crop: int | None) -> np.ndarray:
    if crop is not None:
        image = _centre(image, crop, crop, f"crop={crop}")
    if size is not None:
        image = _resized(image, *size)
    array = np.asarray(image)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def _flattened(image: Image) -> Image:
    """Grey (L) or RGB without transparency."""
    may_be_transparent = "A" in image.mode or "transparency" in image.info
    if may_be_transparent and image.convert("RGBA").getchannel("A").getextrema() != (255, 255):
        raise Unusable("is partly transparent: put it on a background and save it again")
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
        raise Unusable(f"{_told(image)} and would be enlarged: give a smaller {wanted}")
    return _centre(image, *cut, wanted).resize((width, height), Image.Resampling.BILINEAR)


def _centre(image: Image, width: int, height: int, wanted: str) -> Image:
    if image.width < width or image.height < height:
        raise Unusable(f"{_told(image)}: give a smaller {wanted}")
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def _told(image: Image) -> str:
    return f"is {image.width}×{image.height} pixels (width×height)"


__all__ = ["Decoded", "Unusable", "decode", "readable_endings"]
