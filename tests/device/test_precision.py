"""Named precisions: what "auto" is, and what is refused."""

from __future__ import annotations

import pytest
import torch

from ncsn_fast.device import precision as precisions
from ncsn_fast.device.precision import PRECISIONS, automatic, has_bf16, network_dtype, resolve

CPU = torch.device("cpu")
needs_onednn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this PyTorch has no oneDNN"
)


@pytest.mark.parametrize(("fast", "expected"), [(True, "bf16"), (False, "fp32")])
def test_auto_is_16_bits_on_gpus_and_on_cpus_that_multiply_them(
    fast: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precisions, "has_bf16", lambda: fast)
    assert resolve("auto", torch.device("cuda", 0)) == "fp16"
    assert resolve("auto", CPU) == expected
    assert resolve("auto", torch.device("mps")) == "fp32"


@needs_onednn
@pytest.mark.parametrize("amx", [True, False])
def test_a_cpu_has_bf16_with_amx_and_not_with_avx512_alone(
    amx: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    assert has_bf16() is amx
    expected = ("bf16", "this CPU has AMX, which multiplies bfloat16")
    slower = ("fp32", "bfloat16 is slower on a CPU without AMX")
    assert automatic(CPU) == (expected if amx else slower)


def test_a_cpu_without_onednn_has_no_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True, raising=False)
    with torch.backends.mkldnn.flags(enabled=False):
        assert not has_bf16()
        assert automatic(CPU)[0] == "fp32"
        assert "oneDNN" in automatic(CPU)[1]


def test_a_named_precision_is_itself() -> None:
    for name in ("fp32", "fp16", "bf16"):
        assert resolve(name, CPU) == name


def test_unknown_precisions_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'int8' is unknown; choose one of \('auto', 'fp32'"):
        resolve("int8", CPU)
    with pytest.raises(ValueError, match="'tf32' is a mode of NVIDIA GPUs"):
        resolve("tf32", CPU)


def test_weights_of_each_precision() -> None:
    expected = [torch.float32, torch.float32, torch.bfloat16, torch.float16]
    assert [network_dtype(name) for name in PRECISIONS] == expected
