"""The forms of a convolution, and how one of them is chosen."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from helpers.networks import error
from torch import nn

import ncsn_fast as nf
from ncsn_fast.device import measured, native
from ncsn_fast.models import conv_forms
from ncsn_fast.models.conv_forms import DIRECT, Geometry, form_of, pooled_kernel, tile_of
from ncsn_fast.models.packed_conv import PackedConv

GEOMETRY = Geometry((24, 40), (8, 8), (1, 1), (1, 1), pooled=False, largest=4)
pytestmark = pytest.mark.skipif(
    native.missing() is not None or not torch.backends.mkldnn.is_available(),
    reason="needs the native kernels and oneDNN",
)


@pytest.fixture(autouse=True)
def nothing_decided():
    measured.forget()
    measured.cache_file().unlink(missing_ok=True)


def take(monkeypatch: pytest.MonkeyPatch, *times: float) -> list[Geometry]:
    """The times that are measured of the forms, in the order of their errors."""
    asked = []

    def found(forms: dict[int, object], x: torch.Tensor) -> dict[int, float]:
        asked.append(tuple(x.shape))
        return dict(zip(forms, times, strict=True))

    monkeypatch.setattr(conv_forms, "_times", found)
    return asked


@pytest.mark.parametrize(
    ("times", "tile"),
    [
        ((1.0, 0.9, 0.8), 4),
        ((1.0, 0.9, 0.87), 2),  # hardly faster, and rounds more
        ((1.0, 0.97, 0.96), DIRECT),
        ((1.0, 2.0, 0.5), 4),
        ((1.0, 1.0, 1.0), DIRECT),
    ],
)
def test_who_rounds_more_has_to_be_faster(monkeypatch, times, tile):
    take(monkeypatch, *times)
    assert tile_of(GEOMETRY) == tile


def test_a_choice_is_made_once(monkeypatch):
    asked = take(monkeypatch, 1.0, 0.5, 0.2)
    assert [tile_of(GEOMETRY) for _ in range(3)] == [4, 4, 4]
    take(monkeypatch, 1.0, 2.0, 2.0)
    measured.forget()  # as another process finds it
    assert tile_of(GEOMETRY) == 4
    assert len(asked) == 1
    assert measured.decisions("convolution") == {"24→40, 8×8, padding 1×1, dilation 1×1": 4}


def test_tiles_may_be_limited(monkeypatch):
    limited = GEOMETRY._replace(largest=2)
    take(monkeypatch, 1.0, 0.5)  # of two forms
    assert tile_of(limited) == 2
    take(monkeypatch, 1.0, 0.5, 0.2)
    assert tile_of(GEOMETRY) == 4
    monkeypatch.setenv("NCSN_FAST_CONV", "F4")
    assert tile_of(limited) == 2


def test_large_images_are_measured_in_part(monkeypatch):
    asked = take(monkeypatch, 1.0, 0.5, 0.2)
    for sides in ((256, 300), (512, 64), (64, 64)):
        tile_of(GEOMETRY._replace(sides=sides))
    assert asked == [(1, 24, 64, 64)]


def test_a_form_that_is_not_exact_enough_is_never_taken(monkeypatch):
    filtered = conv_forms.Filtered.__call__

    def spoilt(self, x, *others, **wanted):
        results = filtered(self, x, *others, **wanted)
        return [y * (1 + 1e-5) for y in results] if self._settings["tile"] == 4 else results

    monkeypatch.setattr(conv_forms.Filtered, "__call__", spoilt)
    take(monkeypatch, 1.0, 0.5)  # of two
    assert tile_of(GEOMETRY) == 2


@torch.inference_mode()
def test_times_are_of_the_forms_and_leave_the_threads():
    torch.set_num_threads(2)
    try:
        forms, x = conv_forms._forms(GEOMETRY)
        times = conv_forms._times(forms, x)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert list(times) == [DIRECT, 2, 4]
    assert all(0 < seconds < math.inf for seconds in times.values())


def test_the_global_generator_is_left_alone():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    tile_of(GEOMETRY)
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize(("asked", "tile"), [("direct", 0), ("F2", 2), ("F4", 4)])
def test_the_environment_may_ask_for_a_form(monkeypatch, asked, tile):
    monkeypatch.setenv("NCSN_FAST_CONV", asked)
    conv = PackedConv(8, 8, 3, padding=1)
    conv.pack()
    conv(torch.zeros(1, 8, 6, 6))
    assert list(conv.packed) == [tile]


def test_an_unknown_form_is_refused(monkeypatch):
    monkeypatch.setenv("NCSN_FAST_CONV", "f8")
    with pytest.raises(ValueError, match="NCSN_FAST_CONV = 'f8' is unknown; choose one of"):
        tile_of(GEOMETRY)


def test_the_specification_is_no_native_kernel(monkeypatch):
    monkeypatch.setenv("NCSN_FAST_CONV", "F4")
    conv, x = PackedConv(8, 8, 3, padding=1), torch.randn(2, 8, 6, 6)
    conv.pack()
    with nf.use_backend("torch"):
        conv(x)
    assert list(conv.packed) == [DIRECT]


@pytest.mark.parametrize("settings", [{"stride": 2}, {"groups": 2}, {"padding": "same"}])
def test_other_convolutions_are_direct(monkeypatch, settings):
    monkeypatch.setenv("NCSN_FAST_CONV", "F4")
    conv = PackedConv(8, 8, 3, **settings)
    assert conv.tile(6, 6) == DIRECT
    assert PackedConv(8, 8, 1).tile(6, 6) == DIRECT
    assert PackedConv(8, 8, 3).bfloat16().tile(6, 6) == DIRECT


def test_pooled_kernel_is_the_convolution_and_the_mean():
    x, weight = torch.randn(2, 3, 6, 8), torch.randn(5, 3, 3, 3)
    expected = F.avg_pool2d(F.conv2d(x.double(), weight.double(), padding=1), 2)
    found = F.conv2d(x.double(), pooled_kernel(weight).double(), stride=2, padding=1)
    assert error(found, expected) < 1e-6


@torch.no_grad()
@pytest.mark.parametrize("sides", [(8, 8), (9, 14), (2, 3)])
def test_all_forms_of_a_pooled_convolution_are_one(sides):
    torch.manual_seed(0)
    conv = PackedConv(24, 40, 3, padding=1)
    conv.pooled = True
    x = torch.randn(3, 24, *sides).contiguous(memory_format=torch.channels_last)
    exact = F.avg_pool2d(
        F.conv2d(x.double(), conv.weight.double(), conv.bias.double(), padding=1), 2
    )
    residual = torch.randn(exact.shape).contiguous(memory_format=torch.channels_last)
    assert error(conv(x), exact) < 5e-6
    for tile in (DIRECT, 2, 4):
        form = form_of(conv, tile, pooled=True)
        assert error(form(x)[0], exact) < 5e-6
        assert error(form(x, residual)[0], exact + residual) < 5e-6


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), [(9, 14), (3, 5), (1, 1)])
@pytest.mark.parametrize("activation", [None, "elu", "swish"])
def test_all_forms_are_one_convolution(height, width, activation):
    torch.manual_seed(0)
    conv = nn.Conv2d(24, 40, 3, padding=2, dilation=2)
    x, residual = torch.randn(3, 24, height, width), torch.randn(3, 40, height, width)
    x, residual = (t.contiguous(memory_format=torch.channels_last) for t in (x, residual))
    exact = conv.double()(x.double())
    conv.float()
    forms = [form_of(conv, tile) for tile in (DIRECT, 2, 4)]
    for form, added, total in itertools.product(forms, (None, residual), (True, False)):
        results = form(x, added, activation=activation, total=total)
        expected = exact if added is None else exact + added
        if total or activation is None:
            assert error(results.pop(0), expected) < 5e-6
        if activation is not None:
            act = {"elu": nn.functional.elu, "swish": nn.functional.silu}[activation]
            assert error(results.pop(0), act(expected)) < 5e-6
        assert results == []
