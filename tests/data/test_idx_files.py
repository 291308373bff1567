from __future__ import annotations

import gzip
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.idx import OTHERS, header, idx
from hypothesis import given, settings
from hypothesis import strategies as st

from ncsn_fast.data import load as data
from ncsn_fast.data.idx_files import idx_labels, is_idx, read_idx
from ncsn_fast.device import memory
from ncsn_fast.support.parsers import FileError

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 6, 7), dtype=np.uint8)
LABELS = np.array([1, 0, 2, 1, 0], np.uint8)


def write_mnist(folder: Path, form: str = "{}-{}-{}-ubyte", packed: bool = False) -> None:
    """The four files of MNIST with a few images each: those of the test part inverted."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, images in (("train", IMAGES), ("t10k", 255 - IMAGES)):
        for what, kind, array in (("images", "idx3", images), ("labels", "idx1", LABELS)):
            content = idx(array)
            path = folder / (form.format(part, what, kind) + ".gz" * packed)
            path.write_bytes(gzip.compress(content, mtime=0) if packed else content)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    "name", ["train-images-idx3-ubyte", "a.idx3-ubyte", "mnist-train-images-idx3-ubyte.gz", "x.npy"]
)
def test_images_are_told_by_their_bytes_whatever_the_name(
    packed: bool, name: str, tmp_path: Path
) -> None:
    content = idx(IMAGES)
    (tmp_path / name).write_bytes(gzip.compress(content, mtime=0) if packed else content)
    pixels = data.load_pixels(tmp_path / name)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, IMAGES[:, None])
    assert isinstance(pixels, np.memmap) != packed
    images = data.load_images(tmp_path / name)
    assert torch.equal(images, torch.from_numpy(IMAGES[:, None].astype(np.float32) / 255))
    np.testing.assert_array_equal(data.pixels_of(str(tmp_path / name)), pixels)


def test_arrays_of_other_types_and_axes_are_what_array_files_are(tmp_path: Path) -> None:
    path = tmp_path / "x"
    colour = np.random.default_rng(1).integers(0, 256, (3, 8, 9, 3), dtype=np.uint8)
    path.write_bytes(idx(colour))
    np.testing.assert_array_equal(data.load_pixels(path), colour.transpose(0, 3, 1, 2))
    for kind in (0x0D, 0x0E):
        path.write_bytes(idx((IMAGES / 255).astype(OTHERS[kind]), kind))
        np.testing.assert_array_equal(
            data.load_pixels(path)[:, 0], (IMAGES / 255).astype(OTHERS[kind])
        )
        signed = data.load_pixels(path, values="signed")
        np.testing.assert_allclose(signed[:, 0], (IMAGES / 255 + 1) / 2, rtol=1e-6)
    for kind in (0x09, 0x0B, 0x0C):
        path.write_bytes(idx(IMAGES.astype(OTHERS[kind]), kind))
        with pytest.raises(ValueError, match=r"x has data type .*divide it by its white"):
            data.load_pixels(path)


@pytest.mark.parametrize("shape", [(3, 6, 7), (1, 28, 2), (4, 4, 4)])
def test_three_axes_are_grey_images_however_few_or_small(
    shape: tuple[int, int, int], tmp_path: Path
) -> None:
    (tmp_path / "x").write_bytes(idx(np.ones(shape, np.uint8)))
    assert data.load_pixels(tmp_path / "x").shape == (shape[0], 1, *shape[1:])


@pytest.mark.parametrize("kind", OTHERS)
def test_values_of_every_type_are_big_endian(kind: int, tmp_path: Path) -> None:
    array = np.array([[-3, 0, 100]], OTHERS[kind])
    content = idx(array, kind)
    for form in (content, gzip.compress(content, mtime=0)):
        (tmp_path / "x").write_bytes(form)
        np.testing.assert_array_equal(read_idx(tmp_path / "x"), array)


def test_one_file_has_no_split_and_no_key_and_keeps_its_size(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(idx(IMAGES))
    with pytest.raises(ValueError, match=r"split = 'test' chooses among files of a folder; .*x is"):
        data.load_pixels(tmp_path / "x", split="test")
    with pytest.raises(ValueError, match=r"key='a' names an array of an \.npz file; .*x is one"):
        data.load_pixels(tmp_path / "x", key="a")
    assert len(data.load_pixels(tmp_path / "x", layout="NHW", image_size=(6, 7))) == 5
    with pytest.raises(ValueError, match=r"are \(6, 7\).*change files of a folder only"):
        data.load_pixels(tmp_path / "x", image_size=6)


@pytest.mark.parametrize("form", ["{}-{}-{}-ubyte", "{}-{}.{}-ubyte"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("inside", [".", "raw", "MNIST/raw", "FashionMNIST/raw"])
def test_a_folder_of_the_four_files_has_two_parts(
    form: str, packed: bool, inside: str, tmp_path: Path
) -> None:
    write_mnist(tmp_path / inside, form, packed)
    for split, expected in ((None, IMAGES), ("train", IMAGES), ("test", 255 - IMAGES)):
        pixels, classes = data.labelled_pixels_of(str(tmp_path), split=split)
        np.testing.assert_array_equal(pixels[:, 0], expected)
        assert classes is not None
        assert (classes.indices.tolist(), classes.names) == (LABELS.tolist(), ("0", "1", "2"))


def test_a_folder_that_is_unclear_is_refused(tmp_path: Path) -> None:
    write_mnist(tmp_path / "MNIST/raw")
    with pytest.raises(ValueError, match="layout and key describe an array file"):
        data.load_pixels(tmp_path, layout="NHW")
    write_mnist(tmp_path / "FashionMNIST/raw")
    with pytest.raises(ValueError, match=r"several sets of images: give .*MNIST.* or .*Fashion"):
        data.load_pixels(tmp_path)
    (tmp_path / "MNIST/raw/t10k-images-idx3-ubyte").unlink()
    with pytest.raises(ValueError, match=r"raw has no t10k-images-idx3-ubyte \(or \.gz\)"):
        data.load_pixels(tmp_path / "MNIST", split="test")
    write_mnist(tmp_path / "MNIST/raw", "{}-{}.{}-ubyte")
    with pytest.raises(ValueError, match=r"has both train-images-idx3-ubyte and train-images\.idx"):
        data.load_pixels(tmp_path / "MNIST")


def test_of_a_file_gzipped_and_not_the_contents_are_compared(tmp_path: Path) -> None:
    for packed in (False, True):
        write_mnist(tmp_path, packed=packed)
    pixels, classes = data.labelled_pixels_of(str(tmp_path))
    assert isinstance(pixels, np.memmap)
    assert classes is not None
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(LABELS[::-1]), mtime=0))
    with pytest.raises(ValueError, match=r"train-labels-idx1-ubyte and .*\.gz beside it differ"):
        data.labelled_pixels_of(str(tmp_path / "train-images-idx3-ubyte"))
    assert len(data.load_pixels(tmp_path)) == len(IMAGES)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(IMAGES[:2]), mtime=0))
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte and .*\.gz beside it differ"):
        data.load_pixels(tmp_path)


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
        ("t10k-images.idx3-ubyte", "t10k-labels.idx1-ubyte.gz"),
        ("my-images-images-idx3-ubyte.gz", "my-images-labels-idx1-ubyte"),
        ("train-images-idx3-ubyte.gz", None),
        ("pictures", None),
    ],
)
def test_labels_lie_beside_by_the_usual_names(
    images: str, labels: str | None, tmp_path: Path
) -> None:
    (tmp_path / "pictures").touch()
    (tmp_path / "labels-idx1").touch()
    if labels is not None:
        (tmp_path / labels).touch()
    found = idx_labels(tmp_path / images)
    assert found == (None if labels is None else tmp_path / labels)


def test_labels_in_the_place_of_images_are_told(tmp_path: Path) -> None:
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx(LABELS))
    with pytest.raises(ValueError, match=r"idx1-ubyte holds one number each, as labels are, for 5"):
        data.load_pixels(tmp_path / "t10k-labels-idx1-ubyte")


GOOD = idx(IMAGES)
PACKED = gzip.compress(GOOD, mtime=0)
HEADER_OF_4_GIB = header(4096, 1024, 1024)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            GOOD[:-1],
            r"has 225 bytes, where its header \(uint8, shape \(5, 6, 7\)\) asks for 226",
        ),
        (GOOD + b"\0", r"it has 227 bytes, where its header"),
        (GOOD[:13], "no IDX file"),
        (header(*[1] * 5) + b"x", r"has 5 axes: images have 3 \(N, H, W\), labels"),
        (idx(IMAGES[:0]), r"is empty: its shape is \(0, 6, 7\)"),
        (HEADER_OF_4_GIB, "it has 16 bytes, where its header"),
        (gzip.compress(GOOD[:-1], mtime=0), "EOFError: it ends 1 bytes too early"),
        (gzip.compress(GOOD + b"\0", mtime=0), "it goes on where its header says that it ends"),
        (PACKED[:-9], "is damaged or no IDX file .*: copy or download it again"),
        (
            PACKED[:-1],
            r"no IDX file \(EOFError: it is cut\): copy or download it again",
        ),
        (PACKED[:-8] + bytes([PACKED[-8] ^ 1]) + PACKED[-7:], "incorrect data check"),
        (PACKED + b"\0", "more follows the gzipped array"),
        (PACKED + PACKED, "more follows the gzipped array"),
        (
            gzip.compress(HEADER_OF_4_GIB, mtime=0),
            "is refused: .* would become 4,294,967,296 by its header",
        ),
        (
            gzip.compress(HEADER_OF_4_GIB + bytes(1 << 20), mtime=0),
            "refused: .* If that is meant, unpack",
        ),
    ],
)
def test_damaged_files_are_named_with_what_is_wrong(
    content: bytes, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(content)
    with pytest.raises(FileError, match=message) as raised:
        data.load_pixels(path)
    assert str(path) in str(raised.value)


def test_what_does_not_fit_into_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "free_host_bytes", lambda: 100)
    (tmp_path / "x.gz").write_bytes(PACKED)
    with pytest.raises(ValueError, match=r"x\.gz takes .* GiB of memory, .*unpack it: then it is"):
        data.load_pixels(tmp_path / "x.gz")
    (tmp_path / "x").write_bytes(GOOD)
    assert len(data.load_pixels(tmp_path / "x")) == 5


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"\0\0\x08", b"\0\0\x07\x03", b"\0\0\x08\0", b"\0\1\x08\3"),
        *(b"\x1f\x8b", gzip.compress(b"text", mtime=0)),
    ],
)
def test_other_files_are_not_taken_for_idx(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(content)
    assert not is_idx(path)
    with pytest.raises(ValueError, match=r"cannot load images from .*idx3-ubyte\.gz: give .*IDX"):
        data.load_pixels(path)


@settings(max_examples=100, derandomize=True, database=None)
@given(
    st.sampled_from([0x08, *OTHERS]),
    st.lists(st.integers(0, 5) | st.integers(0, 2**32 - 1), max_size=6),
    st.binary(max_size=60) | st.sampled_from([bytes(n) for n in (1, 2, 4, 6, 8, 12, 16, 24)]),
    st.booleans(),
)
def test_whatever_a_header_claims_the_outcome_is_an_array_or_our_error(
    tmp_path_factory: pytest.TempPathFactory, kind: int, sizes: list[int], rest: bytes, packed: bool
) -> None:
    content = header(*sizes, kind=kind) + rest
    path = tmp_path_factory.getbasetemp() / "any-images-idx3-ubyte"
    path.write_bytes(gzip.compress(content, mtime=0) if packed else content)
    axes, length = len(sizes), np.dtype(OTHERS.get(kind, "u1")).itemsize * math.prod(sizes)
    if 1 <= axes <= 4 and length == len(rest) > 0:
        assert (read_idx(path).shape, read_idx(path).tobytes()) == (tuple(sizes), rest)
        return
    with pytest.raises(FileError, match="any-images-idx3-ubyte"):
        read_idx(path)
