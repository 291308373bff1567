"""Which forms a prepared network's convolutions run in: as a text to compare, and within bounds."""

from __future__ import annotations

import logging

import pytest
import torch
from helpers.networks import error, network, points
from torch import nn

import ncsn_fast as nf
from ncsn_fast.device import native
from ncsn_fast.inference.forms import forms
from ncsn_fast.inference.prepare import PreparedNetwork, prepare_for_inference
from ncsn_fast.models import conv_forms, packed_conv
from ncsn_fast.models.conv_forms import Geometry
from ncsn_fast.models.packed_conv import PackedConv
from ncsn_fast.ops import conv3x3

SETTINGS = {"step_size": 1e-5, "steps_per_level": 1}
pytestmark = pytest.mark.skipif(
    native.missing() is not None or not torch.backends.mkldnn.is_available(),
    reason="needs the native kernels and oneDNN",
)


def filtered(prepared: PreparedNetwork) -> list[PackedConv]:
    found = [module for module in prepared.network.modules() if isinstance(module, PackedConv)]
    assert all(conv.packed is not None for conv in found)
    return [conv for conv in found if any(conv.packed)]


@torch.no_grad()
def run(net: nf.ScoreNetwork) -> PreparedNetwork:
    prepared = prepare_for_inference(net, "fp32")
    prepared.normalized(torch.rand(1, *net.shape))
    return prepared


def choose(monkeypatch: pytest.MonkeyPatch, odd: Geometry | None = None) -> list[Geometry]:
    """Have all convolutions filtered in tiles of 4, but for one geometry; what was asked for."""
    asked = []

    def tile_of(geometry: Geometry) -> int:
        asked.append(geometry)
        return 2 if geometry == odd else 4

    monkeypatch.setattr(conv_forms, "tile_of", tile_of)
    return asked


def test_forms_are_counted(convolutions: str) -> None:
    prepared = run(network())
    if convolutions == "direct":
        assert forms(prepared.network.modules()) == "direct"
        assert filtered(prepared) == []
    else:
        few, many = (sum(tile in conv.packed for conv in filtered(prepared)) for tile in (2, 4))
        assert many > 60
        assert forms(prepared.network.modules()).startswith(f"F(2×2) {few}, F(4×4) {many} (")


def test_the_text_tells_every_change_of_a_form_and_nothing_else(monkeypatch) -> None:
    asked = choose(monkeypatch)
    expected = forms(run(network()).network.modules())
    geometries = sorted(set(asked))
    assert len(geometries) > 5
    found = {expected}
    for odd in geometries:
        choose(monkeypatch, odd)
        found.add(forms(run(network()).network.modules()))
    assert len(found) == 1 + len(geometries)
    choose(monkeypatch)
    assert forms(run(network(divided=False)).network.modules()) == expected


def test_a_sampler_knows_before_it_samples(convolutions: str, monkeypatch) -> None:
    net = network()
    found = nf.Sampler(net, precision="fp32", **SETTINGS).convolutions
    assert found == forms(run(net).network.modules())
    assert (found == "direct") == (convolutions == "direct")
    monkeypatch.setenv("NCSN_FAST_BACKEND", "torch")
    assert nf.Sampler(net, precision="fp32", **SETTINGS).convolutions == "direct"


def test_a_sampler_knows_that_a_backend_without_them_is_asked_for(convolutions: str) -> None:
    sampler = nf.Sampler(network(), precision="fp32", **SETTINGS)
    found = sampler.convolutions
    with nf.use_backend("torch"):
        assert sampler.convolutions == "direct"
    assert sampler.convolutions == found
    assert (found == "direct") == (convolutions == "direct")


def test_what_has_no_packed_convolutions_is_direct() -> None:
    assert nf.Sampler(points(), **SETTINGS).convolutions == "direct"
    score = nf.Score(lambda x, labels: -x, sigmas=(1.0, 0.1))
    assert nf.Sampler(score, (3, 8, 8), **SETTINGS).convolutions == "direct"


def test_the_log_tells_once_in_which_forms_a_copy_runs(convolutions: str, caplog) -> None:
    with caplog.at_level(logging.INFO, "ncsn_fast"):
        prepared = run(network())
        prepared.normalized(torch.rand(1, 3, 8, 8))
    (told,) = [one.getMessage() for one in caplog.records if "in fp32: conv" in one.getMessage()]
    needed = 0
    for conv in filtered(prepared):
        (form,) = (conv.packed[tile] for tile in conv.packed if tile)
        assert isinstance(form, conv_forms.Filtered)
        needed += form._weight.nbytes
    assert (f"take {needed / 2**20:.1f} MiB" in told) == (convolutions == "F4")
    assert ("MiB" in told) == (needed > 0)
    assert ("F(4×4) " in told) == (convolutions == "F4")
    assert "direct " in told


@pytest.mark.parametrize(("outputs", "inputs"), [(32, 16), (33, 17), (3, 128), (128, 3), (1, 1)])
@pytest.mark.parametrize("tile", conv3x3.TILES)
def test_the_memory_of_transformed_weights_is_known(outputs: int, inputs: int, tile: int) -> None:
    weight = conv3x3.transformed(torch.zeros(outputs, inputs, 3, 3), tile)
    assert conv3x3.transformed_bytes(outputs, inputs, tile) == weight.nbytes


@torch.no_grad()
def test_transformed_weights_take_no_more_than_the_bound(convolutions: str, monkeypatch) -> None:
    if convolutions == "direct":
        pytest.skip("there are none")
    net = network()
    everything = filtered(run(net))
    sizes = [conv.transformed_bytes(conv.largest_tile) for conv in everything]
    bound = sum(sizes) // 3
    monkeypatch.setattr(packed_conv, "MOST_BYTES", bound)
    some = run(net)
    names = [name for name, module in some.network.named_modules() if module in filtered(some)]
    taken = sum(conv.transformed_bytes(conv.largest_tile) for conv in filtered(some))
    assert bound - max(sizes) < taken <= bound
    assert names[0] == "begin_conv"
    again = run(net)
    assert forms(again.network.modules()) == forms(some.network.modules()) != "direct"
    x = torch.rand(2, *net.shape)
    assert error(some.normalized(x), net.normalized(x)) < 1e-5

    monkeypatch.setattr(packed_conv, "MOST_BYTES", 0)
    assert forms(run(net).network.modules()) == "direct"


def test_networks_of_others_tell_what_has_run_within_the_bound(convolutions, monkeypatch, caplog):
    def two() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(*(nn.Conv2d(i, o, 3, padding=1) for i, o in ((3, 24), (24, 3))))

    def told(fn: object) -> str:
        score = nf.Score(lambda x, labels: fn(x), "normalized", "label", (1.0, 0.1))
        sampler = nf.Sampler(score, (3, 8, 8), **SETTINGS)
        sampler(1, seed=0)
        return sampler.convolutions

    caplog.set_level(logging.INFO, "ncsn_fast")
    found = told(two())
    assert found == "direct" if convolutions == "direct" else found.startswith("F(4×4) 2 (")
    assert f"packed convolutions of the network: 2; convolutions {found[:8]}" in caplog.text
    monkeypatch.setattr(packed_conv, "MOST_BYTES", conv3x3.transformed_bytes(24, 3, 4))
    found = told(two())
    assert found == "direct" if convolutions == "direct" else found.startswith("F(4×4) 1 (")
