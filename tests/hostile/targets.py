"""Everything in ncsn_fast that reads what somebody else may have written, in one list.

A target makes inputs from a seed and reads them as the product does. :func:`outcome` says how that
went and raises :class:`Fault` where it went as it never may: another exception than the product's
own, a message that does not name its file or is long, much time, or much memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import random
import resource
import shutil
import signal
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import click
import numpy as np
import torch
from helpers.samples import store_in
from hostile import inputs

import ncsn_fast as nf
from ncsn_fast.benchmarks.contest.rows import read_rows
from ncsn_fast.checkpoints import official_yaml
from ncsn_fast.checkpoints.tensor_file import read_tensors
from ncsn_fast.cli import main
from ncsn_fast.data.cifar import cifar_names
from ncsn_fast.data.digits import _DIGITS_FILE, _read_digits
from ncsn_fast.data.labels import as_classes, given_labels
from ncsn_fast.data.load import labelled_pixels_of, load_pixels
from ncsn_fast.device import measured
from ncsn_fast.distributed.ranks import Ranks
from ncsn_fast.evaluation.classifier import load_classifier
from ncsn_fast.evaluation.inception import statistics
from ncsn_fast.runs.training.settings import read_run
from ncsn_fast.support.parsers import parse_json, parse_yaml
from ncsn_fast.training import state
from ncsn_fast.training.log import TrainingLog

MOST_SECONDS = 2.0  # of the processor, for one small input
MOST_MIB = 200
HANGS = 60  # seconds by the clock
LONGEST_MESSAGE = 4000


class Fault(AssertionError):
    """What must not happen whatever a file holds."""


class Target(NamedTuple):
    """Something that reads.

    Attributes:
        name: what the progress calls it.
        file: what a file of this kind is called.
        valid: right files of the kind.
        read: what the product makes of the file at a path.
        wrong: a file with a wrong value in it that is whole and well-formed, from a seed; None:
            there is no such thing.
        told_by: the name that a refusal has to hold; None: that of the file.
    """

    name: str
    file: str
    valid: Callable[[], list[bytes]]
    read: Callable[[Path], Any]
    wrong: Callable[[random.Random], bytes] | None = None
    told_by: str | None = None

    def input(self, rng: random.Random) -> bytes:
        """Any bytes, a damaged file, or one with a wrong value."""
        what = rng.random()
        if what < 0.1:
            return rng.randbytes(rng.randrange(200))
        if self.wrong is not None and what < 0.6:
            try:
                return self.wrong(rng)
            except (TypeError, ValueError, OverflowError, RuntimeError):
                pass  # the writer has no such file: cast complex weights, JSON of ...
        whole = self.valid()
        return inputs.mutated_bytes(rng.choice(whole), whole, rng)


@contextmanager
def _in_time(target: Target) -> Iterator[None]:
    """Interrupt what never ends."""

    def stop(*_: object) -> None:
        raise Fault(f"{target.name}: it has not ended in {HANGS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(HANGS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def outcome(target: Target, data: bytes) -> str:
    """Read an input; "read", or "refused" with the kind of refusal.

    Raises:
        Fault: with what happened.
    """
    with placed(target, data) as path:
        memory = _peak_mib()
        told, seconds = _read(target, path)
        if seconds > MOST_SECONDS:  # with what is imported but once, or on a busy machine?
            seconds = min(_read(target, path)[1] for _ in range(2))
        grown = _peak_mib() - memory
    if seconds > MOST_SECONDS or grown > MOST_MIB:
        raise Fault(f"{target.name}: {told} took {seconds:.1f} s and {grown:.0f} MiB")
    return told


def _read(target: Target, path: Path) -> tuple[str, float]:
    """What came of one reading, and the seconds of the processor that it took."""
    before = time.process_time()
    try:
        with warnings.catch_warnings(), _in_time(target):
            warnings.simplefilter("ignore")
            target.read(path)
        told = "read"
    except (ValueError, OSError, click.ClickException) as error:
        told = _judged(target, path, error)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | Fault):
            raise
        raise Fault(f"{target.name}: raw {type(error).__name__}: {error}") from error
    return told, time.process_time() - before


def value(target: Target, data: bytes) -> Any:
    """What a target reads, to be compared; a refusal as "refused" after it was judged."""
    with placed(target, data) as path:
        try:
            return target.read(path)
        except (ValueError, OSError, click.ClickException) as error:
            _judged(target, path, error)
            return "refused"
        except Exception as error:
            raise Fault(f"{target.name}: raw {type(error).__name__}: {error}") from error


@contextmanager
def placed(target: Target, data: bytes) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, target.file)
        path.write_bytes(data)
        yield path


def _judged(target: Target, path: Path, error: BaseException) -> str:
    message = error.message if isinstance(error, click.ClickException) else str(error)
    if isinstance(error, UnicodeError):
        raise Fault(f"{target.name}: raw {type(error).__name__}: {message[:300]}") from error
    if len(message) > LONGEST_MESSAGE:
        raise Fault(f"{target.name}: a message of {len(message):,} characters") from error
    wanted = path.name if target.told_by is None else target.told_by
    if wanted not in message:
        raise Fault(f"{target.name}: a message without {wanted!r}: {message[:300]}") from error
    return f"refused ({type(error).__name__})"


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# What reads, and what of it can be compared.


def _network(path: Path) -> Any:
    net = nf.load_checkpoint(path)
    digest = hashlib.sha256()
    for key, tensor in net.state_dict().items():
        plain = tensor.contiguous().reshape(-1)
        digest.update(key.encode() + plain.view(torch.uint8).numpy().tobytes())
    return (net.config, net.sampling, net.source, digest.hexdigest())


def _official_network(path: Path) -> Any:
    """Weights that do not bring all along: with what the call says."""
    net = nf.load_checkpoint(path, image_size=8)
    return net.config


def _sampled(path: Path) -> Any:
    """A network of ours, and the table of a sampler of it: what its settings are used for."""
    net = nf.load_checkpoint(path)
    try:
        nf.Sampler(net)
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from error
    return net.config


def _training(path: Path) -> Any:
    there = state.read(path.parent)
    return repr(there.metadata()), {k: v.tolist() for k, v in there.tensors().items()}


def _tensors(path: Path) -> Any:
    tensors, metadata = read_tensors(path)
    return {k: v.tolist() for k, v in tensors.items()}, metadata


def _store(path: Path, name: str = "") -> Any:
    """What a store makes of a file of samples, which lies under this name."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, name or path.name)
        place.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, place)
        try:
            store = store_in(Path(folder), (0, 8), inputs.IDENTITY, (1, 8, 8))
            shard = next(store.shards(Ranks()), None)
        except ValueError as error:
            raise ValueError(str(error).replace(str(place), str(path))) from error
        part = None
        if shard is not None:
            shard.lock.close()
            part = shard.part()
        return (
            store.manifest.layout,
            store.stored.ids(),
            [read().tolist() for _, read in store.stored.ranges()],
            None if shard is None else shard.images[: shard.done].tolist(),
            None if part is None else (part.ids, part.level),
            None if part is None or part.states is None else part.states.tolist(),
        )


