"""Checkpoints of strangers: wrong types behind a right checksum, other files, pickles with code."""

from __future__ import annotations

import argparse
import collections
import datetime
import gzip
import io
import json
import math
import os
import pathlib
import pickle
import random
import re
import resource
import subprocess
import sys
import tarfile
import textwrap
import time
import uuid
import zipfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.checkpoints import LEVELS, SAMPLING, assert_same_weights, average_of, network
from torch import Tensor

from ncsn_fast.checkpoints.load_save import load_checkpoint, save_checkpoint
from ncsn_fast.checkpoints.tensor_file import KEY, CheckpointError, write_tensors
from ncsn_fast.models.mlp import MLPScore
from ncsn_fast.training import state as training_state

NET = network()
RAW = NET.state_dict()
HEADER: dict[str, Any] = {"kind": "network", "config": NET.config, "sampling": SAMPLING}
HUGE = 1 << 40


def refused(path: Path, **settings: Any) -> str:
    """The message with which a file is refused: in bounded time and memory, and named."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB
    begin = time.process_time()
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path, **settings)
    assert time.process_time() - begin < 5  # far more than it takes, for busy machines
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10
    message = str(caught.value)
    assert path.name in message
    assert len(message) < 2500
    return message


@pytest.fixture(autouse=True, scope="module")
def _warm(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What PyTorch imports for the first network is not part of what is measured."""
    load_checkpoint(save_checkpoint(NET, tmp_path_factory.mktemp("warm") / "net"))


def ours(path: Path, tensors: dict[str, Tensor], header: dict[str, Any]) -> Path:
    path = path / "net.safetensors"
    write_tensors(path, tensors, header)
    return path


def raw_header(path: Path, text: str, tensors: dict[str, Tensor] | None = None) -> Path:
    """A file whose entry ncsn_fast is any text."""
    from safetensors.torch import save_file

    path = path / "net.safetensors"
    save_file(dict(RAW if tensors is None else tensors), path, metadata={KEY: text})
    return path


BAD_VALUES: list[Any] = [[], [1], {}, {"a": 1}, "x", -1, 0, HUGE, 1.5, 1e300, True, None, "128"]
FITS = {
    "activation": [],
    "image_size": [None],
    "rescaled": [True],
    "logit_transform": [True],
    "divided": [True],
}


@pytest.mark.parametrize("key", [*NET.config])
def test_no_setting_of_another_type_or_size_builds_a_network(tmp_path: Path, key: str) -> None:
    for value in BAD_VALUES:
        if value in FITS.get(key, []) and type(value) in map(type, FITS[key]):
            continue
        header = {**HEADER, "config": {**NET.config, key: value}}
        refused(ours(tmp_path, RAW, header))
    if key not in ("activation", "image_size", "rescaled", "logit_transform", "divided"):
        config = {name: value for name, value in NET.config.items() if name != key}
        refused(ours(tmp_path, RAW, {**HEADER, "config": config}))


@pytest.mark.parametrize("key", ["dim", "hidden", "layers", "activation"])
def test_no_setting_of_a_network_of_points_is_believed(tmp_path: Path, key: str) -> None:
    net = MLPScore(dim=2, hidden=8, layers=2, sigmas=LEVELS)
    for value in BAD_VALUES:
        header = {"kind": "network", "config": {**net.config, key: value}, "sampling": None}
        refused(ours(tmp_path, {**net.state_dict(), "sigmas": net.sigmas}, header))


@pytest.mark.parametrize("key", [*SAMPLING, "noise_first", "spacing"])
def test_no_setting_of_sampling_of_another_type_is_taken(tmp_path: Path, key: str) -> None:
    kinds = {"method": str, "spacing": str, "denoise": bool, "noise_first": bool}
    for value in BAD_VALUES:
        fits = type(value) is kinds.get(key) or (key == "step_size" and value in (1.5, 1e300, HUGE))
        if value is None or fits:
            continue
        header = {**HEADER, "sampling": {**SAMPLING, key: value}}
        assert key in refused(ours(tmp_path, RAW, header))


