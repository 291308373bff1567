from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.networks import network, points
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from ncsn_fast.data import samples as placement
from ncsn_fast.data.batches import Batches
from ncsn_fast.data.load import load_images, load_pixels

PIXELS = np.random.default_rng(0).integers(0, 256, (50, 1, 8, 8), dtype=np.uint8)
FLOATS = PIXELS.astype(np.float32) / 255


def batches(data: Any, **keywords: Any) -> Batches:
    return Batches(data, network(channels=1), **{"batch_size": 8, "seed": 3, **keywords})


class Files(Dataset[Any]):
    """A map-style Dataset that counts what is read from it."""

    def __init__(self, samples: Any) -> None:
        self.samples, self.reads = samples, 0

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Any:
        self.reads += 1
        return self.samples[index]


def map_file(array: np.ndarray, folder: Path) -> np.ndarray:
    np.save(folder / "mapped.npy", array)
    return np.load(folder / "mapped.npy", mmap_mode="r")


HOLDERS: dict[str, Callable[[Path], Any]] = {
    "float64 tensor": lambda _: torch.from_numpy(FLOATS).double(),
    "channels_last tensor": lambda _: torch.from_numpy(FLOATS).to(
        memory_format=torch.channels_last
    ),
    "uint8 tensor": lambda _: torch.from_numpy(PIXELS),
    "float array": lambda _: FLOATS,
    "big-endian float array": lambda _: FLOATS.astype(">f4"),
    "uint8 array": lambda _: PIXELS,
    "mapped floats": lambda folder: map_file(FLOATS, folder),
    "mapped pixels": lambda folder: map_file(PIXELS, folder),
    "transposed mapped pixels": lambda folder: map_file(
        np.ascontiguousarray(PIXELS.transpose(0, 2, 3, 1)), folder
    ).transpose(0, 3, 1, 2),
    "Dataset of float tensors": lambda _: Files(torch.from_numpy(FLOATS)),
    "Dataset of uint8 tensors": lambda _: Files(torch.from_numpy(PIXELS)),
    "Dataset of uint8 arrays": lambda _: Files(PIXELS),
    "Dataset of pairs": lambda _: TensorDataset(torch.from_numpy(PIXELS), torch.arange(50)),
}


def place(monkeypatch: pytest.MonkeyPatch, held: bool | None) -> None:
    """Have the data held on the device, or stay where they are; None: as they would be."""
    if held is not None:
        monkeypatch.setattr(
            placement, "_decide", lambda _, device: (device if held else None, "by the test")
        )


@pytest.mark.parametrize("held", [None, True, False])
@pytest.mark.parametrize("holder", HOLDERS)
def test_batches_are_the_same_wherever_the_data_lie(
    holder: str, held: bool | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"flip": True, "dequantize": "uniform"}
    expected = batches(torch.from_numpy(FLOATS), **settings)
    place(monkeypatch, held)
    found = batches(HOLDERS[holder](tmp_path), **settings)
    for step in (0, 5, 6, 7, 100):  # step 6 crosses into the second epoch
        assert torch.equal(found.at(step)[0], expected.at(step)[0])


