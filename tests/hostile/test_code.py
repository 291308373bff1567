"""No file makes ncsn_fast run code: the readers refuse it, or see nothing in it but data."""

import contextlib
import io
import pickle

import numpy as np
import pytest
import torch
import yaml
from hostile import inputs
from hostile.targets import TARGETS, outcome

import ncsn_fast as nf


def named(canary):
    return {carrier.kind: carrier for carrier in inputs.carriers(canary)}


KINDS = list(named("canary"))
BY_PATH = ("official YAML", "network", "PyTorch's files", "JSON", "YAML", ".npz of images")
# A reader that lets a file choose what to call, for those that hold a call.
UNSAFE = {
    "pickle in a .pth": lambda data: torch.load(io.BytesIO(data), weights_only=False),
    "pickle as the weights": lambda data: torch.load(io.BytesIO(data), weights_only=False),
    "legacy .pth": lambda data: torch.load(io.BytesIO(data), weights_only=False),
    "bare pickle": pickle.loads,
    "pickle called safetensors": pickle.loads,
    "pickle of protocol 0": pickle.loads,
    ".npy of objects": lambda data: np.load(io.BytesIO(data), allow_pickle=True),
    ".npz of objects": lambda data: np.load(io.BytesIO(data), allow_pickle=True)["images"],
    "pickle called .npy": pickle.loads,
    "pickled CIFAR-10": pickle.loads,
    **{
        kind: lambda data: yaml.load(data, Loader=yaml.UnsafeLoader)
        for kind in KINDS
        if kind.startswith("YAML") and kind != "YAML, module"
    },
}


@pytest.mark.parametrize("kind", UNSAFE)
def test_the_files_do_carry_code(kind, tmp_path):
    """What the others are worth: where a file may choose, the canary is made."""
    data = named(tmp_path / "canary")[kind].data
    with contextlib.suppress(Exception):  # what was called returned no array, or no mapping
        UNSAFE[kind](data)
    assert (tmp_path / "canary").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_no_reader_runs_it_whatever_the_file_is_called(kind, tmp_path):
    carrier = named(tmp_path / "canary")[kind]
    for target in TARGETS:
        outcome(target, carrier.data)
        if target.name in BY_PATH:
            outcome(target._replace(file=carrier.name), carrier.data)
        assert not (tmp_path / "canary").exists(), target.name


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.startswith("YAML")])
def test_a_configuration_runs_none_beside_a_checkpoint_either(kind, tmp_path):
    (tmp_path / "config.yml").write_bytes(named(tmp_path / "canary")[kind].data)
    with pytest.raises(ValueError, match=r"config|section"):
        nf.load_checkpoint("digits", tmp_path / "config.yml")
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    "kind", ["whole module", "TorchScript", "pickle in a .pth", "legacy .pth", "bare pickle"]
)
def test_what_needs_code_is_refused_by_name(kind, tmp_path):
    carrier = named(tmp_path / "canary")[kind]
    (tmp_path / carrier.name).write_bytes(carrier.data)
    with pytest.raises(nf.CheckpointError, match=carrier.name):
        nf.load_checkpoint(tmp_path / carrier.name)