@pytest.mark.parametrize(
    "change",
    [
        {"config": None}, {"config": []}, {"config": {}}, {"config": "x"}, {"config": HUGE},
        {"config": {**NET.config, "network": "Nothing" * 1000}},
        {"config": {**NET.config, "network": "MLPScore"}},
        {"config": {**NET.config, "network": "NCSN"}},
        {"config": {**NET.config, "extra": 1}},
        {"sampling": []}, {"sampling": "x"}, {"sampling": 3},
        {"kind": []}, {"kind": "x" * 100_000}, {"kind": None}, {"kind": {"a": 1}},
        {"dtype": []}, {"dtype": ["float32"]}, {"dtype": {}}, {"dtype": 3}, {"dtype": "int8"},
    ],
)  # fmt: skip
def test_no_header_of_another_form_is_read(tmp_path: Path, change: dict[str, Any]) -> None:
    refused(ours(tmp_path, RAW, {**HEADER, **change}))


def with_checksum(header: Any) -> str:
    """A header whose checksum is right, whatever it is."""
    return json.dumps({"sha256": "0" * 64, "format": 1, **header})


@pytest.mark.parametrize(
    "text",
    [
        "", "null", "3", '"x"', "[]", "[1, 2]", "{", "{}", "{]", "\x00", "nan",
        "[" * 100_000 + "]" * 100_000,
        '{"a":' * 100_000 + "1" + "}" * 100_000,
        '{"sha256": "x", "format": 1, "config": ' + "[" * 5000 + "]" * 5000 + "}",
        '{"sha256": "x", "format": 1, "format": 1}',
        '{"sha256": "x", "format": 1, "config": {"ngf": 4, "ngf": 5}}',
        '{"sha256": [], "format": 1}', '{"sha256": "x", "format": []}', '{"sha256": "x"}',
        '{"sha256": "x", "format": 1e999}', '{"sha256": "x", "format": NaN}',
        '{"format": 1, "kind": "network"}', '{"sha256": null, "format": 1}',
        '{"sha256": "x", "format": ' + "9" * 50_000 + "}",
        with_checksum(HEADER),
    ],
    ids=lambda text: text[:20],
)  # fmt: skip
def test_no_text_in_place_of_a_header_is_read(tmp_path: Path, text: str) -> None:
    refused(raw_header(tmp_path, text))


LEVELS_GIVEN = RAW["sigmas"]


@pytest.mark.parametrize(
    "levels",
    [
        LEVELS_GIVEN.flip(0), LEVELS_GIVEN * -1, LEVELS_GIVEN * 0, LEVELS_GIVEN * torch.nan,
        LEVELS_GIVEN * torch.inf, LEVELS_GIVEN[:0], LEVELS_GIVEN[0], LEVELS_GIVEN[None],
        LEVELS_GIVEN.to(torch.int64), LEVELS_GIVEN > 1, torch.zeros(0, HUGE),
        LEVELS_GIVEN.to(torch.complex64),
    ],
)  # fmt: skip
def test_no_other_levels_are_taken(tmp_path: Path, levels: Tensor) -> None:
    refused(ours(tmp_path, {**RAW, "sigmas": levels}, HEADER))
    torch.save([{**RAW, "sigmas": levels}, {}], tmp_path / "c.pth")
    refused(tmp_path / "c.pth", image_size=8)


TENSORS: dict[str, Callable[[Tensor], Tensor]] = {
    "float8": lambda value: value.to(torch.float8_e4m3fn),
    "int8": lambda value: value.to(torch.int8),
    "bool": lambda value: value > 0,
    "complex": lambda value: value.to(torch.complex64),
    "nothing, but wide": lambda value: torch.zeros(0, HUGE),
    "scalar": lambda value: torch.tensor(1.0),
    "five sizes": lambda value: value[None],
    "transposed": lambda value: value.transpose(0, -1).contiguous(),
    "doubled": lambda value: torch.cat([value, value]),
}


@pytest.mark.parametrize("kind", TENSORS)
@pytest.mark.parametrize("name", ["begin_conv.weight", "res2.0.conv1.weight"])
def test_no_other_tensors_become_weights(tmp_path: Path, kind: str, name: str) -> None:
    from safetensors.torch import save_file

    weights = {**RAW, name: TENSORS[kind](RAW[name].clone())}
    refused(ours(tmp_path, weights, HEADER))
    save_file(weights, tmp_path / "net.safetensors")
    refused(tmp_path / "net.safetensors", image_size=8)
    torch.save({"model": weights}, tmp_path / "c.pth")
    refused(tmp_path / "c.pth", image_size=8)


