"""samples.npz and partial.safetensors with other contents than `ncsn-fast sample` writes."""

import json

import numpy as np
import pytest
import torch

from ncsn_fast.checkpoints.tensor_file import write_tensors
from ncsn_fast.runs.sample_store import SampleStore

IDENTITY = {"seed": 0}
SHAPE, LEVELS = (1, 2, 2), {0, 2, 5}
IMAGES = np.zeros((3, *SHAPE), np.float32)
SETTINGS = json.dumps(IDENTITY)


def opened(folder):
    return SampleStore(folder, IDENTITY, SHAPE, LEVELS)


def refused(folder, name):
    """What is said of the file, which is still there."""
    before = (folder / name).read_bytes()
    with pytest.raises(ValueError, match=name) as caught:
        opened(folder)
    assert (folder / name).read_bytes() == before
    assert len(str(caught.value)) < 1000
    return str(caught.value)


DONE = {
    "ids that are floats": {"sample_ids": np.arange(3.0)},
    "ids given twice": {"sample_ids": np.array([0, 1, 1])},
    "negative ids": {"sample_ids": np.array([-1, 0, 1])},
    "ids too large": {"sample_ids": np.array([0, 1, 1 << 48])},
    "ids in a table": {"sample_ids": np.zeros((3, 1), np.int64)},
    "one id": {"sample_ids": np.array(3)},
    "ids that are words": {"sample_ids": np.array(["a", "b", "c"])},
    "too few ids": {"sample_ids": np.arange(2)},
    "too many ids": {"sample_ids": np.arange(4)},
    "images of another size": {"images": np.zeros((3, 1, 4, 4), np.float32)},
    "images of 8 bits": {"images": np.zeros((3, *SHAPE), np.uint8)},
    "images of 64 bits": {"images": np.zeros((3, *SHAPE))},
    "one number": {"images": np.float32(1)},
    "complex images": {"images": np.zeros((3, *SHAPE), np.complex64)},
    "NaN": {"images": np.full((3, *SHAPE), np.nan, np.float32)},
    "infinity": {"images": np.full((3, *SHAPE), np.inf, np.float32)},
    "settings that are a list": {"settings": np.array("[1]")},
    "settings that are a number": {"settings": np.array(5.0)},
    "settings that are no JSON": {"settings": np.array("{seed: 0}")},
    "settings nested deep": {"settings": np.array("[" * 100_000)},
    "settings that are many": {"settings": np.array([SETTINGS, SETTINGS])},
    "no settings": {"settings": None},
    "no ids": {"sample_ids": None},
    "no images": {"images": None},
}


@pytest.mark.parametrize("name", ["samples.npz", "part_000000.npz"])
@pytest.mark.parametrize("case", DONE)
def test_finished_samples_of_other_contents_are_refused(tmp_path, case, name):
    values = {"images": IMAGES, "sample_ids": np.arange(3), "settings": np.array(SETTINGS)}
    np.savez(
        tmp_path / name, **{k: v for k, v in {**values, **DONE[case]}.items() if v is not None}
    )
    assert "is damaged or not of ncsn-fast sample" in refused(tmp_path, name)


CHAINS = {
    "ids that are floats": {"ids": [0.0, 1.0, 2.0]},
    "ids given twice": {"ids": [0, 1, 1]},
    "ids that are lists": {"ids": [[0], [1], [2]]},
    "ids of different kinds": {"ids": [0, "1", None]},
    "ragged ids": {"ids": [[0], [1, 2], 3]},
    "no list of ids": {"ids": {"0": 1}},
    "huge ids": {"ids": [0, 1, 1 << 70]},
    "levels out of range": {"levels": [2, 5, 6]},
    "negative levels": {"levels": [2, 5, -1]},
    "levels that are floats": {"levels": [2.0, 5.0, 2.0]},
    "too few levels": {"levels": [2, 5]},
    "no levels": {"levels": None},
    "another identity": {"identity": [0]},
    "no identity": {"identity": None},
}
STATES = {
    "another size": torch.zeros(3, 1, 4, 4),
    "too few": torch.zeros(2, *SHAPE),
    "whole numbers": torch.zeros(3, *SHAPE, dtype=torch.int32),
    "16 bits": torch.zeros(3, *SHAPE, dtype=torch.float16),
    "NaN": torch.full((3, *SHAPE), torch.nan),
    "none": None,
}


def partial(folder, changes, states):
    metadata = {"identity": IDENTITY, "ids": [0, 1, 2], "levels": [2, 5, 2], **changes}
    tensors = {"other": torch.zeros(1)} if states is None else {"states": states}
    write_tensors(folder / "partial.safetensors", tensors, metadata)


@pytest.mark.parametrize("case", CHAINS)
def test_chains_under_way_of_other_contents_are_refused(tmp_path, case):
    partial(tmp_path, CHAINS[case], torch.zeros(3, *SHAPE))
    assert "is damaged or not of" in refused(tmp_path, "partial.safetensors")


@pytest.mark.parametrize("case", STATES)
def test_states_of_other_contents_are_refused(tmp_path, case):
    partial(tmp_path, {}, STATES[case])
    assert "is damaged or not of" in refused(tmp_path, "partial.safetensors")


def test_right_contents_are_taken(tmp_path):
    partial(tmp_path, {}, torch.zeros(3, *SHAPE))
    np.savez(tmp_path / "samples.npz", images=IMAGES, sample_ids=np.arange(4, 7), settings=SETTINGS)
    store = opened(tmp_path)
    assert store.missing(range(8)) == [0, 1, 2, 3, 7]
    assert [(part.ids, part.level) for part in store.parts([0, 1, 2], 4)] == [([0, 2], 2), ([1], 5)]


def unharmed(folder, name):
    """Whether a file is refused by its name, or read as it was: not all bytes of a zip count."""
    try:
        store = opened(folder)
    except ValueError as error:
        return name in str(error)
    return torch.equal(store.images(range(3)), torch.from_numpy(IMAGES))


@pytest.mark.parametrize("name", ["samples.npz", "partial.safetensors"])
def test_cuts_and_flipped_bits_do_no_harm(tmp_path, name):
    partial(tmp_path, {}, torch.zeros(3, *SHAPE))
    np.savez(tmp_path / "samples.npz", images=IMAGES, sample_ids=np.arange(3), settings=SETTINGS)
    whole = (tmp_path / name).read_bytes()
    for place in range(0, len(whole), 29):
        (tmp_path / name).write_bytes(whole[:place])
        refused(tmp_path, name)
        damaged = bytearray(whole)
        damaged[place] ^= 0x20
        (tmp_path / name).write_bytes(damaged)
        assert unharmed(tmp_path, name), place
