"""Files of samples with other contents than `ncsn-fast sample` writes."""

import hashlib
import json

import numpy as np
import pytest
import torch
from helpers.samples import IDENTITY, SHAPE, store_in

from ncsn_fast.checkpoints.tensor_file import write_tensors
from ncsn_fast.distributed.ranks import Ranks

IMAGES = np.zeros((3, *SHAPE), np.float32)
SETTINGS = json.dumps(IDENTITY)


PARTIAL = "shards/000000000-000000003.partial.safetensors"


def opened(folder):
    """The store, and the first shard that is missing."""
    store = store_in(folder, (0, 8))
    shard = next(store.shards(Ranks()), None)
    if shard is not None:
        shard.lock.close()
    return store, shard


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
    "images of 16 bits": {"images": np.zeros((3, *SHAPE), np.float16)},
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
    "other ids": {"ids": [0, 5]},
    "ids that are floats": {"ids": [0.0, 4.5]},
    "no list of ids": {"ids": {"0": 4}},
    "chunks of another size": {"chunk": 3},
    "no chunk": {"chunk": None},
    "a level out of range": {"level": 6},
    "a negative level": {"level": -1},
    "a level that is a float": {"level": 2.0},
    "levels": {"level": [2, 5]},
    "another identity": {"identity": [0]},
    "no identity": {"identity": None},
}
STATES = {
    "another size": {"states": torch.zeros(2, 1, 4, 4)},
    "too few": {"states": torch.zeros(1, *SHAPE)},
    "whole numbers": {"states": torch.zeros(2, *SHAPE, dtype=torch.int32)},
    "16 bits": {"states": torch.zeros(2, *SHAPE, dtype=torch.float16)},
    "NaN": {"states": torch.full((2, *SHAPE), torch.nan)},
    "no states": {"states": None},
    "images of another size": {"images": torch.zeros(2, 1, 4, 4)},
    "images of 8 bits": {"images": torch.zeros(2, *SHAPE, dtype=torch.uint8)},
    "a part of a chunk": {"images": torch.zeros(1, *SHAPE)},
    "too many images": {"images": torch.zeros(6, *SHAPE)},
    "images that are NaN": {"images": torch.full((2, *SHAPE), torch.nan)},
    "no images": {"images": None},
    "one number": {"images": torch.zeros(())},
}


def partial(folder, changes, tensors):
    """Two images that are finished, and two chains under way."""
    metadata = {"identity": IDENTITY, "ids": [0, 4], "level": 2, "chunk": 2, **changes}
    whole = {"images": torch.zeros(2, *SHAPE), "states": torch.zeros(2, *SHAPE), **tensors}
    (folder / "shards").mkdir()
    told = {name: tensor for name, tensor in whole.items() if tensor is not None}
    write_tensors(folder / PARTIAL, told or {"other": torch.zeros(1)}, metadata)


@pytest.mark.parametrize("case", CHAINS)
def test_chains_under_way_of_other_contents_are_refused(tmp_path, case):
    partial(tmp_path, CHAINS[case], {})
    assert "is damaged or not of" in refused(tmp_path, PARTIAL)


@pytest.mark.parametrize("case", STATES)
def test_states_of_other_contents_are_refused(tmp_path, case):
    partial(tmp_path, {}, STATES[case])
    assert "is damaged or not of" in refused(tmp_path, PARTIAL)


def test_right_contents_are_taken(tmp_path):
    partial(tmp_path, {}, {})
    np.savez(tmp_path / "samples.npz", images=IMAGES, sample_ids=np.arange(5, 8), settings=SETTINGS)
    store, shard = opened(tmp_path)
    assert store.missing() == [(0, 5)]
    assert (shard.ids, shard.done) == ((0, 4), 2)
    assert (shard.part().ids, shard.part().level) == (range(2, 4), 2)


def unharmed(folder, name):
    """Whether a file is refused by its name, or read as it was: not all bytes of a zip count."""
    try:
        store, shard = opened(folder)
    except ValueError as error:
        return name in str(error)
    finally:
        (folder / "manifest.json").unlink(missing_ok=True)
    whole = torch.equal(store.stored.images(range(5, 8)), torch.from_numpy(IMAGES))
    return whole and not shard.images[:2].any()


@pytest.mark.parametrize("name", ["samples.npz", PARTIAL])
def test_cuts_and_flipped_bits_do_no_harm(tmp_path, name):
    partial(tmp_path, {}, {})
    np.savez(tmp_path / "samples.npz", images=IMAGES, sample_ids=np.arange(5, 8), settings=SETTINGS)
    whole = (tmp_path / name).read_bytes()
    for place in range(0, len(whole), 29):
        (tmp_path / name).write_bytes(whole[:place])
        refused(tmp_path, name)
        damaged = bytearray(whole)
        damaged[place] ^= 0x20
        (tmp_path / name).write_bytes(damaged)
        assert unharmed(tmp_path, name), place


MANIFEST = {
    "another kind": lambda told: [told],
    "no layout": lambda told: {k: v for k, v in told.items() if k != "layout"},
    "a layout with more": lambda told: {**told, "layout": {**told["layout"], "more": 1}},
    "an unknown format": lambda told: {**told, "layout": {**told["layout"], "format": "zip"}},
    "a shard of nothing": lambda told: {**told, "layout": {**told["layout"], "shard": 0}},
    "a shard that is true": lambda told: {**told, "layout": {**told["layout"], "shard": True}},
    "chunks that are a text": lambda told: {**told, "layout": {**told["layout"], "chunk": "2"}},
    "ids out of range": lambda told: {**told, "ids": [[-1, 4]]},
    "too many ids": lambda told: {**told, "ids": [[0, 1 << 60]]},
    "ids that are no pairs": lambda told: {**told, "ids": [[0, 1, 2]]},
    "ids that are texts": lambda told: {**told, "ids": [["a", "b"]]},
    "checksums that are numbers": lambda told: {**told, "files": {"samples.npz": 1}},
    "checksums that are a list": lambda told: {**told, "files": ["samples.npz"]},
    "an identity that is a text": lambda told: {**told, "identity": "mine"},
}


@pytest.mark.parametrize("case", MANIFEST)
def test_manifests_of_other_contents_are_refused(tmp_path, case):
    store_in(tmp_path, (0, 8))
    told = json.loads((tmp_path / "manifest.json").read_text())
    del told["sha256"]
    told = MANIFEST[case](told)
    if isinstance(told, dict):
        text = json.dumps(told, sort_keys=True)
        told["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    (tmp_path / "manifest.json").write_text(json.dumps(told))
    assert "is damaged or not of ncsn-fast sample" in refused(tmp_path, "manifest.json")