@pytest.mark.parametrize("number", [math.nan, math.inf])
@pytest.mark.parametrize("form", ["ours", "official", "averaged", "safetensors"])
def test_weights_of_a_training_that_diverged_are_refused(
    tmp_path: Path, form: str, number: float
) -> None:
    """They would give a picture of noise, or none, a thousand evaluations later."""
    from safetensors.torch import save_file

    broken = {name: value.clone() for name, value in RAW.items()}
    broken["end_conv.bias"][-1] = number
    path = tmp_path / ("c.pth" if form in ("official", "averaged") else "c.safetensors")
    if form == "ours":
        net = network()
        net.end_conv.bias.data[-1] = number
        save_checkpoint(net, path)
    elif form == "official":
        torch.save([broken, {}], path)
    elif form == "averaged":
        torch.save({"model": RAW, "ema": broken}, path)
    else:
        save_file(broken, path)
    with pytest.raises(CheckpointError, match=r"c\..*'end_conv\.bias' holds NaN or infinity"):
        load_checkpoint(path, **({} if form == "ours" else {"image_size": 8}))


def test_all_weights_of_another_type_are_refused(tmp_path: Path) -> None:
    for kind in ("float8", "int8", "bool", "complex"):
        weights = {k: v if k == "sigmas" else TENSORS[kind](v) for k, v in RAW.items()}
        assert "weights are plain tensors of" in refused(ours(tmp_path, weights, HEADER))


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_that_claim_more_than_the_file_are_refused(tmp_path: Path, zipped: bool) -> None:
    one = torch.ones(1)
    wide = {"begin_conv.weight": (1 << 20, 3, 3, 3), "normalizer.alpha": (1 << 20,)}
    weights = {name: one.expand(shape) for name, shape in wide.items()}
    weights |= {"normalizer.gamma": one.expand(1 << 20), "sigmas": LEVELS_GIVEN}
    torch.save(weights, tmp_path / "c.pth", _use_new_zipfile_serialization=zipped)
    assert "claim" in refused(tmp_path / "c.pth", image_size=8)


@pytest.mark.parametrize(
    "odd",
    [
        torch.eye(4).to_sparse(), torch.empty(3, device="meta"),
        torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8),
        torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    ],
    ids=["sparse", "meta", "quantised", "nested"],
)  # fmt: skip
def test_odd_tensors_are_refused(tmp_path: Path, odd: Tensor) -> None:
    torch.save([{**RAW, "begin_conv.bias": odd}, {}], tmp_path / "c.pth")
    refused(tmp_path / "c.pth", image_size=8)


@pytest.mark.parametrize(
    "data",
    [
        [], {}, (), 3, None, "weights", True, [None], [[]], {"model": None}, {"model": 3},
        {1: 2}, {1: RAW["begin_conv.weight"]}, {"model": []}, {"model": {"a": "b"}},
        torch.zeros(3), [torch.zeros(3)], {"begin_conv.weight": "x"},
        {"x" * 100_000: torch.ones(3)}, {f"k{i}": torch.ones(2) for i in range(3000)},
        ["model", {"state": {}}], {"model": {"begin_conv.": torch.ones(3)}},
        {"model": {"begin_conv.weight": torch.ones(3)}}, {"ema": [torch.ones(3)] * 3},
    ],
    ids=lambda data: str(data)[:20],
)  # fmt: skip
def test_no_other_contents_are_taken_for_a_network(tmp_path: Path, data: Any) -> None:
    torch.save(data, tmp_path / "c.pth")
    refused(tmp_path / "c.pth", image_size=8)


def test_contents_without_end_are_refused(tmp_path: Path) -> None:
    wide: list[Any] = []
    for _ in range(40):
        wide = [wide] * 1000
    for key in ("model", "ema"):
        torch.save({"x": RAW, key: wide}, tmp_path / "c.pth")
        assert_same_weights(load_checkpoint(tmp_path / "c.pth", image_size=8), NET)
    # 100,000 lists in one another: torch.save itself cannot write them.
    deep = b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."
    with zipfile.ZipFile(tmp_path / "c.pth", "w") as archive:
        archive.writestr("archive/data.pkl", deep)
        archive.writestr("archive/version", "3\n")
    assert "nested" in refused(tmp_path / "c.pth", image_size=8)
    circle: dict[str, Any] = {"model": RAW}
    circle["again"] = circle
    torch.save(circle, tmp_path / "c.pth")
    assert_same_weights(load_checkpoint(tmp_path / "c.pth", image_size=8), NET)


# Other files in place of a checkpoint.


def zip_of(**files: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name.replace("__", "."), data)
    return buffer.getvalue()


