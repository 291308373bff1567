from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ncsn_fast import data

UNIT = st.lists(st.floats(0, 1, width=32), min_size=1, max_size=32)


def save_image(path: Path, shape: tuple[int, ...], seed: int = 0, **options: object) -> np.ndarray:
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return pixels


# --- digits ---------------------------------------------------------------------------------------


def test_digits_splits_have_the_published_sizes() -> None:
    assert [len(data.digits(split).images) for split in ("train", "test", "all")] == [
        1400,
        397,
        1797,
    ]


def test_digits_splits_are_the_permutation_cut_in_two() -> None:
    train, test, everything = (data.digits(split) for split in ("train", "test", "all"))
    assert torch.equal(torch.cat([train.images, test.images]), everything.images)
    assert torch.equal(torch.cat([train.labels, test.labels]), everything.labels)
    with np.load(data._DIGITS_FILE) as archive:
        first = np.random.RandomState(0).permutation(1797)[0]
        expected = archive["images"][first] / 16
    np.testing.assert_array_equal(train.images[0, 0].numpy(), expected)


def test_digits_are_float32_images_of_17_greys_with_int64_labels() -> None:
    images, labels = data.digits("all")
    assert images.shape == (1797, 1, 8, 8)
    assert images.dtype == torch.float32
    assert torch.equal(images.unique(), torch.arange(17) / 16)
    assert labels.dtype == torch.int64
    # The counts that the UCI repository gives for the test part of the set.
    assert labels.bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_digits_refuses_an_unknown_split() -> None:
    with pytest.raises(ValueError, match=r"unknown split 'valid': choose one of 'train', 'test'"):
        data.digits("valid")


def test_digits_refuses_one_altered_pixel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with np.load(data._DIGITS_FILE) as archive:
        images, labels = archive["images"], archive["labels"]
    images[3, 4, 5] ^= 1
    altered = tmp_path / "digits.npz"
    np.savez_compressed(altered, images=images, labels=labels)
    monkeypatch.setattr(data, "_DIGITS_FILE", altered)
    with pytest.raises(ValueError, match=r"damaged or altered.*reinstall"):
        data.digits()


@pytest.mark.parametrize("keep", [0, 100, 20_000, -10])
def test_digits_refuses_a_truncated_file(
    keep: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = tmp_path / "digits.npz"
    cut.write_bytes(data._DIGITS_FILE.read_bytes()[:keep])
    monkeypatch.setattr(data, "_DIGITS_FILE", cut)
    with pytest.raises(ValueError, match=r"bundled digits .* reinstall"):
        data.digits()


def test_digits_refuses_flipped_bytes_in_the_compressed_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = bytearray(data._DIGITS_FILE.read_bytes())
    damaged[5000:5004] = bytes(255 - byte for byte in damaged[5000:5004])
    (tmp_path / "digits.npz").write_bytes(damaged)
    monkeypatch.setattr(data, "_DIGITS_FILE", tmp_path / "digits.npz")
    with pytest.raises(ValueError, match=r"bundled digits .* reinstall"):
        data.digits()


def test_digits_licence_names_source_and_licence() -> None:
    text = (data._DIGITS_FILE.parent / "DIGITS_LICENSE.md").read_text(encoding="utf-8")
    for fact in ("Alpaydin", "Kaynak", "10.24432/C50P49", "CC BY 4.0", "UCI", "1998"):
        assert fact in text


# --- arrays ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "layout", "expected"),
    [
        ((5, 8, 9), None, (5, 1, 8, 9)),
        ((5, 3, 8, 9), None, (5, 3, 8, 9)),
        ((5, 8, 9, 3), None, (5, 3, 8, 9)),
        ((5, 1, 8, 9), None, (5, 1, 8, 9)),
        ((3, 8, 9), "NHW", (3, 1, 8, 9)),
        ((5, 3, 8, 3), "NCHW", (5, 3, 8, 3)),
        ((5, 8, 9, 16), "NHWC", (5, 16, 8, 9)),
    ],
)
def test_array_layouts_become_nchw(
    shape: tuple[int, ...], layout: str | None, expected: tuple[int, ...], tmp_path: Path
) -> None:
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    np.save(tmp_path / "a.npy", array)
    images = data.load_images(tmp_path / "a.npy", layout=layout)
    assert images.shape == expected
    assert images.is_contiguous()
    if len(shape) == 3:
        array = array[:, None]
    elif shape != expected:
        array = np.moveaxis(array, -1, 1)
    np.testing.assert_array_equal(images.numpy(), array.astype(np.float32) / 255)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f4"])
