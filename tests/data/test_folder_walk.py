from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ncsn_fast.data import load as data
from ncsn_fast.data.folder_walk import FolderWalk


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def names(walk: FolderWalk, folder: Path) -> list[str]:
    return [str(file.relative_to(folder)) for file in walk.files]


def test_links_to_folders_and_files_are_followed(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    touch(here / "a.png", there / "deep" / "b.PNG", tmp_path / "alone.png")
    (here / "linked").symlink_to(there)
    (here / "file.png").symlink_to(tmp_path / "alone.png")
    walk = FolderWalk(here, (".png",))
    assert names(walk, here) == ["a.png", "file.png", "linked/deep/b.PNG"]
    assert not walk.unusable
    assert walk.passed_over() == ""


def test_half_of_the_images_behind_a_link_are_loaded(tmp_path: Path) -> None:
    for name in ("own", "other"):
        (tmp_path / name).mkdir()
        Image.fromarray(np.full((4, 4), len(name), np.uint8)).save(tmp_path / name / "a.png")
    (tmp_path / "own" / "more").symlink_to(tmp_path / "other")
    assert data.load_pixels(tmp_path / "own")[:, 0, 0, 0].tolist() == [3, 5]


def test_loops_end_and_what_is_met_twice_is_taken_once_by_its_own_name(tmp_path: Path) -> None:
    root, outside = tmp_path / "data", tmp_path / "outside"
    touch(root / "z" / "1.png", root / "z" / "2.png", outside / "3.png", tmp_path / "private.png")
    (root / "a").symlink_to(root / "z")  # sorted before the folder that it leads to
    (root / "a.png").symlink_to(root / "z" / "1.png")
    (root / "z" / "loop").symlink_to(root)
    (root / "around").symlink_to("..")
    (root / "everything").symlink_to("/")
    (root / "out").symlink_to(outside)
    (outside / "back").symlink_to(root)
    walk = FolderWalk(root, (".png",))
    assert names(walk, root) == ["out/3.png", "z/1.png", "z/2.png"]
    assert walk.passed_over() == "6 that are or lead to what is met elsewhere"


def test_links_that_lead_nowhere_are_named_where_they_may_have_led_to_images(
    tmp_path: Path,
) -> None:
    for name in ("gone.png", "gone", "gone.txt"):
        (tmp_path / name).symlink_to("nowhere")
    (tmp_path / "self").symlink_to("self")
    walk = FolderWalk(tmp_path, (".png",))
    assert {path.name for path in walk.unusable} == {"gone.png", "gone", "self"}
    assert "leads nowhere (No such file" in walk.unusable[tmp_path / "gone.png"]
    assert walk.passed_over() == "1 .txt"


def test_a_folder_that_may_not_be_entered_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "locked").mkdir()
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    scandir = os.scandir

    def refuse(path: Path) -> object:  # whoever runs the tests may be allowed everything
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(ValueError, match=r"locked cannot be entered \(Permission denied\)"):
        data.load_pixels(tmp_path)
    assert len(data.load_pixels(tmp_path, damaged="skip")) == 1


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    touch(tmp_path / "b.png")
    walk = FolderWalk(tmp_path, (".png",))
    assert names(walk, tmp_path) == ["b.png"]
    assert "pipe" in walk.unusable[tmp_path / "a.png"]


def test_what_is_passed_over_is_counted_by_ending(tmp_path: Path) -> None:
    for number in range(8):
        touch(tmp_path / "sub" / f"{number}.TXT")
    touch(*(tmp_path / f"{number}.heic" for number in range(4)), tmp_path / "Makefile")
    touch(tmp_path / ".hidden.png", tmp_path / ".cache" / "a.png", tmp_path / ".DS_Store")
    told = FolderWalk(tmp_path, (".png",)).passed_over()
    assert told == "8 .txt, 4 .heic, 1 without an ending, 2 hidden"


def test_of_many_endings_the_most_frequent_are_told(tmp_path: Path) -> None:
    touch(*(tmp_path / f"a.{number}" for number in range(20)), tmp_path / "b.7")
    told = FolderWalk(tmp_path, (".png",)).passed_over()
    assert told.startswith("2 .7, ")
    assert told.endswith(", 12 of other kinds")


def test_a_folder_may_be_called_as_a_file(tmp_path: Path) -> None:
    touch(tmp_path / "a.png" / "b.png")
    assert names(FolderWalk(tmp_path, (".png",)), tmp_path) == ["a.png/b.png"]