def tar_of(name: str, mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        archive.addfile(tarfile.TarInfo(name))
    return buffer.getvalue()


def npz() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, x=np.zeros(3))
    return buffer.getvalue()


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
FILES: dict[str, tuple[bytes, str]] = {
    "LFS": (LFS.encode(), "Git LFS pointer.*git lfs pull"),
    "HTML": (b"\n<!DOCTYPE html><html><title>Sign in</title>", "HTML page.*download"),
    "html": (b"<html><head>", "HTML page"),
    "XML": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "download"),
    "JSON": (b'{"error": "Not Found"}', "JSON text.*download"),
    "text": ("Quota exceeded für heute".encode(), "a text .*Quota exceeded.*download"),
    "zip": (zip_of(readme__txt=b"x", weights__pth=b"y"), "zip archive .*readme.txt.*unpack"),
    "empty zip": (zip_of(), "zip archive"),
    "npz": (npz(), r"NumPy archive \(\.npz\)"),
    "TorchScript": (zip_of(**{"a/constants__pkl": b"", "a/code/x__py": b""}), "TorchScript"),
    "gzip": (gzip.compress(b"x" * 100, mtime=0), "gzip archive.*unpack"),
    "tar": (tar_of("weights.pth"), "tar archive.*unpack"),
    "tar.gz": (tar_of("weights.pth", "w:gz"), "gzip archive.*unpack"),
    "rar": (b"Rar!\x1a\x07\x01\x00" + bytes(20), "rar archive.*unpack"),
    "7z": (b"7z\xbc\xaf\x27\x1c" + bytes(20), "7z archive"),
    "PNG": (b"\x89PNG\r\n\x1a\n" + bytes(20), "PNG picture"),
    "JPEG": (b"\xff\xd8\xff\xe0" + bytes(20), "JPEG picture"),
    "npy": (b"\x93NUMPY\x01\x00" + bytes(20), "NumPy array"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(20), "HDF5"),
    "PDF": (b"%PDF-1.7\n" + bytes(20), "PDF"),
    "empty": (b"", "is empty"),
}


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_other_files_are_told_by_what_they_are(tmp_path: Path, kind: str, suffix: str) -> None:
    data, message = FILES[kind]
    path = tmp_path / f"c.{suffix}"
    path.write_bytes(data)
    assert re.search(message, refused(path), re.DOTALL)


def test_a_pickle_that_is_named_safetensors_is_told_so(tmp_path: Path) -> None:
    for zipped in (True, False):
        torch.save(RAW, tmp_path / "c.safetensors", _use_new_zipfile_serialization=zipped)
        assert "rename it to .pth" in refused(tmp_path / "c.safetensors")


def test_a_zip_bomb_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "c.pth"
    path.write_bytes(zip_of(**{"archive/data__pkl": bytes(1 << 28), "archive/version": b"3"}))
    assert path.stat().st_size < 1 << 20
    assert "compressed" in refused(path)


# Pickles.