def _partial(path: Path) -> Any:
    return _store(path, "shards/000000000-000000003.partial.safetensors")


def _log(path: Path) -> Any:
    """A log that has to be as it was saved; what is only warned of counts as refused."""
    told, heard = TrainingLog(path.parent), _Heard()
    logger = logging.getLogger("ncsn_fast")
    logger.addHandler(heard)
    try:
        told.read(10**6, _digest_of_log())
    finally:
        logger.removeHandler(heard)
    if heard.messages:
        raise ValueError("; ".join(heard.messages))
    return told.losses, told.distances


class _Heard(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@cache
def _digest_of_log() -> str:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "log.jsonl").write_bytes(inputs.log())
        told = TrainingLog(Path(folder))
        told.read(10**6, None)
        return told.digest(10**6)


def _run(path: Path) -> Any:
    run, config = read_run(path.parent)
    return vars(run), {k: v for k, v in vars(config).items() if k != "out"}


def _yaml(path: Path) -> Any:
    config = official_yaml.read_official_yaml(path)
    told: dict[str, Any] = {}
    if official_yaml.is_official(config):
        for function in (
            official_yaml.network_settings,
            official_yaml.noise_levels,
            official_yaml.sampling_settings,
            official_yaml.training_settings,
            official_yaml.run_settings,
        ):
            try:
                told[function.__name__] = repr(function(config))
            except ValueError as error:
                if len(str(error)) > LONGEST_MESSAGE:
                    raise Fault(f"a message of {len(str(error)):,} characters") from error
    return told


