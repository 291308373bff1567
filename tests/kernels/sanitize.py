"""The native kernels' tests under the address and undefined-behaviour sanitizers.

    python tests/kernels/sanitize.py [options of pytest]

Needs g++, whose run-time libraries have to be in the process before Python's own.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from torch.utils.cpp_extension import include_paths, library_paths

from ncsn_fast.device import native

_SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
_TESTS = Path(__file__).parent


def main() -> int:
    with tempfile.TemporaryDirectory() as cache:
        os.environ[native.CACHE] = cache
        folder = native._folder(native._compiler())
        folder.mkdir(parents=True)
        _build(folder)
        environment = {
            **os.environ,
            "LD_PRELOAD": " ".join(map(_runtime, ("libasan.so", "libubsan.so", "libstdc++.so"))),
            "ASAN_OPTIONS": "detect_leaks=0",  # Python keeps much until it ends
            "UBSAN_OPTIONS": "print_stacktrace=1",
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-m", "pytest", "-x", "-m", "native", str(_TESTS), *sys.argv[1:]]
        return subprocess.run(command, env=environment, check=False).returncode


def _build(folder: Path) -> None:
    """Put a library with sanitizers where the tests look for one without."""
    flags = [
        "-std=c++20",
        "-fPIC",
        "-g1",
        *native._FLAGS,
        *native._VECTORS,
        *native._OPENMP,
        "-O1",
        *_SANITIZERS,
    ]
    flags += [option for path in include_paths() for option in ("-isystem", path)]

    def compile_(source: Path) -> Path:
        target = folder / f"{source.stem}.o"
        command = [*native._compiler_command(), *flags, "-c", str(source), "-o", str(target)]
        subprocess.run(command, check=True)
        return target

    sources = [path for path in native._sources() if path.suffix == ".cpp"]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = [str(path) for path in pool.map(compile_, sources)]
    library = folder / native._LIBRARY
    libraries = [f"-L{path}" for path in library_paths()]
    linking = ["-shared", *objects, *libraries, "-lc10", "-ltorch_cpu", "-o", str(library)]
    subprocess.run([*native._compiler_command(), *linking], check=True)
    (folder / native._CHECKSUM).write_text(native._checksum(library), encoding="utf-8")


def _runtime(library: str) -> str:
    command = [*native._compiler_command(), f"-print-file-name={library}"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
