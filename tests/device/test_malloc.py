"""Memory that malloc keeps at hand."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys

import pytest

from ncsn_fast.device.malloc import keep_freed_memory

# In a process of its own: what is set there is set for good. A page fault for every page that the
# system had to clear.
FAULTS = """
import resource
from ncsn_fast.device.malloc import keep_freed_memory
done = keep_freed_memory()
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    b"x" * (128 << 20)
print(done, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_freed_memory_is_not_cleared_again() -> None:
    malloc = ("MALLOC_", "GLIBC_TUNABLES")
    clean = {key: value for key, value in os.environ.items() if not key.startswith(malloc)}
    command = [sys.executable, "-c", FAULTS]
    output = subprocess.run(command, env=clean, capture_output=True, text=True, check=True).stdout
    done, count = output.split()
    assert done == "True"
    assert int(count) < 100


@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"])
def test_settings_of_the_environment_are_left_alone(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "131072")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: pytest.fail("the C library was asked"))
    assert keep_freed_memory.__wrapped__() is False
