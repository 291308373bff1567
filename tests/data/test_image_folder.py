from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ncsn_fast.data import load as data
from ncsn_fast.device import memory


def save_image(path: Path, shape: tuple[int, ...], seed: int = 0, **options: object) -> np.ndarray:
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return pixels


def test_a_folder_is_read_in_order_with_subfolders_and_without_other_files(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / ".thumbnails").mkdir()
    last = save_image(tmp_path / "c.png", (6, 5), seed=1)
    middle = save_image(tmp_path / "b" / "x.PNG", (6, 5), seed=2)
    first = save_image(tmp_path / "a.bmp", (6, 5), seed=3)
    save_image(tmp_path / ".thumbnails" / "x.png", (2, 2))
    (tmp_path / "labels.csv").write_text("not an image")
    images = data.load_images(tmp_path)
    expected = np.stack([first, middle, last])[:, None].astype(np.float32) / 255
    np.testing.assert_array_equal(images.numpy(), expected)


def test_colour_files_give_three_channels(tmp_path: Path) -> None:
    colour = save_image(tmp_path / "a.png", (6, 5, 3))
    images = data.load_images(str(tmp_path))
    assert images.dtype == torch.float32
    np.testing.assert_array_equal(
        images[0].numpy(), colour.transpose(2, 0, 1).astype(np.float32) / 255
    )


def test_grey_files_among_colour_ones_are_repeated_over_the_channels(tmp_path: Path) -> None:
    grey = save_image(tmp_path / "a.png", (6, 5))
    save_image(tmp_path / "b.png", (6, 5, 3))
    images = data.load_images(tmp_path)
    assert images.shape == (2, 3, 6, 5)
    for channel in images[0]:
        np.testing.assert_array_equal(channel.numpy(), grey.astype(np.float32) / 255)


def test_jpeg_files_are_read(tmp_path: Path) -> None:
    Image.new("RGB", (16, 16), (255, 0, 0)).save(tmp_path / "a.jpg", quality=95)
    images = data.load_images(tmp_path)
    assert images.shape == (1, 3, 16, 16)
    assert (images.mean(dim=(0, 2, 3)) - torch.tensor([1.0, 0, 0])).abs().max() < 0.02


def test_the_camera_rotation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    pixels = save_image(tmp_path / "a.png", (4, 7), exif=exif)
    images = data.load_images(tmp_path)
    expected = np.rot90(pixels, -1).astype(np.float32) / 255
    np.testing.assert_array_equal(images[0, 0].numpy(), expected)


def test_an_opaque_alpha_channel_is_dropped_and_a_transparent_one_refused(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 5, 4), dtype=np.uint8)
    pixels[..., 3] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    images = data.load_images(tmp_path)
    expected = pixels[..., :3].transpose(2, 0, 1).astype(np.float32) / 255
    np.testing.assert_array_equal(images[0].numpy(), expected)
    pixels[0, 0, 3] = 254
    Image.fromarray(pixels).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png is partly transparent"):
        data.load_images(tmp_path)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"found no image files in .*looked for \.png, \.jpg"):
        data.load_images(tmp_path)


def test_mixed_sizes_are_refused_and_the_way_out_is_named(tmp_path: Path) -> None:
    for name in "abc":
        save_image(tmp_path / f"{name}.png", (6, 5))
    save_image(tmp_path / "odd.png", (7, 4))
    with pytest.raises(
        ValueError, match=r"a\.png is 5×6, but .*odd\.png is 4×7 .*give image_size, e\.g\."
    ):
        data.load_images(tmp_path)


def test_sixteen_bit_images_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 4), dtype=np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png has the pixel type I;16: save it as 8-bit"):
        data.load_images(tmp_path)


# --- cropping and resizing ------------------------------------------------------------------------


def test_photos_of_mixed_sizes_are_brought_to_one(tmp_path: Path) -> None:
    save_image(tmp_path / "a.png", (40, 60, 3))
    save_image(tmp_path / "b.jpg", (75, 33, 3))
    save_image(tmp_path / "c.png", (32, 32))
    assert data.load_pixels(tmp_path, image_size=32).shape == (3, 3, 32, 32)
    assert data.load_pixels(tmp_path, image_size=(16, 24)).shape == (3, 3, 16, 24)


