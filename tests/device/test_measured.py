"""Decisions made by measurement: once, kept, the same in all processes, and never in the way."""

import json
import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from ncsn_fast.device import measured, native
from ncsn_fast.device.measured import cache_file, decided, decisions, forget, times

OTHER = 54321  # a user that is not there
pytestmark = pytest.mark.skipif(not hasattr(os, "getuid"), reason="elsewhere nothing is kept")
as_root = pytest.mark.skipif(
    not hasattr(os, "getuid") or os.getuid() != 0, reason="only root gives files away"
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of the test's own, and a process that knows nothing."""
    monkeypatch.setenv(native.CACHE, str(tmp_path / "cache"))
    forget()
    yield tmp_path / "cache"
    forget()


def never():
    raise AssertionError("it was decided before")


def test_what_is_decided_stays_in_the_process_and_in_the_cache(cache):
    assert decided("form", "3x3 1 thread", lambda: "direct") == "direct"
    assert decided("form", "3x3 1 thread", never) == "direct"
    forget()
    assert decided("form", "3x3 1 thread", never) == "direct"
    assert cache_file().is_relative_to(cache)


def test_kinds_and_keys_are_told_apart():
    assert decided("form", "a", lambda: 2) == 2
    assert decided("form", "b", lambda: 4) == 4
    assert decided("precision", "a", lambda: "fp32") == "fp32"
    forget()
    assert decisions("form") == {"a": 2, "b": 4}
    assert decisions("precision") == {"a": "fp32"}
    assert decisions("other") == {}


@pytest.mark.parametrize(
    ("what", "other"),
    [
        ("ncsn_fast.device.measured.processor", lambda: "another CPU"),
        ("torch.backends.cpu.get_cpu_capability", lambda: "another"),
        ("torch.__version__", "1.0"),
        ("ncsn_fast.device.native.loaded", lambda: Path("another build", "library.so")),
    ],
)
def test_a_decision_is_for_its_machine(what, other, monkeypatch):
    assert decided("form", "a", lambda: 2) == 2
    with monkeypatch.context() as changed:
        changed.setattr(what, other)
        assert decided("form", "a", lambda: 4) == 4
        forget()
        assert decided("form", "a", never) == 4
    assert decided("form", "a", never) == 2


def test_a_value_that_cannot_be_used_is_decided_anew():
    decided("form", "a", lambda: "a form of later")
    assert decided("form", "a", lambda: 4, lambda value: value == 4) == 4
    forget()
    assert decided("form", "a", never, lambda value: value == 4) == 4


def test_an_error_decides_nothing():
    def broken():
        raise RuntimeError("cannot be measured")

    with pytest.raises(RuntimeError, match="cannot be measured"):
        decided("form", "a", broken)
    assert decided("form", "a", lambda: 2) == 2


def test_a_measurement_may_depend_on_another():
    assert decided("precision", "a", lambda: decided("form", "a", lambda: 2) + 1) == 3
    forget()
    assert decisions("form") == {"a": 2}


def test_threads_decide_one_after_another():
    inside, most, made = [], [], []

    def decide(name):
        inside.append(name)
        most.append(len(inside))
        time.sleep(0.01)
        inside.remove(name)
        made.append(name)
        return name

    def work(name, key):
        decided("form", key, lambda: decide(name))

    threads = [threading.Thread(target=work, args=(i, str(i % 3))) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1
    assert len(made) == 3


def test_processes_that_race_agree(tmp_path):
    """Each waits inside its measurement until the other measures too, and answers differently."""
    script = f"""
import os, pathlib, sys, time
from ncsn_fast.device.measured import decided
here = pathlib.Path({str(tmp_path)!r})
def decide():
    (here / f"in-{{sys.argv[1]}}").touch()
    end = time.monotonic() + 600
    while len(list(here.glob("in-*"))) < 2 and time.monotonic() < end:
        time.sleep(0.01)
    return sys.argv[1]
print(decided("form", "a", decide), decided("form", "own " + sys.argv[1], lambda: 1))
"""
    processes = [
        subprocess.Popen([sys.executable, "-c", script, name], stdout=subprocess.PIPE, text=True)
        for name in ("one", "two")
    ]
    answers = [process.communicate(timeout=1200)[0].split() for process in processes]
    assert sorted(path.name for path in tmp_path.glob("in-*")) == ["in-one", "in-two"]
    assert answers[0] == answers[1]
    assert answers[0][0] in ("one", "two")
    (kept,) = json.loads(cache_file().read_text(encoding="utf-8")).values()
    assert kept == {"form a": answers[0][0], "form own one": 1, "form own two": 1}


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"[" * 9999,
        b" " * 2**21,
        b'{"m": 1}',
        *(b'{"m": {"form a": %b}}' % value for value in (b"1.5", b"true", b"null", b"[]")),
    ],
)
def test_a_damaged_file_is_told_once_and_replaced(damage, caplog):
    cache_file().parent.mkdir(parents=True, mode=0o700)
    cache_file().write_bytes(damage)
    assert decisions("form") == {}
    assert decided("form", "a", lambda: 2) == 2
    (record,) = [one for one in caplog.records if one.levelno >= logging.WARNING]
    assert str(cache_file()) in record.message
    assert len(record.message) < 1000
    forget()
    assert decided("form", "a", never) == 2


