"""The samples of a run in a folder: saved a part at a time, in one file in the end."""

import json

import numpy as np
import pytest
import torch
from helpers.command import invoke, succeed

from ncsn_fast.device import measured, native
from ncsn_fast.runs import sample_store
from ncsn_fast.support import files

IDENTITY = {"seed": 0}
SHAPE, LEVELS = (1, 2, 2), (0, 2, 5)


def store_in(folder, identity):
    return sample_store.SampleStore(folder, identity, SHAPE, LEVELS)


def image(i):
    return torch.full((1, 2, 2), float(i))


def add(store, *ids):
    store.add(ids, torch.stack([image(i) for i in ids]))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def check(store, *ids):
    assert store.missing(range(10)) == [i for i in range(10) if i not in ids]
    assert torch.equal(store.images(ids), torch.stack([image(i) for i in ids]))


def test_a_save_writes_only_what_is_new(tmp_path):
    store = store_in(tmp_path, IDENTITY)
    add(store, 3, 1)
    store.write()
    before = (tmp_path / "part_000000.npz").read_bytes()
    add(store, 2)
    store.write()
    store.write()
    assert names(tmp_path) == ["part_000000.npz", "part_000001.npz"]
    assert (tmp_path / "part_000000.npz").read_bytes() == before
    with np.load(tmp_path / "part_000001.npz") as part:
        assert part["sample_ids"].tolist() == [2]


def test_the_parts_of_a_killed_process_are_read_and_become_one_file(tmp_path):
    store = store_in(tmp_path, IDENTITY)
    add(store, 5)
    store.finish()
    for ids in ((3, 1), (2,)):
        add(store, *ids)
        store.write()
    again = store_in(tmp_path, IDENTITY)  # as after kill -9
    check(again, 1, 2, 3, 5)
    add(again, 0)
    again.write()
    assert "part_000002.npz" in names(tmp_path)
    again.finish()
    assert names(tmp_path) == ["samples.npz"]
    with np.load(tmp_path / "samples.npz") as whole:
        assert whole["sample_ids"].tolist() == [0, 1, 2, 3, 5]
        assert whole["images"][:, 0, 0, 0].tolist() == [0, 1, 2, 3, 5]
    check(store_in(tmp_path, IDENTITY), 0, 1, 2, 3, 5)


@pytest.mark.parametrize("when", ["replace", "unlink"])
def test_killed_while_the_parts_become_one_file_nothing_is_lost(tmp_path, monkeypatch, when):
    store = store_in(tmp_path, IDENTITY)
    for i in (4, 2):
        add(store, i)
        store.write()
    add(store, 7)
    owner = files.os if when == "replace" else type(tmp_path)
    really = getattr(owner, when)

    def killed(path, target=tmp_path / "samples.npz", **keywords):
        if target.name == "samples.npz":
            raise KeyboardInterrupt
        really(path, target)  # what is new is saved first

    with monkeypatch.context() as patch:
        patch.setattr(owner, when, killed)
        with pytest.raises(KeyboardInterrupt):
            store.finish()
    again = store_in(tmp_path, IDENTITY)
    check(again, 2, 4, 7)
    again.finish()
    assert [name for name in names(tmp_path) if not name.startswith(".")] == ["samples.npz"]


def test_parts_of_other_settings_are_refused(tmp_path):
    (tmp_path / "part_of_mine.npz").write_bytes(b"")  # is none of them
    store = store_in(tmp_path, IDENTITY)
    add(store, 0)
    store.write()
    with pytest.raises(ValueError, match=r"part_000000.npz holds samples of other settings"):
        store_in(tmp_path, {"seed": 1})
    (tmp_path / "part_000000.npz").write_bytes(b"cut")
    with pytest.raises(ValueError, match=r"part_000000.npz is damaged"):
        store_in(tmp_path, IDENTITY)


def test_samples_of_convolutions_in_other_forms_are_refused(tmp_path):
    begun = {**IDENTITY, "convolutions": "F(4×4) 63 (f0e1d2c3b4a5)"}
    store = store_in(tmp_path, begun)
    add(store, 0)
    store.write()
    check(store_in(tmp_path, begun), 0)
    with pytest.raises(ValueError, match=r"part_000000\.npz holds samples whose conv") as refused:
        store_in(tmp_path, {**begun, "convolutions": "direct"})
    for told in ("(F(4×4) 63 (f0e1d2c3b4a5); here: direct)", str(measured.cache_file())):
        assert told in str(refused.value)
    with pytest.raises(ValueError, match=r"of other settings \(seed differ\)"):
        store_in(tmp_path, {"seed": 1, "convolutions": "direct"})


@pytest.mark.skipif(native.missing() is not None, reason="needs the native kernels")
@pytest.mark.parametrize("version", ["this", "an earlier one"])
def test_samples_of_direct_convolutions_go_on_with_those(
    tmp_path, checkpoint, monkeypatch, version
):
    arguments = ("sample", checkpoint, "--out", tmp_path, "-n")
    monkeypatch.setenv("NCSN_FAST_CONV", "direct")
    succeed(*arguments, 1)
    if version != "this":
        with np.load(tmp_path / "samples.npz") as stored:
            values = dict(stored)
        identity = json.loads(str(values["settings"]))
        assert identity.pop("convolutions") == "direct"
        np.savez(tmp_path / "samples.npz", **{**values, "settings": np.array(json.dumps(identity))})
    monkeypatch.setenv("NCSN_FAST_CONV", "F4")
    refused = invoke(*arguments, 2)
    assert refused.exit_code == 1
    assert "convolutions ran otherwise (direct; here: F(" in refused.output
    assert "go on with NCSN_FAST_CONV=direct, or choose another --out" in refused.output
    monkeypatch.setenv("NCSN_FAST_CONV", "direct")
    succeed(*arguments, 2)
    with np.load(tmp_path / "samples.npz") as stored:
        assert stored["sample_ids"].tolist() == [0, 1]
        assert json.loads(str(stored["settings"]))["convolutions"] == "direct"
