"""Hostile inputs, all of them made here by code: none is stored.

What a stranger, a bad disk or a cut connection can put in the place of a file that ncsn_fast reads:

- ``valid``: one small, right file of each kind, which the others are made of;
- ``mutated_bytes``, ``mutated_value``: damage of bytes, and right files with wrong values;
- ``carriers``: files that run code in a reader that lets them;
- ``bombs``: small files that stand for much time or memory.

``hostile/targets.py`` says what reads which. The tests beside this file, and ``python -m
tests.fuzz``, feed them.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import random
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from helpers import checkpoints
from helpers.idx import OTHERS, header, idx
from helpers.samples import store_in
from torch import Tensor

from ncsn_fast.checkpoints.load_save import save_checkpoint
from ncsn_fast.checkpoints.tensor_file import read_tensors, write_tensors
from ncsn_fast.evaluation.classifier import Classifier, save_classifier
from ncsn_fast.models import by_name

IDENTITY = {"seed": 0, "checkpoint": "c" * 8, "network": "n" * 8, "table": "t" * 8}
DECISIONS = {"a CPU": {"form 3x3": 4, "precision a, b": "fp32 7.1 16.4"}, "another": {}}
LOG = [
    {"step": 10, "loss": 3.25, "images_per_second": 120.5},
    {"step": 20, "loss": 2.5, "images_per_second": 121.0},
    {"step": 20, "pixel_frechet_distance": 1.75},
    {"step": 30, "loss": 2.25, "images_per_second": 119.9},
]


def written(write: Callable[[Path], object], name: str) -> bytes:
    """The bytes of a file that a function writes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        write(path)
        return path.read_bytes()


# Right files, one of each kind.


NETWORKS = ("NCSNv2", "NCSN", "MLPScore")


@cache
def network(name: str = "NCSNv2") -> bytes:
    if name == "MLPScore":
        net = by_name.build(
            {"network": name, "dim": 2, "hidden": 8, "layers": 2}, checkpoints.LEVELS
        )
    else:
        net = checkpoints.network(name)
    net.sampling = dict(checkpoints.SAMPLING)
    return written(lambda path: save_checkpoint(net, path), "net.safetensors")


