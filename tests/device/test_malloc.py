"""Memory that malloc keeps at hand."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

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


def faults(**environment: str) -> tuple[bool, int]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")}
    clean.pop("GLIBC_TUNABLES", None)
    command = [sys.executable, "-c", FAULTS]
    output = subprocess.run(
        command, env={**clean, **environment}, capture_output=True, text=True, check=True
    ).stdout
    done, count = output.split()
    return done == "True", int(count)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_freed_memory_is_not_cleared_again() -> None:
    done, count = faults()
    assert done
    assert count < 100


def test_settings_of_the_environment_are_left_alone() -> None:
    assert faults(MALLOC_TRIM_THRESHOLD_="131072")[0] is False
    assert faults(GLIBC_TUNABLES="glibc.malloc.trim_threshold=131072")[0] is False
