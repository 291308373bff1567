"""Building the native kernels: once, kept, shared, and never a reason to fail.

What is built here is a library of one function, in a cache of the test's own.
"""

import errno
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ncsn_fast.device import native

SOURCE = 'extern "C" int one() { return 1; }\n'
BROKEN = "int one( { return 1; }\n"
_SECONDS = 600  # in which whatever is waited for happens on any machine

try:
    native._compiler()
except native.NativeError as reason:
    pytest.skip(str(reason), allow_module_level=True)


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A source of its own, an empty cache, and a process that has not asked yet."""
    path = tmp_path / "one.cpp"
    path.write_text(SOURCE, encoding="utf-8")
    monkeypatch.setenv(native.CACHE, str(tmp_path / "cache"))
    monkeypatch.setattr(native, "_sources", lambda: [path])
    forget()
    yield path
    forget()


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """What a compiler would have made."""
    folder = tmp_path_factory.mktemp("library")
    (folder / "one.cpp").write_text(SOURCE, encoding="utf-8")
    command = [*native._compiler_command(), "-shared", "-fPIC", "one.cpp", "-o", "one.so"]
    subprocess.run(command, cwd=folder, check=True)
    return folder / "one.so"


@pytest.fixture
def compiled(library, monkeypatch):
    """The folders in which a compiler has run, that of the test being the ready library."""
    folders = []

    def compile_(work):
        folders.append(work)
        shutil.copy(library, work / native._LIBRARY)
        return ""

    monkeypatch.setattr(native, "_compile", compile_)
    return folders


def forget():
    """As in a new process."""
    native.missing.cache_clear()
    native._key.cache_clear()
    native._folder_for_now.cache_clear()


def without(monkeypatch, tmp_path, *programs):
    """Leave nothing on PATH but some programs."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for program in programs:
        (folder / program).symlink_to(shutil.which(program))
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(sys, "executable", str(folder / "python"))


def test_what_is_built_is_kept(source, caplog):
    with caplog.at_level(logging.INFO, "ncsn_fast"):
        first = native.build()
        assert first.is_relative_to(source.parent / "cache")
        forget()
        assert native.build() == first
    told = [record.message for record in caplog.records]
    assert len([line for line in told if line.startswith("building the native CPU kernels")]) == 1
    assert len([line for line in told if line.startswith("built in")]) == 1
    assert {path.name for path in first.parent.iterdir()} == {first.name, "checksum", ".lock"}


def test_what_is_built_needs_no_compiler(source, compiled, monkeypatch, tmp_path):
    native.build()
    without(monkeypatch, tmp_path)
    forget()
    assert native.missing() is None


def test_other_sources_are_built_anew(source, compiled):
    first = native.build()
    source.write_text(SOURCE.replace("1", "2"), encoding="utf-8")
    forget()
    assert native.build() != first
    assert len(compiled) == 2


@pytest.mark.parametrize(
    ("programs", "wanted"), [((), "C++ compiler"), (("c++",), "pip install ninja")]
)
def test_without_tools_one_warning_says_what_to_install(
    programs, wanted, source, monkeypatch, tmp_path, caplog
):
    without(monkeypatch, tmp_path, *programs)
    assert wanted in native.missing()
    assert native.missing() == native.missing()
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert wanted in record.message
    with pytest.raises(native.NativeError, match="there is no"):
        native.ops()


def test_without_sources_the_reason_is_told(source, monkeypatch):
    monkeypatch.setattr(native, "_sources", list)
    assert "sources" in native.missing()


def test_a_cache_that_cannot_be_written_is_named(source, monkeypatch, tmp_path, compiled):
    (tmp_path / "file").touch()
    monkeypatch.setenv(native.CACHE, str(tmp_path / "file"))
    reason = native.missing()
    assert str(tmp_path / "file") in reason
    assert native.CACHE in reason
    assert not compiled


def test_a_failed_build_is_told_and_not_repeated(source, monkeypatch):
    source.write_text(BROKEN, encoding="utf-8")
    reason = native.missing()
    assert "one.cpp:1" in reason
    assert "failed.log" in reason
    forget()
    monkeypatch.setattr(native, "_compile", lambda work: pytest.fail("compiled again"))
    assert "failed before" in native.missing()


def test_a_failed_build_can_be_asked_for_again(source, monkeypatch, library):
    monkeypatch.setattr(native, "_compile", lambda work: "c++: error: out of memory")
    with pytest.raises(native.NativeError, match="out of memory"):
        native.build()
    monkeypatch.setattr(
        native, "_compile", lambda work: shutil.copy(library, work / native._LIBRARY)
    )
    native.build(again=True)
    forget()
    assert native.missing() is None


@pytest.mark.parametrize("damage", [b"", b"no library", None])
def test_a_damaged_library_is_built_again(damage, source, compiled):
    built = native.build()
    whole = built.read_bytes()
    built.write_bytes(whole[:-1] if damage is None else damage)
    forget()
    assert native.missing() is None
    assert built.read_bytes() == whole
    assert len(compiled) == 2


def test_a_killed_build_leaves_nothing_in_the_way(source, compiled):
    leftover = native._folder(native._compiler()) / ".build-killed"
    leftover.mkdir(parents=True)
    (leftover / "lock").touch()
    native.build()
    assert not leftover.exists()