@cache
def network_contents(name: str = "NCSNv2") -> tuple[dict[str, Tensor], dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.safetensors"
        path.write_bytes(network(name))
        return read_tensors(path)


@cache
def run_folder() -> dict[str, bytes]:
    """The files of a training run of two steps, by their names."""
    from click.testing import CliRunner

    from ncsn_fast.cli import main

    with tempfile.TemporaryDirectory() as folder:
        command = f"train --preset digits --steps 2 --batch-size 8 --ngf 4 --out {folder}/run"
        done = CliRunner().invoke(main, command.split())
        assert done.exit_code == 0, done.output
        files = sorted(Path(folder, "run").iterdir())
        return {path.name: path.read_bytes() for path in files if path.is_file()}


@cache
def log() -> bytes:
    """The log of a run, as ncsn_fast writes it."""
    from ncsn_fast.training.log import TrainingLog

    def write(path: Path) -> None:
        told = TrainingLog(path.parent)
        told.open(0)
        for entry in LOG:
            if "loss" in entry:
                told.loss(int(entry["step"]), entry["loss"], entry["images_per_second"])
            else:
                told.distance(int(entry["step"]), entry["pixel_frechet_distance"])
        told.close()

    return written(write, "log.jsonl")


@cache
def samples() -> bytes:
    return array_archive(
        images=np.linspace(0, 1, 3 * 64, dtype=np.float32).reshape(3, 1, 8, 8),
        sample_ids=np.arange(3),
        settings=np.array(json.dumps(IDENTITY)),
    )


@cache
def partial() -> bytes:
    metadata = {"identity": IDENTITY, "ids": [0, 4], "level": 2, "chunk": 2}
    states = torch.linspace(0, 1, 2 * 64).reshape(2, 1, 8, 8)
    tensors = {"images": states.flip(0).contiguous(), "states": states}
    return written(lambda path: write_tensors(path, tensors, metadata), "p.safetensors")


@cache
def manifest() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        store_in(Path(folder), (0, 8), IDENTITY, (1, 8, 8))
        return Path(folder, "manifest.json").read_bytes()


@cache
def classifier() -> bytes:
    torch.manual_seed(0)
    net = Classifier((1, 8, 8), ["bag", "boot"])
    return written(lambda path: save_classifier(path, net, {"epochs": 1}), "c.safetensors")


@cache
def benchmark() -> bytes:
    from ncsn_fast.benchmarks.contest.rows import Row, as_json

    return (as_json(Row("chain", "digits", "ours", 16, "fp32", median_s=0.5)) + "\n").encode() * 2


def array_archive(compress: bool = False, **arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    (np.savez_compressed if compress else np.savez)(file, **arrays)
    return file.getvalue()


def array_file(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def pixels(*shape: int) -> np.ndarray:
    return np.random.RandomState(0).randint(0, 256, shape).astype(np.uint8)


@cache
def picture(kind: str, **settings: Any) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels(8, 8, 3)).save(file, kind, **settings)
    return file.getvalue()


@cache
def cifar(rows: int = 3) -> bytes:
    data = pixels(rows, 3073)
    data[:, 0] %= 10
    return data.tobytes()


@cache
def idx_images() -> list[bytes]:
    content = idx(pixels(3, 8, 8))
    return [content, gzip.compress(content, mtime=0)]


@cache
def idx_labels() -> list[bytes]:
    content = idx(np.arange(3, dtype=np.uint8))
    return [content, gzip.compress(content, mtime=0)]


def mutated_idx(array: np.ndarray, rng: random.Random) -> bytes:
    """An IDX file whose header tells of another type or shape, gzipped or not."""
    sizes = list(array.shape)
    what, place = rng.randrange(4), rng.randrange(len(sizes))
    if what == 0:
        sizes[place] = rng.choice((0, 1, 2, 9, 2**16, 2**31, 2**32 - 1))
    elif what == 1:
        del sizes[place]
    elif what == 2:
        sizes.insert(place, rng.choice((0, 1, 2**32 - 1)))
    kind = rng.choice((0x08, 0x08, 0, 0x0A, 0xFF, *OTHERS))
    content = header(*sizes, kind=kind) + array.tobytes() * rng.choice((1, 1, 2, 4, 8))
    return rng.choice((content, gzip.compress(content, mtime=0)))


@cache
def states() -> list[Any]:
    """What the official codes and their relatives save, as Python values."""
    net = checkpoints.network()
    weights = checkpoints.weights_of(net)
    average = checkpoints.average_of(net)
    optimizer = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-3}]}
    shadow = {"decay": 0.999, "num_updates": 7, "shadow_params": list(average.values())}
    return [
        [weights, optimizer, 3, 100, average],
        {"model": weights, "optimizer": optimizer, "ema": shadow, "step": 100},
        dict(weights),
    ]


def pytorch_file(value: Any, *, legacy: bool = False) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


OFFICIAL = """\
training: {batch_size: 128, n_epochs: 500000, n_iters: 300001, snapshot_freq: 5000,
  snapshot_sampling: true, anneal_power: 2, log_all_sigmas: false}
sampling: {batch_size: 100, data_init: false, step_lr: 0.0000062, n_steps_each: 5, ckpt_id: 300000,
  final_only: true, fid: false, denoise: true, num_samples4fid: 10000, inpainting: false,
  interpolation: false, n_interpolations: 15}
data: {dataset: CIFAR10, image_size: 32, channels: 3, logit_transform: false, random_flip: true,
  uniform_dequantization: false, gaussian_dequantization: false, rescaled: false, num_workers: 4}
model: {sigma_begin: 50, num_classes: 232, sigma_end: 0.01, sigma_dist: geometric, ngf: 128,
  ema: true, ema_rate: 0.999, spec_norm: false, normalization: InstanceNorm++, nonlinearity: elu}
optim: {weight_decay: 0.000, optimizer: Adam, lr: 0.0001, beta1: 0.9, amsgrad: false, eps: 1.0e-8}
"""
NAMESPACE = """\
!!python/object:argparse.Namespace
data: !!python/object:argparse.Namespace {channels: 1, dataset: MNIST, image_size: 28,
  logit_transform: false, random_flip: false}
model: !!python/object:argparse.Namespace {batch_norm: false, ngf: 64, num_classes: 10,
  sigma_begin: 1, sigma_end: 0.01}
"""

