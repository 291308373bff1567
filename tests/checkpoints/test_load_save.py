"""Checkpoints: what settings a network gets, our own files, writing them safely."""

from __future__ import annotations

import argparse
import json
import os
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.checkpoints import CONFIG, LEVELS, SAMPLING, assert_same_weights, network

from ncsn_fast.checkpoints.load_save import load_checkpoint, save_checkpoint
from ncsn_fast.checkpoints.tensor_file import CheckpointError, read_tensors, write_tensors
from ncsn_fast.models.base import ScoreNetwork
from ncsn_fast.models.mlp import MLPScore
from ncsn_fast.sampling.sampler import Sampler


def changed(section: str, **values: Any) -> dict[str, Any]:
    return {**CONFIG, section: {**CONFIG[section], **values}}


# Settings.


def test_settings_of_the_call_come_before_the_configuration(tmp_path: Path) -> None:
    torch.save(network().state_dict(), tmp_path / "c.pth")
    net = load_checkpoint(
        tmp_path / "c.pth", CONFIG, image_size=16, activation="swish", denoise=False, step_size=1e-6
    )
    assert net.shape == (2, 16, 16)
    assert net.config["activation"] == "swish"
    assert net.sampling == {**SAMPLING, "step_size": 1e-6, "denoise": False}


def test_without_any_configuration_the_published_choices_hold(tmp_path: Path) -> None:
    torch.save(network().state_dict(), tmp_path / "c.pth")
    net = load_checkpoint(tmp_path / "c.pth", step_size=1e-6, image_size=8)
    assert net.config == network().config
    assert net.sampling == {"method": "annealed_langevin", "step_size": 1e-6}
    assert "ELU and data in [0, 1] assumed, weights as trained" in str(net.source)
    net = load_checkpoint(tmp_path / "c.pth", image_size=8, activation="relu", rescaled=True)
    assert "assumed" not in str(net.source)


def test_a_file_that_does_not_tell_the_image_size_is_refused_at_once(tmp_path: Path) -> None:
    torch.save([network().state_dict(), {}, 0, 5], tmp_path / "c.pth")
    message = r"c\.pth: .*images of which size.* config= \(--config.* image_size=32"
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path / "c.pth")


def test_configuration_may_leave_the_noise_levels_to_the_weights(tmp_path: Path) -> None:
    torch.save(network().state_dict(), tmp_path / "c.pth")
    config = {"data": CONFIG["data"], "model": {"ngf": 4, "nonlinearity": "elu"}}
    net = load_checkpoint(tmp_path / "c.pth", config)
    assert torch.equal(net.sigmas, torch.from_numpy(LEVELS))
    assert net.sampling is None


@pytest.mark.parametrize(
    ("config", "overrides", "message"),
    [
        (changed("model", ngf=128), {}, r"ngf \(width\) of the weights is 4, .* says 128"),
        (changed("data", channels=3), {}, "channels of the weights is 2, .* says 3"),
        (changed("model", num_classes=10), {}, "noise levels of the weights is 7, .* says 10"),
        (changed("model", sigma_begin=50), {}, "run from 20 to 0.01, .* says 50 to 0.01"),
        (changed("model", normalization="BatchNorm"), {}, "normalization 'BatchNorm'"),
        (CONFIG, {"ngf": 8}, r"ngf \(width\) of the weights is 4, but the call says 8"),
        (CONFIG, {"sigmas": LEVELS}, "holds its own noise levels"),
        (CONFIG, {"activation": "gelu"}, "unknown activation 'gelu'"),
        (CONFIG, {"image_size": 5}, "multiple of 2"),
        ({"model": {}}, {}, "no section 'data'"),
    ],
)
def test_settings_that_contradict_the_weights_are_refused(
    tmp_path: Path, config: Mapping[str, Any], overrides: dict[str, Any], message: str
) -> None:
    torch.save(network().state_dict(), tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(tmp_path / "c.pth", config, **overrides)
    assert "c.pth" in str(caught.value)


def test_unknown_setting_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"does not know size: it takes image_size"):
        load_checkpoint(tmp_path / "c.pth", size=3)


def test_first_version_cannot_be_undivided(tmp_path: Path) -> None:
    torch.save(network("NCSN").state_dict(), tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match="this is NCSN"):
        load_checkpoint(tmp_path / "c.pth", sigmas=LEVELS, divided=False)


