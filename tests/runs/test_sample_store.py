"""A folder of samples: who makes which, what is kept of a process that ends, what is refused."""

from __future__ import annotations

import contextlib
import errno
import json
import shutil
import threading
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.command import invoke, succeed
from helpers.samples import (
    ALONE,
    IDENTITY,
    contents,
    fill,
    filled,
    finish,
    images_of,
    store_in,
)

from ncsn_fast.device import measured, native
from ncsn_fast.distributed.ranks import Ranks
from ncsn_fast.runs.samples import shards, store, under_way
from ncsn_fast.runs.samples.manifest import read_manifest
from ncsn_fast.support.locks import folder_lock


def test_shards_are_of_fixed_ids_and_are_not_made_again(tmp_path: Path) -> None:
    one = store_in(tmp_path, (0, 6))
    assert filled(one) == [(0, 4), (4, 6)]
    before = contents(tmp_path / "shards")
    more = store_in(tmp_path, (0, 14))
    assert filled(more) == [(6, 8), (8, 12), (12, 14)]
    assert finish(more)
    after = contents(tmp_path / "shards")
    assert all(after[name] == data for name, data in before.items() if name.endswith(".npz"))
    assert filled(store_in(tmp_path, (0, 14))) == []
    assert torch.equal(more.stored.images(range(14)), images_of(range(14)))


def test_each_process_begins_with_its_own_and_helps_the_others_then(tmp_path: Path) -> None:
    assert filled(store_in(tmp_path, (0, 24)), Ranks(1, 3)) == [
        (4, 8), (16, 20), (20, 24), (12, 16), (8, 12), (0, 4)
    ]  # fmt: skip


def test_a_part_is_made_alone(tmp_path: Path) -> None:
    one = store_in(tmp_path, (0, 24))
    assert filled(one, Ranks(1, 3), part_only=True) == [(4, 8), (16, 20)]
    assert not finish(one)
    assert filled(store_in(tmp_path, (0, 24)), Ranks(1, 3), part_only=True) == []


def test_memory_is_that_of_two_shards_whatever_the_number(tmp_path: Path) -> None:
    """One is filled while the one before it is written."""
    one, seen = store_in(tmp_path, (0, 80)), weakref.WeakSet()
    most = 0
    with one.kept():
        for shard in one.shards(ALONE):
            seen.add(shard)
            most = max(most, len(seen))
            fill(one, shard)
    assert most == 2


def test_what_another_process_has_is_not_made_and_waited_for(tmp_path: Path) -> None:
    mine, theirs = (store_in(tmp_path, (0, 12)) for _ in range(2))
    taken = theirs.shards(ALONE)
    first = next(taken)
    assert first.ids == (0, 4)
    assert filled(mine, Ranks(0, 3), part_only=True) == []
    got: list[object] = []
    waits = threading.Thread(target=lambda: got.extend(filled(mine)))
    waits.start()
    while len(mine.stored.shards()) < 2:  # it has made all but the one
        assert waits.is_alive() or len(mine.stored.shards()) == 2
        time.sleep(0.01)
    assert waits.is_alive()
    fill(theirs, first)
    assert next(taken, None) is None
    waits.join(600)
    assert got == [(8, 12), (4, 8)] or got == [(4, 8), (8, 12)]
    assert finish(mine)


def test_what_a_process_had_when_it_ended_is_taken_up(tmp_path: Path) -> None:
    one = store_in(tmp_path, (0, 12))
    states = torch.arange(8.0).reshape(2, 1, 2, 2)
    with contextlib.suppress(KeyboardInterrupt), one.kept():
        for shard in one.shards(ALONE):
            if shard.ids == (4, 8):
                one.add(shard, images_of(shard.part().ids))
                one.keep(shard, states, 5)
                raise KeyboardInterrupt
            fill(one, shard)
    again = store_in(tmp_path, (0, 12))
    shard = next(again.shards(Ranks(1, 3)))
    assert (shard.ids, shard.done) == ((4, 8), 2)
    part = shard.part()
    assert (part.ids, part.level) == (range(6, 8), 5)
    assert part.states is not None
    assert torch.equal(part.states, states)
    fill(again, shard)
    shard.lock.close()
    filled(store_in(tmp_path, (0, 12)))
    assert torch.equal(again.stored.images(range(12)), images_of(range(12)))
    assert finish(again)
    assert not list(tmp_path.rglob("*partial*"))


