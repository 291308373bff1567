from __future__ import annotations

import gzip
import os
from pathlib import Path

import numpy as np
import pytest
from data.test_cifar import write_cifar
from data.test_idx_files import IMAGES, LABELS
from helpers.idx import idx
from PIL import Image

from ncsn_fast.data.digits import digits
from ncsn_fast.data.labels import as_classes
from ncsn_fast.data.load import labelled_pixels_of, pixels_of
from ncsn_fast.models.ncsnv2 import MOST_CLASSES

STACK = IMAGES[:, None]


def found(data: Path, labels: str | None = None, **settings: object) -> tuple[list[int], tuple]:
    """Of the images in this order and no others the classes and names."""
    pixels, classes = labelled_pixels_of(str(data), labels, **settings)
    np.testing.assert_array_equal(pixels, pixels_of(str(data), **settings))
    assert classes is not None
    assert classes.indices.dtype == np.int64
    assert len(classes.indices) == len(pixels)
    return classes.indices.tolist(), classes.names


def images_in(folder: Path, *names: str) -> None:
    """Small pictures of one grey each, which is their position in the list."""
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4), i, np.uint8)).save(folder / name)


# --- what labels may be ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros(3), r"of it are float64 of shape \(3,\): .*astype\(numpy\.int64\)"),
        (np.zeros(3, bool), r"of it are bool of shape \(3,\)"),
        (np.zeros((3, 10), int), r"of it are int64 of shape \(3, 10\): .*argmax\(axis=1\)"),
        (np.array(3), r"of shape \(\)"),
        (np.zeros(4, int), "it has 4 labels for 3 images"),
        (np.array([0, 1, -1]), "of it are from -1 to 1: give whole numbers from 0 to 9,999"),
        (np.array([0, 1, MOST_CLASSES]), "from 0 to 10,000: give whole numbers from 0 to 9,999"),
        (np.array([0, 1, 2**64 - 1], np.uint64), "from 0 to 18,446,744,073,709,551,615"),
    ],
)
def test_what_is_no_whole_number_for_each_image_is_refused(
    labels: np.ndarray, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        as_classes(labels, 3, "it")


def test_classes_without_an_image_are_told(caplog: pytest.LogCaptureFixture) -> None:
    assert as_classes(np.array([2, 0], np.int8), 2, "it").names == ("0", "1", "2")
    assert "1 of 3 classes of it have no image: 1" in caplog.text
    caplog.clear()
    as_classes(np.array([0, 40]), 2, "it")
    assert "39 of 41 classes of it have no image: 1, 2, " in caplog.text
    assert caplog.text.rstrip().endswith("10 and 29 more")
    caplog.clear()
    as_classes(np.arange(MOST_CLASSES), MOST_CLASSES, "it")
    assert not caplog.text


# --- where they are -------------------------------------------------------------------------------


def test_the_digits_have_theirs() -> None:
    for split in ("train", "test"):
        pixels, classes = labelled_pixels_of("digits", split=split)
        assert classes is not None
        np.testing.assert_array_equal(pixels, digits(split).images.numpy())
        np.testing.assert_array_equal(classes.indices, digits(split).labels.numpy())
        assert classes.names == tuple("0123456789")


@pytest.mark.parametrize("packed", [False, True])
def test_idx_labels_beside_the_images_are_read(packed: bool, tmp_path: Path) -> None:
    (tmp_path / "a-images-idx3-ubyte").write_bytes(idx(IMAGES))
    content = gzip.compress(idx(LABELS), mtime=0) if packed else idx(LABELS)
    (tmp_path / ("a-labels-idx1-ubyte" + ".gz" * packed)).write_bytes(content)
    assert found(tmp_path / "a-images-idx3-ubyte") == (LABELS.tolist(), ("0", "1", "2"))


def test_damaged_labels_are_named_and_harm_no_images(tmp_path: Path) -> None:
    images = tmp_path / "a-images-idx3-ubyte"
    images.write_bytes(idx(IMAGES))
    assert labelled_pixels_of(str(images))[1] is None
    for content, message in (
        (idx(LABELS)[:-1], r"a-labels-idx1-ubyte is damaged: it has 12 bytes"),
        (idx(LABELS[:4]), r"a-labels-idx1-ubyte has 4 labels for 5 images"),
        (b"", r"a-labels-idx1-ubyte is damaged or no IDX file"),
        (idx(IMAGES), r"labels of .*a-labels-idx1-ubyte are uint8 of shape \(5, 6, 7\)"),
    ):
        (tmp_path / "a-labels-idx1-ubyte").write_bytes(content)
        with pytest.raises(ValueError, match=message):
            labelled_pixels_of(str(images))
        assert len(pixels_of(str(images))) == 5


def test_cifar_names_its_classes_where_the_file_of_them_is_there(tmp_path: Path) -> None:
    rows = write_cifar(tmp_path)
    for split in ("train", "test"):
        assert found(tmp_path, split=split)[0] == rows[split][:, 0].tolist()
    names = tuple("abcdefghij")
    (tmp_path / "batches.meta.txt").write_text("\n".join(names) + "\n\n")
    assert found(tmp_path)[1] == names
    assert found(tmp_path / "test_batch.bin") == (rows["test"][:, 0].tolist(), names)


@pytest.mark.parametrize("text", ["a\nb\n", "\n".join("aacdefghij"), "", f"{'x' * 101}\nbcdefghij"])
def test_a_file_of_other_than_ten_names_is_refused(text: str, tmp_path: Path) -> None:
    write_cifar(tmp_path)
    (tmp_path / "batches.meta.txt").write_text(text)
    with pytest.raises(ValueError, match=r"batches\.meta\.txt has .* not the names of 10 classes"):
        labelled_pixels_of(str(tmp_path))
    assert len(pixels_of(str(tmp_path))) > 0


def test_subfolders_are_classes_at_whatever_depth(tmp_path: Path) -> None:
    images_in(tmp_path, "shoe/b.png", "bag/z.png", "shoe/deep/a.png", "Zip/1.png")
    pixels, classes = labelled_pixels_of(str(tmp_path))
    assert classes is not None
    assert classes.names == ("Zip", "bag", "shoe")
    by_grey = dict(zip(pixels[:, 0, 0, 0].tolist(), classes.indices.tolist(), strict=True))
    assert by_grey == {0: 2, 1: 1, 2: 2, 3: 0}


def test_the_folder_may_be_where_one_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images_in(tmp_path, "a/1.png", "b/1.png")
    monkeypatch.chdir(tmp_path)
    assert found(Path(".")) == ([0, 1], ("a", "b"))
    monkeypatch.chdir(tmp_path / "a")
    assert found(Path(os.pardir, os.pardir, tmp_path.name)) == ([0, 1], ("a", "b"))


def test_files_that_are_left_out_shift_no_label(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images_in(tmp_path, "a/1.png", "b/1.png", "c/1.png", "c/2.png")
    for name in ("a/0.png", "b/1.png", "c/1.png"):
        (tmp_path / name).write_bytes(b"x")
    assert found(tmp_path, damaged="skip") == ([0, 2], ("a", "b", "c"))
    assert "1 of 3 classes of" in caplog.text
    assert "have no image: b" in caplog.text


def test_folders_that_say_no_classes_or_unclear_ones(tmp_path: Path) -> None:
    images_in(tmp_path, "a/1.png", "a/2.png")
    assert labelled_pixels_of(str(tmp_path))[1] is None
    assert labelled_pixels_of(str(tmp_path / "a"))[1] is None
    images_in(tmp_path, "b/1.png", "1.png")
    with pytest.raises(ValueError, match=r"1 of 4 images in .* lie beside its subfolders"):
        labelled_pixels_of(str(tmp_path))
    assert len(pixels_of(str(tmp_path))) == 4
    images_in(tmp_path / "parts", "Test/a/1.png", "train/a/1.png")
    with pytest.raises(ValueError, match="Test and train, are called as parts of a data set"):
        labelled_pixels_of(str(tmp_path / "parts"))


@pytest.mark.parametrize("name", ["labels", "y"])
def test_an_archive_may_hold_them_by_a_usual_name(name: str, tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, images=STACK, other=LABELS, **{name: LABELS})
    assert found(path) == (LABELS.tolist(), ("0", "1", "2"))
    np.savez(path, images=STACK, other=LABELS)
    assert labelled_pixels_of(str(path))[1] is None
    assert found(path, "other") == (LABELS.tolist(), ("0", "1", "2"))


def test_an_archive_whose_labels_are_unclear_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, images=STACK, labels=LABELS, y=LABELS)
    with pytest.raises(ValueError, match=r"a\.npz has two arrays of labels, labels and y: say"):
        labelled_pixels_of(str(path))
    assert found(path, "y") == (LABELS.tolist(), ("0", "1", "2"))
    np.savez(path, images=STACK, y=np.zeros((5, 3)))
    with pytest.raises(ValueError, match=r"labels of .*a\.npz, y are float64 of shape \(5, 3\)"):
        labelled_pixels_of(str(path))


# --- a file of one's own --------------------------------------------------------------------------


def test_a_file_of_labels_goes_with_any_images(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    np.save(tmp_path / "images.npy", STACK)
    images_in(tmp_path / "folder", "a/1.png", "b/1.png", "b/2.png", "c/1.png", "d/1.png")
    np.save(tmp_path / "mine.npy", LABELS.astype(">i4"))
    (tmp_path / "mine.gz").write_bytes(gzip.compress(idx(LABELS), mtime=0))
    for labels in ("mine.npy", "mine.gz"):
        for images in ("images.npy", "folder"):
            expected = (LABELS.tolist(), ("0", "1", "2"))
            assert found(tmp_path / images, str(tmp_path / labels)) == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"0\n1\n", "mine is damaged or no array of NumPy"),
        (b"PK\x03\x04", "mine holds no labels but is a zip archive"),
        (b"", r"mine holds no labels but is empty"),
        (gzip.compress(b"0 1 2", mtime=0), "mine holds no labels but is a gzip archive"),
        (idx(LABELS[:3]), "mine has 3 labels for 5 images"),
    ],
)
def test_another_file_is_refused_before_the_images_are_read(
    content: bytes, message: str, tmp_path: Path
) -> None:
    np.save(tmp_path / "images.npy", STACK)
    (tmp_path / "mine").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        labelled_pixels_of(str(tmp_path / "images.npy"), str(tmp_path / "mine"))


def test_what_could_be_an_array_and_a_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez("a.npz", images=STACK, target=LABELS)
    with pytest.raises(FileNotFoundError, match=r"labels='no'.*, nor an array of a\.npz.*images"):
        labelled_pixels_of("a.npz", "no")
    (tmp_path / "target").write_bytes(idx(LABELS[::-1]))
    with pytest.raises(ValueError, match=r"labels='target' is .* write \./target for the file"):
        labelled_pixels_of("a.npz", "target")
    assert found(Path("a.npz"), "./target")[0] == LABELS[::-1].tolist()
    with pytest.raises(FileNotFoundError, match=r"labels='no': no such file$"):
        labelled_pixels_of("digits", "no")
    with pytest.raises(ValueError, match="is no file but a folder"):
        labelled_pixels_of("a.npz", ".")