@pytest.mark.parametrize("kind", ["folder", "pipe", "link"])
def test_what_is_no_file_is_not_waited_for_and_not_written_through(kind, tmp_path):
    cache_file().parent.mkdir(parents=True, mode=0o700)
    (tmp_path / "precious").write_text("of years", encoding="utf-8")
    if kind == "folder":
        cache_file().mkdir()
    elif kind == "pipe":
        os.mkfifo(cache_file(), 0o600)
    else:
        cache_file().symlink_to(tmp_path / "precious")
    assert decided("form", "a", lambda: 2) == 2
    assert decided("form", "a", never) == 2
    assert (tmp_path / "precious").read_text(encoding="utf-8") == "of years"


def test_where_nothing_can_be_written_a_decision_lasts_for_the_process(cache, caplog):
    cache.write_text("a file where the folder should be", encoding="utf-8")
    with caplog.at_level(logging.DEBUG, "ncsn_fast"):
        assert decided("form", "a", lambda: 2) == 2
    assert decided("form", "a", never) == 2
    assert decisions("form") == {"a": 2}
    assert [one.levelno for one in caplog.records if "alone" in one.message] == [logging.DEBUG]
    assert all(one.levelno == logging.DEBUG for one in caplog.records)
    forget()
    assert decided("form", "a", lambda: 4) == 4


def test_without_file_locks_decisions_are_kept_all_the_same(monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def no_locks(file, operation):
        raise OSError(37, "no locks here")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    assert decided("form", "a", lambda: 2) == 2
    forget()
    assert decided("form", "a", never) == 2


@pytest.mark.parametrize("level", ["file", "folder", "cache"])
@pytest.mark.parametrize("how", [pytest.param("given away", marks=as_root), "everybody's"])
def test_what_others_could_change_is_neither_read_nor_written(level, how, cache):
    decided("form", "a", lambda: 2)
    place = {"file": cache_file(), "folder": cache_file().parent, "cache": cache}[level]
    if how == "given away":
        os.chown(place, OTHER, -1)
    else:
        place.chmod(0o666 if level == "file" else 0o777)
    before = cache_file().read_bytes()
    forget()
    assert decided("form", "a", lambda: 4) == 4
    assert decided("form", "b", lambda: 4) == 4
    assert cache_file().read_bytes() == before


def test_folder_and_file_are_for_this_user_alone(cache):
    before = os.umask(0)
    try:
        decided("form", "a", lambda: 2)
    finally:
        os.umask(before)
    forget()
    assert decided("form", "a", never) == 2
    assert cache.stat().st_mode & 0o077 == 0


def test_the_file_stays_small_and_keeps_what_is_newest(monkeypatch):
    monkeypatch.setattr(measured, "_LARGEST", 2000)
    for machine in ("old", "new"):
        monkeypatch.setattr(measured, "_machine", lambda machine=machine: machine)
        for i in range(100):
            decided("form", f"{machine} {i}", lambda: 1)
    assert cache_file().stat().st_size <= 2001
    forget()
    kept = decisions("form")
    assert "new 99" in kept
    assert len(kept) > 10
    assert all(key.startswith("new") for key in kept)


def test_times_are_those_of_one_thread_which_others_do_not_lengthen():
    seen = []
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        found = times({"a": lambda: seen.append(torch.get_num_threads()), "b": lambda: None})
        assert torch.get_num_threads() == before + 1
        with pytest.raises(ZeroDivisionError):
            times({"a": lambda: 1 / 0})
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)
    assert set(seen) == {1}
    assert len(seen) >= 10
    assert list(found) == ["a", "b"]
    assert all(seconds >= 0 for seconds in found.values())


def test_long_runs_are_timed_fewer_times(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(measured.time, "thread_time", lambda: now[0])
    monkeypatch.setattr(measured.time, "perf_counter", lambda: now[0])

    def runs(seconds):
        count = []

        def run():
            now[0] += seconds
            count.append(seconds)

        assert times({"a": run})["a"] == pytest.approx(seconds)
        return len(count)

    assert runs(0.5) == 3
    assert runs(0.1) == 4
    assert runs(0.02) == 10
    assert 35 < runs(0.001) < 45


def test_nothing_of_it_depends_on_threads():
    decided("form", "a", lambda: 2)
    forget()
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        assert decided("form", "a", never) == 2
    finally:
        torch.set_num_threads(before)
