"""IDX files, in which MNIST and its relatives are published: one array each, gzipped or not.

Two zero bytes, the type of the values, the number of axes; the size of each axis in 32 bits; the
values: all of it big-endian. Images are uint8 (N, H, W), labels uint8 (N,), in files called
``train-images-idx3-ubyte.gz``, ``train-labels-idx1-ubyte.gz`` and so on.
"""

from __future__ import annotations

import io
import os
import re
import struct
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np

from ncsn_fast.device.memory import check_host_memory
from ncsn_fast.support.array_parsers import (
    LARGEST_SQUEEZED,
    MOST_SQUEEZED,
    Header,
    check_length,
    read_values,
)
from ncsn_fast.support.parsers import FileError, naming, opened

_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_MOST_AXES = 4
_GZIP = b"\x1f\x8b"
_GZIPPED = 16 | zlib.MAX_WBITS
_PIECE = 64 << 10  # bytes of a file read at once; the first have to show that it is IDX
_SPLITS = {"train": "train", "test": "t10k"}
_IMAGES = ("{}-images-idx3-ubyte", "{}-images.idx3-ubyte")
_FOLDERS = (".", "raw", "MNIST/raw", "FashionMNIST/raw", "KMNIST/raw")


def is_idx(path: Path) -> bool:
    """Whether a file begins as IDX, gzipped or not, whatever its name says.

    Raises:
        OSError, FileError: where it cannot be opened, or is no file.
    """
    with opened(path) as file:
        head = file.read(_PIECE)
    if head.startswith(_GZIP):
        try:
            head = zlib.decompressobj(_GZIPPED).decompress(head, 4)
        except zlib.error:
            return False
    return _begins(head[:4])


def read_idx(path: Path) -> np.ndarray:
    """The array of an IDX file, of at most four axes, none of them empty.

    One that is not gzipped is mapped read-only, not read: values are fetched as they are used. A
    gzipped one is read whole, its checksum compared.

    Returns:
        Of the file's shape and type: uint8, or big-endian integers or floating point.

    Raises:
        OSError: where there is no such file, or it cannot be opened.
        FileError: for a file that is damaged, no IDX, shorter or longer than its header says, or
            gzipped to less than a hundredth of more than 64 MiB.
        ValueError: where it does not fit into memory.
    """
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        packed = file.read(len(_GZIP)) == _GZIP
        file.seek(0)
        stream = io.BufferedReader(_Unpacked(file)) if packed else file
        with naming(path, "no IDX file"):
            header = _read_header(stream, path)
        if not packed:
            check_length(header, size, path)
            return np.memmap(path, header.dtype, "r", header.length, header.shape)
        if header.nbytes > max(LARGEST_SQUEEZED, MOST_SQUEEZED * size):
            raise FileError(
                f"{path} is refused: {size:,} bytes of it would become {header.nbytes:,} by its "
                "header, which may be damaged. If that is meant, unpack it"
            )
        check_host_memory(header.nbytes, f"{path}", "unpack it: then it is not read whole")
        with naming(path, "no IDX file"):
            return read_values(stream, header)


def idx_images(path: Path, split: str | None) -> Path | None:
    """The IDX file of images that ``path`` stands for, or None where it is none.

    Args:
        path: an IDX file, or a folder with MNIST's four files or those of a set that took over its
            names; also the folder around it, as torchvision makes it: ``raw``, ``MNIST/raw``.
        split: of a folder "train" or "test", None for "train"; a single file has no split.

    Raises:
        ValueError: for the split of a single file, a folder that lacks the file, one around
            several sets, and a file that is there gzipped and not, with different contents.
    """
    if path.is_file():
        if not is_idx(path):
            return None
        if split is not None:
            raise ValueError(f"split = {split!r} chooses among files of a folder; {path} is one")
        return path
    names = [name.format(part) for part in _SPLITS.values() for name in _IMAGES]
    folders = [path / folder for folder in _FOLDERS]
    found = [f for f in folders if any(_versions(f / name) for name in names)]
    if not found:
        return None
    if len(found) > 1:
        raise ValueError(f"{path} holds several sets of images: give {found[0]} or {found[1]}")
    part = _SPLITS[split or "train"]
    there = [file for name in _IMAGES if (file := _the_one(found[0] / name.format(part)))]
    if len(there) != 1:
        what = f"both {there[0].name} and {there[1].name}: give one" if there else "no"
        raise ValueError(f"{found[0]} has {what} {_IMAGES[0].format(part)} (or .gz)")
    return there[0]


def idx_labels(images: Path) -> Path | None:
    """The file of labels beside one of images by its usual name, None where there is none.

    Raises:
        ValueError: where it is there gzipped and not, with different contents.
    """
    name, renamed = re.subn(r"images(.?idx)3", r"labels\g<1>1", images.name.removesuffix(".gz"))
    return _the_one(images.with_name(name)) if renamed else None


class _Unpacked(io.RawIOBase):
    """A gzipped file, unpacked as it is read, its checksum compared at its end.

    The gzip module joins any number of parts and takes padding byte by byte: 4 MB may take it 2 s.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._inflate = file, zlib.decompressobj(_GZIPPED)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._inflate.eof:
            packed = self._inflate.unconsumed_tail or self._file.read(_PIECE)
            data = self._inflate.decompress(packed, len(buffer))
            buffer[: len(data)] = data
            if data:
                return len(data)
            if not packed:
                raise EOFError("it is cut")
        if self._inflate.unused_data or self._file.read(1):
            raise ValueError("more follows the gzipped array")
        return 0


def _the_one(path: Path) -> Path | None:
    """The file of this name, or of this name and .gz; of two that are the same the first."""
    found = _versions(path)
    if len(found) > 1 and not np.array_equal(read_idx(found[0]), read_idx(found[1])):
        raise ValueError(f"{path} and {found[1].name} beside it differ: take away the wrong one")
    return found[0] if found else None


def _versions(path: Path) -> list[Path]:
    return [file for file in (path, path.with_name(f"{path.name}.gz")) if file.is_file()]


def _begins(head: bytes) -> bool:
    return len(head) == 4 and head[:2] == b"\0\0" and head[2] in _TYPES and head[3] > 0


def _read_header(stream: IO[bytes], path: Path) -> Header:
    start = stream.read(4)
    if not _begins(start):
        raise ValueError("it does not begin as one")
    axes = start[3]
    if axes > _MOST_AXES:
        raise FileError(f"{path} has {axes} axes: images have 3 (N, H, W), labels have 1 (N)")
    shape = struct.unpack(f">{axes}I", stream.read(4 * axes))
    if 0 in shape:
        raise FileError(f"{path} is empty: its shape is {shape}")
    return Header(shape, np.dtype(_TYPES[start[2]]), False, 4 + 4 * axes)


__all__ = ["idx_images", "idx_labels", "is_idx", "read_idx"]
