from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset

from ncsn_fast.data import samples as placement
from ncsn_fast.data.samples import fingerprint, open_samples, place

SHAPE = (1, 4, 4)
CPU = torch.device("cpu")
GPU = torch.device("cuda", 0)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter([torch.zeros(SHAPE)])

    def __len__(self) -> int:
        return 1


def check(data: Any, shape: tuple[int, ...] = SHAPE) -> None:
    """Everything that happens to data before the first batch."""
    samples, _ = place(open_samples(data, shape), CPU)
    fingerprint(samples, whole=True)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (torch.zeros(3, 1, 4, 5), r"torch\.float32 of shape \(3, 1, 4, 5\).* shape \(1, 4, 4\)"),
        (torch.zeros(2, 3, 1, 4, 4), r"of shape \(2, 3, 1, 4, 4\)"),
        (torch.zeros(3, 1, 4, 4, dtype=torch.int64), r"the data are torch\.int64"),
        (np.zeros((3, 4, 4, 1)), r"float64 of shape \(3, 4, 4, 1\)"),
        (np.zeros((3, 1, 4, 4), dtype=bool), r"the data are bool"),
        (torch.zeros(3, 1, 4, 4, dtype=torch.complex64), r"complex64.*\[x\.real, x\.imag\], 1\)"),
        (torch.zeros(3, *SHAPE, device="meta"), r"on the device meta there are no values"),
        (np.ma.array(np.zeros((3, *SHAPE)), mask=True), r"masked values are, as data\.filled"),
        (
            torch.nested.nested_tensor([torch.zeros(SHAPE)] * 3, layout=torch.jagged),
            r"torch\.stack them",
        ),
        ([()], r"the data set gives tuple, needed are tensors"),
        (torch.zeros(()), r"the data set is empty"),
        (np.zeros((0, 1, 4, 4)), r"the data set is empty"),
        ([], r"the data set is empty"),
        (iter([torch.zeros(SHAPE)]), r"has no length: give a tensor or a map-style Dataset"),
        (Stream(), r"has no length: give a tensor or a map-style Dataset"),
        ([Image.new("L", (4, 4))], r"gives Image, needed .* PIL: torchvision.*ToTensor\(\)"),
        ([{"image": torch.zeros(SHAPE)}], r"gives dict, needed are tensors or arrays"),
        ([np.zeros(SHAPE, dtype=object)], r"gives ndarray object, needed"),
        ([torch.zeros(4, 4)], r"sample 0 is torch\.float32 of shape \(4, 4\)"),
        ([torch.zeros(SHAPE), torch.zeros(1, 4, 5)], r"sample 1 is .*\(1, 4, 5\)"),
        (
            [torch.zeros(SHAPE), torch.zeros(SHAPE, dtype=torch.uint8)],
            r"sample 1 of the data set is torch\.uint8, sample 0 is torch\.float32",
        ),
        ([torch.zeros(SHAPE), torch.full(SHAPE, 255.0)], r"sample 1 lie in \[255, 255\].*by 255"),
        ([torch.zeros(SHAPE), torch.full(SHAPE, torch.nan)], r"sample 1 are not finite"),
        (torch.full((3, *SHAPE), -torch.inf), r"the data are not finite"),
        (np.full((3, *SHAPE), 1e300), r"the data are not finite"),
        (np.full((3, *SHAPE), -0.5), r"the data lie in \[-0\.5, -0\.5\]: give images in \[0, 1\]"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_data_that_do_not_fit_are_refused(data: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check(data)


def test_points_may_lie_anywhere_but_are_not_8_bit() -> None:
    check(torch.full((3, 2), -7.0), (2,))
    with pytest.raises(ValueError, match=r"torch\.uint8.*takes floating-point samples of shape"):
        check(torch.zeros(3, 2, dtype=torch.uint8), (2,))


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 100])
def test_the_fingerprint_does_not_depend_on_the_size_of_a_block(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = torch.rand(7, *SHAPE, generator=torch.Generator().manual_seed(0))
    expected = fingerprint(open_samples(data, SHAPE), whole=True)
    monkeypatch.setattr(placement, "_BLOCK_BYTES", rows * 64)
    assert fingerprint(open_samples(data, SHAPE), whole=True) == expected
    assert fingerprint(open_samples(data.numpy(), SHAPE), whole=True) == expected


def test_the_fingerprint_does_not_depend_on_the_memory_format() -> None:
    data = torch.rand(5, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    formats = (torch.contiguous_format, torch.channels_last)
    samples = [open_samples(data.contiguous(memory_format=f), (3, 4, 4)) for f in formats]
    assert len({fingerprint(each, whole=True) for each in samples}) == 1


def test_a_fingerprint_from_some_samples_sees_all_parts_and_the_length() -> None:
    data = torch.zeros(640, *SHAPE)
    expected = fingerprint(open_samples(data, SHAPE), whole=False)
    assert fingerprint(open_samples(data[:-1], SHAPE), whole=False) != expected
    for position in (0, 10, 320, 630):
        other = data.clone()
        other[position] = 1
        assert fingerprint(open_samples(other, SHAPE), whole=False) != expected


def test_loading_in_blocks_gives_every_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "_BLOCK_BYTES", 3 * 16)
    data = np.random.default_rng(0).integers(0, 256, (7, *SHAPE), dtype=np.uint8)
    samples, _ = place(open_samples(list(data), SHAPE), CPU)
    assert torch.equal(samples.data, torch.from_numpy(data))


def test_a_wrong_value_is_found_in_the_last_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "_BLOCK_BYTES", 2 * 64)
    data = torch.zeros(7, *SHAPE)
    data[-1, -1, -1, -1] = 2
    with pytest.raises(ValueError, match=r"lie in \[0, 2\]"):
        check(data)


