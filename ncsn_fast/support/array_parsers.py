"""Files of arrays of strangers, read in bounded time and memory: NumPy's .npz and .npy.

What is refused, and how, is said in ``support/parsers.py``.
"""

from __future__ import annotations

import math
import os
import re
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from ncsn_fast.support.parsers import FileError, in_bytes, naming, opened, shortened, shown

MOST_MEMBERS = 10_000  # arrays of an .npz
# Arrays larger than this may be stored in a hundredth of their size at best. Deflate reaches a
# thousandth, with zeros.
LARGEST_SQUEEZED = 64 << 20
MOST_SQUEEZED = 100
_PIECE = 1 << 20  # bytes unpacked at a time
_MAGIC = b"\x93NUMPY"
_LONGEST_HEADER = 4096  # bytes; that of a plain array has about 128
_HEADER = re.compile(
    r"\{(?:\s*(?:'descr'\s*:\s*'(?P<descr>[<>|=]?[?A-Za-z]\d*(?:\[\w+\])?)'"
    r"|'fortran_order'\s*:\s*(?P<order>True|False)"
    r"|'shape'\s*:\s*\((?P<shape>(?:\s*\d{1,20}L?\s*,)*(?:\s*\d{1,20}L?\s*)?)\))\s*,?){3}\s*\}\s*"
)


class Header(NamedTuple):
    """What the beginning of a file says of the array that follows."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran_order: bool
    length: int  # bytes of the beginning itself

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class Npz:
    """The arrays of an .npz by name, each read when it is asked for; see :func:`open_npz`."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._file = opened(path)
        try:
            with naming(path, "no .npz file"):
                self._archive = zipfile.ZipFile(self._file)
                self._members = self._checked(self._archive.infolist())
        except BaseException:
            self._file.close()
            raise

    @property
    def names(self) -> list[str]:
        return list(self._members)

    def size(self, name: str) -> int:
        """How many bytes reading an array takes."""
        return self._members[name].file_size if name in self._members else 0

    def __enter__(self) -> Npz:
        return self

    def __exit__(self, *error: object) -> None:
        self._archive.close()
        self._file.close()

    def __getitem__(self, name: str) -> np.ndarray:
        with self._member(name) as stream:
            what = f"{self.path} ({shortened(name)})"
            header = _read_header(stream, what)
            check_length(header, self._members[name].file_size, what)
            return read_values(stream, header)

    def _checked(self, members: list[zipfile.ZipInfo]) -> dict[str, zipfile.ZipInfo]:
        """The members that are arrays, by name; those that could be bombs are refused."""
        if len(members) > MOST_MEMBERS:
            raise FileError(f"{self.path} has {len(members):,} members: that is no .npz of images")
        twice = [name for name, n in Counter(m.filename for m in members).items() if n > 1]
        if twice:
            raise FileError(f"{self.path} has two members called {shown(twice[0])}")
        size = os.fstat(self._file.fileno()).st_size
        for one in members:
            if one.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise FileError(
                    f"{self.path} is compressed in another way than .npz files are: write it by "
                    "numpy.savez"
                )
            if one.compress_size > size:
                raise EOFError(f"{shown(one.filename)} is longer than the file")
            if one.file_size > max(LARGEST_SQUEEZED, MOST_SQUEEZED * one.compress_size):
                raise FileError(
                    f"{self.path} is refused: {in_bytes(one.compress_size)} of it would become "
                    f"{in_bytes(one.file_size)} ({shown(one.filename)}). If that is meant, write "
                    "it without compression: numpy.savez, or numpy.save as .npy"
                )
        return {m.filename[:-4]: m for m in members if m.filename.endswith(".npy")}

    @contextmanager
    def _member(self, name: str) -> Iterator[IO[bytes]]:
        if name not in self._members:
            there = ", ".join(self.names[:10]) or "nothing"
            raise FileError(f"{self.path} has no array {name!r}, only {shortened(there)}")
        with naming(self.path, "no .npz file"), self._archive.open(self._members[name]) as stream:
            yield stream