# Damage.

WRONG_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 3, 2**40, 2**70, 10**300, 0.5, -1e300, 1e-300),
    *("", "x", "nan", "1e-5", "σ\ud800", f"{os.pardir}/x", "x" * 2000),
    *([], {}, [[]], [1, 2], ["a"], [0.5] * 50, {"a": 1}, {"": {"": []}}),
)


def mutated_bytes(data: bytes, others: list[bytes], rng: random.Random) -> bytes:
    """A few changes of bytes: flipped, cut, inserted, doubled, moved, or joined to another file."""
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        place = rng.randrange(len(found) + 1)
        length = rng.choice((1, 2, 4, 8, 64))
        what = rng.randrange(8)
        if what < 3 and found:
            found[place % len(found)] ^= 1 << rng.randrange(8)
        elif what == 3:
            del found[place : place + length]
        elif what == 4:
            found[place:place] = rng.choice((b"\0", b"\xff", b"9", b"[", b"{", b'"', b"-")) * length
        elif what == 5:
            found[place:place] = found[place : place + length]
        elif what == 6:
            found = found[:place]
        else:
            other = rng.choice(others)
            found[place:] = other[rng.randrange(len(other) + 1) :]
    return bytes(found)


def mutated_value(value: Any, rng: random.Random) -> Any:
    """A copy in which one value, somewhere in it, is missing, has another name or is wrong."""
    if isinstance(value, Tensor):
        return mutated_tensor(value, rng)
    if isinstance(value, np.ndarray):
        return mutated_array(value, rng)
    inside = len(value) if isinstance(value, (Mapping, list)) else 0
    if not inside or rng.random() < 0.1:
        return rng.choice(WRONG_VALUES)
    chosen = rng.choice(list(value)) if isinstance(value, Mapping) else rng.randrange(inside)
    what = rng.randrange(8)
    copied: Any = dict(value) if isinstance(value, Mapping) else list(value)
    if what == 0:
        del copied[chosen]
    elif what == 1 and isinstance(copied, dict):
        copied[rng.choice(("", "x", chosen + "x", chosen[1:]))] = copied.pop(chosen)
    elif what == 2 and isinstance(copied, list):
        copied.insert(chosen, rng.choice(WRONG_VALUES))
    else:
        copied[chosen] = mutated_value(value[chosen], rng)
    return copied


def mutated_tensor(tensor: Tensor, rng: random.Random) -> Tensor:
    """Of another dtype or shape, or with values that no weight has."""
    dtypes = (torch.float8_e4m3fn, torch.int64, torch.bool, torch.complex64, torch.bfloat16)
    changes: list[Callable[[], Tensor]] = [
        lambda: tensor.to(rng.choice(dtypes)),
        lambda: tensor.reshape(-1),
        lambda: tensor[None],
        lambda: tensor.reshape(-1)[:-1],
        lambda: tensor.new_empty((0, *tensor.shape)),
        lambda: tensor * float("nan"),
        lambda: tensor - 1e38,
        lambda: tensor.new_zeros(1).expand(64, *tensor.shape[1:]),
        lambda: tensor.to_sparse(),
    ]
    return rng.choice(changes)()


def mutated_array(array: np.ndarray, rng: random.Random) -> np.ndarray:
    changes: list[Callable[[], np.ndarray]] = [
        lambda: array.astype(rng.choice(("<f2", ">f8", "i8", "?", "c8", "<U3", "S2"))),
        lambda: array.reshape(-1),
        lambda: array[None],
        lambda: array[:0] if array.ndim else array,
        lambda: np.array(rng.choice((float("nan"), 1e300, -1, "x", "{}", "[" * 300))),
    ]
    return rng.choice(changes)()


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode()


