from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch

from ncsn_fast.data import array_files
from ncsn_fast.data import load as data
from ncsn_fast.device import memory


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


def test_a_layout_of_other_rank_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((2, 8, 8)))
    with pytest.raises(ValueError, match=r"layout NCHW needs 4 axes.*\(2, 8, 8\)"):
        data.load_images(tmp_path / "a.npy", layout="NCHW")


# --- memory ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5, 8, 9), (5, 8, 9, 3), (5, 3, 8, 9)])
def test_npy_files_are_mapped_and_keep_their_8_bits(shape: tuple[int, ...], tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    np.save(tmp_path / "a.npy", array)
    pixels = data.load_pixels(tmp_path / "a.npy")
    assert isinstance(pixels, np.memmap)
    assert pixels.dtype == np.uint8
    images = data.load_images(tmp_path / "a.npy").numpy()
    np.testing.assert_array_equal(pixels.astype(np.float32) / 255, images)


def test_images_of_a_compressed_file_are_contiguous_in_every_layout(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", np.zeros((5, 8, 9, 3), dtype=np.uint8))
    assert data.load_images(tmp_path / "a.npz").is_contiguous()


def test_a_mapped_file_is_left_as_it_is(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((5, 8, 9), dtype=np.uint8))
    (tmp_path / "a.npy").chmod(0o444)
    images = data.load_images(tmp_path / "a.npy")
    images += 1
    assert data.load_pixels(tmp_path / "a.npy").max() == 0


@pytest.mark.parametrize("place", [0, 5, 6])
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -1.0])
def test_a_wrong_value_is_found_in_any_of_several_blocks(
    wrong: float, place: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(array_files, "_BLOCK_BYTES", 2 * 8 * 8 * 8)
    array = np.full((7, 8, 8), 0.5)
    np.save(tmp_path / "good.npy", array)
    assert len(data.load_pixels(tmp_path / "good.npy")) == 7
    array[place, -1, -1] = wrong
    np.save(tmp_path / "bad.npy", array)
    with pytest.raises(ValueError, match=r"bad\.npy (holds values that are not|has values from)"):
        data.load_pixels(tmp_path / "bad.npy")


# --- ranges that have to be said ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((6, 8, 8), bool), r"bool.*astype\(numpy\.float32\)"),
        (np.zeros((6, 8, 8), np.uint16), r"uint16.*divide it by its white, such as 65535"),
        (np.zeros((6, 8, 8), np.complex64), r"complex64.*two channels with values='signed'"),
        (np.full((6, 8, 8), 1.02), r"from 1\.02.*array\.clip\(0, 1\)"),
        (np.full((6, 8, 8), -0.6), r"from -0\.6.*or say values='signed'"),
        (np.full((6, 8, 8), -3.0), r"from -3.*numpy\.abs\(array\)\.max\(\), and say values='sig"),
        (np.full((6, 8, 8), "a"), r"data type <U1"),
    ],
)
def test_what_helps_is_said_for_each_kind(array: np.ndarray, message: str, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(ValueError, match=message):
        data.load_pixels(tmp_path / "a.npy")


@pytest.mark.parametrize("shape", [(6, 8, 8), (6, 1, 8, 8), (6, 8, 8, 1)])
def test_complex_images_become_two_signed_channels(
    shape: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(array_files, "_BLOCK_BYTES", 2 * 8 * 8 * 16)
    random = np.random.default_rng(0)
    array = random.uniform(-1, 1, shape) + 1j * random.uniform(-1, 1, shape)
    np.save(tmp_path / "a.npy", array)
    pixels = data.load_pixels(tmp_path / "a.npy", values="signed")
    assert pixels.shape == (6, 2, 8, 8)
    assert pixels.dtype == np.float32
    seen = 2 * pixels - 1  # by a network with rescaled=True
    found = (seen[:, 0] + 1j * seen[:, 1]).reshape(shape)
    np.testing.assert_allclose(found, array, rtol=0, atol=2e-7)
    images = data.load_images(tmp_path / "a.npy", values="signed")
    np.testing.assert_array_equal(images.numpy(), pixels)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full((6, 8, 8), 1.5j), r"from 0 to 1\.5.*scale it, e\.g\. array / numpy\.abs"),
        (np.full((6, 8, 8), -1.5), r"from -1\.5 to -1\.5.*scale it"),
        (np.full((6, 8, 8), np.nan + 0j), r"not finite"),
        (np.full((6, 3, 8, 8), 0.5j), r"3 complex channels.*combine them"),
        (np.zeros((6, 8, 8), np.uint8), r"data type uint8.*leave it out"),
    ],
)
def test_signed_values_beyond_their_range_are_refused(
    array: np.ndarray, message: str, tmp_path: Path
) -> None:
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(ValueError, match=message):
        data.load_pixels(tmp_path / "a.npy", values="signed")


def test_arrays_that_are_not_read_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    np.savez(tmp_path / "a.npz", images=np.zeros((6, 8, 8)), labels=np.zeros(6))
    data.load_pixels(tmp_path / "a.npz", key="images")
    assert not caplog.records
    data.load_pixels(tmp_path / "a.npz")
    assert "the array 'images' is read, not labels" in caplog.text


def test_an_archive_that_does_not_fit_into_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez(tmp_path / "a.npz", np.zeros((6, 8, 8), np.uint8))
    monkeypatch.setattr(memory, "free_host_bytes", lambda: 300)
    with pytest.raises(ValueError, match=r"a\.npz: 'arr_0' takes .*save it with numpy\.save"):
        data.load_pixels(tmp_path / "a.npz")


def test_the_mapped_file_is_known_by_name(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((6, 8, 8)))
    pixels = data.load_pixels(tmp_path / "a.npy")
    assert isinstance(pixels, np.memmap)
    assert Path(str(pixels.filename)) == tmp_path / "a.npy"
