"""The layouts of the official code and its relatives: found, refused, never run."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.checkpoints import (
    CONFIG,
    LEVELS,
    SAMPLING,
    assert_same_weights,
    average_of,
    flipped,
    kept,
    network,
    weights_of,
)
from helpers.golden import load_golden
from torch import Tensor

from ncsn_fast.checkpoints.load_save import load_checkpoint
from ncsn_fast.checkpoints.tensor_file import CheckpointError
from ncsn_fast.models.base import ScoreNetwork

V1_YAML = """\
!!python/object:argparse.Namespace
data: !!python/object:argparse.Namespace {channels: 2, image_size: 28, logit_transform: false}
model: !!python/object:argparse.Namespace {ngf: 4, num_classes: 7, sigma_begin: 20, sigma_end: 0.01}
"""


def optimizer_state(net: ScoreNetwork) -> dict[str, Any]:
    parameters = [p.detach().clone() for p in net.parameters()]
    optimizer = torch.optim.Adam(parameters)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return optimizer.state_dict()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("prefix", ["module.", ""])
def test_second_version_with_average(tmp_path: Path, zipped: bool, prefix: str) -> None:
    net, average = network(seed=1), network(seed=2)
    states = [weights_of(net, prefix), optimizer_state(net), 3, 1000, average_of(average)]
    path = tmp_path / "checkpoint_1000.pth"
    torch.save(states, path, _use_new_zipfile_serialization=zipped)
    loaded = load_checkpoint(path, CONFIG)
    assert_same_weights(loaded, average)
    assert_same_weights(load_checkpoint(path, CONFIG, ema=False), net)
    assert loaded.sampling == SAMPLING
    assert loaded.config == {**average.config, "activation": "relu", "rescaled": True}
    assert not loaded.training
    assert loaded.source == "checkpoint_1000.pth: list of 5, averaged (EMA) weights"


def test_weights_are_laid_out_as_those_of_a_new_network(tmp_path: Path) -> None:
    net = network()
    states = weights_of(net.to(memory_format=torch.channels_last))
    assert not all(value.is_contiguous() for value in states.values())
    torch.save([states], tmp_path / "checkpoint.pth")
    loaded = load_checkpoint(tmp_path / "checkpoint.pth", CONFIG)
    assert_same_weights(loaded, net)
    assert all(value.is_contiguous() for value in loaded.state_dict().values())


def test_second_version_without_average(tmp_path: Path) -> None:
    net = network("NCSNv2Deeper")
    path = tmp_path / "checkpoint.pth"
    torch.save([weights_of(net), {"state": {}}, 0, 5], path)
    loaded = load_checkpoint(path, image_size=8)
    assert_same_weights(loaded, net)
    assert loaded.config == net.config
    assert loaded.sampling is None
    assert str(loaded.source).endswith("weights as trained")


def test_average_with_a_prefix_is_found_too(tmp_path: Path) -> None:
    net, average = network(seed=1), network(seed=2)
    prefixed = {f"module.{k}": v for k, v in average_of(average).items()}
    torch.save([weights_of(net), {}, 0, 5, prefixed], tmp_path / "c.pth")
    assert_same_weights(load_checkpoint(tmp_path / "c.pth", image_size=8), average)


@pytest.mark.parametrize("zipped", [True, False])
def test_first_version_with_its_dumped_configuration(tmp_path: Path, zipped: bool) -> None:
    net = network("NCSN", image_size=28)
    path = tmp_path / "checkpoint.pth"
    states = [weights_of(net), {"state": {}}]
    torch.save(states, path, _use_new_zipfile_serialization=zipped)
    (tmp_path / "config.yml").write_text(V1_YAML)
    loaded = load_checkpoint(path, tmp_path / "config.yml")
    assert_same_weights(loaded, net)
    assert loaded.config == net.config
    assert torch.equal(loaded.sigmas, net.sigmas)
    assert loaded.sampling == {
        "method": "annealed_langevin",
        "step_size": 2e-5,
        "steps_per_level": 100,
        "denoise": False,
    }


def test_first_version_without_configuration_needs_the_noise_levels(tmp_path: Path) -> None:
    net = network("NCSN")
    torch.save([weights_of(net), {}], tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match=r"does not hold the noise levels.*sigmas="):
        load_checkpoint(tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match="have 7 noise levels, but 3 are given"):
        load_checkpoint(tmp_path / "c.pth", sigmas=[3.0, 2.0, 1.0])
    loaded = load_checkpoint(tmp_path / "c.pth", sigmas=LEVELS, image_size=8)
    assert_same_weights(loaded, net)


def test_undivided_network_is_recognised(tmp_path: Path) -> None:
    net, average = network(divided=False, seed=1), network(divided=False, seed=2)
    torch.save([weights_of(net), {}, 0, 5, average_of(average)], tmp_path / "c.pth")
    loaded = load_checkpoint(tmp_path / "c.pth", CONFIG)
    assert_same_weights(loaded, average)
    assert loaded.config["divided"] is False
    assert torch.equal(loaded.sigmas, torch.from_numpy(LEVELS))
    with pytest.raises(CheckpointError, match="does not hold the noise levels"):
        load_checkpoint(tmp_path / "c.pth")
    torch.save([weights_of(net), {}, 0, 5, None], tmp_path / "c.pth")
    assert_same_weights(load_checkpoint(tmp_path / "c.pth", CONFIG), net)


def test_average_saved_alone_can_be_called_divided(tmp_path: Path) -> None:
    net = network()
    torch.save(average_of(net), tmp_path / "ema.pth")
    loaded = load_checkpoint(tmp_path / "ema.pth", sigmas=LEVELS, divided=True, image_size=8)
    assert_same_weights(loaded, net)


@pytest.mark.parametrize("name", ["NCSN", "NCSNv2", "NCSNv2Deeper", "NCSNv2Deepest"])
def test_bare_weights_tell_the_network(tmp_path: Path, name: str) -> None:
    net = network(name, channels=3, ngf=2, image_size=16)
    torch.save(net.state_dict(), tmp_path / "weights.pth")
    known = {"sigmas": LEVELS} if name == "NCSN" else {}
    loaded = load_checkpoint(tmp_path / "weights.pth", image_size=16, **known)
    assert_same_weights(loaded, net)
    assert loaded.config == net.config


def test_weights_under_a_name_and_of_a_compiled_network(tmp_path: Path) -> None:
    net = network()
    states = {"model_state": weights_of(net, "_orig_mod."), "train_loss": [1.0]}
    torch.save(states, tmp_path / "c.pt")
    assert_same_weights(load_checkpoint(tmp_path / "c.pt", image_size=8), net)


def test_bare_safetensors_file_of_others(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    net = network()
    save_file(net.state_dict(), tmp_path / "w.safetensors")
    assert_same_weights(load_checkpoint(tmp_path / "w.safetensors", image_size=8), net)


def test_loaded_network_computes_the_official_scores(tmp_path: Path) -> None:
    golden = load_golden("ncsnv2_32")
    weights = {f"module.{k}": v for k, v in golden.state_dict().items()}
    torch.save([weights, {}, 0, 1], tmp_path / "c.pth")
    net = load_checkpoint(tmp_path / "c.pth", image_size=32)
    official = torch.from_numpy(golden.values["score"])
    with torch.no_grad():
        error = (net(golden.x, golden.labels) - official).norm() / official.norm()
    assert error < 1e-5


# Weights that are refused.


def _without(*names: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda weights: {k: v for k, v in weights.items() if not k.endswith(names)}


def _renamed(old: str, new: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda weights: {k.replace(old, new): v for k, v in weights.items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_renamed("weight", "weight_orig"), "spectrally normalised"),
        (_without("alpha", "gamma", "beta"), "another normalisation"),
        (_without("gamma", "beta"), "another normalisation"),
        (_renamed("res4.0.conv2", "res4.0.conv2.conv"), "without dilations"),
        (_without("end_conv.bias"), "end_conv.bias missing, none unexpected"),
        (_renamed("end_conv", "last"), "last.weight, last.bias unexpected"),
        (_renamed("begin_conv", "first"), "do not belong to a network of the NCSN family"),
        (lambda w: {**w, "end_conv.bias": torch.zeros(5)}, "do not fit NCSNv2.*end_conv.bias"),
        (lambda w: {**w, "sigmas": torch.ones(7)}, "levels descend"),
    ],
)
def test_weights_of_other_networks_are_refused(
    tmp_path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]], message: str
) -> None:
    torch.save([change(dict(network().state_dict())), {}], tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match=f"(?s){message}"):
        load_checkpoint(tmp_path / "c.pth")


def test_deeper_network_of_the_first_version_is_refused(tmp_path: Path) -> None:
    weights = network("NCSN").state_dict()
    weights["res5.0.conv1.weight"] = torch.zeros(1)
    torch.save([weights, {}], tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match="NCSNdeeper"):
        load_checkpoint(tmp_path / "c.pth", sigmas=LEVELS)


@pytest.mark.parametrize(
    ("data", "found"),
    [
        ({"epoch": 3, "net": 4}, r"a dict of 2 entries \('epoch': int, 'net': int\)"),
        ([1, "x"], r"a list of 2 entries \(int, str\)"),
        (torch.zeros(3), "a Tensor"),
        ({}, "a dict of 0 entries"),
    ],
)
def test_unknown_layout_is_described_with_the_known_ones(
    tmp_path: Path, data: Any, found: str
) -> None:
    torch.save(data, tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match=rf"(?s)Found: {found}.*Known layouts:.*\[model, opt"):
        load_checkpoint(tmp_path / "c.pth")


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_configuration_is_refused_with_a_way_out(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "final_model.pt"
    states = {"model_state": network().state_dict(), "config": argparse.Namespace(ngf=4)}
    torch.save(states, path, _use_new_zipfile_serialization=zipped)
    message = r"(?s)pickled Python object \(argparse.Namespace\).*weights_only=False.*model_state"
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(path)


class _Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_is_not_run(tmp_path: Path, zipped: bool) -> None:
    path, trace = tmp_path / "c.pth", tmp_path / "executed"
    states = [network().state_dict(), _Malicious(trace)]
    torch.save(states, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match="refused"):
        load_checkpoint(path)
    assert not trace.exists()


# Damage.


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("damage", [kept(0), kept(0.01), kept(0.5), kept(0.99)])
def test_truncated_official_file_is_refused(
    tmp_path: Path, zipped: bool, damage: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / "c.pth"
    torch.save([weights_of(network()), {}], path, _use_new_zipfile_serialization=zipped)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError, match="is damaged, incomplete or not a PyTorch"):
        load_checkpoint(path)


def test_altered_official_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.pth"
    torch.save([weights_of(network()), {}], path)
    path.write_bytes(flipped(0.5)(path.read_bytes()))
    with pytest.raises(CheckpointError, match="checksum of its part"):
        load_checkpoint(path)


def test_official_file_saved_without_checksums_is_read(tmp_path: Path) -> None:
    net = network()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save([weights_of(net), {}], tmp_path / "c.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert_same_weights(load_checkpoint(tmp_path / "c.pth", image_size=8), net)


def test_a_file_without_checksums_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    states = [weights_of(network()), {}]
    torch.save(states, tmp_path / "new.pth")
    load_checkpoint(tmp_path / "new.pth", image_size=8)
    assert caplog.messages == []
    torch.save(states, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(states, tmp_path / "fast.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    for name in ("old.pth", "fast.pth", "old.pth", "fast.pth"):
        load_checkpoint(tmp_path / name, image_size=8)
    assert len(caplog.messages) == 2
    assert all("damage to its weights cannot be noticed" in told for told in caplog.messages)
