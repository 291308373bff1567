"""IDX files, as MNIST's are, made by code."""

from __future__ import annotations

import struct

import numpy as np

# Of the file's types, beside uint8, which is 0x08.
OTHERS = {0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def idx(array: np.ndarray, kind: int = 0x08) -> bytes:
    """A file of an array whose bytes are in the file's order."""
    return header(*array.shape, kind=kind) + array.tobytes()


def header(*sizes: int, kind: int = 0x08) -> bytes:
    return bytes([0, 0, kind, len(sizes)]) + struct.pack(f">{len(sizes)}I", *sizes)