def _pixels(path: Path) -> Any:
    found = load_pixels(path)
    return found.shape, str(found.dtype), np.asarray(found).tobytes()


def _folder(path: Path) -> Any:
    found = load_pixels(path.parent)
    return found.shape, found.tobytes()


def _labelled(path: Path) -> Any:
    found, classes = labelled_pixels_of(str(path))
    return found.tobytes(), classes and (classes.indices.tolist(), classes.names)


def _labels(path: Path) -> Any:
    classes = as_classes(given_labels(str(path), Path("digits")), 3, path)
    return classes.indices.tolist(), classes.names


def _class_names(path: Path) -> Any:
    return cifar_names(path.parent)


def _digits(path: Path) -> Any:
    return [part.tobytes() for part in _read_digits(path)]


def _statistics(path: Path) -> Any:
    """Of few features: the real ones take seconds."""
    with mock.patch.object(statistics, "FEATURES", 8):
        there = statistics.are_statistics(path)
        found = statistics.read_statistics(path)
    return there, [part.tolist() for part in found.of], found.images, found.weights


def _rows(path: Path) -> Any:
    return read_rows(path)


def _json(path: Path) -> Any:
    return parse_json(path.read_bytes(), path)


def _plain_yaml(path: Path) -> Any:
    import yaml

    return parse_yaml(path.read_bytes(), path, yaml.SafeLoader)


def _options(path: Path) -> Any:
    """A command line: the name of a command, and what is given to one of its options."""
    line = (
        path.read_bytes().decode("utf-8", "replace").replace("\0", "")
    )  # which C's strings end at
    name, _, rest = line.partition(" ")
    command = main.commands.get(name, main.commands["sample"])
    flag, _, given = rest.partition(" ")
    by_flag = {flag: option for option in command.params for flag in option.opts}
    option = by_flag.get(flag, command.params[0])
    context = click.Context(command, info_name=command.name)
    try:
        found = option.type_cast_value(context, (given,) if option.nargs == -1 else given)
    except ValueError as error:  # nobody catches it there
        raise TypeError(f"raw ValueError: {error}") from error
    settings = _settings_of_training()
    if option.name in settings and found is not None:
        try:
            found = settings[option.name].checked(option.name, found)
        except ValueError as error:
            raise click.BadParameter(str(error)) from error
    return found


def _settings_of_training() -> dict[str, Any]:
    from ncsn_fast.runs.training.settings import SETTINGS

    return SETTINGS


# Their inputs.


def _wrong_network(rng: random.Random) -> bytes:
    tensors, metadata = inputs.network_contents(rng.choice(inputs.NETWORKS))
    return inputs.mutated_tensor_file(tensors, metadata, rng)


def _training_contents() -> tuple[Any, Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "checkpoint.safetensors")
        path.write_bytes(inputs.run_folder()[path.name])
        return read_tensors(path)


def _wrong_training(rng: random.Random) -> bytes:
    return inputs.mutated_tensor_file(*_training_contents(), rng)


def _wrong_tensors(valid: Callable[[], bytes]) -> Callable[[random.Random], bytes]:
    def wrong(rng: random.Random) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "p.safetensors")
            path.write_bytes(valid())
            return inputs.mutated_tensor_file(*read_tensors(path), rng)

    return wrong


def _wrong_samples(rng: random.Random) -> bytes:
    with np.load(io.BytesIO(inputs.samples())) as archive:
        arrays = dict(archive)
    if rng.random() < 0.3:
        settings = inputs.mutated_value(inputs.IDENTITY, rng)
        return inputs.array_archive(**{**arrays, "settings": np.array(json.dumps(settings))})
    changed = inputs.mutated_value(arrays, rng)
    plain = {k: np.asarray(v) for k, v in changed.items()} if isinstance(changed, dict) else {}
    return inputs.array_archive(**{k: v for k, v in plain.items() if v.dtype != object})


