"""The source distribution: what it holds, and under which licences."""

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = (".ci", ".github", "benchmarks", "docs", "kernels", "ncsn_fast", "tests")
# What the README's test command and .ci/run read besides.
FILES = (
    *("CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "README.md"),
    *("constraints.txt", "pyproject.toml", "setup.py"),
)


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    """The archive that setuptools makes of a copy of the checkout, opened."""
    copy = tmp_path_factory.mktemp("checkout")
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc", "gallery")
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, copy / folder, ignore=ignored)
    for file in (*FILES, "MANIFEST.in"):
        shutil.copy(ROOT / file, copy / file)
    subprocess.run(
        [sys.executable, "setup.py", "-q", "sdist"], cwd=copy, check=True, capture_output=True
    )
    (archive,) = (copy / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        yield copy, opened


def test_it_holds_all_that_its_tests_need(sdist):
    copy, archive = sdist
    there = {name.partition("/")[2] for name in archive.getnames()}
    needed = {
        str(path.relative_to(copy))
        for folder in FOLDERS
        for path in (copy / folder).rglob("*")
        if path.is_file()
    }
    assert len(needed) > 300
    assert needed | set(FILES) <= there


def test_it_names_the_licences_of_the_code_and_of_the_data_of_others(sdist):
    _, archive = sdist
    (name,) = [one for one in archive.getnames() if one.count("/") == 1 and "PKG-INFO" in one]
    file = archive.extractfile(name)
    assert file is not None
    facts = file.read().decode().partition("\n\n")[0].splitlines()
    assert [line for line in facts if line.startswith("License")] == [
        "License: MIT AND CC-BY-4.0",
        "License-File: LICENSE",
        "License-File: ncsn_fast/assets/DIGITS_LICENSE.md",
        "License-File: ncsn_fast/assets/NETWORKS.md",
        "License-File: ncsn_fast/assets/CLASSIFIERS.md",
    ]