def test_float_arrays_are_taken_as_they_are(dtype: str, tmp_path: Path) -> None:
    array = np.linspace(0, 1, 6 * 8 * 8).reshape(6, 8, 8).astype(dtype)
    np.save(tmp_path / "a.npy", array)
    images = data.load_images(tmp_path / "a.npy")
    assert images.dtype == torch.float32
    np.testing.assert_array_equal(images.numpy()[:, 0], array.astype(np.float32))


@pytest.mark.parametrize("shape", [(3, 32, 32), (32, 32, 3), (9, 3, 8, 3), (9, 8, 8, 8)])
def test_ambiguous_shapes_are_refused_and_the_message_says_how_to_decide(
    shape: tuple[int, ...], tmp_path: Path
) -> None:
    np.save(tmp_path / "a.npy", np.zeros(shape, dtype=np.uint8))
    with pytest.raises(ValueError, match=r"which axis holds the channels.*layout='N"):
        data.load_images(tmp_path / "a.npy")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((10, 64), dtype=np.uint8), r"shape \(10, 64\).*reshape"),
        (np.zeros((0, 8, 8), dtype=np.uint8), r"is empty"),
        (np.zeros((6, 8, 8), dtype=np.int64), r"data type int64.*uint8 .* or floating"),
        (np.full((6, 8, 8), np.nan), r"not finite"),
        (np.full((6, 8, 8), np.inf), r"not finite"),
        (np.full((6, 8, 8), 200.0), r"from 200 to 200.*divide it by 255"),
        (np.full((6, 8, 8), -0.5), r"from -0\.5 to -0\.5.*\(array \+ 1\) / 2"),
        (np.full((6, 8, 8), 1e4), r"from 10000 to 10000.*scale it"),
        (np.full((6, 8, 8), 1 + 1e-6), r"from 1\.000001 to 1\.000001"),
    ],
)
def test_unusable_arrays_are_refused(array: np.ndarray, message: str, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(ValueError, match=message):
        data.load_images(tmp_path / "a.npy")


class Boobytrap:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.mark,))


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
def test_object_arrays_are_refused_without_being_unpickled(name: str, tmp_path: Path) -> None:
    array = np.array([Boobytrap(tmp_path / "mark"), None], dtype=object)
    save = np.save if name.endswith("npy") else np.savez
    save(tmp_path / name, array)
    with pytest.raises(ValueError, match=r"Python objects.*save a plain array"):
        data.load_images(tmp_path / name)
    assert not (tmp_path / "mark").exists()