def _moments() -> dict[str, np.ndarray]:
    names = {"images": np.array(9), "weights": np.array("ab" * 32)}
    return {"mu": np.linspace(0, 1, 8), "sigma": np.eye(8) + 0.1, **names}


def _wrong_statistics(rng: random.Random) -> bytes:
    changed = inputs.mutated_value(_moments(), rng)
    plain = {k: np.asarray(v) for k, v in changed.items()} if isinstance(changed, dict) else {}
    return inputs.array_archive(**{k: v for k, v in plain.items() if v.dtype != object})


def _wrong_json(valid: Callable[[], bytes]) -> Callable[[random.Random], bytes]:
    return lambda rng: inputs.as_json(inputs.mutated_value(json.loads(valid()), rng))


def _wrong_manifest(rng: random.Random) -> bytes:
    """Other values, and their checksum."""
    value = json.loads(inputs.manifest())
    del value["sha256"]
    value = inputs.mutated_value(value, rng)
    if isinstance(value, dict) and rng.random() < 0.9:
        with contextlib.suppress(TypeError, ValueError):
            text = json.dumps(value, sort_keys=True)
            value = {**value, "sha256": hashlib.sha256(text.encode()).hexdigest()}
    return inputs.as_json(value)


def _wrong_log(rng: random.Random) -> bytes:
    entries = inputs.mutated_value(inputs.LOG, rng)
    lines = entries if isinstance(entries, list) else [entries]
    return b"".join(inputs.as_json(line) + b"\n" for line in lines)


def _wrong_yaml(rng: random.Random) -> bytes:
    import yaml

    changed = yaml.safe_load(inputs.OFFICIAL)
    for _ in range(rng.choice((1, 1, 3))):
        changed = inputs.mutated_value(changed, rng)
    return yaml.safe_dump(changed).encode("utf-8", "replace")


def _wrong_pytorch(rng: random.Random) -> bytes:
    changed = inputs.mutated_value(rng.choice(inputs.states()), rng)
    return inputs.pytorch_file(changed, legacy=rng.random() < 0.3)


def _wrong_arrays(rng: random.Random) -> bytes:
    arrays = {"images": inputs.pixels(3, 1, 8, 8), "labels": np.arange(3)}
    changed = inputs.mutated_value(arrays, rng)
    plain = changed if isinstance(changed, dict) else {}
    return inputs.array_archive(rng.random() < 0.5, **{k: np.asarray(v) for k, v in plain.items()})


def _wrong_array(rng: random.Random) -> bytes:
    return inputs.array_file(inputs.mutated_array(inputs.pixels(3, 8, 8, 1), rng))


def _wrong_idx(*shape: int) -> Callable[[random.Random], bytes]:
    return lambda rng: inputs.mutated_idx(inputs.pixels(*shape), rng)


def _command_lines() -> list[bytes]:
    lines = []
    for name, command in main.commands.items():
        for option in command.params:
            for given in ("1", "-3", "0.5", "nan", "1e400", "9" * 1000, "x", "", "runs/x"):
                lines.append(f"{name} {option.opts[0]} {given}".encode())
    return lines


def _bundled() -> list[bytes]:
    return [_DIGITS_FILE.read_bytes()]


