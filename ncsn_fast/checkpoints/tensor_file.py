"""Files of named tensors that are written whole and checked when they are read.

A safetensors file whose header holds, under the key ``ncsn_fast``, one JSON text: the caller's
values, the format version, and a SHA-256 over those values and the tensors' names, shapes, dtypes
and bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ncsn_fast.support.files import atomic_write, utf8_name
from ncsn_fast.support.parsers import FileError, parse_json, shortened

FORMAT = 1
KEY = "ncsn_fast"
LARGEST_HEADER = 16 << 20  # characters of our metadata


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or whose contents contradict one another."""


def write_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]
) -> str:
    """Write named tensors and JSON values to one safetensors file, atomically.

    Args:
        path: the file; its folder must exist.
        tensors: on any device, of any dtype and layout. They are read back contiguous, on the CPU,
            bit for bit.
        metadata: JSON values; the keys ``format`` and ``sha256`` are taken.

    Returns:
        The checksum, 64 hexadecimal digits.

    Raises:
        ValueError: for metadata that is not JSON or uses a taken key, or a missing folder.
        OSError: for a folder that cannot be written to, or a full disk.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    taken = {"format", "sha256"} & set(metadata)
    if taken:
        raise ValueError(f"metadata must not use the keys {sorted(taken)}: the file sets them")
    try:
        text = json.dumps({**metadata, "format": FORMAT}, allow_nan=False)
        header = parse_json(text, "it", LARGEST_HEADER)  # which is read back so
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"metadata must consist of plain JSON values: {error}") from error
    stored = _storable(tensors)
    header["sha256"] = _checksum(stored, header)
    with atomic_write(path) as temporary:
        try:
            save_file(stored, temporary, metadata={KEY: json.dumps(header)})
        except SafetensorError as error:
            raise OSError(f"cannot write {path}: {error}") from error
    return header["sha256"]


def read_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a file of :func:`write_tensors` and verify its checksum.

    Returns:
        The tensors, on the CPU, and the metadata, with ``format`` and ``sha256``.

    Raises:
        FileNotFoundError: where there is no such file.
        CheckpointError: for a file that is truncated, altered, of a later format, or not ours.
    """
    tensors, metadata = read_safetensors(path)
    if metadata is None:
        raise CheckpointError(
            f"{path} was not written by ncsn_fast: its header has no entry {KEY!r}"
        )
    return tensors, metadata


def read_safetensors(
    path: str | os.PathLike[str],
) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """As :func:`read_tensors`, but a safetensors file of others is read too, metadata None.

    Raises:
        FileNotFoundError, CheckpointError: where there is none, or it is damaged.
    """
    from safetensors import safe_open

    check_is_file(path)
    try:
        with utf8_name(path) as name, safe_open(name, framework="pt", device="cpu") as file:
            text = (file.metadata() or {}).get(KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:  # its reader meets what is odd with half a dozen kinds
        raise CheckpointError(
            f"{path} is damaged, incomplete or not a safetensors file ({shortened(error)}): copy "
            "or download it again"
        ) from error
    return tensors, None if text is None else _verified(path, tensors, text)


def below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin so, by the rest of their names."""
    return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}


def check_is_file(path: str | os.PathLike[str]) -> None:
    """Refuse a path that is not a file, with a message that says so.

    Raises:
        FileNotFoundError, CheckpointError
    """
    if Path(path).is_dir():
        raise CheckpointError(f"{path} is a folder: give the checkpoint file in it")
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"there is no checkpoint {path}: give a file, such as the model.safetensors of a run "
            'or a .pth of the official code, or "digits", "mnist" or "fashion", which come along'
        )


def _verified(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], text: str
) -> dict[str, Any]:
    damaged = CheckpointError(
        f"{path} has been altered or damaged: its contents do not match its checksum. Copy it "
        "again, or go back to an earlier checkpoint"
    )
    try:
        metadata = parse_json(text, path, LARGEST_HEADER)
    except FileError as error:
        raise CheckpointError(f"{error} (its header, altered or damaged)") from error
    if not isinstance(metadata, dict) or type(metadata.get("sha256")) is not str:
        raise damaged
    expected, version = metadata.pop("sha256"), metadata.get("format")
    if type(version) is not int:
        raise damaged
    if version != FORMAT:
        raise CheckpointError(
            f"{path} has format {version}, this version of ncsn_fast reads {FORMAT}: update it"
        )
    if _checksum(tensors, metadata) != expected:
        raise damaged
    return {**metadata, "sha256": expected}


def _storable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous CPU tensors of which no two share memory, as the format requires."""
    seen: set[int] = set()
    stored = {}
    for name, tensor in tensors.items():
        copy = tensor.detach().to("cpu").contiguous()
        storage = copy.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() != copy.nbytes:
            copy = copy.clone()
        seen.add(copy.untyped_storage().data_ptr())
        stored[name] = copy
    return stored


def _checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        if tensor.numel():
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


__all__ = [
    "CheckpointError",
    "below",
    "check_is_file",
    "read_safetensors",
    "read_tensors",
    "write_tensors",
]
