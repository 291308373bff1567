"""The native CPU kernels of ``kernels/cpp``: built when first needed, then kept.

A build takes up to half a minute and lands in the user's cache ($NCSN_FAST_CACHE, else
$XDG_CACHE_HOME/ncsn_fast, else ~/.cache/ncsn_fast), in a folder named after all that the result
depends on. Where it exists it is loaded in milliseconds, with neither compiler nor ninja. Nothing
here raises for want of a compiler: PyTorch does the work then.

A library is code that runs: one that another user could have put there or changed is not loaded,
see ``device/private.py``. Where that is so of the whole cache, a build lasts for its process.
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import importlib.util
import json
import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from ncsn_fast.device.private import make_private_folder, turn, why_not_private
from ncsn_fast.support.files import write_text

CACHE = "NCSN_FAST_CACHE"
_NAME = "ncsn_fast_cpp"
_LIBRARY = f"{_NAME}.so"
_CHECKSUM = "checksum"
_FAILURE = "failed.log"
# Errors of libm and traps of the FPU nobody asks for; NaN and infinity mean what they mean.
# Products go into sums unrounded where the CPU can: faster, and closer to the specification in
# float64. (GCC's default, but not with -std=c++17.)
_FLAGS = ("-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast")
# What AVX-512 is for; compilers would rather take half of it. Without AVX-512 it says nothing.
_VECTORS = ("-mprefer-vector-width=512",) if platform.machine() == "x86_64" else ()
_OPENMP = ("-fopenmp",) if sys.platform == "linux" else ()  # at::parallel_for's threads
# In a process of its own: torch's build tools change the environment, and a library that cannot
# even be loaded does not take the user's process along. It ends with the process that asked for it,
# whose end of stdin is closed then, however that ends; ninja, when it is told to stop, stops the
# compilers, which are in groups of their own.
_BUILD = """
import json, os, signal, sys, threading, time

def stop_when_nobody_waits():
    os.read(0, 1)
    os.killpg(0, signal.SIGTERM)
    time.sleep(2)
    os.killpg(0, signal.SIGKILL)

signal.signal(signal.SIGTERM, lambda *_: None)  # handlers, unlike SIG_IGN, are not handed on
threading.Thread(target=stop_when_nobody_waits, daemon=True).start()
from torch.utils.cpp_extension import load
load(**json.loads(sys.argv[1]))
"""
_log = logging.getLogger("ncsn_fast")


class NativeError(RuntimeError):
    """The native kernels cannot be built or loaded; the message says why and how to mend it."""


@functools.cache
def missing() -> str | None:
    """Why the native kernels cannot run, or None where they can; builds them where need be.

    The answer is found once a process, and a warning says so if it is not None.
    """
    try:
        _load(_existing() or build())
    except NativeError as error:
        _log.warning("native CPU kernels are not used, PyTorch does their work: %s", error)
        return str(error)
    return None


def ready() -> Any | None:
    """The kernels where they need not be built first, else None; nothing is built here."""
    asked = missing.cache_info().currsize
    return getattr(torch.ops, _NAME) if (asked or _built()) and missing() is None else None


def loaded() -> Path | None:
    """The library that this process has loaded, if it has."""
    paths = map(Path, torch.ops.loaded_libraries)
    return next((path for path in paths if path.name == _LIBRARY), None)


def ops() -> Any:
    """The kernels, ``torch.ops.ncsn_fast_cpp``.

    Raises:
        NativeError: where they are :func:`missing`.
    """
    if reason := missing():
        raise NativeError(reason)
    return getattr(torch.ops, _NAME)


@functools.cache  # it reads the whole library
def _built() -> bool:
    return _existing() is not None


def build(again: bool = False) -> Path:
    """Build the kernels, unless they have been built, and return the library.

    Args:
        again: also where a build has failed before, or has succeeded.

    Raises:
        NativeError: where they cannot be built.
    """
    folder = _folder(_compiler())
    try:
        make_private_folder(folder)
        if reason := why_not_private(folder):
            folder = _folder_for_now(reason) / folder.name
            make_private_folder(folder)
        with turn(folder) as no_locks:
            if no_locks:
                _log.warning(
                    "%s has no file locks (%s): processes that start now may build the native CPU "
                    "kernels at the same time",
                    folder,
                    no_locks,
                )
            if not again:
                if _intact(folder):  # by another process, while this one waited
                    return folder / _LIBRARY
                _refuse_failed(folder)
            return _build(folder, alone=not no_locks)
    except OSError as error:
        raise NativeError(
            f"{folder} cannot be written ({error.strerror or error}): set {CACHE} to a folder "
            "that can"
        ) from error


def cache_folder() -> Path:
    """Where builds are kept; it need not exist."""
    if given := os.environ.get(CACHE):
        return Path(given).expanduser() / "native"
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "ncsn_fast" / "native"


def _existing() -> Path | None:
    """A library that need not be built; without a compiler, one that any compiler has made."""
    try:
        folders = [_folder(_compiler())]
    except NativeError:
        folders = sorted(cache_folder().glob(f"{_key()}-*"))
    return next((folder / _LIBRARY for folder in folders if _intact(folder)), None)


@functools.cache
def _folder_for_now(reason: str) -> Path:
    """A folder of this process, which goes with it.

    Raises:
        NativeError: where temporary files are not safe from others either.
    """
    advice = f"set {CACHE} to a folder of your own (chmod 700)"
    place = Path(tempfile.mkdtemp(prefix="ncsn_fast-"))
    atexit.register(_remove, place, os.getpid())
    if worse := why_not_private(place):
        raise NativeError(f"others could change their code ({reason}; {worse}): {advice}")
    _log.warning(
        "native CPU kernels are neither loaded from the cache nor kept in it, since others could "
        "change them there (%s): they are built for this process. To keep them %s",
        reason,
        advice,
    )
    return place


def _remove(folder: Path, process: int) -> None:
    if os.getpid() == process:  # not that of a child, which ends first
        shutil.rmtree(folder, ignore_errors=True)


def _load(library: Path) -> None:
    try:
        torch.ops.load_library(str(library))
    except (OSError, RuntimeError) as error:
        raise NativeError(f"{library} cannot be loaded ({error}): delete its folder") from error


def _build(folder: Path, alone: bool) -> Path:
    """Compile into a folder; ``alone``: no other process builds there."""
    for leftover in folder.glob(".build-*") if alone else ():  # of a process that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    # A warning, so that whoever waits without having set up logging knows what for.
    _log.warning("building the native CPU kernels in %s: about 20 s, once", folder)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix=".build-", dir=folder) as work:
        output = _compile(Path(work))
        built = Path(work) / _LIBRARY
        if not built.exists():
            (folder / _FAILURE).write_text(output, encoding="utf-8")
            raise NativeError(f"their build failed ({_cause(output)}): {_advice(folder)}")
        built.chmod(0o700)  # whatever the umask is
        write_text(folder / _CHECKSUM, _checksum(built))
        os.replace(built, folder / _LIBRARY)
    (folder / _FAILURE).unlink(missing_ok=True)
    _log.info("built in %.0f s", time.perf_counter() - start)
    return folder / _LIBRARY


def _compile(work: Path) -> str:
    """Run the build; the compiler's output, and the library where it succeeded."""
    compiler = _compiler()
    linking = _OPENMP if "clang" in compiler.name else ()  # torch brings along what GCC needs
    arguments = {
        "name": _NAME,
        "sources": [str(path) for path in _sources() if path.suffix == ".cpp"],
        "extra_cflags": [*_FLAGS, *_VECTORS, *_OPENMP],
        "extra_ldflags": list(linking),
        "build_directory": str(work),
        "is_python_module": False,
        "verbose": True,
    }
    with subprocess.Popen(
        [sys.executable, "-c", _BUILD, json.dumps(arguments)],
        cwd=work,  # Python looks for modules there first
        env={**os.environ, "PATH": _search_path()},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    ) as building:
        assert building.stdin is not None
        assert building.stdout is not None
        with building.stdin:  # open for as long as somebody waits
            output = building.stdout.read()
            failed = building.wait() != 0
    if failed:  # also where it was built and could not be loaded
        (work / _LIBRARY).unlink(missing_ok=True)
    return output