@pytest.mark.gpu
@pytest.mark.parametrize("held", [None, True, False])
@pytest.mark.parametrize("holder", HOLDERS)
def test_batches_on_a_gpu_are_the_same_wherever_the_data_lie(
    holder: str, held: bool | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = network(channels=1).cuda()
    on_host = batches(torch.from_numpy(FLOATS), flip=True)
    data = HOLDERS[holder](tmp_path)
    place(monkeypatch, held)
    found = Batches(data, net, batch_size=8, seed=3, flip=True)
    on_gpu = isinstance(found.data, Tensor) and found.data.is_cuda
    assert on_gpu == (held is not False)
    for step in (0, 6):
        x, ids = found.at(step)
        assert x.is_cuda
        assert ids.is_cuda
        assert torch.equal(x.cpu(), on_host.at(step)[0])


def test_the_order_of_a_seed_is_the_one_it_always_was() -> None:
    order = batches(torch.from_numpy(FLOATS)).shuffled(torch.arange(45, 58))
    assert order.tolist() == [33, 17, 15, 32, 24, 35, 43, 22, 39, 42, 9, 31, 13]


@pytest.mark.parametrize("holder", HOLDERS)
def test_the_fingerprint_is_the_hash_of_the_values_in_order(
    holder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    eight_bit = "uint8" in holder or "pixels" in holder or "pairs" in holder
    expected = hashlib.sha256((PIXELS if eight_bit else FLOATS).tobytes()).hexdigest()
    for held in (True, False):
        place(monkeypatch, held)
        assert batches(HOLDERS[holder](tmp_path)).sha256 == expected


def test_images_of_a_folder_give_the_same_batches_as_floats_and_as_pixels(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", PIXELS[:, 0])
    floats = batches(load_images(tmp_path / "images.npy"))
    pixels = batches(load_pixels(tmp_path / "images.npy"))
    assert isinstance(pixels.data, np.memmap)
    assert torch.equal(floats.at(3)[0], pixels.at(3)[0])


def test_on_the_cpu_tensors_are_not_copied_and_files_stay_mapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensor = torch.from_numpy(FLOATS)
    assert batches(tensor).data.data_ptr() == tensor.data_ptr()
    mapped = map_file(PIXELS, tmp_path)
    assert batches(mapped).data is mapped
    place(monkeypatch, held=True)
    assert isinstance(batches(mapped).data, Tensor)


def test_a_small_dataset_is_read_once_and_held() -> None:
    files = Files(torch.from_numpy(FLOATS))
    found = batches(files)
    reads = files.reads
    assert reads <= len(files) + 2
    found.at(0)
    assert files.reads == reads
    assert torch.equal(found.data, torch.from_numpy(FLOATS))


def test_a_dataset_is_read_batch_by_batch_when_it_is_not_to_be_held(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place(monkeypatch, held=False)
    files = Files(torch.from_numpy(FLOATS))
    found = batches(files)
    assert found.data is files
    reads = files.reads
    found.at(0)
    assert files.reads == reads + 8


def test_a_dataset_too_large_to_hold_is_never_read_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "HELD_BYTES", 1000)
    files = Files(np.tile(FLOATS, (10, 1, 1, 1)))
    found = batches(files)
    assert found.data is files
    assert files.reads <= 64 + 2
    assert torch.equal(found.at(0)[0], batches(files.samples).at(0)[0])


def test_the_fingerprint_of_a_large_dataset_does_not_depend_on_where_it_lies(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(placement, "HELD_BYTES", 1000)
    fingerprints = set()
    for held in (None, True, False):
        place(monkeypatch, held)
        fingerprints.add(batches(Files(FLOATS)).sha256)
    assert len(fingerprints) == 1
    assert batches(Files(FLOATS[:-1])).sha256 not in fingerprints
    assert batches(Files(PIXELS)).sha256 not in fingerprints
    assert batches(Files(np.roll(FLOATS, 1, axis=0))).sha256 not in fingerprints


def test_the_placement_is_told(tmp_path: Path) -> None:
    assert batches(FLOATS).placement == "held on cpu as a NumPy array (0.0122 MiB): used from there"
    mapped = batches(map_file(PIXELS, tmp_path)).placement
    assert mapped.startswith(f"memory-mapped from {tmp_path / 'mapped.npy'} (")
    assert batches(Files(FLOATS)).placement.endswith("a Dataset of at most 4 GiB")


def test_a_tensor_that_requires_a_gradient_is_taken_for_its_values() -> None:
    found = batches(torch.from_numpy(FLOATS).requires_grad_())
    assert not found.at(0)[0].requires_grad


def test_settings_that_do_not_fit_the_network_are_refused() -> None:
    plane = points()
    with pytest.raises(ValueError, match=r"points have no left and right"):
        Batches(torch.zeros(4, 2), plane, batch_size=2, seed=0, flip=True)
    with pytest.raises(ValueError, match=r"dequantize = 'laplace': choose 'uniform'"):
        batches(FLOATS, dequantize="laplace")
    logit = network(channels=1, logit_transform=True)
    with pytest.raises(ValueError, match=r"the logit is undefined: use 'uniform'"):
        Batches(FLOATS, logit, batch_size=2, seed=0, dequantize="gaussian")


def test_fewer_samples_than_a_batch_are_said(caplog: pytest.LogCaptureFixture) -> None:
    batches(FLOATS, batch_size=len(FLOATS))
    assert not caplog.records
    batches(FLOATS, batch_size=len(FLOATS) + 1)
    assert f"{len(FLOATS)} samples are fewer than batch_size = {len(FLOATS) + 1}" in caplog.text


# Classes.

NUMBER = 50


def classed(dropout: float = 0.25, seed: int = 3, **changes: Any) -> Batches:
    settings = {"classes": torch.arange(NUMBER) % 4, "class_dropout": dropout, **changes}
    net = network(channels=1, classes=4)
    return Batches(torch.from_numpy(FLOATS), net, batch_size=8, seed=seed, **settings)


def test_classes_are_those_of_the_images_of_a_batch() -> None:
    found = classed(0.0)
    for step in (0, 5, 6):  # step 6 crosses into the second epoch
        indices = found.shuffled(torch.arange(8 * step, 8 * step + 8))
        classes = found.classes_at(step)
        assert classes is not None
        assert torch.equal(classes, indices % 4)


def test_as_many_classes_are_left_out_as_asked_for_and_the_same_ones_again() -> None:
    found, whole, again = classed(), classed(0.0), classed()
    steps = range(300)
    dropped, kept, second = (
        torch.cat([b.classes_at(step) for step in steps]) for b in (found, whole, again)
    )
    assert torch.equal(dropped, second)
    left_out = dropped == 4
    assert torch.equal(dropped[~left_out], kept[~left_out])
    expected, deviation = 0.25, (0.25 * 0.75 / len(dropped)) ** 0.5
    assert abs(float(left_out.float().mean()) - expected) < 4 * deviation
    # Whose class is left out has nothing to do with the image or with its place in the batch.
    for part in (left_out.view(-1, 8)[:, 0], left_out[kept == 1]):
        assert abs(float(part.float().mean()) - expected) < 5 * (0.19 / len(part)) ** 0.5


def test_classes_are_part_of_what_a_run_is() -> None:
    same = classed().identity
    assert same == classed().identity
    assert same != classed(0.5).identity
    assert same != classed(classes=torch.arange(NUMBER) % 3).identity
    assert set(batches(torch.from_numpy(FLOATS)).identity) == {"data"}


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (None, "the network knows 4 classes: give classes"),
        (torch.zeros(49, dtype=torch.int64), "needed are 50 whole numbers"),
        (torch.zeros(50), "needed are 50 whole numbers"),
        (np.zeros(50, complex), r"are complex128 of shape \(50,\): needed are 50 whole numbers"),
        (np.array(["a"] * 50), "are <U1 of shape"),
        ("abc", "needed are 50 whole numbers"),
        (np.full(50, 2**64 - 1, np.uint64), "classes run from 18446744073709551615"),
        (torch.full((50,), 5), "the network knows 0 to 3, and 4 says that a sample has none"),
        (torch.full((50,), -1), "classes run from -1 to -1"),
    ],
)
def test_classes_that_do_not_fit_are_refused(classes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        classed(classes=classes)


def test_classes_for_a_network_that_knows_none_are_refused() -> None:
    with pytest.raises(ValueError, match="the network knows none"):
        batches(torch.from_numpy(FLOATS), classes=torch.zeros(50, dtype=torch.int64))


@pytest.mark.parametrize("kind", ["u1", "u2", "u8", "i2", ">i4", ">u2"])
def test_whole_numbers_of_every_kind_are_classes(kind: str) -> None:
    found = classed(classes=(np.arange(NUMBER) % 4).astype(kind))
    assert found.classes is not None
    assert found.classes.dtype == torch.int64
    assert found.identity == classed().identity
    assert classed(classes=(np.arange(NUMBER) % 4).tolist()).identity == found.identity


def test_classes_that_were_counted_from_one_are_told(caplog: pytest.LogCaptureFixture) -> None:
    classed(classes=np.arange(NUMBER) % 4 + 1)
    assert "classes run from 1 to 4, but the first one is 0" in caplog.text
    assert "were they counted from 1?" in caplog.text
    caplog.clear()
    classed(classes=np.arange(NUMBER) % 5)  # some have none
    assert not caplog.text