def as_tensor_file(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> bytes:
    """A file of ours with these contents, its checksum right."""
    known = {key: value for key, value in metadata.items() if key not in ("format", "sha256")}
    return written(lambda path: write_tensors(path, tensors, known), "x.safetensors")


def mutated_tensor_file(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], rng: random.Random
) -> bytes:
    """A file of ours with a wrong value or tensor, and a checksum that is right for it."""
    if rng.random() < 0.7:
        changed = mutated_value(dict(metadata), rng)
        return as_tensor_file(tensors, changed if isinstance(changed, dict) else {"x": changed})
    changed = mutated_value(dict(tensors), rng)
    plain = changed if isinstance(changed, dict) else {}
    return as_tensor_file({k: v for k, v in plain.items() if isinstance(v, Tensor)}, metadata)


# Files that carry code.


class Carrier(NamedTuple):
    """A file whose reader runs ``command`` where it lets the file choose what to call."""

    kind: str
    name: str
    data: bytes


class _Calls:
    """What is pickled as a call of a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self._call = (function, arguments)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self._call


def carriers(canary: Path) -> list[Carrier]:
    """Files that would make the file ``canary``."""
    command = f"touch {canary}"
    call = _Calls(os.system, command)
    weights = dict(checkpoints.weights_of(checkpoints.network()))
    objects = np.array([call], dtype=object)
    pickled = pickle.dumps(call)
    apply = f'!!python/object/apply:os.system ["{command}"]'
    yaml_texts = {
        "apply": f"data: {apply}",
        "apply, mapping": f'!!python/object/apply:os.system {{args: ["{command}"]}}',
        "new": f'model: !!python/object/new:os.system ["{command}"]',
        "new with state": "!!python/object/new:type\n  args: [z, !!python/tuple [], {extend: "
        f'!!python/name:exec }}]\n  listitems: "import os; os.system({command!r})"',
        "long tag": f'data: !<tag:yaml.org,2002:python/object/apply:os.system> ["{command}"]',
        "own prefix": "%TAG !p! tag:yaml.org,2002:python/\n---\n"
        f'!p!object/apply:os.system ["{command}"]',
        "merge": f"a: &a {{x: {apply}}}\nb: {{<<: *a}}",
        "key": f"? {apply}\n: 1",
        "subprocess": f'!!python/object/apply:subprocess.check_call [[touch, "{canary}"]]',
        "eval": f"!!python/object/apply:eval [\"__import__('os').system('{command}')\"]",
        "module": "!!python/module:antigravity",
    }
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as zipped:
        zipped.writestr("images.npy", array_file_of_objects(pickled))
    script = torch.jit.script(torch.nn.Linear(2, 2))
    header = json.dumps({"__metadata__": {"ncsn_fast": f"__import__('os').system('{command}')"}})
    text = f"__import__('os').system('{command}')"
    return [
        Carrier("pickle in a .pth", "a.pth", pytorch_file([weights, call])),
        Carrier("pickle as the weights", "b.pth", pytorch_file({"model": call})),
        Carrier("legacy .pth", "c.pth", pytorch_file([weights, call], legacy=True)),
        Carrier("whole module", "d.pt", pytorch_file(checkpoints.network())),
        Carrier("bare pickle", "e.pkl", pickled),
        Carrier("pickle called safetensors", "f.safetensors", pickled),
        Carrier(
            "pickle of protocol 0", "g.pth", b"cos\nsystem\n(S'" + command.encode() + b"'\ntR."
        ),
        Carrier("compressed pickle, as joblib writes", "h.joblib", zlib.compress(pickled)),
        Carrier("TorchScript", "i.pt", written(lambda p: script.save(str(p)), "i.pt")),
        Carrier(".npy of objects", "j.npy", array_file_of_objects(pickled)),
        Carrier(".npz of objects", "k.npz", archive.getvalue()),
        Carrier("pickle called .npy", "l.npy", pickle.dumps(objects)),
        Carrier("pickle called .npz", "m.npz", pickled),
        Carrier("header of a .npy that is no literal", "n.npy", array_with_header(text)),
        Carrier(
            "shape of a .npy that is no literal",
            "o.npy",
            array_with_header(f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({text},), }}"),
        ),
        Carrier("pickled CIFAR-10", "data_batch_1", pickle.dumps({b"data": call})),
        Carrier("pickle called .bin", "p.bin", pickled),
        Carrier("pickle called a picture", "q.png", pickled),
        Carrier(
            "header of safetensors",
            "r.safetensors",
            struct.pack("<Q", len(header)) + header.encode(),
        ),
        Carrier(
            "JSON of a run",
            "run.json",
            as_json({"run": {"data": text, "__class__": text}, "training": {"out": text}}),
        ),
        Carrier(
            "log of a run",
            "log.jsonl",
            as_json({"step": text, "loss": text}) + b"\n" + text.encode(),
        ),
        *(Carrier(f"YAML, {kind}", "s.yml", text.encode()) for kind, text in yaml_texts.items()),
    ]


def array_with_header(header: str, data: bytes = b"") -> bytes:
    text = header.encode("latin-1") + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


def array_file_of_objects(pickled: bytes) -> bytes:
    return array_with_header("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", pickled)


# Bombs.


def bombs() -> dict[str, Carrier]:
    """Small files that stand for gigabytes or for hours."""
    aliases = "a0: &a0 [x, x]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10)
    )
    merges = "a0: &a0 {k: 0}\n" + "".join(
        f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 4)}], k{i}: 0}}\n" for i in range(1, 14)
    )
    kinds = {
        "YAML, aliases": ("x.yml", aliases.encode() + b"model: *a9\n"),
        "YAML, aliases as a number": ("x.yml", aliases.encode() + b"model: {ngf: *a9}\n"),
        "YAML, merge keys": ("x.yml", merges.encode()),
        "YAML, nested": ("x.yml", b"[" * 500_000),
        "YAML, nested blocks": ("x.yml", b"- " * 300_000),
        "YAML, an endless number": ("x.yml", b"model: {ngf: 0x" + b"f" * 900_000 + b"}"),
        "YAML, sexagesimal": ("x.yml", b"model: {ngf: " + b"1:" * 400_000 + b"1}"),
        "YAML, many values": ("x.yml", b"a: 1\n" * 200_000),
        "JSON, nested": ("run.json", b"[" * 4_000_000),
        "JSON, nested objects": ("run.json", b'{"run":' * 500_000),
        "JSON, an endless number": ("run.json", b'{"run": ' + b"1" * 4_000_000 + b"}"),
        "JSON, many values": ("run.json", b'{"run": [' + b"[]," * 1_000_000 + b"1]}"),
        "JSON, large": ("run.json", b" " * (64 << 20)),
        "log, one endless line": ("log.jsonl", b"1" * (8 << 20)),
        "npz, zeros": ("x.npz", _zeros(1 << 28)),
        "npz, header of 64 TiB": ("x.npz", _archive(b"images.npy", array_of("(70368744177664,)"))),
        "npz, many members": ("x.npz", _members(20_000)),
        "npz, compressed otherwise": ("x.npz", _zeros(1 << 27, zipfile.ZIP_BZIP2)),
        "npy, header of 64 TiB": ("x.npy", array_of("(70368744177664,)")),
        "npy, long header": (
            "x.npy",
            b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**32 - 1) + b" " * 99,
        ),
        "npy, nested header": ("x.npy", array_with_header("(" * 60_000)),
        "safetensors, long header": ("net.safetensors", struct.pack("<Q", 90 << 20) + b"{" * 99),
        "safetensors, nested header": ("net.safetensors", _safetensors(b'{"a":' * 400_000)),
        "safetensors, nested metadata": (
            "net.safetensors",
            _safetensors(json.dumps({"__metadata__": {"ncsn_fast": "[" * 1_000_000}}).encode()),
        ),
        "pth, zeros": ("x.pth", _zeros(1 << 30, name="x/data/0")),
        "pth, lists in lists, twice each": ("x.pth", pytorch_file([_doubled({}), {}])),
        "pth, dicts in dicts, twice each": ("x.pth", pytorch_file({"model": _doubled({}, dict)})),
        "pth, a list in itself": ("x.pth", pytorch_file(_within_itself([]))),
        "pth, a dict in itself": ("x.pth", pytorch_file(_within_itself({}))),
        "pth, nested 100,000 deep": ("x.pth", _pickled_in_zip(b"]" * 100_000 + b"a" * 99_999)),
        "pth, a tuple of tuples": ("x.pth", _pickled_in_zip(b")" + b"2\x86" * 100_000)),
        "pth, one weight that is all": ("x.pth", pytorch_file(_expanded())),
        "pth, legacy, one weight that is all": ("x.pth", pytorch_file(_expanded(), legacy=True)),
        "safetensors, one weight": (
            "net.safetensors",
            _safetensors(
                json.dumps(
                    {
                        "begin_conv.weight": {
                            "dtype": "F32",
                            "shape": [2**40],
                            "data_offsets": [0, 4],
                        }
                    }
                ).encode()
                + b" " * 4
            ),
        ),
        "MLPScore of 2^40 layers": ("net.safetensors", _with_config("MLPScore", layers=2**40)),
        "MLPScore of 10^5 layers": ("net.safetensors", _with_config("MLPScore", layers=10**5)),
        "NCSNv2 of width 2^40": ("net.safetensors", _with_config("NCSNv2", ngf=2**40)),
        "NCSNv2 of width 2^14": ("net.safetensors", _with_config("NCSNv2", ngf=2**14)),
        "picture, 30,000 × 30,000": ("x.png", _large_picture()),
        "IDX, header of 2^96 bytes": ("x.gz", gzip.compress(header(*[2**32 - 1] * 3), mtime=0)),
        "IDX, zeros": (
            "x.gz",
            gzip.compress(header(1 << 8, 1 << 10, 1 << 10) + bytes(1 << 28), mtime=0),
        ),
        "IDX, zeros that follow": (
            "x.gz",
            gzip.compress(header(1, 8, 8) + bytes(1 << 28), mtime=0),
        ),
        "IDX, parts that follow": (
            "x.gz",
            gzip.compress(header(1, 8, 8), mtime=0) + gzip.compress(b"", mtime=0) * 400_000,
        ),
        "IDX, padding": ("x.gz", idx_images()[1] + bytes(64 << 20)),
        "IDX, a name without end": ("x.gz", b"\x1f\x8b\x08\x08" + b"x" * (64 << 20)),
    }
    return {kind: Carrier(kind, *found) for kind, found in kinds.items()}


def _doubled(value: Any, kind: Any = list) -> Any:
    for _ in range(60):
        value = [value, value] if kind is list else {"a": value, "b": value}
    return value


def _within_itself(value: Any) -> Any:
    if isinstance(value, dict):
        value["model"] = value
    else:
        value.append(value)
    return value


def _pickled_in_zip(instructions: bytes) -> bytes:
    """A file of torch.save with a pickle of the test's own."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\x02" + instructions + b".")
        archive.writestr("x/byteorder", b"little")
        archive.writestr("x/version", b"3\n")
    return file.getvalue()