def test_begun_shards_keep_their_ids_whoever_wants_more_or_fewer(tmp_path: Path) -> None:
    one = store_in(tmp_path, (0, 3))
    with contextlib.suppress(KeyboardInterrupt), one.kept():
        for shard in one.shards(ALONE):
            one.add(shard, images_of(shard.part().ids))
            raise KeyboardInterrupt
    assert store_in(tmp_path, (0, 3)).is_begun()
    assert sorted(filled(store_in(tmp_path, (0, 6)))) == [(0, 3), (3, 4), (4, 6)]


def test_a_finished_shard_that_was_saved_and_not_written_is_written(tmp_path: Path) -> None:
    one = store_in(tmp_path, (0, 4))
    shard = next(one.shards(ALONE))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "write", full)
        fill(one, shard)
        one._writing.exception()  # type: ignore[union-attr]
        one._writing = None
        one._save()
    shard.lock.close()
    assert filled(store_in(tmp_path, (0, 4))) == []
    assert torch.equal(one.stored.images(range(4)), images_of(range(4)))


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_ends_the_work_with_what_is_lost(tmp_path: Path, monkeypatch) -> None:
    one = store_in(tmp_path, (0, 12))
    monkeypatch.setattr(shards, "write_npz", full)
    monkeypatch.setattr(under_way, "write_tensors", full)
    with pytest.raises(OSError, match=r"No space left on device.* 6 finished samples were in no"):
        filled(one)
    monkeypatch.undo()
    assert filled(store_in(tmp_path, (0, 12))) == [(0, 4), (4, 8), (8, 12)]


def test_what_failed_is_written_in_the_end_where_there_is_room_again(
    tmp_path: Path, monkeypatch
) -> None:
    one, failed = store_in(tmp_path, (0, 8)), []
    write = shards.write

    def once(path, *arguments):
        if not failed:
            failed.append(path)
            full()
        write(path, *arguments)

    monkeypatch.setattr(shards, "write", once)
    with pytest.raises(OSError, match="No space left on device"):
        filled(one)
    assert failed[0].exists()


