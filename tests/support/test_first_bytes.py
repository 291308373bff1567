from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from ncsn_fast.support.first_bytes import told_by_first_bytes


@pytest.mark.parametrize(
    ("head", "told"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "Git LFS pointer"),
        (b"\n <!DOCTYPE html><html>", "HTML page"),
        (b"\xef\xbb\xbf<HTML>", "HTML page"),
        (b'<?xml version="1.0"?><html>', "HTML page"),
        (b'{"error": "not found"}', "JSON text"),
        (b"PK\x03\x04", "zip archive: unpack"),
        (b"\x1f\x8b\x08", "gzip archive: unpack"),
        (bytes(257) + b"ustar", "tar archive: unpack"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (b"MATLAB 5.0 MAT-file", "MATLAB"),
        (b"\x00\x00\x00\x18ftypheic\x00\x00", "HEIC picture: convert"),
        (b"", r"empty \(0 bytes\)"),
    ],
)
def test_a_file_that_is_something_else_is_named(head: bytes, told: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(head)
    found = told_by_first_bytes(tmp_path / "a")
    assert found is not None
    assert re.search(told, found)


@pytest.mark.parametrize(
    "head", [b"\x89PNG\r\n\x1a\n", b"\x93", b"<?xml?><svg>", b"hello", b"\x00"]
)
def test_of_other_bytes_nothing_is_said(head: bytes, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(head)
    assert told_by_first_bytes(tmp_path / "a") is None


def test_archives_of_arrays_and_of_torch_are_known(tmp_path: Path) -> None:
    np.savez(tmp_path / "a", x=np.zeros(3))
    torch.save(torch.zeros(3), tmp_path / "b")
    assert "ending .npz" in str(told_by_first_bytes(tmp_path / "a.npz"))
    assert "torch.load" in str(told_by_first_bytes(tmp_path / "b"))
