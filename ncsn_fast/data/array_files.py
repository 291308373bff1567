"""Images in files of arrays: NumPy's ``.npy``, memory-mapped, and ``.npz``; and IDX."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import numpy as np

from ncsn_fast.data.idx_files import is_idx, read_idx
from ncsn_fast.device.memory import check_host_memory
from ncsn_fast.support.array_parsers import open_npy, open_npz
from ncsn_fast.support.checks import printable
from ncsn_fast.support.first_bytes import told_by_first_bytes
from ncsn_fast.support.parsers import shortened, shown

ARRAY_SUFFIXES = (".npy", ".npz")
LAYOUTS = {"NHW": 3, "NCHW": 4, "NHWC": 4}
VALUES = ("unit", "signed")
# An axis this short is taken for channels (grey, complex, RGB, RGBA), a longer one for pixels.
_MOST_CHANNELS = 4
# How much of a mapped file is looked at in one go.
_BLOCK_BYTES = 64 << 20
_MOST_NAMED = 10
_A_LITTLE = 0.05
_UNIT = "images are uint8 (0 to 255) or floating point in [0, 1]"
_SIGNED = "values='signed' is for floating-point or complex values in [-1, 1]"
_SCALE = "array / numpy.abs(array).max()"
_log = logging.getLogger("ncsn_fast")


def read_array_file(path: Path, layout: str | None, key: str | None, values: str) -> np.ndarray:
    """The images of one file, (N, C, H, W): uint8, or floating point in [0, 1].

    A ``.npy``, and an IDX file that is not gzipped, is mapped read-only, not read: the result is a
    view of the file, whose values are fetched as they are used. Other files are read whole, and so
    are "signed" values. See :func:`ncsn_fast.data.load_pixels`.
    """
    array = _open_array(path, key)
    _check_kind(array, path, values)
    if array.size == 0:
        raise ValueError(f"{path} is empty: its shape is {array.shape}")
    if layout is None and array.ndim == 3 and is_idx(path):
        layout = "NHW"  # by the definition of MNIST's files, however few or small the images
    layout = _recognise_layout(array.shape, path) if layout is None else layout
    if array.ndim != LAYOUTS[layout]:
        raise ValueError(
            f"layout {layout} needs {LAYOUTS[layout]} axes, {path} has shape {array.shape}"
        )
    if layout == "NHW":
        array = array[:, None]
    elif layout == "NHWC":
        array = array.transpose(0, 3, 1, 2)
    if values == "signed":
        return _from_signed(array, path)
    if array.dtype != np.uint8:
        _check_range(array, path)
    return array


def is_archive(path: Path) -> bool:
    """Whether a file is a zip archive, as ``.npz`` is, whatever its name says."""
    with path.open("rb") as file:
        return file.read(2) == b"PK"


def _open_array(path: Path, key: str | None) -> np.ndarray:
    if is_archive(path):
        return _from_archive(path, key)
    with path.open("rb") as file:
        head = file.read(4)
    idx = is_idx(path)
    if head != b"\x93NUM" and not idx:
        told = told_by_first_bytes(path)
        raise ValueError(
            f"{path} is no NumPy array{f' but {told}' if told else ': it is damaged, or another'}"
        )
    if key is not None:
        raise ValueError(f"key={key!r} names an array of an .npz file; {path} is one array")
    array = read_idx(path) if idx else open_npy(path)
    if idx and array.ndim == 1:
        raise ValueError(
            f"{path} holds one number each, as labels are, for {len(array):,} images: give the "
            "file of the images (idx3), beside which the labels are found"
        )
    return array


def _from_archive(path: Path, key: str | None) -> np.ndarray:
    with open_npz(path) as archive:
        names = archive.names
        if not names:
            raise ValueError(f"{path} is a zip archive without arrays: save one with numpy.savez")
        wanted = (names[0] if len(names) == 1 else "images") if key is None else key
        if wanted not in names:
            raise ValueError(
                f"{path}: found no array named {shown(wanted)}, only {_listed(names)}: "
                "say which one to load with key=NAME"
            )
        if key is None and (others := [name for name in names if name != wanted]):
            told = "as images of %s the array 'images' is read, not %s"
            _log.warning(told, path, _listed(others))
        otherwise = "save it with numpy.save as .npy, which is not read whole"
        check_host_memory(archive.size(wanted), f"{path}: {shown(wanted)}", otherwise)
        return archive[wanted]


def _listed(names: list[str]) -> str:
    """Some names, whatever strangers put into them."""
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return shortened(", ".join(map(printable, names[:_MOST_NAMED]))) + more


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


def _check_kind(array: np.ndarray, path: Path, values: str) -> None:
    kind, mend = array.dtype.kind, "convert it first"
    if values == "signed":
        if kind not in "fc":
            raise ValueError(f"{path} has data type {array.dtype}: {_SIGNED}; leave it out")
        return
    if kind == "f" or array.dtype == np.uint8:
        return
    if kind == "b":
        mend = "array.astype(numpy.float32) makes 0 and 1 of it"
    elif kind in "iu":
        mend = "divide it by its white, such as 65535 for 16 bits"
    elif kind == "c":
        mend = (
            "real and imaginary part become two channels with values='signed'; scale them to "
            f"[-1, 1] first, e.g. {_SCALE}"
        )
    raise ValueError(f"{path} has data type {array.dtype}: {_UNIT}; {mend}")


def _check_range(array: np.ndarray, path: Path) -> None:
    low, high = _value_range(array, path, _UNIT)
    if low >= 0 and high <= 1:
        return
    if low >= -_A_LITTLE and high <= 1 + _A_LITTLE:
        mend = "array.clip(0, 1) cuts off what is a little outside"
    elif low >= 0 and high <= 255:
        mend = "divide it by 255 if it holds 8-bit values"
    elif low >= -1 and high <= 1:
        mend = (
            "map it with (array + 1) / 2 if it was scaled to [-1, 1], or say values='signed' for a "
            "network that sees it as it is"
        )
    elif low < 0:
        mend = f"scale it to [0, 1], or to [-1, 1], e.g. {_SCALE}, and say values='signed'"
    else:
        mend = "scale it to [0, 1]"
    raise ValueError(f"{path} has values from {low:.9g} to {high:.9g}: {_UNIT}; {mend}")


def _from_signed(array: np.ndarray, path: Path) -> np.ndarray:
    """float32 (x + 1) / 2 of x in [-1, 1], complex values as two channels."""
    channels = array.shape[1]
    if array.dtype.kind == "c":
        if channels != 1:
            raise ValueError(
                f"{path} has {channels} complex channels (shape {array.shape}): combine them to "
                "one image, e.g. by the coils' sensitivities, or save real and imaginary parts as "
                "channels of floating point"
            )
        channels = 2
    needed = 4 * array.size // array.shape[1] * channels
    check_host_memory(needed, f"{path} as float32", "train on a part of it")
    found = np.empty((len(array), channels, *array.shape[2:]), np.float32)
    for rows in _blocks(array):
        block = array[rows]
        if array.dtype.kind == "c":
            block = np.concatenate([block.real, block.imag], axis=1)
        low, high = _value_range(block, path, _SIGNED)
        if not (low >= -1 and high <= 1):
            raise ValueError(
                f"{path} has values from {low:.9g} to {high:.9g}: {_SIGNED}; scale it, e.g. "
                f"{_SCALE}"
            )
        part = found[rows]
        part[:] = block
        part += 1
        part /= 2
    return found


def _value_range(array: np.ndarray, path: Path, allowed: str) -> tuple[float, float]:
    """Smallest and largest value, looked up block by block; NaN and infinities are refused."""
    ends = [(array[rows].min(), array[rows].max()) for rows in _blocks(array)]
    low, high = float(np.min(ends)), float(np.max(ends))
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"{path} holds values that are not finite (NaN or infinity): {allowed}")
    return low, high


def _blocks(array: np.ndarray) -> list[slice]:
    rows = max(1, _BLOCK_BYTES // array[0].nbytes)
    return [slice(start, start + rows) for start in range(0, len(array), rows)]


__all__ = ["ARRAY_SUFFIXES", "LAYOUTS", "VALUES", "is_archive", "read_array_file"]