HARMLESS: dict[str, Any] = {
    "numpy scalar": np.float64(0.3),
    "numpy integer": np.int64(3),
    "numpy array": np.arange(3.0),
    "array of objects": np.array([None, {"a": 1}], dtype=object),
    "numpy dtype": np.dtype("f4"),
    "defaultdict": collections.defaultdict(list, {"a": [1]}),
    "defaultdict of int": collections.defaultdict(int, {"a": 1}),
    "deque": collections.deque([1.0, 2.0], maxlen=2),
    "OrderedDict": collections.OrderedDict(a=1),
    "Counter": collections.Counter("abc"),
    "date": datetime.datetime(2020, 1, 2),
    "timezone": datetime.datetime(2020, 1, 2, tzinfo=datetime.timezone.utc),
    "duration": datetime.timedelta(3),
    "path": pathlib.Path("a/b"),
    "windows": pathlib.PureWindowsPath("a"),
    "complex": 1 + 2j,
    "set": {1, 2},
    "frozenset": frozenset([1]),
    "fraction": Fraction(1, 3),
    "uuid": uuid.UUID(int=3),
    "size": torch.Size([3]),
    "dtype": torch.float32,
    "device": torch.device("cpu"),
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kind", HARMLESS)
def test_harmless_values_are_no_reason_to_refuse(tmp_path: Path, kind: str, zipped: bool) -> None:
    data = {"model": RAW, "args": {"value": HARMLESS[kind]}, "losses": [HARMLESS[kind]]}
    torch.save(data, tmp_path / "c.pth", _use_new_zipfile_serialization=zipped)
    assert_same_weights(load_checkpoint(tmp_path / "c.pth", image_size=8), NET)


def test_harmless_values_leave_no_trace_in_torch(tmp_path: Path) -> None:
    # PyTorch keeps them in a set and lists them in any order.
    before = set(torch.serialization.get_safe_globals())
    torch.save({"model": RAW, "loss": np.float64(3)}, tmp_path / "c.pth")
    load_checkpoint(tmp_path / "c.pth", image_size=8)
    assert set(torch.serialization.get_safe_globals()) == before


def test_averages_in_arrays_of_numpy_are_not_passed_over(tmp_path: Path) -> None:
    arrays = {name: value.numpy() for name, value in average_of(NET).items()}
    torch.save({"model": RAW, "ema": arrays}, tmp_path / "c.pth")
    assert "looks like averaged weights" in refused(tmp_path / "c.pth", image_size=8)


class Calls:
    """Pickled as a call of any function."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self.reduced = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> Any:
        return self.reduced


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "attack",
    [
        lambda run: Calls(os.system, run),
        lambda run: Calls(eval, f"__import__('os').system({run!r})"),
        lambda run: Calls(collections.defaultdict, os.system),
        lambda run: Calls(collections.defaultdict, Calls(os.system, run)),
        lambda run: Calls(pathlib.Path, Calls(os.system, run)),
        lambda run: Calls(getattr, "", "join"),
        lambda run: Calls(datetime.datetime, Calls(subprocess.check_output, run)),
        lambda run: Calls(np.dtype, Calls(os.system, run)),
        lambda run: Calls(list, Calls(map, os.system, [run])),
        lambda run: Calls(dict, Calls(os.popen, run)),
        lambda run: Calls(pathlib.PurePosixPath, "a", state={"__reduce__": Calls(exec, run)}),
        lambda run: Calls(argparse.Namespace, state={"run": Calls(os.system, run)}),
        lambda run: Calls(torch.load, run),
    ],
)  # fmt: skip
def test_no_code_of_a_pickle_is_run(tmp_path: Path, attack: Any, zipped: bool) -> None:
    trace = tmp_path / "executed"
    data = {"model": RAW, "x": attack(f"touch {trace}")}
    torch.save(data, tmp_path / "c.pth", _use_new_zipfile_serialization=zipped)
    assert "refused" in refused(tmp_path / "c.pth", image_size=8)
    assert not trace.exists()


def test_what_a_harmless_name_is_called_with_is_ignored(tmp_path: Path) -> None:
    """Calls of allowed names with any arguments and states construct nothing of theirs."""
    odd = {
        "path": Calls(pathlib.PosixPath, 3, None, {"a": 1}),
        "state": Calls(pathlib.PosixPath, "a", state={"__class__": 3, "_drv": ["x"]}),
        "array": Calls(np.ndarray, (1 << 50,)),
        "dtype": Calls(np.dtype, "O" * 100_000),
        "bytes": Calls(bytes, 1 << 50),
        "range": Calls(frozenset, [1 << 50]),
        "list": Calls(list, "x" * 1000),
        "date": Calls(datetime.datetime, -1, -1, -1),
    }
    torch.save({"model": RAW, "odd": odd}, tmp_path / "c.pth")
    assert_same_weights(load_checkpoint(tmp_path / "c.pth", image_size=8), NET)


def test_a_pickle_of_another_protocol_is_refused_without_being_run(tmp_path: Path) -> None:
    trace = tmp_path / "executed"
    for protocol in range(6):
        data = pickle.dumps([RAW, Calls(os.system, f"touch {trace}")], protocol=protocol)
        (tmp_path / "c.pth").write_bytes(data)
        refused(tmp_path / "c.pth", image_size=8)
    assert not trace.exists()


# The recipe for files that hold objects.

PROGRAM = """
import torch
from ncsn_fast.models.ncsnv2 import NCSNv2

def net(seed):
    torch.manual_seed(seed)
    return NCSNv2(channels=2, image_size=8, ngf=4, sigmas=[2.0, 1.0, 0.5])

class Config:
    def __init__(self):
        self.ngf, self.names = 4, ("a", "b")

class EMA:
    def __init__(self, net):
        self.decay, self.shadow = 0.9, {k: v.data for k, v in net.named_parameters()}

data = MAKE
"""
OBJECTS = {
    "list": ("[net(1).state_dict(), {}, 0, 5, EMA(net(2)), Config()]", True),
    "dict": ("{'model_state': net(1).state_dict(), 'ema': EMA(net(2)), 'config': Config()}", True),
    "modules in a dict": ("{'model': net(1), 'ema': net(2)}", True),
    "average of a module": (
        "{'net': torch.nn.DataParallel(net(1)), "
        "'ema': torch.optim.swa_utils.AveragedModel(net(2))}",
        None,
    ),
    "whole module": ("net(1)", False),
    "wrapped module": ("torch.nn.DataParallel(net(1))", False),
    "one in a list": ("[net(1), Config()]", False),
}


@pytest.mark.parametrize("kind", OBJECTS)
def test_the_recipe_keeps_weights_and_averages(tmp_path: Path, kind: str) -> None:
    make, average = OBJECTS[kind]
    (tmp_path / "training_code.py").write_text(PROGRAM.replace("MAKE", make))
    run = "import training_code, torch; torch.save(training_code.data, 'c.pth')"
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[2]}"}

    def python(code: str) -> None:
        subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env=environment)

    python(run)
    message = refused(tmp_path / "c.pth")
    recipe = textwrap.dedent("\n".join(x for x in message.splitlines() if x.startswith("    ")))
    python(recipe)
    path = tmp_path / "weights.pth"
    names: dict[str, Any] = {}
    exec(PROGRAM.replace("MAKE", "None"), names)
    if average is None:  # an average of which nothing has come is told as one
        assert "averaged nothing yet" in refused(path, image_size=8)
    else:
        wanted = names["net"](2 if average else 1)
        assert_same_weights(load_checkpoint(path, image_size=8), wanted)
    assert_same_weights(load_checkpoint(path, image_size=8, ema=False), names["net"](1))


# Damage.


@pytest.mark.parametrize("kind", ["ours", "zip", "legacy", "safetensors"])
def test_damaged_files_are_told_as_such(tmp_path: Path, kind: str) -> None:
    """At random places; what is read in spite of it is the whole, but in the kinds without sums."""
    from safetensors.torch import save_file

    path = tmp_path / ("c.pth" if kind in ("zip", "legacy") else "c.safetensors")
    if kind == "ours":
        save_checkpoint(NET, path)
    elif kind == "safetensors":
        save_file(RAW, path)
    else:
        states = [RAW, {}, 0, 5, average_of(NET)]
        torch.save(states, path, _use_new_zipfile_serialization=kind == "zip")
    whole = path.read_bytes()
    chosen = random.Random(0)
    for _ in range(75):
        data = bytearray(whole)
        for _ in range(chosen.choice([1, 1, 1, 8])):
            # The beginnings and ends of files hold what says how to read the rest.
            place = chosen.choice(
                [chosen.random(), chosen.random() * 0.02, 1 - chosen.random() * 0.02]
            )
            data[min(int(place * len(data)), len(data) - 1)] = chosen.randrange(256)
        path.write_bytes(data if chosen.random() < 0.8 else data[: chosen.randrange(len(data))])
        message, net = outcome(path, **({} if kind == "ours" else {"image_size": 8}))
        assert net is not None or path.name in message
        if net is not None and kind in ("ours", "zip"):
            assert_same_weights(net, NET)


def outcome(path: Path, **settings: Any) -> tuple[str, Any]:
    """What is said, or the network."""
    try:
        return "", load_checkpoint(path, **settings)
    except CheckpointError as error:
        return str(error), None


@pytest.mark.parametrize(
    "change",
    [
        {"step": "x"}, {"step": -1}, {"step": None}, {"step": 1.5}, {"step": True},
        {"config": []}, {"training": 3}, {"scaler": []}, {"loss_since": "x"}, {"loss_since": []},
    ],
)  # fmt: skip
def test_no_training_checkpoint_of_other_types_is_gone_on_with(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    header = {"kind": "training", "config": NET.config, "sampling": None, "step": 3}
    header |= {"loss_since": 0, "scaler": {}, "training": {}, **change}
    tensors = {f"model.{name}": value for name, value in RAW.items()}
    tensors |= {
        "sigmas": RAW["sigmas"],
        "loss_sum": torch.zeros(()),
        "level_sums": torch.zeros(2, 7),
    }
    write_tensors(tmp_path / training_state.CHECKPOINT, tensors, header)
    with pytest.raises(CheckpointError, match=training_state.CHECKPOINT):
        training_state.read(tmp_path)