def open_npz(path: str | os.PathLike[str]) -> Npz:
    """Open an .npz for a ``with`` block: ``.names`` and ``[name]``.

    Nothing in it is unpacked here, no array of Python objects ever. An array is read once its size
    is known to be what its header says, and its checksum has to be right.

    Raises:
        OSError: where there is no such file, or it cannot be opened.
        FileError: here and whenever an array is read, for a file that is damaged, encrypted or no
            .npz, has a name twice, compression other than NumPy's, or arrays that are larger than
            64 MiB and a hundred times as large as in the file; Python objects.
    """
    return Npz(path)


def open_npy(path: str | os.PathLike[str]) -> np.ndarray:
    """The array in a .npy, mapped read-only: values are read when they are used.

    Raises:
        OSError: where there is no such file, or it cannot be opened.
        FileError: for a file that is damaged, no .npy, shorter or longer than its header says, or
            of Python objects.
    """
    with opened(path) as file:
        header = _read_header(file, path)
        check_length(header, os.fstat(file.fileno()).st_size, path)
        order: Any = "F" if header.fortran_order else "C"
        with naming(path, "no .npy file"):
            if header.nbytes == 0:
                return np.empty(header.shape, header.dtype, order)
            place = os.fspath(path)  # by its name, which the array then tells
            return np.memmap(place, header.dtype, "r", header.length, header.shape, order)


def _read_header(stream: IO[bytes], what: object) -> Header:
    """The header of a .npy, from its text: no Python literal of a stranger is evaluated."""
    with naming(what, "no array of NumPy"):
        start = stream.read(len(_MAGIC) + 2)
        if start[: len(_MAGIC)] != _MAGIC or start[len(_MAGIC)] not in (1, 2, 3):
            raise ValueError("it does not begin as one")
        digits = 2 if start[len(_MAGIC)] == 1 else 4
        length = int.from_bytes(stream.read(digits), "little")
        if length > _LONGEST_HEADER:
            raise ValueError(f"its header is said to have {length:,} bytes")
        text = stream.read(length)
        found = _HEADER.fullmatch(text.decode("latin-1"))
        if re.search(rb"'descr'\s*:\s*(?:'[|=<>]?O'|\[.*'[|=<>]?O')", text, re.DOTALL):
            raise FileError(
                f"{what} holds Python objects, which are never loaded because loading them can run "
                "code: save a plain array, e.g. numpy.stack(list_of_uint8_images)"
            )
        if found is None or None in found.groups():
            raise ValueError(f"its header is {shown(text)}")
        shape = tuple(int(size.strip(" L\n")) for size in found["shape"].split(",") if size.strip())
        dtype = np.dtype(found["descr"])
        return Header(shape, dtype, found["order"] == "True", len(start) + digits + length)


def read_values(stream: IO[bytes], header: Header) -> np.ndarray:
    """The array that follows a header, to the end of a stream that unpacks it.

    Raises:
        EOFError, ValueError: where there is less or more, beside what the stream raises.
    """
    array = np.empty(header.nbytes, np.uint8)
    rest = array.data
    while rest:
        done = stream.readinto(rest[:_PIECE])  # type: ignore[attr-defined]
        if not done:
            raise EOFError(f"it ends {len(rest):,} bytes too early")
        rest = rest[done:]
    # At the end the checksum is compared, also that of an empty array.
    if stream.read(1):
        raise ValueError("it goes on where its header says that it ends")
    order: Any = "F" if header.fortran_order else "C"
    return np.ndarray(header.shape, header.dtype, array.data, order=order)


def check_length(header: Header, length: int, what: object) -> None:
    """Refuse a file of another length than its header asks for.

    Raises:
        FileError: naming ``what``.
    """
    wanted = header.length + header.nbytes
    if length != wanted:
        raise FileError(
            f"{what} is damaged: it has {length:,} bytes, where its header ({header.dtype}, shape "
            f"{shortened(header.shape)}) asks for {wanted:,}"
        )


__all__ = [
    "LARGEST_SQUEEZED",
    "MOST_SQUEEZED",
    "Header",
    "Npz",
    "check_length",
    "open_npy",
    "open_npz",
    "read_values",
]
