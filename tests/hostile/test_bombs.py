"""Small files that stand for gigabytes or hours are refused in a moment."""

import pytest
from hostile import inputs
from hostile.measured import cost_of_reading

MOST_SECONDS, MOST_MIB = 1.0, 200
TARGETS = {
    ".yml": "official YAML",
    ".json": "settings of a run",
    ".jsonl": "log of a run",
    ".npz": ".npz of images",
    ".npy": ".npy of images",
    ".safetensors": "network",
    ".pth": "PyTorch's files",
    ".png": "picture, png",
    ".gz": "IDX of images",
}
BOMBS = inputs.bombs()


@pytest.mark.parametrize("kind", BOMBS)
def test_it_is_refused_in_bounded_time_and_memory(kind):
    bomb = BOMBS[kind]
    ending = "." + bomb.name.rpartition(".")[2]
    found = cost_of_reading(TARGETS[ending], bomb.data)
    assert found.told.startswith(("ValueError", "FileError", "CheckpointError")), found
    assert bomb.name in found.told
    assert len(found.told) < 1000
    assert found.seconds < MOST_SECONDS, found
    assert found.mib < MOST_MIB, found


def test_the_measure_sees_what_it_is_for():
    """A right file of 300 MB costs its memory."""
    import numpy as np

    data = inputs.array_archive(images=np.zeros((300, 1, 1024, 1024), np.uint8))
    found = cost_of_reading(".npz of images", data)
    assert found.told == "read"
    assert found.mib > 250
