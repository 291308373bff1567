"""The package as a whole: what importing it costs and needs, and what installing it puts where."""

import json
import re
import subprocess
import sys
from pathlib import Path

import ncsn_fast as nf

ROOT = Path(__file__).parent.parent


def run(code, *flags):
    done = subprocess.run(
        [sys.executable, *flags, "-c", code], capture_output=True, text=True, check=True
    )
    return done.stdout + done.stderr


def test_importing_loads_no_plotting_no_triton_and_no_compiler():
    code = (
        "import sys, json, torch, numpy, safetensors.torch; before = set(sys.modules); "
        "import ncsn_fast; print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    brought = {name.split(".")[0] for name in json.loads(run(code))}
    assert not brought & {"matplotlib", "PIL", "scipy", "tqdm", "click", "yaml", "triton"}


def test_importing_works_without_triton():
    code = (
        "import sys; sys.modules['triton'] = None; import ncsn_fast as nf, torch; "
        "x = nf.langevin(lambda x: -x, torch.zeros(2, 2), 0.1, 3, seed=0); print(x.shape)"
    )
    assert "torch.Size([2, 2])" in run(code)


def test_the_kernels_and_benchmarks_are_inside_the_package():
    code = (
        "import importlib.util, ncsn_fast.kernels, ncsn_fast.benchmarks; "
        "print(importlib.util.find_spec('kernels'))"
    )
    done = subprocess.run(
        [sys.executable, "-P" if sys.version_info >= (3, 11) else "-E", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd="/",
    )
    assert done.stdout.strip() == "None"


def test_every_public_name_is_there_and_documented():
    for name in nf.__all__:
        assert getattr(nf, name).__doc__, name


def test_the_versions_agree():
    stated = re.search(r'version="([^"]+)"', (ROOT / "setup.py").read_text())
    assert stated is not None
    assert nf.__version__ == stated.group(1)


def test_every_requirement_is_in_the_tested_set():
    setup = (ROOT / "setup.py").read_text().lower()
    tested = (ROOT / "constraints.txt").read_text().lower()
    names = set(re.findall(r'"([a-z][\w-]*)>=[\d.]+"', setup)) - {"setuptools"}
    assert {"torch", "pytest", "ruff"} <= names
    for name in names:
        assert re.search(rf"^{name}==", tested, re.MULTILINE), name


def test_nothing_depends_on_files_outside_the_repository():
    for folder in ("ncsn_fast", "kernels", "benchmarks", "tests"):
        for path in (ROOT / folder).rglob("*.py"):
            if path != Path(__file__):
                assert not re.search(r"\.\./|shared/", path.read_text(encoding="utf-8")), path


def test_the_module_runs_as_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "ncsn_fast", "--help"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("Usage: ncsn-fast ")
