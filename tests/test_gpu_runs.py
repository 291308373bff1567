"""The first run on a GPU: its tests are there, and one that loses the GPU loses no other."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import gpu_runs

ROOT = Path(__file__).parent.parent
OPERATIONS = ("noise_kernels", "sampler_update", "perturb", "dsm_loss", "begin_step",
              "instance_norm_plus", "residual_add", "max_pool5", "resize_add")  # fmt: skip
# What a GPU would say of itself: at first all is well.
FAKE = """
import torch

torch.cuda.is_available = lambda: True
torch.cuda.synchronize = lambda: None

def lose():
    raise RuntimeError("CUDA error: an illegal memory access was encountered")
"""
TESTS = """
import pytest, torch
import fake

pytestmark = pytest.mark.gpu

@pytest.mark.parametrize("i", range(8))
def test_one(i):
    if i == 3:
        torch.cuda.synchronize = fake.lose
        assert i == 4, "read beyond its end"
"""


def run(*arguments, cwd=ROOT, **variables):
    environment = {**os.environ, **variables}
    command = [sys.executable, "-m", "pytest", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_every_line_of_the_list_names_a_test_and_every_kernel_is_in_it(tmp_path):
    found = run("--collect-only", "-m", "gpu_smoke", NCSN_FAST_CACHE=str(tmp_path))
    ids = [line for line in found.stdout.splitlines() if "::" in line]
    lines = gpu_runs.smoke_lines()
    nowhere = set(range(len(lines))) - set(gpu_runs.places(ids, lines).values())
    assert [lines[i] for i in sorted(nowhere)] == [], "these name no test: change gpu_smoke.txt"
    assert len(gpu_runs.places(ids, lines)) == len(ids)
    assert 80 <= len(ids) <= 110
    for name in OPERATIONS:
        assert any(f"test_{name}" in one for one in ids), name
    assert "fails" in ids[-2] + ids[-3]  # captures that fail come last
    assert not list(tmp_path.iterdir())  # nothing was built for the CPU


def test_a_star_stands_for_any_text_and_brackets_for_themselves():
    ids = ["a.py::t[x-1]", "a.py::t[y-1]", "a.py::t1", "a.py::u"]
    assert gpu_runs.places(ids, ["a.py::t[*-1]", "a.py::u", "a.py::u*"]) == {
        "a.py::t[x-1]": 0,
        "a.py::t[y-1]": 0,
        "a.py::u": 1,
    }


@pytest.mark.parametrize(
    ("asked", "only"),
    [
        ("gpu", True),
        ("gpu_smoke", True),
        ("gpu and not alone", True),
        ("alone", True),
        ("", False),
        ("not gpu", False),
        ("gpu or slow", False),
        ("gpus", False),
    ],
)
def test_where_only_a_gpu_is_tested_nothing_is_built_for_the_cpu(asked, only):
    config = SimpleNamespace(option=SimpleNamespace(markexpr=asked))
    assert gpu_runs.only_on_gpus(config) == only


@pytest.fixture
def losing(tmp_path):
    """Runs eight tests, of which the fourth loses the GPU."""
    (tmp_path / "fake.py").write_text(FAKE)
    (tmp_path / "test_it.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n  gpu: a GPU\npythonpath = .\n")
    plugins = ("-p", "helpers.gpu_runs", "-p", "no:cacheprovider")
    return lambda *more: run(
        *plugins, *more, "test_it.py", cwd=tmp_path, PYTHONPATH=f"{tmp_path}:{ROOT / 'tests'}"
    )


def test_a_worker_that_loses_the_gpu_is_replaced(losing):
    pytest.importorskip("xdist")
    found = losing("-n", "1")
    assert re.search(r"7 passed", found.stdout), found.stdout + found.stderr
    assert "read beyond its end" in found.stdout
    assert "replacing crashed worker" in found.stdout
    assert found.returncode == 1


def test_without_workers_the_run_ends_there_and_says_why(losing):
    found = losing("-v")
    assert found.stdout.count("PASSED") == 3
    assert "test_one[3] has lost the GPU (CUDA error: an illegal memory" in found.stdout
    assert found.returncode == 70


def test_what_fills_the_gpu_is_not_run_beside_others(tmp_path):
    pytest.importorskip("xdist")
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n  gpu: a\n  alone: b\n")
    (tmp_path / "test_it.py").write_text(
        "import pytest\n@pytest.mark.gpu\n@pytest.mark.alone\ndef test_large(): pass\n"
    )
    arguments = ("-p", "helpers.gpu_runs", "-p", "no:cacheprovider", "-rs", "test_it.py")
    path = str(ROOT / "tests")
    beside = run(*arguments, "-n", "1", cwd=tmp_path, PYTHONPATH=path)
    assert "needs the GPU for itself: run -m alone without -n" in beside.stdout
    assert "1 passed" in run(*arguments, cwd=tmp_path, PYTHONPATH=path).stdout