OURS = "net.safetensors"
TARGETS = [
    Target(
        "JSON",
        "x.json",
        lambda: [inputs.as_json(inputs.LOG), b'["\\u00e9", -1.5e3]'],
        _json,
        _wrong_json(lambda: inputs.as_json(inputs.LOG)),
    ),
    Target(
        "YAML",
        "x.yml",
        lambda: [inputs.OFFICIAL.encode(), b"a: &a [1]\nb: {<<: {c: *a}}"],
        _plain_yaml,
        _wrong_yaml,
    ),
    Target(
        "official YAML",
        "x.yml",
        lambda: [s.encode() for s in (inputs.OFFICIAL, inputs.NAMESPACE)],
        _yaml,
        _wrong_yaml,
    ),
    Target(
        "network", OURS, lambda: [*map(inputs.network, inputs.NETWORKS)], _network, _wrong_network
    ),
    Target("network, sampled", OURS, lambda: [inputs.network()], _sampled, _wrong_network),
    Target(
        "classifier",
        OURS,
        lambda: [inputs.classifier()],
        lambda path: repr(load_classifier(path).state_dict()),
        _wrong_tensors(inputs.classifier),
    ),
    Target("tensors", OURS, lambda: [inputs.partial()], _tensors, _wrong_tensors(inputs.partial)),
    Target(
        "training checkpoint",
        "checkpoint.safetensors",
        lambda: [inputs.run_folder()["checkpoint.safetensors"]],
        _training,
        _wrong_training,
    ),
    Target(
        "training checkpoint as a network",
        "checkpoint.safetensors",
        lambda: [inputs.run_folder()["checkpoint.safetensors"]],
        _network,
        _wrong_training,
    ),
    Target(
        "PyTorch's files",
        "x.pth",
        lambda: [inputs.pytorch_file(s) for s in inputs.states()],
        _official_network,
        _wrong_pytorch,
    ),
    Target(
        "PyTorch's legacy files",
        "x.pth",
        lambda: [inputs.pytorch_file(s, legacy=True) for s in inputs.states()],
        _official_network,
        _wrong_pytorch,
    ),
    Target("samples", "samples.npz", lambda: [inputs.samples()], _store, _wrong_samples),
    Target(
        "a part of samples", "part_000000.npz", lambda: [inputs.samples()], _store, _wrong_samples
    ),
    Target(
        "a manifest of samples",
        "manifest.json",
        lambda: [inputs.manifest()],
        _store,
        _wrong_manifest,
    ),
    Target(
        "chains under way",
        "partial.safetensors",
        lambda: [inputs.partial()],
        _partial,
        _wrong_tensors(inputs.partial),
    ),
    Target(
        "settings of a run",
        "run.json",
        lambda: [inputs.run_folder()["run.json"]],
        _run,
        _wrong_json(lambda: inputs.run_folder()["run.json"]),
    ),
    Target(
        "decisions",
        "decisions.json",
        lambda: [inputs.as_json(inputs.DECISIONS)],
        measured.read_file,
        _wrong_json(lambda: inputs.as_json(inputs.DECISIONS)),
    ),
    Target("log of a run", "log.jsonl", lambda: [inputs.log()], _log, _wrong_log),
    Target(
        ".npz of images",
        "x.npz",
        lambda: [inputs.array_archive(c, images=inputs.pixels(3, 1, 8, 8)) for c in (0, 1)],
        _pixels,
        _wrong_arrays,
    ),
    Target(
        ".npy of images",
        "x.npy",
        lambda: [inputs.array_file(inputs.pixels(3, 8, 8, 1))],
        _pixels,
        _wrong_array,
    ),
    Target(
        "images and labels of an .npz",
        "x.npz",
        lambda: [inputs.array_archive(images=inputs.pixels(3, 1, 8, 8), labels=np.arange(3))],
        _labelled,
        _wrong_arrays,
    ),
    Target(
        ".npy of labels",
        "x.npy",
        lambda: [inputs.array_file(np.arange(3))],
        _labels,
        lambda rng: inputs.array_file(inputs.mutated_array(np.arange(3), rng)),
    ),
    Target(
        "statistics of images",
        "x.npz",
        lambda: [inputs.array_archive(c, **_moments()) for c in (0, 1)],
        _statistics,
        _wrong_statistics,
    ),
    Target("IDX of images", "x.gz", inputs.idx_images, _pixels, _wrong_idx(3, 8, 8)),
    Target("IDX of labels", "x-labels-idx1-ubyte", inputs.idx_labels, _labels, _wrong_idx(3)),
    Target("CIFAR-10", "x.bin", lambda: [inputs.cifar()], _pixels),
    Target(
        "names of CIFAR-10's classes",
        "batches.meta.txt",
        lambda: ["\n".join("abcdefghij").encode()],
        _class_names,
    ),
    *(
        Target(f"picture, {kind}", f"x.{kind}", lambda kind=kind: [inputs.picture(kind)], _folder)
        for kind in ("png", "jpeg", "bmp", "webp", "tiff", "ppm")
    ),
    Target("rows of a benchmark", "rows.jsonl", lambda: [inputs.benchmark()], _rows),
    Target("bundled digits", "digits.npz", _bundled, _digits),
    Target("options", "x.txt", _command_lines, _options, told_by=""),
]
