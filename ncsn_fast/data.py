"""Images in, images out: the bundled digits, a user's own images, and the data transforms.

Images are float32 tensors (N, C, H, W) with values in [0, 1]. A network works on *model space*,
which ``data_transform`` reaches and ``inverse_data_transform`` leaves. Nothing here draws random
numbers: dequantisation noise and flips come in as arguments, from ``ncsn_fast.noise``.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
import zlib
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

_DIGITS_FILE = Path(__file__).with_name("assets") / "digits.npz"
_DIGITS_SHA256 = "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"
_DIGITS_TRAIN = 1400

_ARRAY_SUFFIXES = (".npy", ".npz")
_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
_LAYOUTS = {"NHW": 3, "NCHW": 4, "NHWC": 4}
# An axis this short is taken for channels (grey, complex, RGB, RGBA), a longer one for pixels.
_MOST_CHANNELS = 4
# What numpy.load raises for a file that is cut short, altered or no array at all.
READ_ERRORS = (ValueError, KeyError, EOFError, OSError, zipfile.BadZipFile, zlib.error)

_LOGIT_MARGIN = 1e-6
_GAUSSIAN_DEQUANTIZATION_STD = 0.01


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
        with np.load(path, allow_pickle=False) as archive:
            pixels, labels = archive["images"], archive["labels"]
    except READ_ERRORS as error:
        raise ValueError(f"the bundled digits {path} cannot be read ({error}): {mend}") from error
    # The checksum is of the values, so that another zip library may write the same file again.
    found = hashlib.sha256(pixels.tobytes() + labels.tobytes()).hexdigest()
    if found != _DIGITS_SHA256:
        raise ValueError(
            f"the bundled digits {path} are damaged or altered: SHA-256 of the pixels and labels "
            f"is {found}, expected {_DIGITS_SHA256}; {mend}"
        )
    return pixels, labels


def load_images(
    path: str | os.PathLike[str], *, layout: str | None = None, key: str | None = None
) -> Tensor:
    """Load a user's images from one array file or from a folder of image files.

    Array files (``.npy``, ``.npz``): uint8 values are divided by 255, floating-point values must
    lie in [0, 1]. Folders are searched with their subfolders, in the order of the file names;
    files of other types and hidden files are passed over. If all files are grey the result has
    one channel, else three; camera rotation (EXIF) is applied.

    Args:
        path: a ``.npy`` or ``.npz`` file, or a folder of PNG, JPEG, BMP, WebP, TIFF or PNM files.
        layout: axes of the array, "NHW", "NCHW" or "NHWC". Default: recognised, taking an axis of
            at most 4 for the channels; a shape that can be read in two ways is refused.
        key: name of the array in an ``.npz``. Default: its only array, or the one named "images".

    Returns:
        float32 (N, C, H, W) in [0, 1], contiguous, on the CPU.

    Raises:
        FileNotFoundError: if there is nothing at ``path``.
        ValueError: for an unreadable file, an empty folder, images of different sizes, an array
            of Python objects, or a shape, data type or range that is not one of the above.
    """
    path = Path(path)
    if layout is not None and layout not in _LAYOUTS:
        raise ValueError(f"unknown layout {layout!r}: choose one of {', '.join(_LAYOUTS)}")
    if path.is_dir():
        if layout is not None or key is not None:
            raise ValueError(f"layout and key describe an array file, but {path} is a folder")
        return _load_folder(path)
    if not path.exists():
        raise FileNotFoundError(f"no such file or folder: {path}")
    if path.suffix.lower() not in _ARRAY_SUFFIXES:
        raise ValueError(
            f"cannot load images from {path}: give a {' or '.join(_ARRAY_SUFFIXES)} file, "
            "or a folder of image files"
        )
    return _array_to_images(_read_array(path, key), layout, path)


def _read_array(path: Path, key: str | None) -> np.ndarray:
    try:
        # Pickled objects run code when they are loaded, so they never are.
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            if key is not None:
                raise ValueError(f"key={key!r} names an array of an .npz file; this is one array")
            return loaded
        with loaded as archive:
            return archive[_choose_key(list(archive.files), key)]
    except READ_ERRORS as error:
        if "allow_pickle" in str(error):
            raise ValueError(
                f"{path} holds Python objects, which are never loaded because loading them can "
                "run code: save a plain array, e.g. numpy.stack(list_of_uint8_images)"
            ) from error
        raise ValueError(f"cannot read {path}: {error}") from error


def _choose_key(names: list[str], key: str | None) -> str:
    if key is None and len(names) == 1:
        return names[0]
    wanted = "images" if key is None else key
    if wanted not in names:
        raise ValueError(
            f"found no array named {wanted!r}, only {', '.join(names) or 'nothing'}: "
            "say which one to load with key=NAME"
        )
    return wanted


def _array_to_images(array: np.ndarray, layout: str | None, path: Path) -> Tensor:
    if array.size == 0:
        raise ValueError(f"{path} is empty: its shape is {array.shape}")
    layout = _recognise_layout(array.shape, path) if layout is None else layout
    if array.ndim != _LAYOUTS[layout]:
        raise ValueError(
            f"layout {layout} needs {_LAYOUTS[layout]} axes, {path} has shape {array.shape}"
        )
    if array.dtype != np.uint8:
        _check_float_range(array, path)
    if layout == "NHW":
        array = array[:, None]
    elif layout == "NHWC":
        array = array.transpose(0, 3, 1, 2)
    images = np.array(array, dtype=np.float32, order="C")
    if array.dtype == np.uint8:
        images /= 255
    return torch.from_numpy(images)


def _recognise_layout(shape: tuple[int, ...], path: Path) -> str:
    if len(shape) not in (3, 4):
        raise ValueError(
            f"{path} has shape {shape}: images are (N, H, W), (N, C, H, W) or (N, H, W, C); "
            "reshape the array first, e.g. array.reshape(-1, 28, 28)"
        )
    first, last = shape[-3] <= _MOST_CHANNELS, shape[-1] <= _MOST_CHANNELS
    if len(shape) == 3 and not first and not last:
        return "NHW"
    if len(shape) == 4 and first != last:
        return "NCHW" if first else "NHWC"
    choices = "layout='NHW'" if len(shape) == 3 else "layout='NCHW' or layout='NHWC'"
    hint = " (a single colour image needs a leading axis of 1)" if len(shape) == 3 else ""
    raise ValueError(
        f"{path} has shape {shape}, and which axis holds the channels cannot be told: "
        f"say so with {choices}{hint}"
    )


def _check_float_range(array: np.ndarray, path: Path) -> None:
    allowed = "images are uint8 (0 to 255) or floating point in [0, 1]"
    if not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"{path} has data type {array.dtype}: {allowed}; convert it first")
    low, high = float(array.min()), float(array.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError(f"{path} holds values that are not finite (NaN or infinity): {allowed}")
    if low >= 0 and high <= 1:
        return
    if low >= 0 and high <= 255:
        mend = "divide it by 255 if it holds 8-bit values"
    elif low >= -1 and high <= 1:
        mend = "map it with (array + 1) / 2 if it was scaled to [-1, 1]"
    else:
        mend = "scale it to [0, 1]"
    raise ValueError(f"{path} has values from {low:.9g} to {high:.9g}: {allowed}; {mend}")


def _load_folder(folder: Path) -> Tensor:
    files = sorted(
        file
        for file in folder.rglob("*")
        if file.suffix.lower() in _IMAGE_SUFFIXES
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    )
    if not files:
        raise ValueError(
            f"found no image files in {folder}: looked for {', '.join(_IMAGE_SUFFIXES)}"
        )
    pixels = [_read_pixels(file) for file in files]
    _check_one_size(files, [image.shape[1:] for image in pixels])
    # Grey images among colour ones are broadcast over the three channels.
    channels = max(len(image) for image in pixels)
    images = np.empty((len(files), channels, *pixels[0].shape[1:]), dtype=np.float32)
    for row, image in zip(images, pixels, strict=True):
        row[:] = image
    images /= 255
    return torch.from_numpy(images)


def _read_pixels(file: Path) -> np.ndarray:
    """Return uint8 (1 or 3, H, W), upright."""
    from PIL import Image, ImageOps

    try:
        with Image.open(file) as opened:
            image = ImageOps.exif_transpose(opened)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"cannot read the image {file} ({error}): repair it or take it out of the folder"
        ) from error
    if image.mode not in ("1", "L", "LA", "P", "RGB", "RGBA"):
        raise ValueError(f"{file} has the pixel type {image.mode}: save it as 8-bit grey or RGB")
    may_be_transparent = "A" in image.mode or "transparency" in image.info
    if may_be_transparent and image.convert("RGBA").getchannel("A").getextrema() != (255, 255):
        raise ValueError(f"{file} is partly transparent: put it on a background and save it again")
    if image.mode in ("1", "L", "LA"):
        return np.asarray(image.convert("L"))[None]
    return np.asarray(image.convert("RGB")).transpose(2, 0, 1)


def _check_one_size(files: list[Path], sizes: list[tuple[int, ...]]) -> None:
    (usual, number), *others = Counter(sizes).most_common()
    if not others:
        return
    file, odd = next(pair for pair in zip(files, sizes, strict=True) if pair[1] != usual)
    raise ValueError(
        f"the images differ in size: {number} of {len(files)} are {usual[1]}×{usual[0]}, but "
        f"{file} is {odd[1]}×{odd[0]} (width×height); resize or crop them all to one size first"
    )


def data_transform(
    x: Tensor,
    *,
    rescaled: bool = False,
    logit_transform: bool = False,
    dequantize: str | None = None,
    noise: Tensor | None = None,
) -> Tensor:
    """Map images to model space: dequantise, then optionally rescale or take the logit.

    - uniform dequantisation: x·255/256 + u/256, u ~ U[0, 1) (NCSN 2019 always does it);
      Gaussian: x + 0.01·z, z ~ N(0, I), which may leave [0, 1];
    - ``rescaled``: 2x - 1;
    - ``logit_transform``: ln(y / (1 - y)) of y = λ + (1 - 2λ)x with λ = 1e-6.

    Args:
        x: images with values in [0, 1], floating point, any shape.
        rescaled, logit_transform: settings of the network; at most one of them.
        dequantize: None, "uniform" or "gaussian".
        noise: u or z, of x's shape and device; required by ``dequantize`` and only then allowed.

    Returns:
        A tensor of x's shape and dtype.

    Raises:
        ValueError: for settings that exclude each other, missing or ill-shaped noise, or a data
            type too coarse for the logit.
    """
    _check_transform(x, rescaled, logit_transform)
    x = x if dequantize is None and noise is None else _dequantize(x, dequantize, noise)
    if logit_transform:
        if dequantize == "gaussian":
            raise ValueError(
                "gaussian dequantisation leaves [0, 1], where the logit is undefined: "
                "use dequantize='uniform' with logit_transform"
            )
        return torch.logit(_LOGIT_MARGIN + (1 - 2 * _LOGIT_MARGIN) * x)
    return 2 * x - 1 if rescaled else x


def inverse_data_transform(
    x: Tensor, *, rescaled: bool = False, logit_transform: bool = False
) -> Tensor:
    """Map model space to images: undo ``data_transform`` and clamp to [0, 1].

    As published, the logit is undone by the sigmoid alone, which leaves λ(1 - 2x), at most 1e-6,
    in place; dequantisation is not undone.

    Args:
        x: states in model space, floating point, any shape.
        rescaled, logit_transform: settings of the network; at most one of them.

    Returns:
        A tensor of x's shape and dtype, in [0, 1] (NaN stays NaN).

    Raises:
        ValueError: if both settings are given, x is not floating point, or its type is too coarse.
    """
    _check_transform(x, rescaled, logit_transform)
    if logit_transform:
        x = torch.sigmoid(x)
    elif rescaled:
        x = (x + 1) / 2
    return x.clamp(0, 1)


def _check_transform(x: Tensor, rescaled: bool, logit_transform: bool) -> None:
    if not x.is_floating_point():
        raise ValueError(
            f"x has dtype {x.dtype}: give floating-point images in [0, 1], e.g. x.float() / 255"
        )
    if rescaled and logit_transform:
        # The published code rescales on the way in and applies the sigmoid on the way out.
        raise ValueError("rescaled and logit_transform exclude each other: set at most one")
    if logit_transform and x.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"logit_transform needs float32 or float64, got {x.dtype}, which rounds "
            f"1 - {_LOGIT_MARGIN:g} to 1: call x.float() first"
        )


def _dequantize(x: Tensor, dequantize: str | None, noise: Tensor | None) -> Tensor:
    if dequantize not in ("uniform", "gaussian"):
        raise ValueError(
            f"dequantize is {dequantize!r}: choose 'uniform' or 'gaussian', "
            "or None and no noise to leave the images as they are"
        )
    if noise is None:
        raise ValueError(
            f"dequantize={dequantize!r} needs noise, a tensor of shape {tuple(x.shape)}: "
            f"e.g. ncsn_fast.noise.{'uniform' if dequantize == 'uniform' else 'normal'}"
        )
    if noise.shape != x.shape or noise.device != x.device:
        raise ValueError(
            f"noise is {tuple(noise.shape)} on {noise.device}, but x is {tuple(x.shape)} on "
            f"{x.device}: give one number for each value of x, on its device"
        )
    noise = noise.to(x.dtype)
    if dequantize == "uniform":
        return x * (255 / 256) + noise / 256
    return x + _GAUSSIAN_DEQUANTIZATION_STD * noise


def horizontal_flip(x: Tensor, mask: Tensor) -> Tensor:
    """Mirror the images that ``mask`` selects, left to right.

    Args:
        x: (N, C, H, W), any dtype.
        mask: bool (N,) on x's device; True mirrors the image.

    Returns:
        A new tensor of x's shape and dtype.

    Raises:
        ValueError: if x has not four axes, or mask is not a bool tensor with an entry per image.
    """
    if x.ndim != 4:
        raise ValueError(f"x must be (N, C, H, W), got shape {tuple(x.shape)}")
    if mask.dtype != torch.bool or mask.shape != x.shape[:1]:
        raise ValueError(
            f"mask must be a bool tensor of shape ({x.shape[0]},), "
            f"got {mask.dtype} {tuple(mask.shape)}"
        )
    return torch.where(mask[:, None, None, None], x.flip(-1), x)


__all__ = [
    "READ_ERRORS",
    "Digits",
    "data_transform",
    "digits",
    "horizontal_flip",
    "inverse_data_transform",
    "load_images",
]