def test_missing_file_and_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no checkpoint .*absent\.pth"):
        load_checkpoint(tmp_path / "absent.pth")
    with pytest.raises(CheckpointError, match="is a folder"):
        load_checkpoint(tmp_path)


# Our own files.


@pytest.mark.parametrize(
    "net",
    [
        network("NCSN", image_size=28),
        network("NCSNv2", activation="swish", rescaled=True),
        network("NCSNv2", divided=False),
        network("NCSNv2Deepest", image_size=[16, 32], logit_transform=True),
        network("NCSNv2").to(torch.bfloat16),
        MLPScore(dim=3, hidden=8, layers=2, sigmas=LEVELS),
    ],
    ids=["v1", "v2", "undivided", "deepest", "bfloat16", "points"],
)
def test_network_comes_back_bit_for_bit(tmp_path: Path, net: ScoreNetwork) -> None:
    net.sampling = dict(SAMPLING)
    loaded = load_checkpoint(save_checkpoint(net, tmp_path / "net"))
    assert_same_weights(loaded, net)
    assert torch.equal(loaded.sigmas, net.sigmas)
    assert loaded.config == net.config
    assert loaded.sampling == net.sampling
    assert loaded.state_dict().keys() == net.state_dict().keys()
    assert {p.dtype for p in loaded.parameters()} == {p.dtype for p in net.parameters()}
    assert not loaded.training
    x = torch.rand(2, *net.shape, dtype=next(net.parameters()).dtype)
    labels = torch.tensor([0, 6])
    assert torch.equal(loaded(x, labels), net(x, labels))


def test_how_to_sample_is_a_choice_and_what_the_network_is_is_none(tmp_path: Path) -> None:
    net = network()
    net.sampling = dict(SAMPLING)
    path = save_checkpoint(net, tmp_path / "net")
    loaded = load_checkpoint(path, steps_per_level=2)
    assert loaded.sampling == {**SAMPLING, "steps_per_level": 2}
    with pytest.raises(CheckpointError, match="channels of the weights is 2"):
        load_checkpoint(path, channels=3)
    # What agrees is no contradiction, in whatever form.
    same = {"image_size": [8, 8], "activation": "ELU", "rescaled": False, "divided": True}
    assert load_checkpoint(path, **same).config == net.config


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("image_size", 16),
        ("image_size", [8, 16]),
        ("activation", "swish"),
        ("rescaled", True),
        ("logit_transform", True),
        ("divided", False),
    ],
)
def test_settings_that_contradict_our_own_header_are_refused(
    tmp_path: Path, setting: str, value: Any
) -> None:
    path = save_checkpoint(network(), tmp_path / "net")
    message = rf"net\.safetensors: .* has {setting} .*, but the call says .*: leave it out"
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(path, **{setting: value})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (changed("data", image_size=16), "image_size 8, but the configuration says 16"),
        (changed("data", rescaled=True), "rescaled False, but the configuration says True"),
        (changed("model", nonlinearity="swish"), "activation 'elu', but .* says 'swish'"),
        (changed("model", ngf=8), r"ngf \(width\) of the weights is 4"),
        (changed("model", sigma_end=0.1), "noise levels of the weights run from 20 to 0.01"),
    ],
)
def test_a_configuration_that_contradicts_our_own_header_is_refused(
    tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    config["data"] = {**CONFIG["data"], "rescaled": False, **config["data"]}
    if message.startswith("rescaled"):
        config["data"]["rescaled"] = True
    elif "rescaled" in config["data"]:
        config["data"]["rescaled"] = False
    config["model"] = {**config["model"]}
    if not message.startswith("activation"):
        config["model"]["nonlinearity"] = "elu"
    path = save_checkpoint(network(), tmp_path / "net")
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(path, config)


def test_another_size_is_sampled_at_by_its_shape(tmp_path: Path) -> None:
    net = load_checkpoint(save_checkpoint(network(), tmp_path / "net"))
    sampler = Sampler(net, shape=(2, 16, 12), method="euler", steps=2)
    assert sampler(1, seed=0).shape == (1, 2, 16, 12)


def test_a_size_that_our_own_header_does_not_know_can_be_told(tmp_path: Path) -> None:
    path = save_checkpoint(network(image_size=None), tmp_path / "net")
    assert load_checkpoint(path, image_size=8).shape == (2, 8, 8)


def test_what_the_call_replaces_of_the_configuration_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.save(network().state_dict(), tmp_path / "c.pth")
    load_checkpoint(tmp_path / "c.pth", CONFIG, image_size=8)
    assert caplog.messages == []
    load_checkpoint(tmp_path / "c.pth", CONFIG, image_size=16, activation="swish")
    assert "image_size 8 by 16, activation 'relu' by 'swish'" in caplog.text


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"rescaled": "no"}, "rescaled of the call is 'no', where true or false"),
        ({"activation": ["elu"]}, "activation of the call"),
        ({"image_size": "8"}, "image_size of the call"),
        ({"image_size": 1 << 40}, "image_size of the call"),
        ({"step_size": -1.0}, "step_size of the call is -1.0, where a positive number"),
        ({"steps_per_level": 2.5}, "steps_per_level of the call"),
        ({"denoise": 1}, "denoise of the call"),
        ({"method": 3}, "method of the call"),
        ({"rescaled": True, "logit_transform": True}, "exclude each other"),
        ({"sigmas": "abc"}, "sigmas|levels"),
    ],
)
def test_settings_of_another_kind_are_refused(
    tmp_path: Path, override: dict[str, Any], message: str
) -> None:
    torch.save(network(divided=False).state_dict(), tmp_path / "c.pth")
    known = {"image_size": 8, "sigmas": LEVELS, **override}
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path / "c.pth", **known)