def test_npz_with_one_array_needs_no_key(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", whatever=np.zeros((6, 8, 8), dtype=np.uint8))
    assert data.load_images(tmp_path / "a.npz").shape == (6, 1, 8, 8)


def test_npz_prefers_the_array_named_images_and_obeys_key(tmp_path: Path) -> None:
    ones, zeros = np.ones((6, 8, 8)), np.zeros((7, 8, 8))
    np.savez(tmp_path / "a.npz", images=ones, other=zeros)
    assert len(data.load_images(tmp_path / "a.npz")) == 6
    assert len(data.load_images(tmp_path / "a.npz", key="other")) == 7


def test_npz_without_a_clear_choice_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((2, 8, 8)), y=np.zeros((2, 8, 8)))
    with pytest.raises(ValueError, match=r"only x, y: say which one to load with key=NAME"):
        data.load_images(tmp_path / "a.npz")


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
@pytest.mark.parametrize("keep", [0, 40, 300])
def test_truncated_arrays_are_refused_by_name(name: str, keep: int, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    (np.save if name.endswith("npy") else np.savez)(buffer, np.zeros((9, 8, 8)))
    (tmp_path / name).write_bytes(buffer.getvalue()[:keep])
    with pytest.raises(ValueError, match=rf"{name}"):
        data.load_images(tmp_path / name)


def test_other_paths_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no such file or folder: .*nowhere"):
        data.load_images(tmp_path / "nowhere")
    (tmp_path / "a.pt").touch()
    with pytest.raises(ValueError, match=r"a\.pt: give a \.npy or \.npz file, or a folder"):
        data.load_images(tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"unknown layout 'CHW': choose one of NHW, NCHW, NHWC"):
        data.load_images(tmp_path, layout="CHW")
    with pytest.raises(ValueError, match=r"is a folder"):
        data.load_images(tmp_path, layout="NHW")


def test_a_layout_of_other_rank_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((2, 8, 8)))
    with pytest.raises(ValueError, match=r"layout NCHW needs 4 axes.*\(2, 8, 8\)"):
        data.load_images(tmp_path / "a.npy", layout="NCHW")


# --- folders --------------------------------------------------------------------------------------


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


def test_mixed_sizes_are_refused_and_the_odd_file_is_named(tmp_path: Path) -> None:
    for name in "abc":
        save_image(tmp_path / f"{name}.png", (6, 5))
    save_image(tmp_path / "odd.png", (7, 4))
    with pytest.raises(ValueError, match=r"3 of 4 are 5×6, but .*odd\.png is 4×7.*resize or crop"):
        data.load_images(tmp_path)


def test_unreadable_images_are_named(tmp_path: Path) -> None:
    save_image(tmp_path / "a.png", (64, 64, 3))
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "b.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cannot read the image .*b\.png .*take it out"):
        data.load_images(tmp_path)
    (tmp_path / "b.png").write_text("no image at all")
    with pytest.raises(ValueError, match=r"cannot read the image .*b\.png .*take it out"):
        data.load_images(tmp_path)


def test_sixteen_bit_images_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 4), dtype=np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png has the pixel type I;16: save it as 8-bit"):
        data.load_images(tmp_path)


# --- transforms -----------------------------------------------------------------------------------


def test_without_settings_the_images_pass_unchanged() -> None:
    x = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(data.data_transform(x), x)


def test_rescaled_is_2x_minus_1() -> None:
    x = torch.tensor([0.0, 0.25, 1.0])
    assert data.data_transform(x, rescaled=True).tolist() == [-1.0, -0.5, 1.0]


def test_logit_matches_its_formula() -> None:
    x = torch.linspace(0, 1, 11, dtype=torch.float64)
    expected = [math.log(y / (1 - y)) for y in (1e-6 + (1 - 2e-6) * value for value in x.tolist())]
    found = data.data_transform(x, logit_transform=True)
    assert found.tolist() == pytest.approx(expected, rel=1e-12)


@given(UNIT)
@settings(max_examples=50, deadline=None)
def test_rescaled_round_trip(values: list[float]) -> None:
    x = torch.tensor(values)
    back = data.inverse_data_transform(data.data_transform(x, rescaled=True), rescaled=True)
    torch.testing.assert_close(back, x, rtol=0, atol=6e-8)


@given(UNIT)
@settings(max_examples=50, deadline=None)
def test_logit_round_trip_is_within_its_margin(values: list[float]) -> None:
    x = torch.tensor(values)
    back = data.inverse_data_transform(
        data.data_transform(x, logit_transform=True), logit_transform=True
    )
    assert bool(torch.isfinite(back).all())
    # The margin of 1e-6 is not undone, and float32 resolves 1.2e-7 near 1.
    torch.testing.assert_close(back, x, rtol=0, atol=1.3e-6)


