"""The doctor and the kernels of the CPU."""

import functools
from pathlib import Path

import pytest
from helpers.command import invoke

from ncsn_fast.device import backends, measured, native
from ncsn_fast.device.precision import has_bf16
from ncsn_fast.runs import doctor


@pytest.fixture
def built(monkeypatch):
    """What native.build() was asked for."""
    asked = []

    def build(again=False):
        asked.append(again)
        return Path("/cache/library.so")

    monkeypatch.setattr(native, "build", build)
    monkeypatch.setattr(doctor, "environment", list)
    monkeypatch.setattr(doctor, "self_test", list)
    return asked


def test_the_kernels_are_built_ahead_where_that_is_asked_for(built):
    result = invoke("doctor", "--build")
    assert result.exit_code == 0
    assert "built /cache/library.so in 0 s" in result.output
    assert built == [True]


def test_without_a_wish_nothing_is_built_again(built):
    assert invoke("doctor").exit_code == 0
    assert not built


def test_a_build_that_fails_is_one_clear_line(built, monkeypatch):
    def fail(again):
        raise native.NativeError("there is no ninja to build them with: pip install ninja")

    monkeypatch.setattr(native, "build", fail)
    result = invoke("doctor", "--build")
    assert result.exit_code == 1
    assert result.output == "Error: there is no ninja to build them with: pip install ninja\n"


def findings(list_of_findings):
    return {finding.name: finding for finding in list_of_findings}


def test_kernels_of_the_cpu_are_reported_and_checked():
    if reason := native.missing():
        pytest.skip(reason)
    found = findings(doctor.environment())
    capability = native.ops().capability("")[0]
    assert found["backend on cpu"].value == "cpp (the fastest on cpu)"
    assert found["CPU kernels"].value == f"{capability} code, kept in {native.cache_folder()}"
    kernels = findings(doctor.self_test())["kernels"]
    assert kernels.good
    assert "cpp agrees with the specification" in kernels.value


def test_a_form_that_there_is_not_is_no_fault_of_the_backend(monkeypatch):
    if not has_bf16():
        pytest.skip("nothing is measured")
    monkeypatch.setenv("NCSN_FAST_CONV", "F3")
    found = doctor.environment()
    (backend,) = [one for one in found if one.name == "backend on cpu"]
    (precision,) = [one for one in found if one.name == "precision on cpu"]
    assert backend.good is not False
    assert precision.good is False
    assert "NCSN_FAST_CONV = 'F3' is unknown" in precision.value


def test_kernels_that_are_wrong_are_found(monkeypatch):
    if reason := native.missing():
        pytest.skip(reason)
    monkeypatch.setattr(doctor, "_loss", lambda x, backend, which: [x + (backend == "cpp")])
    kernels = findings(doctor.self_test())["kernels"]
    assert kernels.good is False
    assert "cpp and specification differ by 1 on cpu" in kernels.value


def test_without_kernels_the_doctor_says_why_and_is_content(monkeypatch):
    monkeypatch.setattr(native, "missing", functools.cache(lambda: "there is no ninja"))
    backends.missing.cache_clear()
    try:
        found, checks = findings(doctor.environment()), findings(doctor.self_test())
    finally:
        backends.missing.cache_clear()
    assert found["backend on cpu"].value == "torch (cpp is not available: there is no ninja)"
    assert "CPU kernels" not in found
    assert checks["kernels"].good is None


def test_what_was_measured_is_counted_and_can_be_measured_anew(tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    cache.mkdir(mode=0o700)
    (cache / "native").symlink_to(native.cache_folder())
    monkeypatch.setenv(native.CACHE, str(cache))
    measured.forget()
    for key, tile in (("a", 0), ("b", 4), ("c", 4)):
        measured.decided("convolution", key, lambda tile=tile: tile)
    measured.decided("weight_gradient", "a", lambda: 2)
    try:
        told = doctor._measured()
    finally:
        measured.forget()
    assert "geometries of convolutions: direct 1, F(2×2) 0, F(4×4) 2; " in told
    assert "gradients of weights: direct 0, F(2×2) 1, F(4×4) 0; precisions of networks: 0;" in told
    file = cache / "measured" / "decisions.json"
    assert file.exists()
    assert told.endswith(f"remove {file} to have all measured anew")
