"""manifest.json: what the samples of a folder are of, how they are stored, and which there are."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ncsn_fast.device import measured
from ncsn_fast.models.conv_forms import DIRECT, NAMES
from ncsn_fast.runs.samples.ranges import Range, union
from ncsn_fast.support.files import sha256_of_values, write_text
from ncsn_fast.support.parsers import parse_json, read_text, shortened

NAME = "manifest.json"
MOST_SAMPLES = 1 << 48  # ids of samples are below
MOST_SHARDS, _LARGEST = 100_000, 32 << 20  # and bytes of a manifest that names them
FORMATS, DTYPES = ("npz", "png", "tar"), ("float32", "uint8")
# A shard holds so many images, or as many as take so many bytes as float32.
_SHARD, _SHARD_BYTES = 1000, 64 << 20
# The forms of the convolutions, in the identity; without them, in older versions, all were direct.
_FORMS, _DIRECT = "convolutions", NAMES[DIRECT]


class OtherSamplesError(ValueError):
    """A file of another run."""


@dataclass(frozen=True)
class Layout:
    """How samples are stored.

    Attributes:
        format: npz, png (a folder of files) or tar (of files, as webdataset reads them).
        dtype: float32, or uint8 as pictures have them.
        shape: of one sample.
        shard: how many samples a shard holds; shards begin at multiples of it.
        chunk: how many are computed at once. An image depends on it by rounding.
    """

    format: str
    dtype: str
    shape: tuple[int, ...]
    shard: int
    chunk: int


@dataclass(frozen=True)
class Manifest:
    """The contents of the file.

    Attributes:
        identity: what samples have to agree in to be of one set.
        layout: how they are stored.
        about: what else is to be known of them; "command" are the words that make them.
        ids: which are wanted.
        files: SHA-256 of each file of samples, by its path in the folder; those of shards that are
            made since lie beside them.
    """

    identity: dict[str, Any]
    layout: Layout
    about: dict[str, Any]
    ids: list[Range]
    files: dict[str, str] = field(default_factory=dict)

    @property
    def tag(self) -> str:
        """SHA-256 of the identity: what pictures have of it."""
        return sha256_of_values(self.identity)

    def write(self, folder: Path) -> None:
        """Put it in a folder, atomically."""
        stored = asdict(self)
        stored["sha256"] = sha256_of_values(stored)
        write_text(folder / NAME, json.dumps(stored, indent=2) + "\n")


def read_manifest(folder: Path) -> Manifest | None:
    """That of a folder; None where there is none.

    Raises:
        ValueError: where it is damaged, or no manifest of samples.
    """
    path = folder / NAME
    if not path.exists():
        return None
    try:
        stored = parse_json(read_text(path, _LARGEST), str(path), _LARGEST)
        if stored.pop("sha256") != sha256_of_values(stored):
            raise ValueError("its checksum does not match")
        layout = Layout(**{**stored["layout"], "shape": tuple(stored["layout"]["shape"])})
        ids = union((int(first), int(stop)) for first, stop in stored["ids"])
        identity, about, files = (dict(stored[name]) for name in ("identity", "about", "files"))
        numbers = (*layout.shape, layout.shard, layout.chunk)
        known = layout.format in FORMATS and layout.dtype in DTYPES
        if not known or any(type(one) is not int or one < 1 for one in numbers):
            raise ValueError("its layout is none that is written")
        if ids and not (ids[0][0] >= 0 and ids[-1][1] <= MOST_SAMPLES):
            raise ValueError("its ids are out of range")
        if not all(isinstance(sum_, str) for sum_ in files.values()):
            raise ValueError("its checksums are no texts")
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged or not of ncsn-fast sample ({type(error).__name__}: "
            f"{shortened(error)}): remove it, and give the same command again, or choose another "
            "--out"
        ) from error
    return Manifest(identity, layout, about, ids, files)


def layout_of(
    there: Manifest | None,
    path: Path,
    shape: tuple[int, ...],
    wished: Mapping[str, Any],
    chunk_of: Callable[[int], int],
) -> Layout:
    """How samples of a shape are to be stored: as those that are there, or as it is wished.

    Args:
        wished: format, dtype, shard and chunk, None where none is.
        chunk_of: how many of so many samples are best computed at once.

    Raises:
        OtherSamplesError: where the wish is not what is there.
        ValueError: for pictures of what is none, or of float32.
    """
    given = {name: value for name, value in wished.items() if value is not None}
    if there is not None:
        if there.layout.shape != shape:
            raise OtherSamplesError(
                f"{path} is of samples of shape {there.layout.shape}, these have {shape}: choose "
                "another --out"
            )
        stored = asdict(there.layout)
        differ = [
            f"{name} is {stored[name]} there, here {value}"
            for name, value in given.items()
            if stored[name] != value
        ]
        if differ:
            raise OtherSamplesError(
                f"{path} holds samples that are stored otherwise ({'; '.join(differ)}): leave that "
                "out, or choose another --out"
            )
        return there.layout
    format_ = given.get("format", "npz")
    dtype = given.get("dtype", "float32" if format_ == "npz" else "uint8")
    if format_ != "npz" and (len(shape) != 3 or shape[0] not in (1, 3)):
        raise ValueError(
            f"format={format_} is of pictures with 1 or 3 channels, the samples have shape {shape}:"
            " say format=npz"
        )
    if format_ != "npz" and dtype != "uint8":
        raise ValueError(f"dtype={dtype} with format={format_}: pictures are uint8")
    shard = given.get("shard", max(1, min(_SHARD, _SHARD_BYTES // (4 * math.prod(shape)))))
    return Layout(format_, dtype, shape, shard, given.get("chunk") or chunk_of(shard))


def check_number(ids: Range, shard: int) -> None:
    """Refuse more shards than a manifest can name.

    Raises:
        ValueError: saying how large they have to be.
    """
    if (n := ids[1] - ids[0]) > MOST_SHARDS * shard:
        raise ValueError(
            f"{n:,} samples in shards of {shard:,}: a folder has at most {MOST_SHARDS:,} shards, "
            f"take some of {math.ceil(n / MOST_SHARDS):,} or more"
        )


def check_identity(path: Path, there: Any, here: Mapping[str, Any]) -> None:
    """Refuse to mix samples of others with ours.

    Raises:
        OtherSamplesError: naming what differs.
        ValueError: for what is no identity.
    """
    if not isinstance(there, dict):
        raise ValueError("its settings are no table of names and values")
    forms = [one.get(_FORMS, _DIRECT) for one in (there, here)]
    others = [key for key in here if key != _FORMS]  # which depend on all of these
    differ = [key for key in others if there.get(key) != here[key]]
    if differ:
        of_none = differ == ["labels"] and there.get("labels") is None
        way = "give --label none, as they are of no class, or " if of_none else ""
        raise OtherSamplesError(
            f"{path} holds samples of other settings ({', '.join(differ)} differ): {way}choose "
            "another --out"
        )
    if forms[0] != forms[1]:
        raise OtherSamplesError(_other_forms(path, *forms))


def parsed_identity(text: str) -> Any:
    """The identity of samples, as their file has it as a JSON text."""
    return parse_json(text, "its entry settings")


def _other_forms(path: Path, there: Any, here: Any) -> str:
    told = f"{path} holds samples whose convolutions ran otherwise ({there!s:.80}; here: {here})"
    if there == _DIRECT:
        return f"{told}: go on with NCSN_FAST_CONV=direct, or choose another --out"
    return (
        f"{told}. They are chosen by NCSN_FAST_CONV, or by times measured on the machine, kept in "
        f"{measured.cache_file()}: go on where it was begun, with both as they were, or choose "
        "another --out"
    )


__all__ = [
    "DTYPES",
    "FORMATS",
    "MOST_SAMPLES",
    "NAME",
    "Layout",
    "Manifest",
    "OtherSamplesError",
    "check_identity",
    "check_number",
    "layout_of",
    "parsed_identity",
    "read_manifest",
]
