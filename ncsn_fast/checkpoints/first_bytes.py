"""What a file is that was given for a checkpoint, by its first bytes."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

from ncsn_fast.checkpoints.tensor_file import CheckpointError
from ncsn_fast.support.first_bytes import told_by_first_bytes

_READ = 1024
_UNPACK = "unpack it and give the checkpoint inside"
_OTHERS = {
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"GIF8": "a GIF picture",
    b"RIFF": "a picture or a sound (RIFF)",
    b"BM": "a BMP picture",
    b"II*\0": "a TIFF picture",
    b"MM\0*": "a TIFF picture",
}


def is_safetensors(path: str | os.PathLike[str]) -> bool:
    """Whether a file is one of safetensors, or means to be.

    Raises:
        CheckpointError: for a file of torch.save under such a name, whose reader would say nothing
            but that it is damaged.
    """
    start = _start(path)
    # An eight-byte length, then a JSON object: no pickle and no zip file looks like that.
    if len(start) > 8 and start[8:9] == b"{" and start[6:8] == b"\0\0":
        return True
    named = Path(path).suffix == ".safetensors"
    if named and (start[:4] == b"PK\3\4" or (start[:1] == b"\x80" and start[1:2] in b"\2\3\4\5")):
        raise CheckpointError(
            f"{path} is named .safetensors but is a file of torch.save: rename it to .pth"
        )
    return named


def refuse_other_files(path: str | os.PathLike[str]) -> None:
    """Say of a file that is no checkpoint what it is, and what to do.

    Raises:
        CheckpointError
    """
    start = _start(path)
    if not start:
        raise CheckpointError(
            f"{path} is empty: it is damaged, incomplete or not a "
            f"{'safetensors' if Path(path).suffix == '.safetensors' else 'PyTorch'} file. Copy or "
            "download it again"
        )
    if start[:4] == b"PK\3\4":
        _refuse_other_zips(path)
        return
    told = told_by_first_bytes(Path(path))
    for beginning, what in _OTHERS.items():
        told = what if start.startswith(beginning) else told
    if told is not None:
        raise CheckpointError(f"{path} is no checkpoint but {told}")
    _refuse_text(path, start)


def _refuse_other_zips(path: str | os.PathLike[str]) -> None:
    """A file of torch.save is a zip archive with a data.pkl in it."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception:  # damaged: its reader says so
        return
    inside = [name.rsplit("/", 1)[-1] for name in names]
    shown = ", ".join(repr(name[:60]) for name in names[:3]) or "nothing"
    if "constants.pkl" in inside and any(name.endswith(".py") for name in names):
        raise CheckpointError(
            f"{path} is a TorchScript archive, which holds code, not a checkpoint: save its "
            "weights (torch.save(torch.jit.load(…).state_dict(), 'weights.pth'))"
        )
    if "data.pkl" not in inside:
        what = (
            "a NumPy archive (.npz)"
            if names and all(n.endswith(".npy") for n in names)
            else ("a zip archive")
        )
        raise CheckpointError(f"{path} is {what} (with {shown}), no checkpoint: {_UNPACK}")


def _refuse_text(path: str | os.PathLike[str], start: bytes) -> None:
    if any(byte < 32 and byte not in b"\t\n\r\f" for byte in start):
        return
    words = " ".join(start.decode(errors="replace").split())
    if "\ufffd" not in words[:80]:
        raise CheckpointError(
            f"{path} is no checkpoint but a text ({words[:80]!r}), as servers send in place of a "
            "file: download the file itself"
        )


def _start(path: str | os.PathLike[str]) -> bytes:
    with open(path, "rb") as file:
        return file.read(_READ)


__all__ = ["is_safetensors", "refuse_other_files"]
