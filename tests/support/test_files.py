"""Atomic writing: the old file or the new one, never a part, and no rubbish."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from ncsn_fast.support.files import atomic_write, check_writable


def test_file_appears_whole(tmp_path: Path) -> None:
    path = tmp_path / "log.json"
    with atomic_write(path) as temporary:
        assert temporary.suffix == ".json"
        assert temporary.parent == tmp_path
        temporary.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_failure_keeps_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "log.txt"
    path.write_text("old")

    def fail() -> None:
        with atomic_write(path) as temporary:
            temporary.write_text("ne")
            raise error

    with pytest.raises(error):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_killed_process_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    path.write_text("old")
    if (child := os.fork()) == 0:
        try:
            with atomic_write(path) as temporary:
                temporary.write_text("half of the ne")
                os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
    assert path.read_text() == "old"


def test_file_and_renaming_are_put_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, os.replace

    def recorded_fsync(descriptor: int) -> None:
        events.append("folder" if Path(f"/proc/self/fd/{descriptor}").is_dir() else "file")
        fsync(descriptor)

    def recorded_replace(source: Path, target: Path) -> None:
        events.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "replace", recorded_replace)
    with atomic_write(tmp_path / "x") as temporary:
        temporary.write_text("new")
    assert events == ["file", "rename", "folder"]


def test_checking_a_folder_leaves_it_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("old")
    check_writable(path)
    check_writable(tmp_path / "y.txt")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_impossible_paths_are_refused_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path, message in (
        (tmp_path / "absent" / "x", "does not exist, make it"),
        (tmp_path / "file" / "x", "does not exist, make it"),
        (tmp_path, "it is a folder"),
    ):
        with pytest.raises(ValueError, match=message):
            check_writable(path)
        with pytest.raises(ValueError, match=message), atomic_write(path):
            pass


def test_the_file_may_be_read_by_whom_the_umask_lets(tmp_path: Path) -> None:
    ordinary = tmp_path / "ordinary.txt"
    ordinary.write_text("x")
    path = tmp_path / "log.txt"
    with atomic_write(path) as temporary:
        temporary.unlink()  # as writers do that make a private file of their own
        temporary.touch(mode=0o600)
    assert path.stat().st_mode == ordinary.stat().st_mode
