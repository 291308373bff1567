from __future__ import annotations

import os
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from ncsn_fast.data import load as data
from ncsn_fast.data.image_file import readable_endings


def image(*shape: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def png(width: int, height: int, bits: int, colour: int, rows: bytes, extra: bytes = b"") -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    text = chunk(b"zTXt", extra) if extra else b""
    pixels = chunk(b"IDAT", zlib.compress(rows, 9))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + text + pixels + chunk(b"IEND", b"")


def tiff(bits: tuple[int, ...], photometric: int, *, extra: int = 0, kind: int = 1) -> bytes:
    """A TIFF of 4×4 pixels of zeros, with channels of so many bits."""
    samples, pixels = len(bits), 4 * 4 * sum(bits) // 8
    fields = [(256, 4, [4]), (257, 4, [4]), (258, 3, bits), (259, 3, [1]), (262, 3, [photometric])]
    fields += [(273, 4, [8]), (277, 3, [samples]), (278, 4, [4]), (279, 4, [pixels])]
    fields += [(338, 3, [0] * extra)] if extra else []
    fields += [(339, 3, [kind] * samples)]
    table, more = b"", b""
    end = 8 + pixels + 2 + 12 * len(fields) + 4
    for tag, size, values in fields:
        data = struct.pack(f"<{len(values)}{'HI'[size - 3]}", *values)
        if len(data) > 4:
            data, more = struct.pack("<I", end + len(more)), more + data
        table += struct.pack("<HHI", tag, size, len(values)) + data.ljust(4, b"\0")
    start = struct.pack("<2sHI", b"II", 42, 8 + pixels) + bytes(pixels)
    return start + struct.pack("<H", len(fields)) + table + bytes(4) + more


def refusal(folder: Path) -> str:
    """What the folder is refused with; warnings, of Pillow's too, are errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match="cannot be used") as refused:
            data.load_pixels(folder)
    return str(refused.value)


@pytest.mark.parametrize("ending", ["png", "gif", "webp", "tif"])
def test_files_of_several_pictures_are_refused(ending: str, tmp_path: Path) -> None:
    more = [image(8, 8, 3, seed=1)]
    image(8, 8, 3).save(tmp_path / f"a.{ending}", save_all=True, append_images=more)
    assert f"a.{ending} holds several pictures" in refusal(tmp_path)


@pytest.mark.parametrize("ending", ["gif", "jfif", "jpe", "webp", "pbm"])
def test_files_of_one_picture_are_read_whatever_their_ending(ending: str, tmp_path: Path) -> None:
    kind = {"jfif": "JPEG", "jpe": "JPEG", "pbm": "PPM"}.get(ending)
    image(8, 8).convert("1").save(tmp_path / f"a.{ending.upper()}", format=kind)
    assert data.load_pixels(tmp_path).shape[2:] == (8, 8)


def test_of_a_photo_with_a_preview_the_photo_is_taken_and_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    more = [image(4, 4, 3)]
    Image.new("RGB", (8, 8)).save(
        tmp_path / "a.jpg", format="MPO", save_all=True, append_images=more
    )
    assert data.load_pixels(tmp_path).shape == (1, 3, 8, 8)
    assert "1 of 1 image files" in caplog.text
    assert "previews: the main one is taken" in caplog.text


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rgb.png", png(4, 4, 16, 2, bytes(25 * 4))),
        ("rgba.png", png(4, 4, 16, 6, bytes(33 * 4))),
        ("grey_alpha.png", png(4, 4, 16, 4, bytes(17 * 4))),
        ("grey.png", png(4, 4, 16, 0, bytes(9 * 4))),
        ("rgb.tif", tiff((16, 16, 16), 2)),
        ("near_infrared.tif", tiff((8, 8, 8, 8), 2, extra=1)),
        ("signed.tif", tiff((8,), 1, kind=2)),
        ("rgb.ppm", b"P6 4 4 65535\n" + bytes(96)),
        ("grey.pgm", b"P5 4 4 1000\n" + bytes(32)),
    ],
)
def test_more_than_8_bits_are_not_cut_in_silence(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    told = refusal(tmp_path)
    assert "8-bit grey or RGB, or all images as one .npy array" in told
    assert name in told


def test_usual_tiff_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "rgb.tif").write_bytes(tiff((8, 8, 8), 2))
    (tmp_path / "grey.tif").write_bytes(tiff((8,), 1))
    image(4, 4).convert("1").save(tmp_path / "bits.tif", compression="group4")
    assert data.load_pixels(tmp_path).shape == (3, 3, 4, 4)


def test_a_tiff_without_all_of_its_rows_is_not_filled_up_with_black(tmp_path: Path) -> None:
    whole = tiff((8,), 1)
    taller = struct.pack("<HHII", 257, 4, 1, 40)
    (tmp_path / "a.tif").write_bytes(whole.replace(struct.pack("<HHII", 257, 4, 1, 4), taller))
    assert "a.tif is 4×40 pixels (width×height), but does not hold all" in refusal(tmp_path)


def test_high_bit_depth_of_avif_is_seen(tmp_path: Path) -> None:
    if ".avif" not in readable_endings():
        pytest.skip("this Pillow reads no AVIF")
    image(8, 8, 3).save(tmp_path / "a.avif")
    assert data.load_pixels(tmp_path).shape == (1, 3, 8, 8)
    content = bytearray((tmp_path / "a.avif").read_bytes())
    content[content.index(b"av1C") + 6] |= 0x40
    (tmp_path / "a.avif").write_bytes(content)
    assert "a.avif" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("mode", "ending"), [("CMYK", "jpg"), ("F", "tif"), ("I", "tif"), ("LAB", "tif")]
)
def test_other_kinds_of_pixels_are_refused(mode: str, ending: str, tmp_path: Path) -> None:
    Image.new(mode, (4, 4)).save(tmp_path / f"a.{ending}")
    assert f"has the pixel type {mode}: save it as" in refusal(tmp_path)


def test_small_files_that_would_fill_the_memory_are_refused(tmp_path: Path) -> None:
    for name, content in {
        "beyond.png": png(100_000, 100_000, 8, 2, b"\0"),
        "claimed.png": png(13_000, 13_000, 8, 2, b"\0"),
        "text.png": png(4, 4, 8, 0, bytes(20), b"a\0\0" + zlib.compress(bytes(64 << 20), 9)),
    }.items():
        (tmp_path / name).write_bytes(content)
    told = refusal(tmp_path)
    assert "beyond.png has 10,000,000,000 pixels, more than the 178,956,970 that are read" in told
    assert "shrink it" in told
    assert "claimed.png is 13000×13000 pixels (width×height), from 66 bytes" in told
    assert "text.png cannot be read (Decompressed data too large" in told


def test_a_photo_within_pillows_limit_is_read_without_its_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image(10, 10).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 60)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert data.load_pixels(tmp_path).shape == (1, 1, 10, 10)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)
    assert "has 100 pixels, more than the 80 that are read" in refusal(tmp_path)


def test_what_is_no_image_is_named_by_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "lfs.png").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0")
    (tmp_path / "page.jpg").write_bytes(b"<!DOCTYPE html><html></html>")
    (tmp_path / "phone.jpg").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    (tmp_path / "runs_a_program.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n")
    told = refusal(tmp_path)
    for part in (
        "lfs.png is no image but a Git LFS pointer",
        "page.jpg is no image but an HTML page",
        "phone.jpg is no image but a HEIC picture",
        "runs_a_program.jpg is no image but a PostScript",
    ):
        assert part in told


def test_a_flipped_bit_in_the_pixels_of_a_png_is_found(tmp_path: Path) -> None:
    image(32, 32, 3).save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    for place in (200, 1000, 2000, 3000):
        damaged = bytearray(whole)
        damaged[place] ^= 4
        (tmp_path / "a.png").write_bytes(damaged)
        assert "a.png cannot be read" in refusal(tmp_path)


def test_a_file_that_may_not_be_opened_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image(4, 4).save(tmp_path / "a.png")

    def refuse(path: Path, *args: Any) -> Any:  # whoever runs the tests may be allowed everything
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)
    assert "a.png cannot be opened (Permission denied)" in refusal(tmp_path)


def test_colour_profiles_copies_and_grey_files_are_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name, profile in (("a", "sRGB"), ("b", "LAB"), ("c", "LAB")):
        icc = ImageCms.ImageCmsProfile(ImageCms.createProfile(profile)).tobytes()
        image(8, 8, 3, seed=ord(name)).save(tmp_path / f"{name}.png", icc_profile=icc)
    image(8, 8, 3, seed=ord("a")).save(tmp_path / "same.bmp")
    image(8, 8).save(tmp_path / "grey.png")
    (tmp_path / "labels.csv").touch()
    os.symlink("a.png", tmp_path / "link.png")
    data.load_pixels(tmp_path)
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 4
    assert told[0].endswith("passed over: 1 .csv, 1 that are or lead to what is met elsewhere")
    assert any("2 of 5" in line and "colour profile other than sRGB" in line for line in told)
    assert any("1 of 5" in line and "same pixels as another" in line for line in told)
    assert any("1 of 5" in line and "grey among colour" in line for line in told)
