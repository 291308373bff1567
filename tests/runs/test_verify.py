"""ncsn-fast verify: every damaged byte is found, foreign shards are told, the remedy works."""

from __future__ import annotations

import dataclasses
import os
import random
import re
import shlex
import shutil
from pathlib import Path

import pytest
from helpers.command import invoke, succeed
from helpers.samples import contents, filled, finish, store_in

from ncsn_fast.runs.samples.manifest import read_manifest
from ncsn_fast.runs.samples.verify import verify

FORMATS = ("npz", "png", "tar")


def made(folder: Path, kind: str = "npz", seed: int = 0) -> Path:
    store = store_in(folder, (0, 10), {"seed": seed}, format=kind)
    filled(store)
    assert finish(store)
    return folder


@pytest.mark.parametrize("kind", FORMATS)
def test_a_hundred_damages_of_one_byte_are_found(tmp_path: Path, kind: str) -> None:
    folder = made(tmp_path / "samples", kind)
    rng = random.Random(0)
    paths = sorted(path for path in (folder / "shards").rglob("*") if path.is_file())
    for _ in range(100):
        path = rng.choice(paths)
        whole = path.read_bytes()
        data = bytearray(whole)
        data[rng.randrange(len(data))] ^= rng.randrange(1, 256)
        path.write_bytes(data)
        shard = path if kind != "png" else path.parent
        found = verify(folder)
        assert [*found["damaged"]] == [shard.relative_to(folder).as_posix()]
        assert found["foreign"] == {}
        path.write_bytes(whole)
    assert verify(folder)["run"] == []


@pytest.mark.parametrize("kind", FORMATS)
def test_foreign_and_missing_shards_are_told(tmp_path: Path, kind: str) -> None:
    folder, other = made(tmp_path / "ours", kind), made(tmp_path / "theirs", kind, seed=1)
    first, second, _ = sorted((folder / "shards").iterdir())
    for path in (first, second):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    theirs = other / "shards" / first.name
    shutil.copytree(theirs, first) if theirs.is_dir() else shutil.copyfile(theirs, first)
    (folder / "shards" / "notes.txt").write_text("mine")
    found = verify(folder)
    assert found["damaged"] == {}
    assert found["foreign"] == {
        f"shards/{first.name}": "it holds samples of other settings",
        "shards/notes.txt": "its name is none of a shard of this folder",
    }
    assert found["missing"] == [[0, 7]]
    assert (found["wanted"], found["good"]) == (10, 2)
    assert found["run"][1] == f"ncsn-fast sample net -n 10 --out {folder}"


def test_what_it_says_to_run_makes_the_folder_whole(tmp_path: Path, checkpoint) -> None:
    out = tmp_path / "a folder"
    words = ("sample", checkpoint, "--first-id", 3, "-n", 7, "--method", "euler", "--steps", 3)
    succeed(*words, "--no-hold-noise", "--seed", 4, "--shard-size", 2, "--out", out)
    before = contents(out)
    assert "7 of 7 samples are there, as they were written." in succeed("verify", out)
    damaged = out / "shards" / "000000004-000000005.npz"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    (out / "shards" / "000000006-000000007.npz").unlink()
    result = invoke("verify", out)
    assert result.exit_code == 1
    remove, make = (line.strip() for line in result.output.split("Now run:\n")[1].splitlines())
    assert shlex.split(remove) == ["rm", "-r", str(damaged)]
    damaged.unlink()
    assert shlex.split(make)[0] == "ncsn-fast"
    succeed(*shlex.split(make)[1:])
    assert contents(out) == before
    succeed("verify", out, "--quiet")


def test_a_small_set_and_folders_of_others(tmp_path: Path, checkpoint) -> None:
    succeed("sample", checkpoint, "-n", 2, "--out", tmp_path / "small")
    succeed("verify", tmp_path / "small")
    whole = tmp_path / "small" / "samples.npz"
    data = bytearray(whole.read_bytes())
    data[200] ^= 1
    whole.write_bytes(data)
    assert "damaged: samples.npz" in invoke("verify", tmp_path / "small").output
    for folder, told in {tmp_path: "holds no manifest.json", whole: "is no folder"}.items():
        result = invoke("verify", folder)
        assert result.exit_code == 1
        assert told in result.output


def test_its_report_has_the_keys_that_are_documented(tmp_path: Path) -> None:
    page = Path(__file__).parents[2].joinpath("docs", "use.md").read_text(encoding="utf-8")
    (row,) = re.findall(r"^\| `verify` \| (.*) \|$", page, re.MULTILINE)
    told = set(re.findall(r"`(\w+)`", re.sub(r"\(.*?\)", "", row)))
    assert told == set(verify(made(tmp_path / "samples")))


@pytest.mark.parametrize("kind", FORMATS)
def test_pipes_and_links_in_the_place_of_shards_are_foreign(tmp_path: Path, kind: str) -> None:
    folder = made(tmp_path / "samples", kind)
    first, second, _ = sorted((folder / "shards").iterdir())
    for path in (first, second):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    os.mkfifo(first)
    second.symlink_to(tmp_path)
    found = verify(folder)
    assert [*found["foreign"]] == [f"shards/{first.name}", f"shards/{second.name}"]
    assert found["missing"] == [[0, 7]]


def test_a_pipe_or_a_folder_among_pictures_is_a_damage(tmp_path: Path) -> None:
    folder = made(tmp_path / "samples", "png")
    first, second, _ = sorted((folder / "shards").iterdir())
    picture = first / "000000001.png"
    picture.unlink()
    os.mkfifo(picture)
    (second / "more").mkdir()
    assert [*verify(folder)["damaged"]] == [f"shards/{first.name}", f"shards/{second.name}"]


@pytest.mark.parametrize("command", [["rm", "-rf", "/home/me"], 5, "rm", [], None])
def test_no_other_command_is_advised(tmp_path: Path, command: object) -> None:
    folder = made(tmp_path / "samples")
    manifest = read_manifest(folder)
    assert manifest is not None
    dataclasses.replace(manifest, about={"command": command}).write(folder)
    first = sorted((folder / "shards").iterdir())[0]
    first.unlink()
    assert verify(folder)["run"] == [f"ncsn-fast sample -n 10 --out {folder}"]
