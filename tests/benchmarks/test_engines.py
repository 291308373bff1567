"""OpenVINO and ONNX Runtime as contestants: they agree, or their rows say why they do not run."""

import sys
from dataclasses import replace

import pytest
import torch
from helpers.benchmarks import CPU, PLAN, TINY

from ncsn_fast.benchmarks.contest import contest
from ncsn_fast.benchmarks.contest.plans import ONNXRUNTIME, OPENVINO, PLANS
from ncsn_fast.benchmarks.contest.rows import Results
from ncsn_fast.benchmarks.contestants import engines, networks
from ncsn_fast.benchmarks.report import tables
from ncsn_fast.benchmarks.suites.sampling import chain_contest, forward_contest

MODULES = {OPENVINO: "openvino", ONNXRUNTIME: "onnxruntime"}


def rows_of(made, name):
    """The rows of one contestant of a contest on the CPU."""
    rivals = [one for one in made.contestants if one.name == name]
    return list(contest.run(replace(made, contestants=rivals), CPU))


def subject(name):
    return replace(TINY, compiled=(name,))


@pytest.mark.slow
@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("suite", ["chain", "forward"])
def test_engines_agree_with_the_published_code(name, suite):
    pytest.importorskip(MODULES[name])
    made = {"chain": chain_contest, "forward": forward_contest}[suite]
    plan = replace(PLAN, rivals_in=("fp32",))
    (row,) = rows_of(made(plan, suite, subject(name), networks.make(TINY, CPU), 2), name)
    assert (row.status, row.message) == ("ok", "")
    assert row.error < 1e-5
    assert "share_of_peak" not in row.figures  # what it multiplies nobody knows
    assert row.figures["flops"] > 0


def test_an_engine_that_is_not_installed_says_what_to_install(monkeypatch):
    for name, module in MODULES.items():
        monkeypatch.setitem(sys.modules, module, None)
        made = chain_contest(PLAN, "chain", subject(name), networks.make(TINY, CPU), 2)
        rows = rows_of(made, name)
        assert {(row.status, row.message) for row in rows} == {
            ("left out", "not installed: pip install ncsn_fast[peers]")
        }
        assert "ncsn_fast[peers]" in tables.problems(Results(rows)).markdown()


def test_what_is_held_to_avx2_is_not_compared_with_avx_512(monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(torch.cpu, "_is_avx512_supported", lambda: True)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    with pytest.raises(contest.Absent, match="no switch that keeps it from AVX-512"):
        engines.onnxruntime(torch.sin, [torch.ones(1)], "fp32")


def test_onnx_runtime_has_no_16_bits():
    pytest.importorskip("onnxruntime")
    with pytest.raises(contest.Absent, match="no convolutions in 16 bits"):
        engines.onnxruntime(torch.sin, [torch.ones(1)], "bf16")


def test_engines_meet_the_networks_of_the_targets():
    for subject in PLANS["cpu", "targets"].compiled:
        assert set(MODULES) < set(subject.compiled)