def test_a_sample_is_checked_when_it_is_read() -> None:
    samples = open_samples([torch.zeros(SHAPE), torch.full(SHAPE, 9.0)], SHAPE)
    samples.take(torch.tensor([0]))
    with pytest.raises(ValueError, match=r"values of sample 1 lie in \[9, 9\]"):
        samples.take(torch.tensor([0, 1]))


def test_random_samples_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    class Random(Dataset[Any]):
        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> torch.Tensor:
            return torch.rand(SHAPE)

    open_samples([torch.zeros(SHAPE)], SHAPE)
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        open_samples(Random(), SHAPE)
    assert "cannot be resumed" in caplog.text


@pytest.mark.parametrize("kind", ["tensor", "array", "Dataset"])
@pytest.mark.parametrize(("free", "on_gpu"), [(384, True), (383, False)])
def test_a_gpu_holds_what_fits_into_half_of_its_free_memory(
    kind: str, free: int, on_gpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placement, "_free_bytes", lambda device: free)
    tensor = torch.zeros(3, *SHAPE)  # 192 bytes
    data = {"tensor": tensor, "array": tensor.numpy(), "Dataset": list(tensor)}[kind]
    target, _ = placement._decide(open_samples(data, SHAPE), GPU)
    if on_gpu:
        assert target == GPU
    elif kind == "Dataset":
        assert target == CPU
    else:
        assert target is None


def test_of_pairs_of_samples_it_is_said_which_is_taken(caplog: pytest.LogCaptureFixture) -> None:
    image = torch.zeros(SHAPE)
    open_samples([(image, 3), (image, 4)], SHAPE)
    open_samples([(image, np.zeros(2))], SHAPE)
    assert not caplog.records
    open_samples([(image, torch.ones(SHAPE))], SHAPE)
    assert "gives 2 values of the shape of a sample" in caplog.text


@pytest.mark.parametrize("data", [{"a": torch.zeros(3, 2)}, [()], torch.zeros(3), iter([1])])
def test_the_shape_is_asked_of_data_that_have_one(data: Any) -> None:
    with pytest.raises(ValueError, match=r"give|needed"):
        open_samples(data)
    assert open_samples([torch.zeros(SHAPE)]).shape == SHAPE
