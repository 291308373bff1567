"""Files of named tensors: bit for bit there and back, and damage found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.checkpoints import SAMPLING, flipped, kept, network

from ncsn_fast.checkpoints.load_save import load_checkpoint, save_checkpoint
from ncsn_fast.checkpoints.tensor_file import CheckpointError, read_tensors, write_tensors


def raw_bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def test_tensors_of_any_kind_come_back_bit_for_bit(tmp_path: Path) -> None:
    shared = torch.arange(12.0)
    tensors = {
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 4),
        "half": torch.randn(5).half(),
        "bfloat16": torch.randn(5).bfloat16(),
        "double": torch.randn(2, 3, dtype=torch.float64),
        "integers": torch.tensor([-1, 2**40]),
        "flags": torch.tensor([True, False]),
        "nan": torch.tensor([float("nan"), -0.0, float("inf")]),
        "strided": shared.view(3, 4).t(),
        "shared": shared,
        "part": shared[3:5],
    }
    metadata = {"kind": "test", "numbers": [1, 2.5, None], "words": "σ"}
    checksum = write_tensors(tmp_path / "t.safetensors", tensors, metadata)
    read, header = read_tensors(tmp_path / "t.safetensors")
    assert header == {**metadata, "format": 1, "sha256": checksum}
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        assert read[name].shape == tensor.shape
        # Compared as bytes: NaN differs from itself, and -0.0 equals 0.0.
        assert raw_bytes(read[name]) == raw_bytes(tensor)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [({"sha256": "x"}, "must not use"), ({"a": {1, 2}}, "JSON"), ({"a": float("nan")}, "JSON")],
)
def test_unusable_metadata_is_refused(
    tmp_path: Path, metadata: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        write_tensors(tmp_path / "t.safetensors", {"x": torch.zeros(1)}, metadata)
    assert list(tmp_path.iterdir()) == []


def test_tensors_of_others_are_not_read_as_ours(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="not written by ncsn_fast"):
        read_tensors(tmp_path / "x.safetensors")


@pytest.mark.parametrize("damage", [kept(0), kept(0.01), kept(0.5), kept(0.99)])
def test_truncated_file_of_ours_is_refused(
    tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    path = save_checkpoint(network(), tmp_path / "net")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError, match="damaged, incomplete or not a safetensors file"):
        load_checkpoint(path)


@pytest.mark.parametrize("part", [0.5, 0.75, 0.9999])
def test_altered_weights_are_refused(tmp_path: Path, part: float) -> None:
    path = save_checkpoint(network(), tmp_path / "net")
    path.write_bytes(flipped(part)(path.read_bytes()))
    with pytest.raises(CheckpointError, match="altered or damaged"):
        load_checkpoint(path)


def test_altered_settings_are_refused(tmp_path: Path) -> None:
    net = network()
    net.sampling = dict(SAMPLING)
    path = save_checkpoint(net, tmp_path / "net")
    data = path.read_bytes()
    assert data.count(b"6.2e-06") == 1
    path.write_bytes(data.replace(b"6.2e-06", b"7.2e-06"))
    with pytest.raises(CheckpointError, match="altered or damaged"):
        load_checkpoint(path)


def test_file_of_a_later_version_is_refused(tmp_path: Path) -> None:
    path = save_checkpoint(network(), tmp_path / "net")
    data = path.read_bytes()
    path.write_bytes(data.replace(b'\\"format\\": 1', b'\\"format\\": 9'))
    assert path.read_bytes() != data
    with pytest.raises(CheckpointError, match="has format 9"):
        load_checkpoint(path)
