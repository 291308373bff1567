"""Files of torch.save, read without running anything that they name.

Tensors, lists, dicts, numbers and words come through. Of harmless types that training codes leave
in such files (NumPy values, paths, dates, …) a mark is left in their place: nothing of theirs is
constructed, as no name in the file leads to anything but the two classes below.
"""

from __future__ import annotations

import os
import pickle
import re
import threading
import zipfile
from pathlib import Path
from typing import Any

import torch

from ncsn_fast.checkpoints.tensor_file import CheckpointError
from ncsn_fast.support.files import utf8_name


class Passed:
    """In place of a value that no network needs: it takes whatever the file says of it."""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


class Array(Passed):
    """In place of a NumPy array, which may hold weights: what needs one can refuse it by name."""


_ARRAYS = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
_HARMLESS = (
    *(f"numpy.{core}.multiarray.scalar" for core in ("core", "_core")),
    *(f"numpy.{name}" for name in ("dtype", "ndarray")),
    *(f"datetime.{name}" for name in ("date", "datetime", "time", "timedelta", "timezone")),
    *(
        f"pathlib{module}.{name}"
        for module in ("", "._local")
        for name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath", "Path")
    ),
    *("decimal.Decimal", "fractions.Fraction", "uuid.UUID"),
    # What a defaultdict makes; and other plain values.
    *(f"builtins.{name}" for name in ("dict", "list", "tuple", "int", "float", "str", "bool")),
    *(f"builtins.{name}" for name in ("frozenset", "range", "slice", "bytes")),
)


def _plain_list(*_: object) -> list[Any]:
    """In place of a deque: its items follow."""
    return []


def _plain_dict(*_: object) -> dict[Any, Any]:
    """In place of a defaultdict: its entries follow, what makes new ones is not needed."""
    return {}


_STAND_INS: list[Any] = [
    *((Passed, name) for name in _HARMLESS),
    *((Array, name) for name in _ARRAYS),
    (_plain_dict, "collections.defaultdict"),
    (_plain_list, "collections.deque"),
]
# torch keeps what it may read in one place for all threads.
_lock = threading.Lock()


def read_torch(path: str | os.PathLike[str]) -> tuple[Any, bool]:
    """What torch.save wrote, its tensors on the CPU.

    Returns:
        Tensors and plain values, nested; and whether the file had checksums, which agree then.

    Raises:
        CheckpointError: for a file that is damaged, that claims more than it holds, or that needs
            Python objects.
    """
    try:
        zipped = zipfile.is_zipfile(path)
        checked = zipped and _check_parts(path)
        with _lock, utf8_name(path) as name, torch.serialization.safe_globals(_STAND_INS):
            data = torch.load(name, map_location="cpu", weights_only=True, mmap=zipped)
        return data, checked
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        names = re.findall(
            r"(?:GLOBAL|Unsupported class|REDUCE on|reduce for unrecognized "
            r"function|but got) ([\w.]+)",
            str(error),
        )
        names += re.findall(r"unsupported GLOBAL ([\w.]+)", str(error))
        if names:
            raise CheckpointError(_needs_python(path, names[-1])) from error
        raise _damaged(path, "its pickle cannot be read") from error
    except Exception as error:  # torch.load meets damage with a dozen kinds of exception
        raise _damaged(path, str(error).split(". ")[0][:200]) from error


def _check_parts(path: str | os.PathLike[str]) -> bool:
    """Compare the checksums inside a file of torch.save, which torch.load itself does not do.

    Returns:
        Whether there are any.
    """
    broken = []
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
        sizes = sum(part.file_size for part in parts)
        if any(part.compress_type for part in parts) or sizes > Path(path).stat().st_size:
            # torch.save compresses nothing: what unpacks to more than the file is no checkpoint.
            raise _damaged(path, "its parts are compressed, or claim more than the file holds")
        for part in parts:
            try:
                with archive.open(part) as file:
                    while file.read(1 << 20):
                        pass
            except zipfile.BadZipFile:
                broken.append(part.filename)
    # All of them wrong: saved without checksums (torch.serialization.set_crc32_options).
    if broken and len(broken) < len(parts):
        raise _damaged(path, f"the checksum of its part {broken[0]} does not match")
    return not broken


def _damaged(path: str | os.PathLike[str], why: str) -> CheckpointError:
    with open(path, "rb") as file:
        zip_begun = file.read(2) == b"PK"
    try:
        incomplete = zip_begun and not zipfile.is_zipfile(path)
    except Exception:  # what made the file unreadable may be met here again
        incomplete = False
    why = "it ends before its table of contents" if incomplete else why
    return CheckpointError(
        f"{path} is damaged, incomplete or not a PyTorch file"
        f"{f' ({why})' if why else ''}: copy or download it again"
    )


def _needs_python(path: str | os.PathLike[str], name: str) -> str:
    return (
        f"{path} is refused: besides tensors it holds a pickled Python object ({name}), and "
        "unpickling that would run whatever code the file names. Whoever trusts the file can "
        "convert it once, where its classes are installed:\n"
        "    import torch\n"
        "    def plain(x):\n"
        "        x = x.state_dict() if hasattr(x, 'state_dict') else x\n"
        "        if isinstance(x, dict):\n"
        "            return {key: plain(value) for key, value in x.items()}\n"
        "        if isinstance(x, (list, tuple)):\n"
        "            return [plain(value) for value in x]\n"
        "        if isinstance(x, (torch.Tensor, int, float, str)):\n"
        "            return x\n"
        "        return plain(vars(x)) if hasattr(x, '__dict__') else None\n"
        f"    data = torch.load({os.fspath(path)!r}, map_location='cpu', weights_only=False)\n"
        "    torch.save(plain(data), 'weights.pth')  # model_state, ema, and all else\n"
        "and then load 'weights.pth', with the settings the object held (config=, or image_size=, "
        "activation=, sigmas=, …)"
    )


__all__ = ["Array", "read_torch"]
