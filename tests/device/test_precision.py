"""Named precisions: which there are, and what is refused."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from ncsn_fast.device import precision as precisions
from ncsn_fast.device.precision import PRECISIONS, check_precision, has_bf16, network_dtype

CPU = torch.device("cpu")
needs_onednn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this PyTorch has no oneDNN"
)


@needs_onednn
def test_bf16_is_there_where_onednn_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for there in (True, False):
        monkeypatch.setattr(
            torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda there=there: there
        )
        assert has_bf16() is there
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    with torch.backends.mkldnn.flags(enabled=False):
        assert not has_bf16()


def test_known_precisions_are_let_through() -> None:
    for name in ("fp32", "fp16", "bf16"):
        check_precision(name, CPU)
    check_precision("auto", CPU, auto=True)


def test_unknown_precisions_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'int8' is unknown; choose one of \('auto', 'fp32'"):
        check_precision("int8", CPU, auto=True)
    with pytest.raises(ValueError, match=r"'auto' is unknown; choose one of \('fp32'"):
        check_precision("auto", CPU)
    with pytest.raises(ValueError, match="'tf32' is a mode of NVIDIA GPUs"):
        check_precision("tf32", CPU)


def test_weights_of_each_precision() -> None:
    expected = [torch.float32, torch.float32, torch.bfloat16, torch.float16]
    assert [network_dtype(name) for name in PRECISIONS] == expected


# The switches of float32 products.

OPERATIONS = ("all", "conv", "rnn", "matmul")
PLACES = [("generic", "all"), *((b, o) for b in ("cuda", "mkldnn") for o in OPERATIONS)]
needs_switches = pytest.mark.skipif(
    not hasattr(torch._C, "_set_fp32_precision_setter"), reason="a torch without these switches"
)


def put(place: tuple[str, str], value: str) -> None:
    torch._C._set_fp32_precision_setter(*place, value)


def raw_state() -> list[Any]:
    """All switches as they are set, found by taking away what is set above each."""
    found = precisions._products_on_cuda()
    precisions._restore(found)
    return [found.switches, found.matmul, found.cudnn]


def answers() -> list[object]:
    """What a program is told that asks every switch, old and new; or that it is refused."""
    asked = [lambda place=place: torch._C._get_fp32_precision_getter(*place) for place in PLACES]
    asked += [
        lambda: torch.backends.cudnn.allow_tf32,
        lambda: torch.backends.cuda.matmul.allow_tf32,
        torch.get_float32_matmul_precision,
    ]
    told: list[object] = []
    for ask in asked:
        try:
            told.append(ask())
        except RuntimeError:
            told.append("refused")
    return told


def old_ones() -> None:
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = True


def new_ones() -> None:
    put(("cuda", "conv"), "ieee")
    put(("cuda", "matmul"), "tf32")


def both() -> None:
    torch.set_float32_matmul_precision("medium")
    put(("cuda", "conv"), "ieee")
    put(("mkldnn", "conv"), "bf16")


def inherited() -> None:
    put(("generic", "all"), "tf32")
    put(("cuda", "conv"), "none")
    put(("cuda", "all"), "ieee")


@pytest.fixture
def switches():
    """They are put back."""
    before = precisions._products_on_cuda()
    precisions._restore(before)
    yield
    precisions._restore(before)


@needs_switches
@pytest.mark.parametrize("device", ["cuda", "cpu"])
@pytest.mark.parametrize("name", PRECISIONS)
@pytest.mark.parametrize("prepare", [lambda: None, old_ones, new_ones, both, inherited])
def test_inside_every_switch_can_be_asked_and_set_and_afterwards_all_are_as_before(
    prepare, name: str, device: str, switches: None
) -> None:
    prepare()
    state, told = raw_state(), answers()
    with precisions.float32_mode(name, torch.device(device)):
        inside = answers()
        if device == "cuda":
            assert "refused" not in inside
            mode = "tf32" if name == "tf32" else "ieee"
            assert inside[2:5] == [mode] * 3
        else:
            assert inside[6:9] == ["ieee"] * 3
        if device == "cuda" or "refused" not in told:
            with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
                assert not torch.backends.cudnn.allow_tf32
            with torch.backends.mkldnn.flags(enabled=True):
                pass
            assert answers() == inside
    assert raw_state() == state
    assert answers() == told
    with precisions.float32_mode(name, torch.device(device)):
        for set_them in (old_ones, new_ones, both, inherited):
            set_them()
    own = [place for place in PLACES if device == "cuda" or place[0] != "cuda"]
    assert [raw_state()[0][place] for place in own] == [state[0][place] for place in own]
    assert device == "cpu" or raw_state() == state


@needs_switches
def test_threads_that_enter_and_leave_in_any_order_leave_the_switches_as_they_were(
    switches: None,
) -> None:
    cuda, state = torch.device("cuda"), raw_state()
    first = precisions.float32_mode("fp32", cuda)
    with ThreadPoolExecutor(1) as other:
        first.__enter__()
        inside = answers()
        second = precisions.float32_mode("fp16", cuda)
        other.submit(second.__enter__).result()
        with pytest.raises(RuntimeError, match="another thread computes with 'ieee'"):
            other.submit(precisions.float32_mode("tf32", cuda).__enter__).result()
        first.__exit__(None, None, None)
        assert answers() == inside  # the other thread is still in
        other.submit(second.__exit__, None, None, None).result()
    assert raw_state() == state


@needs_switches
def test_a_mode_in_another_of_the_same_thread_ends_with_its_block(switches: None) -> None:
    cuda = torch.device("cuda")
    with precisions.float32_mode("fp32", cuda):
        outer = answers()
        with precisions.float32_mode("tf32", cuda):
            assert torch.backends.cudnn.allow_tf32
        assert answers() == outer