def _compiler() -> Path:
    """The C++ compiler that torch's build tools take.

    Raises:
        NativeError: where that, or ninja, is not installed.
    """
    if sys.platform not in ("linux", "darwin"):
        raise NativeError("they are built on Linux and macOS only")
    if not _sources():
        raise NativeError("their sources, kernels/cpp, are missing: install the package again")
    command = _compiler_command()
    found = shutil.which(command[0])
    if found is None:
        raise NativeError(
            f"there is no C++ compiler {command[0]!r}: install g++ or clang, or set CXX"
        )
    if shutil.which("ninja", path=_search_path()) is None:
        raise NativeError("there is no ninja to build them with: pip install ninja")
    return Path(found).resolve()


def _compiler_command() -> list[str]:
    return shlex.split(os.environ.get("CXX", "")) or ["c++"]


def _search_path() -> str:
    """PATH, and the folder of this Python: pip puts ninja there, activated or not."""
    return os.pathsep.join((os.environ.get("PATH", os.defpath), str(Path(sys.executable).parent)))


def _folder(compiler: Path) -> Path:
    state = compiler.stat()
    made_by = f"{os.environ.get('CXX')} {compiler} {state.st_size} {state.st_mtime_ns}"
    return cache_folder() / f"{_key()}-{hashlib.sha256(made_by.encode()).hexdigest()[:8]}"


@functools.cache
def _key() -> str:
    """What a library depends on but for the compiler: torch, the machine, flags and sources."""
    digest = hashlib.sha256(repr((_FLAGS, _VECTORS, _OPENMP)).encode())
    for path in _sources():
        digest.update(path.name.encode() + path.read_bytes())
    abi = int(torch._C._GLIBCXX_USE_CXX11_ABI)
    return f"torch-{torch.__version__}-abi{abi}-{platform.machine()}-{digest.hexdigest()[:16]}"


def _sources() -> list[Path]:
    spec = importlib.util.find_spec("ncsn_fast.kernels")
    places = (spec and spec.submodule_search_locations) or []
    return sorted(path for place in places for path in Path(place, "cpp").glob("*.[ch]*"))


def _intact(folder: Path) -> bool:
    """Whether a library is there, whole, and nobody else's."""
    try:
        if why_not_private(folder / _LIBRARY):
            return False
        return (folder / _CHECKSUM).read_text(encoding="utf-8") == _checksum(folder / _LIBRARY)
    except (OSError, UnicodeDecodeError):
        return False


def _checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _refuse_failed(folder: Path) -> None:
    """Do not fail again, in every process, the way it failed before."""
    if (folder / _FAILURE).exists():
        raise NativeError(f"their build has failed before: {_advice(folder)}")


def _advice(folder: Path) -> str:
    return f"see {folder / _FAILURE}, and delete it to have it tried again"


def _cause(output: str) -> str:
    """The line of a compiler's output that tells most."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines[-1:] or ["no output"])[0]


__all__ = ["CACHE", "NativeError", "build", "cache_folder", "loaded", "missing", "ops", "ready"]
