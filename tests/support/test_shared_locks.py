"""Locks of folders that several processes share, and of the pieces that they take in them."""

from __future__ import annotations

import multiprocessing
import os
import signal
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from ncsn_fast.support.locks import folder_lock, taken

_SPAWN = multiprocessing.get_context("spawn")


def _hold(path: Path, end: Connection) -> None:
    with taken(path) as mine:
        end.send(mine)
        end.recv()


def _elsewhere(path: Path) -> tuple[multiprocessing.process.BaseProcess, Connection]:
    """Another process that tries to take a piece, and what it says."""
    here, there = _SPAWN.Pipe()
    process = _SPAWN.Process(target=_hold, args=(path, there))
    process.start()
    return process, here


def test_a_piece_is_taken_by_one_and_free_again_when_it_is_done_or_killed(tmp_path: Path) -> None:
    path = tmp_path / ".piece.lock"
    with taken(path) as mine, taken(path) as again:
        assert (mine, again) == (True, False)
        process, told = _elsewhere(path)
        assert told.recv() is False
        told.send(None)
        process.join()
    assert list(tmp_path.iterdir()) == []
    process, told = _elsewhere(path)
    assert told.recv() is True
    with taken(path) as mine:
        assert not mine
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert path.exists()  # which means nothing
    with taken(path, wait=True) as mine:
        assert mine


def test_those_who_share_a_folder_keep_out_who_wants_it_alone(tmp_path: Path) -> None:
    with folder_lock(tmp_path, shared=True):
        with (
            folder_lock(tmp_path, shared=True),
            pytest.raises(ValueError, match="another process is writing to"),
            folder_lock(tmp_path),
        ):
            pass
        assert (tmp_path / ".lock").exists()  # of the one that is still there
        with pytest.raises(ValueError, match="another process"), folder_lock(tmp_path):
            pass
    assert not (tmp_path / ".lock").exists()
    with (
        folder_lock(tmp_path),
        pytest.raises(ValueError, match="another process"),
        folder_lock(tmp_path, shared=True),
    ):
        pass


def test_what_is_no_file_is_refused_as_a_lock(tmp_path: Path) -> None:
    (tmp_path / "piece").mkdir()
    with (
        pytest.raises(ValueError, match="is not a file but a link, folder"),
        taken(tmp_path / "piece"),
    ):
        pass