def test_two_processes_build_once(source):
    script = f"""
import logging, pathlib
logging.basicConfig(level=logging.INFO)
from ncsn_fast.device import native
native._sources = lambda: [pathlib.Path({str(source)!r})]
assert native.missing() is None
"""
    processes = [
        subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    told = [process.communicate(timeout=_SECONDS)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], told
    assert sum(text.count("built in") for text in told) == 1


@pytest.mark.parametrize("level", ["library", "folder", "cache"])
def test_a_library_that_others_can_change_is_not_loaded(level, source, compiled, library, caplog):
    """A stranger's library in a folder that all may write to, its checksum right."""
    planted = native.build()
    others = {"library": planted, "folder": planted.parent, "cache": native.cache_folder()}[level]
    others.chmod(0o777)
    forget()
    assert not native._intact(planted.parent)
    found = native.build()
    assert len(compiled) == 2
    if level == "library":  # only that file: it is made anew where it was
        assert (found, found.stat().st_mode & 0o777) == (planted, 0o700)
        return
    assert not found.is_relative_to(native.cache_folder())
    assert found.parent.stat().st_mode & 0o777 == 0o700
    told = [record.message for record in caplog.records if "others could change" in record.message]
    assert len(told) == 1
    assert f"{others} may be written to by everybody" in told[0]
    assert native.CACHE in told[0]


def test_a_build_outside_the_cache_goes_with_its_process(source):
    native.cache_folder().mkdir(parents=True, mode=0o700)
    native.cache_folder().chmod(0o777)
    script = f"""
import pathlib
from ncsn_fast.device import native
native._sources = lambda: [pathlib.Path({str(source)!r})]
print(native.build())
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert "others could change" in done.stderr
    built = Path(done.stdout.strip())
    assert built.name == native._LIBRARY
    assert not built.exists()
    assert not built.parent.parent.exists()
    assert list(native.cache_folder().rglob(native._LIBRARY)) == []


def test_where_nothing_is_safe_from_others_the_reason_is_told(source, compiled, monkeypatch):
    monkeypatch.setattr(native, "why_not_private", lambda path: f"{path} is everybody's")
    reason = native.missing()
    assert "others could change their code" in reason
    assert native.CACHE in reason
    assert not compiled


def test_folders_and_libraries_are_for_this_user_alone(source, compiled):
    before = os.umask(0)
    try:
        built = native.build()
    finally:
        os.umask(before)
    for path in (native.cache_folder(), built.parent, built):
        assert path.stat().st_mode & 0o077 == 0, path


def test_a_lock_that_is_a_link_is_not_followed(source, compiled, tmp_path):
    (tmp_path / "precious").write_text("of years", encoding="utf-8")
    folder = native._folder(native._compiler())
    folder.mkdir(parents=True, mode=0o700)
    (folder / ".lock").symlink_to(tmp_path / "precious")
    with pytest.raises(native.NativeError, match="cannot be written"):
        native.build()
    assert (tmp_path / "precious").read_text(encoding="utf-8") == "of years"


@pytest.mark.parametrize("code", ["ENOLCK", "EOPNOTSUPP", "ENOSYS", "EINVAL"])
def test_without_file_locks_a_warning_says_so(code, source, compiled, monkeypatch, caplog):
    fcntl = pytest.importorskip("fcntl")

    def no_locks(file, operation):
        raise OSError(getattr(errno, code), "no locks here")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    other = native._folder(native._compiler()) / ".build-of-another"
    other.mkdir(parents=True, mode=0o700)
    native.build()
    assert [record for record in caplog.records if "has no file locks" in record.message]
    assert other.exists()  # it may be at work


def test_a_lock_that_fails_otherwise_is_told(source, compiled, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def broken(file, operation):
        raise OSError(errno.EIO, "the disk is broken")

    monkeypatch.setattr(fcntl, "flock", broken)
    with pytest.raises(native.NativeError, match="the disk is broken"):
        native.build()


def test_a_module_in_the_current_folder_is_not_run(source, tmp_path, monkeypatch):
    (tmp_path / "json.py").write_text("raise SystemExit('planted')", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert native.build().exists()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_compiler_ends_with_the_process_that_builds(how, source, tmp_path):
    """A compiler that never ends, below ninja, which gives it a process group of its own."""
    pids = tmp_path / "pids"
    compiler = tmp_path / "c++"
    compiler.write_text(
        f"""#!/bin/sh
case " $* " in
  *" -c "*) sleep 3600 & echo $$ $! >> {pids}; wait ;;
  *) exec {shutil.which("c++")} "$@" ;;
esac
""",
        encoding="utf-8",
    )
    compiler.chmod(0o700)
    script = f"""
import pathlib
from ncsn_fast.device import native
native._sources = lambda: [pathlib.Path({str(source)!r})]
native.build()
"""
    environment = {**os.environ, "CXX": str(compiler)}
    process = subprocess.Popen(
        [sys.executable, "-c", script], env=environment, stderr=subprocess.DEVNULL
    )
    wait_until(lambda: pids.exists() and pids.read_text().count("\n"))
    process.send_signal(how)
    process.wait(_SECONDS)
    running = [int(pid) for pid in pids.read_text().split()]
    assert len(running) == 2
    wait_until(lambda: not any(alive(pid) for pid in running))


def wait_until(condition):
    end = time.monotonic() + _SECONDS
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def alive(pid):
    """Whether a process runs; what has ended and was not asked for its end is dead."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not (state.exists() and state.read_text().rpartition(")")[2].split()[0] == "Z")


def test_importing_the_package_builds_nothing(tmp_path):
    script = "import sys, ncsn_fast; assert 'torch.utils.cpp_extension' not in sys.modules"
    environment = {**os.environ, native.CACHE: str(tmp_path / "cache")}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)
    assert not (tmp_path / "cache").exists()


def test_the_cache_is_where_the_user_wants_it(monkeypatch):
    monkeypatch.delenv(native.CACHE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/some/cache")
    assert native.cache_folder() == Path("/some/cache/ncsn_fast/native")
    monkeypatch.setenv(native.CACHE, "/other")
    assert native.cache_folder() == Path("/other/native")
