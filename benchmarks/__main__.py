"""Run the benchmarks: python -m ncsn_fast.benchmarks [options of pytest-benchmark]."""

import sys
from pathlib import Path

import pytest

if __name__ == "__main__":
    folder = str(Path(__file__).parent)
    # Installed, there is no pyproject.toml beside them that names the files.
    settings = ["-o", "python_files=bench_*.py", "--benchmark-columns=min,median,iqr,rounds"]
    sys.exit(pytest.main([folder, "-q", "--benchmark-only", *settings, *sys.argv[1:]]))
