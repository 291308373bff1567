"""What a file is that is not what its name says, told by its first bytes."""

from __future__ import annotations

from pathlib import Path

_READ = 512
_UNPACK = "unpack it"
_CONVERT = "convert it, for example to .png"
# Beginnings, what they belong to, and what helps.
_KNOWN = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself", "git lfs pull gets it"),
    (b"PK\x05\x06", "an empty zip archive", "get the file again"),
    (b"\x1f\x8b", "a gzip archive", _UNPACK),
    (b"BZh", "a bzip2 archive", _UNPACK),
    (b"\xfd7zXZ\x00", "an xz archive", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "a zstd archive", _UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (b"Rar!", "a rar archive", _UNPACK),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file", "save what it holds in another form"),
    (b"MATLAB", "a MATLAB file", "save what it holds in another form"),
    (b"\x93NUMPY", "a NumPy array", "of images give it the ending .npy"),
    (b"%PDF", "a PDF document", "export its pictures"),
    (b"%!PS", "a PostScript document", "export its pictures"),
    (b"\xff\x0a", "a JPEG XL picture", _CONVERT),
    (b"\x00\x00\x00\x0cJXL ", "a JPEG XL picture", _CONVERT),
    (b"\x00\x00\x00\x0cjP  ", "a JPEG 2000 picture", _CONVERT),
    (b"8BPS", "a Photoshop picture", _CONVERT),
)
_HEIC = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")
_HTML = (b"<!doctype html", b"<html", b"<head", b"<body")


def told_by_first_bytes(path: Path) -> str | None:
    """What the file is and what helps, "a Git LFS pointer, ...: git lfs pull gets it", or None
    where its first bytes do not say so.

    Raises:
        OSError: where it cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(_READ)
    if not head:
        return "empty (0 bytes): get it again"
    if head[:4] == b"PK\x03\x04":
        return _zip(head[30 : 30 + int.from_bytes(head[26:28], "little")])
    for begin, what, helps in _KNOWN:
        if head.startswith(begin):
            return f"{what}: {helps}"
    if head[4:8] == b"ftyp" and head[8:12] in _HEIC:
        return f"a HEIC picture: {_CONVERT}"
    if head[257:262] == b"ustar":
        return f"a tar archive: {_UNPACK}"
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith(_HTML) or (text.startswith(b"<?xml") and b"<html" in text):
        return "an HTML page, as servers send in place of a file: download the file itself"
    if text.startswith((b'{"', b"{'", b"{\n")):
        return "JSON text, as servers send in place of a file: download the file itself"
    return None


def _zip(first_member: bytes) -> str:
    if first_member.endswith(b".npy"):
        return "an archive of NumPy arrays: give it the ending .npz"
    if first_member.endswith(b"/data.pkl"):
        return "a file of torch.save: open it with torch.load, and numpy.save what is meant here"
    return f"a zip archive: {_UNPACK}"


__all__ = ["told_by_first_bytes"]