@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=32), st.booleans())
@settings(max_examples=50, deadline=None)
def test_the_inverse_stays_in_the_unit_interval(values: list[float], rescaled: bool) -> None:
    images = data.inverse_data_transform(torch.tensor(values), rescaled=rescaled)
    assert images.min() >= 0
    assert images.max() <= 1


@given(UNIT, st.integers(0, 2**31))
@settings(max_examples=50, deadline=None)
def test_uniform_dequantisation_keeps_an_8_bit_value_in_its_bin(
    values: list[float], seed: int
) -> None:
    levels = (torch.tensor(values, dtype=torch.float64) * 255).round()
    u = torch.rand(levels.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    x = data.data_transform(levels / 255, dequantize="uniform", noise=u)
    torch.testing.assert_close(x, (levels + u) / 256, rtol=0, atol=1e-15)


def test_gaussian_dequantisation_adds_a_hundredth_of_the_noise() -> None:
    x, z = torch.full((3,), 0.5), torch.tensor([-2.0, 0.0, 3.0])
    found = data.data_transform(x, dequantize="gaussian", noise=z)
    torch.testing.assert_close(found, torch.tensor([0.48, 0.5, 0.53]))


def test_dequantisation_comes_before_rescaling() -> None:
    x, u = torch.tensor([1.0]), torch.tensor([0.5])
    found = data.data_transform(x, rescaled=True, dequantize="uniform", noise=u)
    assert found.item() == pytest.approx(2 * 255.5 / 256 - 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rescaled": True, "logit_transform": True}, r"exclude each other"),
        ({"dequantize": "uniform"}, r"needs noise.*noise\.uniform"),
        ({"dequantize": "gaussian"}, r"needs noise.*noise\.normal"),
        ({"dequantize": "laplace", "noise": torch.zeros(2, 3)}, r"choose 'uniform' or 'gaussian'"),
        ({"noise": torch.zeros(2, 3)}, r"dequantize is None"),
        ({"dequantize": "uniform", "noise": torch.zeros(3)}, r"noise is \(3,\).*x is \(2, 3\)"),
        (
            {"dequantize": "gaussian", "logit_transform": True, "noise": torch.zeros(2, 3)},
            r"use dequantize='uniform' with logit_transform",
        ),
    ],
)
def test_settings_that_cannot_be_met_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        data.data_transform(torch.zeros(2, 3), **settings)


def test_the_inverse_refuses_both_settings() -> None:
    with pytest.raises(ValueError, match=r"exclude each other"):
        data.inverse_data_transform(torch.zeros(2), rescaled=True, logit_transform=True)


@pytest.mark.parametrize("transform", [data.data_transform, data.inverse_data_transform])
def test_transforms_refuse_integers_and_a_coarse_logit(transform: object) -> None:
    with pytest.raises(ValueError, match=r"uint8.*x\.float\(\) / 255"):
        transform(torch.zeros(2, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"float32 or float64, got torch\.float16"):
        transform(torch.zeros(2, dtype=torch.float16), logit_transform=True)


# --- flips ----------------------------------------------------------------------------------------


def test_flip_mirrors_the_selected_images_only() -> None:
    x = torch.arange(2 * 1 * 2 * 3).float().reshape(2, 1, 2, 3)
    found = data.horizontal_flip(x, torch.tensor([False, True]))
    assert torch.equal(found[0], x[0])
    assert found[1].tolist() == [[[8.0, 7.0, 6.0], [11.0, 10.0, 9.0]]]


def test_flip_refuses_other_masks_and_shapes() -> None:
    x = torch.zeros(2, 1, 4, 4)
    with pytest.raises(ValueError, match=r"bool tensor of shape \(2,\), got torch\.float32"):
        data.horizontal_flip(x, torch.zeros(2))
    with pytest.raises(ValueError, match=r"got torch\.bool \(3,\)"):
        data.horizontal_flip(x, torch.zeros(3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"\(N, C, H, W\), got shape \(4, 4\)"):
        data.horizontal_flip(x[0, 0], torch.zeros(4, dtype=torch.bool))