# Configurations that are no files.


def as_objects(value: Any) -> Any:
    if isinstance(value, dict):
        return argparse.Namespace(**{key: as_objects(one) for key, one in value.items()})
    return value


class EasyDict(dict):  # type: ignore[type-arg]
    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        raise AttributeError(name)


@pytest.mark.parametrize(
    "config",
    [
        as_objects(CONFIG),
        {name: argparse.Namespace(**values) for name, values in CONFIG.items()},
        types.SimpleNamespace(**{k: types.SimpleNamespace(**v) for k, v in CONFIG.items()}),
        EasyDict({name: EasyDict(values) for name, values in CONFIG.items()}),
        types.MappingProxyType(CONFIG),
        types.SimpleNamespace(_fields=CONFIG),
        as_objects({**CONFIG, "device": torch.device("cpu"), "seed": np.int64(3)}),
        as_objects({**CONFIG, "model": {**CONFIG["model"], "ngf": np.int64(4)}}),
    ],
)
def test_a_configuration_may_be_an_object(tmp_path: Path, config: Any) -> None:
    torch.save(network().state_dict(), tmp_path / "c.pth")
    told = load_checkpoint(tmp_path / "c.pth", config)
    assert told.config == load_checkpoint(tmp_path / "c.pth", CONFIG).config
    assert told.sampling == SAMPLING


@pytest.mark.parametrize("config", [3, 2.5, True, [CONFIG], b"x.yml", object(), torch.zeros(3), ""])
def test_a_configuration_of_another_type_is_refused(tmp_path: Path, config: Any) -> None:
    torch.save(network().state_dict(), tmp_path / "c.pth")
    with pytest.raises(
        (ValueError, FileNotFoundError), match=r"config is of type|section|no conf|no file"
    ):
        load_checkpoint(tmp_path / "c.pth", config)


def test_a_configuration_within_itself_is_refused(tmp_path: Path) -> None:
    config: dict[str, Any] = {"data": {}, "model": {}}
    config["data"]["again"] = config
    with pytest.raises(ValueError, match="nested more than"):
        load_checkpoint(tmp_path / "c.pth", config)


def test_settings_of_our_runs_are_no_configuration(tmp_path: Path) -> None:
    (tmp_path / "run.yml").write_text("ngf: 4\nsteps: 3\n")
    with pytest.raises(
        ValueError, match=r"run\.yml has no section data: or model:.*ncsn_fast needs"
    ):
        load_checkpoint(save_checkpoint(network(), tmp_path / "net"), tmp_path / "run.yml")


def test_a_configuration_within_another_is_pointed_at(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="section 'langevin_config' has them"):
        load_checkpoint(tmp_path / "c.pth", {"R": 4, "langevin_config": CONFIG})


@pytest.mark.parametrize("path", [3, b"c.pth", None, ["c.pth"]])
def test_a_path_is_a_str_or_a_path(path: Any) -> None:
    with pytest.raises(ValueError, match="given by its path"):
        load_checkpoint(path)


