"""Images in NumPy's array files: ``.npy``, memory-mapped, and ``.npz``."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np

ARRAY_SUFFIXES = (".npy", ".npz")
LAYOUTS = {"NHW": 3, "NCHW": 4, "NHWC": 4}
# An axis this short is taken for channels (grey, complex, RGB, RGBA), a longer one for pixels.
_MOST_CHANNELS = 4
# What numpy.load raises for a file that is cut short, altered or no array at all.
READ_ERRORS = (ValueError, KeyError, EOFError, OSError, zipfile.BadZipFile, zlib.error)
# How much of a mapped file is looked at in one go.
_BLOCK_BYTES = 64 << 20


def read_array_file(path: Path, layout: str | None, key: str | None) -> np.ndarray:
    """The images of one file, (N, C, H, W): uint8, or floating point in [0, 1].

    A ``.npy`` is mapped read-only, not read: the result is a view of the file, whose values are
    fetched as they are used. ``.npz`` files are read whole. See :func:`ncsn_fast.data.load_pixels`.
    """
    array = _open_array(path, key)
    if array.size == 0:
        raise ValueError(f"{path} is empty: its shape is {array.shape}")
    layout = _recognise_layout(array.shape, path) if layout is None else layout
    if array.ndim != LAYOUTS[layout]:
        raise ValueError(
            f"layout {layout} needs {LAYOUTS[layout]} axes, {path} has shape {array.shape}"
        )
    if array.dtype != np.uint8:
        _check_float_range(array, path)
    if layout == "NHW":
        return array[:, None]
    return array.transpose(0, 3, 1, 2) if layout == "NHWC" else array


def _open_array(path: Path, key: str | None) -> np.ndarray:
    try:
        # Pickled objects run code when they are loaded, so they never are.
        loaded = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            if key is not None:
                raise ValueError(f"key={key!r} names an array of an .npz file; this is one array")
            return loaded
        with loaded as archive:
            return archive[_choose_key(list(archive.files), key)]
    except READ_ERRORS as error:
        if "allow_pickle" in str(error) or "Python objects" in str(error):
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
    low, high = _value_range(array)
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


def _value_range(array: np.ndarray) -> tuple[float, float]:
    """Smallest and largest value, NaN if there is one, looked up block by block."""
    rows = max(1, _BLOCK_BYTES // array[0].nbytes)
    blocks = [array[start : start + rows] for start in range(0, len(array), rows)]
    return (
        float(np.min([block.min() for block in blocks])),
        float(np.max([block.max() for block in blocks])),
    )


__all__ = ["ARRAY_SUFFIXES", "LAYOUTS", "READ_ERRORS", "read_array_file"]
