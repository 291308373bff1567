"""Whatever a file holds: a value, or an error of ours that names it, in bounded time and memory."""

import mmap
import random
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hostile.targets import TARGETS, Fault, Target, outcome
from hypothesis import given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).parents[2]
some = settings(max_examples=40, deadline=None, derandomize=True, database=None)
by_name = pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)


@by_name
def test_right_files_are_read(target):
    for data in target.valid() if target.name != "options" else ():
        assert outcome(target, data) == "read"


@by_name
def test_any_bytes_are_read_or_refused(target):
    @some
    @given(st.one_of(st.binary(max_size=300), st.text(max_size=300).map(lambda t: t.encode())))
    def check(data):
        outcome(target, data)

    check()


@by_name
def test_damaged_and_wrong_files_are_read_or_refused(target):
    @some
    @given(st.randoms(use_true_random=False))
    def check(rng):
        outcome(target, target.input(rng))

    check()


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (lambda path: [][1], "raw IndexError"),
        (lambda path: int("x"), "a message without 'x.txt'"),
        (lambda path: float(f"{path}" + "y" * 9999), "a message of"),
        (lambda path: _work(3.0), r"took [3-9]\.\d s and"),
        (lambda path: _fill(300), r"and ([2-9]\d\d|\d{4}) MiB"),
        (lambda path: b"\xff".decode(), "raw UnicodeDecodeError"),
    ],
)
def test_what_may_not_happen_is_a_fault(read, message):
    with pytest.raises(Fault, match=message):
        outcome(Target("it", "x.txt", lambda: [b""], read), b"")


def _work(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def _fill(mib: int) -> None:
    """So much beyond the most that this process has had, of pages that malloc has not kept."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    now = pages * resource.getpagesize() >> 20
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    with mmap.mmap(-1, most - now + mib << 20) as memory:
        for page in range(0, len(memory), mmap.PAGESIZE):
            memory[page] = 1


def test_a_case_is_the_same_wherever_it_is_made():
    for target in TARGETS:
        first, again = (target.input(random.Random("seed")) for _ in range(2))
        assert first == again, target.name


def test_the_command_counts_its_cases(tmp_path):
    command = [sys.executable, "-m", "tests.fuzz", "--case", "3", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(TARGETS)} cases, 0 faults" in done.stdout