def test_a_file_of_the_wanted_size_keeps_its_pixels(tmp_path: Path) -> None:
    pixels = save_image(tmp_path / "a.png", (12, 16))
    found = data.load_pixels(tmp_path, image_size=(12, 16))
    np.testing.assert_array_equal(found[0, 0], pixels)


@pytest.mark.parametrize(
    ("shape", "size", "rows", "columns"),
    [
        ((10, 16), (10, 10), slice(0, 10), slice(3, 13)),
        ((17, 10), (10, 10), slice(3, 13), slice(0, 10)),
        ((10, 16), (5, 10), slice(1, 9), slice(0, 16)),
        ((16, 10), (8, 4), slice(0, 16), slice(1, 9)),
    ],
)
def test_the_largest_centred_rectangle_of_the_aspect_is_taken(
    shape: tuple[int, int],
    size: tuple[int, int],
    rows: slice,
    columns: slice,
    tmp_path: Path,
) -> None:
    pixels = np.zeros(shape, dtype=np.uint8)
    pixels[rows, columns] = 200
    Image.fromarray(pixels).save(tmp_path / "a.png")
    inside = data.load_pixels(tmp_path, image_size=size)
    assert inside.shape[2:] == size
    assert (inside == 200).all()  # nothing from outside
    border = np.full(shape, 200, dtype=np.uint8)
    border[rows, columns] = 0
    border[rows, columns][1:-1, 1:-1] = 200
    Image.fromarray(border).save(tmp_path / "a.png")
    edge = data.load_pixels(tmp_path, image_size=size)[0, 0]
    assert max(edge[0].max(), edge[-1].max(), edge[:, 0].max(), edge[:, -1].max()) < 200


def test_shrinking_averages_fine_patterns_instead_of_picking_pixels(tmp_path: Path) -> None:
    stripes = np.zeros((64, 64), dtype=np.uint8)
    stripes[:, ::2] = 255
    Image.fromarray(stripes).save(tmp_path / "a.png")
    found = data.load_pixels(tmp_path, image_size=8)
    assert (np.abs(found.astype(int) - 127) <= 12).all()


