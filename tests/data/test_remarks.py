from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ncsn_fast.data import load as data
from ncsn_fast.data import samples as placement
from ncsn_fast.data.samples import open_samples, remarks

SHAPE = (1, 4, 4)


def told(images: Any, shape: tuple[int, ...] = SHAPE) -> str:
    return "; ".join(remarks(open_samples(images, shape)))


def noise(number: int, high: float = 1) -> torch.Tensor:
    return high * torch.rand(number, *SHAPE, generator=torch.Generator().manual_seed(0))


def test_of_usual_images_nothing_is_said() -> None:
    assert told(noise(3)) == ""
    assert told((255 * noise(3)).to(torch.uint8)) == ""
    assert told(list(noise(3))) == ""


def test_one_sample_and_equal_ones_are_said() -> None:
    assert "there is one sample" in told(noise(1))
    assert "all 3 samples are equal" in told(noise(1).repeat(3, 1, 1, 1))
    assert "all 2 samples are equal" in told(torch.ones(2, 5), (5,))


def test_a_difference_in_the_last_of_several_blocks_is_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(placement, "_BLOCK_BYTES", 2 * 64)
    images = torch.ones(7, *SHAPE)
    assert "all 7 samples are equal" in told(images)
    images[-1, 0, 0, 0] = 0
    assert told(images) == ""


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (
            np.arange(48, dtype=np.uint8).reshape(3, *SHAPE) % 17,
            r"largest value is 16, where white",
        ),
        (np.arange(48, dtype=np.uint8).reshape(3, *SHAPE) % 2, r"largest value is 1, where white"),
        (noise(3, 1 / 255), r"largest value is 0\.003\d+, where white is 1"),
        (np.zeros((3, *SHAPE), np.uint8), r"images are black"),
    ],
)
def test_images_without_anything_bright_are_said(images: Any, message: str) -> None:
    assert re.search(message, told(images))


def test_points_are_neither_dark_nor_bright() -> None:
    assert told(torch.tensor([[0.1, 0.0], [0.0, 0.1]]), (2,)) == ""


def test_loading_8_bit_values_that_go_to_16_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    np.save(tmp_path / "a.npy", np.full((6, 8, 8), 255, np.uint8))
    data.load_images(tmp_path / "a.npy")
    assert not caplog.records
    np.save(tmp_path / "a.npy", np.full((6, 8, 8), 16, np.uint8))
    data.load_images(tmp_path / "a.npy")
    assert "a.npy: the largest value is 16, where white is 255" in caplog.text