def test_a_failed_write_ends_the_work_also_where_saves_are_due(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(store, "SAVE_SECONDS", -1.0)
    monkeypatch.setattr(shards, "write", full)
    with pytest.raises(OSError, match="No space left on device"):
        filled(store_in(tmp_path, (0, 12)))


def test_images_that_could_not_be_copied_leave_no_gap(tmp_path: Path, monkeypatch) -> None:
    one, stored_as = store_in(tmp_path, (0, 4)), shards.stored_as
    monkeypatch.setattr(shards, "stored_as", full)
    shard = next(one.shards(ALONE))
    with contextlib.suppress(OSError), one.kept():
        one.add(shard, images_of([0, 1]))
        with contextlib.suppress(OSError):
            one._wait()
        monkeypatch.setattr(shards, "stored_as", stored_as)
        one.add(shard, images_of([2, 3]))
    again = store_in(tmp_path, (0, 4))
    filled(again)
    assert torch.equal(again.stored.images(range(4)), images_of(range(4)))


def test_ctrl_c_while_a_shard_is_written_lets_it_be_written(tmp_path: Path, monkeypatch) -> None:
    one, write, going_on = store_in(tmp_path, (0, 8)), shards.write, threading.Event()

    def slow(*arguments):
        going_on.wait(600)
        write(*arguments)

    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(shards, "write", slow)
    with contextlib.suppress(KeyboardInterrupt), one.kept():
        fill(one, next(one.shards(ALONE)))
        with monkeypatch.context() as patch:
            patch.setattr(one._writing, "result", interrupted)
            threading.Timer(0.1, going_on.set).start()
            one._wait()
    assert store_in(tmp_path, (0, 8)).stored.ids() == [(0, 4)]


def test_commands_that_want_other_numbers_make_no_sample_twice(tmp_path: Path) -> None:
    fewer, more = store_in(tmp_path, (0, 6)), store_in(tmp_path, (0, 8))
    taken = fewer.shards(Ranks(1, 2))
    shard = next(taken)
    assert shard.ids == (4, 6)
    assert filled(more, Ranks(0, 2), part_only=True) == [(0, 4)]
    assert more._take([(4, 8)]) is None
    fill(fewer, shard)
    assert next(taken, None) is None
    assert filled(store_in(tmp_path, (0, 8))) == [(6, 8)]
    assert [ids for ids, _ in more.stored.ranges()] == [(0, 4), (4, 6), (6, 8)]


def test_nothing_is_written_where_a_folder_was_made_anew_by_another_run(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with folder_lock(out, shared=True):
        one = store_in(out, (0, 8))
        shard = next(one.shards(ALONE))
        shutil.move(out, tmp_path / "old")
        out.mkdir()
        (out / "shards").mkdir()
        (out / ".lock").touch()  # as another process's
        fill(one, shard)
        with pytest.raises(ValueError, match="was removed and made anew by another process"):
            one._wait()
    assert not list((out / "shards").iterdir())


def test_a_shard_of_other_settings_is_refused_also_with_its_checksum(tmp_path: Path) -> None:
    filled(store_in(tmp_path / "theirs", (0, 8), {"seed": 1}))
    one = store_in(tmp_path / "ours", (0, 8))
    filled(one)
    for path in (tmp_path / "theirs" / "shards").glob("000000004*"):
        shutil.copyfile(path, tmp_path / "ours" / "shards" / path.name)
    with pytest.raises(ValueError, match="holds samples of other settings"):
        finish(one)


def test_files_of_others_in_the_folder_of_shards_stay(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    names = ("mine.sha256", "mine.partial.safetensors", "zz")
    for name in names:
        (tmp_path / "shards" / name).write_text("mine")
    (tmp_path / "shards" / "000000000-000000003.npz.sha256").mkdir()
    one = store_in(tmp_path, (0, 4))
    with pytest.raises(OSError, match=r"is a folder, give .*\. What is finished is saved"):
        filled(one)
    (tmp_path / "shards" / "000000000-000000003.npz.sha256").rmdir()
    one = store_in(tmp_path, (0, 4))
    filled(one)
    assert finish(one)
    assert sorted(path.name for path in (tmp_path / "shards").iterdir()) == sorted(names)


def test_shards_are_not_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "shards").symlink_to(tmp_path / "other")
    with pytest.raises(ValueError, match="shards is a link"):
        store_in(tmp_path / "out")


@pytest.mark.parametrize(("kind", "dtype"), [("npz", "uint8"), ("png", None), ("tar", None)])
@pytest.mark.parametrize("number", [3, 10])
def test_a_set_whose_manifest_was_lost_goes_on_in_its_form(
    tmp_path: Path, kind: str, dtype: str | None, number: int
) -> None:
    one = store_in(tmp_path, (0, number), format=kind, dtype=dtype)
    filled(one)
    assert finish(one)
    before = contents(tmp_path)
    (tmp_path / "manifest.json").unlink()
    again = store_in(tmp_path, (0, number))
    assert filled(again) == []
    assert finish(again)
    assert contents(tmp_path) == before


def test_more_shards_than_a_manifest_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"at most 100,000 shards, take some of 10 or more"):
        store_in(tmp_path, (0, 1_000_000), shard=1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("when", ["replace", "unlink"])
def test_killed_while_shards_become_one_file_nothing_is_lost(
    tmp_path: Path, monkeypatch, when: str
) -> None:
    for stop in (2, 4):
        one = store_in(tmp_path, (0, stop))
        filled(one)
    whole = tmp_path / "samples.npz"
    with monkeypatch.context() as patch:

        def killed(ranges):
            if when == "unlink":
                shards.write_npz(whole, np.arange(4), images_of(range(4)).numpy(), IDENTITY)
            raise KeyboardInterrupt

        patch.setattr(one, "_into_one_file", killed)
        with pytest.raises(KeyboardInterrupt):
            finish(one)
    again = store_in(tmp_path, (0, 4))
    assert filled(again) == []
    assert finish(again)
    assert sorted(contents(tmp_path)) == ["manifest.json", "samples.npz"]
    assert torch.equal(again.stored.images(range(4)), images_of(range(4)))


def test_folders_of_earlier_versions_are_read(tmp_path: Path) -> None:
    for name, ids in (("samples", [5, 6]), ("part_000000", [1, 3]), ("part_000001", [2])):
        images = images_of(ids).numpy()
        shards.write_npz(tmp_path / f"{name}.npz", np.array(ids), images, IDENTITY)
    (tmp_path / "part_of_mine.npz").write_bytes(b"")  # is none of them
    with pytest.raises(ValueError, match="dtype is float32 there, here uint8"):
        store_in(tmp_path, dtype="uint8")
    one = store_in(tmp_path, (0, 8))
    assert filled(one) == [(0, 1), (4, 5), (7, 8)]
    assert torch.equal(one.stored.images(range(8)), images_of(range(8)))
    assert finish(one)
    assert not (tmp_path / "part_000000.npz").exists()
    with pytest.raises(ValueError, match=r"holds samples of other settings \(seed differ\)"):
        store_in(tmp_path, identity={"seed": 1})


def test_parts_of_earlier_versions_and_of_other_settings_are_refused(tmp_path: Path) -> None:
    shards.write_npz(tmp_path / "part_000000.npz", np.arange(1), images_of([0]).numpy(), IDENTITY)
    with pytest.raises(ValueError, match=r"part_000000.npz holds samples of other settings"):
        store_in(tmp_path, identity={"seed": 1})
    (tmp_path / "part_000000.npz").write_bytes(b"cut")
    with pytest.raises(ValueError, match=r"part_000000.npz is damaged"):
        store_in(tmp_path)


@pytest.mark.parametrize(
    ("wished", "told"),
    [
        ({"format": "tar"}, "format is npz there, here tar"),
        ({"dtype": "uint8"}, "dtype is float32 there, here uint8"),
        ({"shard": 5}, "shard is 4 there, here 5"),
        ({"chunk": 1}, "chunk is 2 there, here 1"),
    ],
)
def test_a_folder_that_is_stored_otherwise_is_refused_by_name(
    tmp_path: Path, wished, told: str
) -> None:
    store_in(tmp_path)
    with pytest.raises(ValueError, match="holds samples that are stored otherwise") as refused:
        store_in(tmp_path, **wished)
    assert told in str(refused.value)
    store_in(tmp_path, shard=None)  # as it is there


def test_samples_of_convolutions_in_other_forms_are_refused(tmp_path: Path) -> None:
    begun = {**IDENTITY, "convolutions": "F(4×4) 63 (f0e1d2c3b4a5)"}
    filled(store_in(tmp_path, identity=begun))
    with pytest.raises(ValueError, match="holds samples whose conv") as refused:
        store_in(tmp_path, identity={**begun, "convolutions": "direct"})
    for told in ("(F(4×4) 63 (f0e1d2c3b4a5); here: direct)", str(measured.cache_file())):
        assert told in str(refused.value)
    with pytest.raises(ValueError, match=r"of other settings \(seed differ\)"):
        store_in(tmp_path, identity={"seed": 1, "convolutions": "direct"})


def test_a_damaged_shard_is_not_noted(tmp_path: Path) -> None:
    one = store_in(tmp_path)
    filled(one)
    path = shards.path_of(tmp_path, (4, 8), "npz")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"its SHA-256 is not the one beside it\. Remove it"):
        finish(one)
    path.unlink()
    again = store_in(tmp_path)
    assert filled(again) == [(4, 8)]
    assert finish(again)


def test_a_manifest_that_was_lost_or_altered(tmp_path: Path) -> None:
    one = store_in(tmp_path)
    filled(one)
    assert finish(one)
    before = contents(tmp_path)
    (tmp_path / "manifest.json").unlink()
    again = store_in(tmp_path)
    assert filled(again) == []
    assert finish(again)
    assert contents(tmp_path) == before
    text = (tmp_path / "manifest.json").read_text()
    (tmp_path / "manifest.json").write_text(text.replace('"shard": 4', '"shard": 5'))
    with pytest.raises(ValueError, match=r"its checksum does not match.*: remove it, and give"):
        store_in(tmp_path)


def test_a_shard_that_is_made_anew_has_its_new_checksum(tmp_path: Path) -> None:
    one = store_in(tmp_path)
    filled(one)
    assert finish(one)
    path = shards.path_of(tmp_path, (4, 8), "npz")
    path.unlink()
    again = store_in(tmp_path)
    with again.kept():
        for shard in again.shards(ALONE):  # by another machine, say, with another rounding
            while not shard.is_done:
                again.add(shard, images_of(shard.part().ids) + 1e-7)
    assert finish(again)
    manifest = read_manifest(tmp_path)
    assert manifest is not None
    assert manifest.files["shards/000000004-000000007.npz"] == shards.sum_of(path)


@pytest.mark.skipif(native.missing() is not None, reason="needs the native kernels")
@pytest.mark.parametrize("version", ["this", "an earlier one"])
def test_samples_of_direct_convolutions_go_on_with_those(
    tmp_path: Path, checkpoint, monkeypatch, version: str
) -> None:
    arguments = ("sample", checkpoint, "--out", tmp_path, "-n")
    monkeypatch.setenv("NCSN_FAST_CONV", "direct")
    succeed(*arguments, 1)
    if version != "this":
        (tmp_path / "manifest.json").unlink()
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