def test_crop_cuts_the_centred_square_before_shrinking(tmp_path: Path) -> None:
    pixels = save_image(tmp_path / "a.png", (218, 178))
    cut = data.load_pixels(tmp_path, crop=140)
    np.testing.assert_array_equal(cut[0, 0], pixels[39:179, 19:159])
    shrunk = data.load_pixels(tmp_path, crop=140, image_size=64)
    alone = Image.fromarray(pixels[39:179, 19:159]).resize((64, 64), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(shrunk[0, 0], np.asarray(alone))


def test_palette_images_are_shrunk_in_colour(tmp_path: Path) -> None:
    image = Image.new("P", (8, 8))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putdata([i % 2 for i in range(64)])
    image.save(tmp_path / "a.png")
    found = data.load_pixels(tmp_path, image_size=2)[0].astype(int)
    assert (np.abs(found[[0, 2]] - 127) < 30).all()
    assert (found[1] == 0).all()


def test_files_too_small_are_refused_by_name(tmp_path: Path) -> None:
    save_image(tmp_path / "large.png", (40, 40))
    save_image(tmp_path / "small.png", (40, 31))
    with pytest.raises(ValueError, match=r"small\.png is 31×40 .*enlarged.*smaller image_size=32"):
        data.load_images(tmp_path, image_size=32)
    with pytest.raises(ValueError, match=r"small\.png is 31×40 .*smaller crop=36"):
        data.load_images(tmp_path, crop=36)


# --- files that cannot be used --------------------------------------------------------------------


def spoil(folder: Path) -> list[str]:
    """Two good files, and others damaged in each of the ways that people meet."""
    for name in ("good.png", "cut.png", "cut.jpg", "good.jpg"):
        save_image(folder / name, (64, 64, 3))
    for name in ("cut.png", "cut.jpg"):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: len(whole) // 2])
    (folder / "empty.png").touch()
    (folder / "page.png").write_text("<html>404 not found</html>")
    transparent = Image.new("RGBA", (64, 64), (1, 2, 3, 4))
    transparent.save(folder / "glass.png")
    return ["cut.jpg", "cut.png", "empty.png", "glass.png", "page.png"]


def test_all_files_that_cannot_be_used_are_named_with_the_reason(tmp_path: Path) -> None:
    spoil(tmp_path)
    with pytest.raises(ValueError, match=r"5 of 7 image files in .* cannot be used") as error:
        data.load_images(tmp_path)
    for told in (
        "cut.jpg cannot be read (image file is truncated",
        "cut.png cannot be read (image file is truncated",
        "empty.png is no image",
        "glass.png is partly transparent",
        "page.png is no image",
        "damaged='skip'",
    ):
        assert told in str(error.value)


def test_damaged_files_are_skipped_on_request_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bad = spoil(tmp_path)
    found = data.load_images(tmp_path, damaged="skip")
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "5 of 7" in caplog.text
    assert "2 remain" in caplog.text
    assert all(name in caplog.text for name in bad)
    for name in bad:
        (tmp_path / name).unlink()
    assert torch.equal(found, data.load_images(tmp_path))


def test_skipping_leaves_out_files_that_are_too_small(tmp_path: Path) -> None:
    save_image(tmp_path / "large.png", (40, 40))
    save_image(tmp_path / "small.png", (20, 20))
    assert len(data.load_pixels(tmp_path, image_size=32, damaged="skip")) == 1


def test_skipping_every_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    with pytest.raises(ValueError, match=r"1 of 1 .* leaves none: a\.png is no image"):
        data.load_images(tmp_path, damaged="skip")


def test_of_many_damaged_files_ten_are_named_and_the_rest_counted(tmp_path: Path) -> None:
    save_image(tmp_path / "z.png", (4, 4))
    for i in range(13):
        (tmp_path / f"{i:02}.png").touch()
    with pytest.raises(ValueError, match=r"13 of 14 .*09\.png is no image.*; and 3 more") as error:
        data.load_images(tmp_path)
    assert "10.png" not in str(error.value)


def complaint(folder: Path) -> str:
    """What loading the folder is refused with, "" if it is not."""
    try:
        data.load_pixels(folder)
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")  # of Pillow's decoders
@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "webp", "tif", "ppm"])
def test_a_file_with_random_bytes_is_read_or_named(suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"a.{suffix}"
    save_image(file, (16, 16, 3))
    whole = np.frombuffer(file.read_bytes(), dtype=np.uint8)
    random = np.random.default_rng(0)
    complaints = []
    for _ in range(40):
        damaged = whole.copy()
        places = random.integers(0, min(len(whole), 200), 4)
        damaged[places] = random.integers(0, 256, 4, dtype=np.uint8)
        file.write_bytes(damaged.tobytes())
        complaints.append(complaint(tmp_path))
    assert any(complaints)
    assert all(f"a.{suffix} " in told for told in complaints if told)


def test_a_folder_that_cannot_be_written_to_is_read(tmp_path: Path) -> None:
    save_image(tmp_path / "a.png", (4, 4))
    (tmp_path / "a.png").chmod(0o444)
    tmp_path.chmod(0o555)
    try:
        assert data.load_pixels(tmp_path, image_size=2).shape == (1, 1, 2, 2)
        assert [file.name for file in tmp_path.iterdir()] == ["a.png"]
    finally:
        tmp_path.chmod(0o755)


def test_a_folder_that_does_not_fit_into_memory_is_refused_after_its_first_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abc":
        save_image(tmp_path / f"{name}.png", (10, 10, 3))
    monkeypatch.setattr(memory, "free_host_bytes", lambda: 899)
    with pytest.raises(ValueError, match=r"3 files like .*a\.png takes .*smaller image_size, or"):
        data.load_pixels(tmp_path)


def test_names_that_would_steer_a_terminal_are_written_out(tmp_path: Path) -> None:
    try:
        (tmp_path / "a\x1b[2J.png").touch()
        (tmp_path / "b\udcff.png").touch()
    except (OSError, UnicodeError):
        pytest.skip("no such names here")
    with pytest.raises(ValueError, match=r"a\\x1b\[2J\.png is no image.*b\\udcff\.png is") as error:
        data.load_pixels(tmp_path)
    assert str(error.value).isprintable()
