"""What ``import ncsn_fast`` costs beside ``import torch``, as whole processes in one run."""

import subprocess
import sys

import pytest
from pytest_benchmark.fixture import BenchmarkFixture


@pytest.mark.benchmark(group="import, whole process")
@pytest.mark.parametrize("name", ["torch", "ncsn_fast"])
def test_import(benchmark: BenchmarkFixture, name: str) -> None:
    command = [sys.executable, "-c", f"import {name}"]
    done = benchmark.pedantic(subprocess.run, (command,), rounds=7, warmup_rounds=1)
    assert done.returncode == 0
