"""Killed at any operation on files, what is written in a folder goes on to the same last bit."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.kills import report
from helpers.training import network, train_small

import ncsn_fast as nf
from ncsn_fast.runs.samples import store


def _save(folder: Path) -> None:
    nf.save_checkpoint(network(), folder / "net.safetensors")


def _save_another(folder: Path) -> None:
    nf.save_checkpoint(network(activation="relu"), folder / "net.safetensors")


def _sample(folder: Path) -> None:
    from ncsn_fast.cli import main

    store.SAVE_SECONDS = 0.0  # whenever it can
    model = folder.parent / "net.safetensors"
    arguments = [model, "-n", 4, "--batch-size", 2, "--out", folder]
    main.main(["sample", *map(str, arguments)], standalone_mode=False)


def _sample_shards(folder: Path) -> None:
    from ncsn_fast.cli import main

    store.SAVE_SECONDS = 0.0
    model = folder.parent / "net.safetensors"
    arguments = [model, "-n", 5, "--shard-size", 2, "--format", "png", "--out", folder]
    main.main(["sample", *map(str, arguments)], standalone_mode=False)


_every = pytest.mark.parametrize(
    "stride", [pytest.param(13, id="some"), pytest.param(1, id="all", marks=pytest.mark.exhaustive)]
)


@_every
def test_a_run_killed_at_any_operation_is_the_run_that_was_not(tmp_path, stride):
    found = report(train_small, tmp_path, stride)
    assert found["differ"] == {}
    assert found["operations"] > 120
    assert {"best.safetensors", "levels.json", "loss.png", "model_0000002.json", "run.json"} <= {
        *found["files"]
    }
    assert {"samples/step_0000004.png", "training.html"} <= {*found["files"]}


@_every
def test_samples_killed_at_any_operation_are_those_of_a_command_that_was_not(tmp_path, stride):
    nf.save_checkpoint(network(), tmp_path / "net.safetensors")
    found = report(_sample, tmp_path, stride)
    assert found["differ"] == {}
    assert found["operations"] > 60
    assert found["files"] == ["grid.png", "manifest.json", "samples.npz"]


@_every
def test_shards_killed_at_any_operation_are_those_of_a_command_that_was_not(tmp_path, stride):
    nf.save_checkpoint(network(), tmp_path / "net.safetensors")
    found = report(_sample_shards, tmp_path, stride)
    assert found["differ"] == {}
    assert found["operations"] > 90
    shards = {f"shards/{name}" for name in ("000000000-000000001", "000000004-000000004")}
    assert shards <= {str(Path(name).parent) for name in found["files"]}


def test_a_checkpoint_killed_at_any_operation_is_the_old_one_or_the_new(tmp_path):
    found = report(_save, tmp_path, prepare=_save_another)
    # Its folder is the user's, where nothing is tidied up.
    assert all(name.startswith(".net-") for names in found["differ"].values() for name in names)
    assert found["files"] == ["net.json", "net.safetensors"]