def _expanded() -> dict[str, Tensor]:
    """Weights of a network of width 2^20, all of them one number in memory."""
    weights = checkpoints.weights_of(checkpoints.network())
    return {k: v.new_zeros(1).expand(2**20, *v.shape[1:]) for k, v in weights.items()}


def _with_config(name: str, **changes: int) -> bytes:
    tensors, metadata = network_contents(name)
    return as_tensor_file(tensors, {**metadata, "config": {**metadata["config"], **changes}})


def array_of(shape: str) -> bytes:
    return array_with_header(
        f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}", b"x"
    )


def _archive(name: bytes, data: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name.decode(), data)
    return file.getvalue()


def _members(number: int) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for i in range(number):
            archive.writestr(f"{i}.npy", b"")
    return file.getvalue()


def _zeros(size: int, how: int = zipfile.ZIP_DEFLATED, name: str = "images.npy") -> bytes:
    """A zip of zeros that begin as an array of that size."""
    file, piece = io.BytesIO(), bytes(1 << 20)
    with zipfile.ZipFile(file, "w", how) as archive, archive.open(name, "w") as member:
        member.write(
            array_with_header(f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({size},), }}")
        )
        for _ in range(size // len(piece)):
            member.write(piece)
    return file.getvalue()


def _safetensors(header: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header


def _large_picture(side: int = 30_000) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    rows = zlib.compress(bytes(100 * (1 + side)), 9)  # the first of them: its size is told before
    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