def test_suffix_is_added_and_a_readable_copy_is_written(tmp_path: Path) -> None:
    net = network()
    path = save_checkpoint(net, tmp_path / "net.v1", extra={"steps": 300})
    assert path == tmp_path / "net.v1.safetensors"
    readable = json.loads((tmp_path / "net.v1.json").read_text(encoding="utf-8"))
    assert readable["config"] == net.config
    assert readable["extra"] == {"steps": 300}
    assert readable["sigmas"] == net.sigmas.tolist()
    assert readable["parameters"] == sum(p.numel() for p in net.parameters())
    assert readable["sha256"] == read_tensors(path)[1]["sha256"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.v1.json", "net.v1.safetensors"]


def test_readable_copy_is_not_needed(tmp_path: Path) -> None:
    net = network()
    path = save_checkpoint(net, tmp_path / "net.safetensors")
    path.with_suffix(".json").unlink()
    assert_same_weights(load_checkpoint(path), net)


def test_training_checkpoint_gives_the_average(tmp_path: Path) -> None:
    for name in ("NCSN", "NCSNv2"):
        net, average = network(name, seed=1), network(name, seed=2)
        tensors = {f"model.{k}": v for k, v in net.state_dict().items()}
        tensors |= {f"optimizer.step.{k}": torch.tensor(3.0) for k in net.state_dict()}
        tensors["sigmas"] = net.sigmas
        metadata = {"kind": "training", "config": net.config, "sampling": SAMPLING, "step": 3}
        write_tensors(tmp_path / "c.safetensors", tensors, metadata)
        assert_same_weights(load_checkpoint(tmp_path / "c.safetensors"), net)
        tensors |= {f"ema.{k}": v for k, v in average.named_parameters()}
        write_tensors(tmp_path / "c.safetensors", tensors, metadata)
        loaded = load_checkpoint(tmp_path / "c.safetensors")
        assert_same_weights(loaded, average)
        assert loaded.sampling == SAMPLING
        assert torch.equal(loaded.sigmas, net.sigmas)
        assert_same_weights(load_checkpoint(tmp_path / "c.safetensors", ema=False), net)


def test_other_files_of_ours_are_not_taken_for_networks(tmp_path: Path) -> None:
    write_tensors(tmp_path / "f.safetensors", {"x": torch.zeros(1)}, {"kind": "features"})
    with pytest.raises(CheckpointError, match="holds features, not a network"):
        load_checkpoint(tmp_path / "f.safetensors")
    write_tensors(tmp_path / "f.safetensors", {"x": torch.zeros(1)}, {"kind": "network"})
    with pytest.raises(CheckpointError, match="no noise levels"):
        load_checkpoint(tmp_path / "f.safetensors")


# Writing safely.


def test_failure_while_writing_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = network(seed=1)
    path = save_checkpoint(old, tmp_path / "net")
    before = sorted(p.name for p in tmp_path.iterdir())

    def full_disk(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(network(seed=2), path)
    monkeypatch.undo()
    assert_same_weights(load_checkpoint(path), old)
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_folder_that_cannot_be_written_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def must_not_run(*args: Any) -> None:
        raise AssertionError("work was done before the folder was tried")

    monkeypatch.setattr("ncsn_fast.checkpoints.load_save.write_tensors", must_not_run)
    with pytest.raises(ValueError, match=r"folder .*absent does not exist"):
        save_checkpoint(network(), tmp_path / "absent" / "net")

    def read_only(*args: Any, **keywords: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "touch", read_only)
    with pytest.raises(OSError, match=r"cannot write .*Permission denied.*another folder"):
        save_checkpoint(network(), tmp_path / "net")


def test_only_our_networks_are_saved(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got DataParallel"):
        save_checkpoint(torch.nn.DataParallel(network()), tmp_path / "net")  # type: ignore[arg-type]


def test_settings_of_another_method_are_not_taken_over() -> None:
    assert load_checkpoint("digits", method="ancestral").sampling == {"method": "ancestral"}
    own = load_checkpoint("digits", method="annealed_langevin").sampling
    assert own == load_checkpoint("digits").sampling
    assert own["step_size"] > 0


# Which weights a file of ours holds.


@pytest.mark.parametrize(
    ("averaged", "words"),
    [
        (True, "averaged (EMA) weights"),
        (False, "weights as trained"),
        ("partly", "averaged (EMA) weights, but some tensors, which have no average, as trained"),
        (None, "weights as saved"),
    ],
)
def test_our_file_says_which_weights_it_holds(tmp_path: Path, averaged: Any, words: str) -> None:
    path = save_checkpoint(network(), tmp_path / "net", averaged=averaged)
    net = load_checkpoint(path)
    assert net.source == f"net.safetensors: ncsn_fast network checkpoint, {words}"
    assert_same_weights(net, network())
    metadata = read_tensors(path)[1]
    assert metadata.get("averaged") == averaged
    assert json.loads(path.with_suffix(".json").read_text()).get("averaged") == averaged
    assert metadata["format"] == 1
    if averaged:
        with pytest.raises(CheckpointError, match=r"net\.safetensors holds averaged weights only"):
            load_checkpoint(path, ema=False)
    else:
        assert_same_weights(load_checkpoint(path, ema=False), network())


@pytest.mark.parametrize("averaged", ["yes", 1, [True], {}])
def test_a_file_has_to_say_it_in_one_of_these_ways(tmp_path: Path, averaged: Any) -> None:
    message = "averaged of the header is .*, where true, false or 'partly' is expected"
    with pytest.raises(ValueError, match=message):
        save_checkpoint(network(), tmp_path / "net", averaged=averaged)
    assert not list(tmp_path.iterdir())
    path = save_checkpoint(network(), tmp_path / "net")
    tensors, metadata = read_tensors(path)
    told = {key: metadata[key] for key in ("kind", "config", "sampling", "extra")}
    write_tensors(path, tensors, {**told, "averaged": averaged})
    with pytest.raises(CheckpointError, match=rf"net\.safetensors: {message}"):
        load_checkpoint(path)


# Classes.


def test_classes_come_back_by_name(tmp_path: Path) -> None:
    net = network(classes=["boot", "bag"])
    save_checkpoint(net, tmp_path / "c.safetensors")
    loaded = load_checkpoint(tmp_path / "c.safetensors")
    assert loaded.config == net.config
    assert loaded.config["classes"] == ["boot", "bag"]
    assert_same_weights(loaded, net)


def test_weights_alone_say_how_many_classes_they_know(tmp_path: Path) -> None:
    net = network(classes=3)
    torch.save(net.state_dict(), tmp_path / "c.pth")
    loaded = load_checkpoint(tmp_path / "c.pth", image_size=8, step_size=1e-6)
    assert loaded.config == net.config
    assert_same_weights(loaded, net)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["a", "b", "c"], "weights are those of 2 classes, where the settings name 3"),
        (["a", "a"], "classes of the configuration of NCSNv2 is"),
        ("ab", "classes of the configuration of NCSNv2 is 'ab'"),
        (["x" * 200], "classes of the configuration of NCSNv2 is"),
        ([], "classes of the configuration of NCSNv2 is"),
    ],
)
def test_a_header_whose_classes_cannot_be_is_refused(
    tmp_path: Path, classes: Any, message: str
) -> None:
    path = tmp_path / "c.safetensors"
    save_checkpoint(network(classes=2), path)
    tensors, header = read_tensors(path)
    header["config"]["classes"] = classes
    write_tensors(path, tensors, {k: header[k] for k in ("kind", "config", "sampling")})
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (None, "another normalisation than InstanceNorm"),
        (0, "cannot be loaded"),
        (1, "cannot be loaded"),
        (4, "the last row of normalizer.embed.weight is that of no class"),
    ],
)
def test_tables_that_no_classes_have_are_refused(
    tmp_path: Path, rows: int | None, message: str
) -> None:
    net, name = network(classes=3), "normalizer.embed.weight"
    width = net.state_dict()[name].shape[1]
    table = torch.ones(width) if rows is None else torch.ones(rows, width)
    torch.save(net.state_dict() | {name: table}, tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path / "c.pth", image_size=8)
    save_checkpoint(net, tmp_path / "c.safetensors")
    tensors, header = read_tensors(tmp_path / "c.safetensors")
    header = {k: header[k] for k in ("kind", "config", "sampling")}
    write_tensors(tmp_path / "c.safetensors", tensors | {name: table}, header)
    with pytest.raises(CheckpointError, match=r"weights are those of|the last row of"):
        load_checkpoint(tmp_path / "c.safetensors")
