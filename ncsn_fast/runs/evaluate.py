"""How good samples are, in a folder: what ``ncsn-fast evaluate`` does."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ncsn_fast.checkpoints.first_bytes import is_safetensors
from ncsn_fast.checkpoints.hub import WEIGHTS
from ncsn_fast.checkpoints.load_save import BUNDLED, load_checkpoint
from ncsn_fast.data.load import pixels_of
from ncsn_fast.data.pixels import eight_bits, unit_interval
from ncsn_fast.distributed.group import Group, join
from ncsn_fast.distributed.ranks import ALONE, Ranks
from ncsn_fast.evaluation.classifier import Classifier
from ncsn_fast.evaluation.features import seen
from ncsn_fast.evaluation.inception.figures import (
    Images,
    InceptionReference,
    Looks,
    check_channels,
    look,
)
from ncsn_fast.evaluation.inception.network import RESIZE
from ncsn_fast.evaluation.inception.statistics import Statistics, write_statistics
from ncsn_fast.evaluation.neighbours import nearest, nearness
from ncsn_fast.evaluation.proportions import standard_errors
from ncsn_fast.evaluation.quality import Quality, Reference
from ncsn_fast.pictures import images as plots
from ncsn_fast.runs.evaluation import words
from ncsn_fast.runs.evaluation.given import InPieces, enough, given, identity
from ncsn_fast.runs.evaluation.judges import (
    NO_CLASSIFIER,
    Judges,
    check_stats_file,
    read_judges,
)
from ncsn_fast.runs.evaluation.page import write_page
from ncsn_fast.runs.evaluation.words import PUBLISHED
from ncsn_fast.runs.report import check_own, machine_facts
from ncsn_fast.runs.sample import sample
from ncsn_fast.support.files import check_writable, remove_leftovers, write_text
from ncsn_fast.support.locks import folder_lock

_TORCH_FILES = (".pth", ".pt", ".ckpt")
_SHOWN = 64
_MOST_BYTES = 4 << 30  # of training images, as 8-bit pixels
_log = logging.getLogger("ncsn_fast")
Say = Callable[[str], None]


@dataclass(frozen=True)
class _Sets:
    """The images that are compared, uint8 (N, C, H, W).

    Attributes:
        given: samples of the model, as they are stored; ``samples`` once all are read.
        reference: real images that it did not see, at most as many; None: their statistics alone
            were given.
        whole: all of the reference, as it is stored; None likewise.
        train: those it was trained on, if they were given.
        real: as many of these at random as there are samples, at most.
    """

    given: Images
    reference: Tensor | None
    whole: np.ndarray | None
    train: Tensor | None
    real: Tensor | None

    @cached_property
    def samples(self) -> Tensor:
        return eight_bits(self.given[:])


def evaluate(
    samples: str,
    out: Path,
    *,
    reference: str,
    train: str | None,
    classifier: str,
    inception: Path | None,
    inception_sha256: str | None,
    save_stats: Path | None,
    number: int,
    sampling: dict[str, Any],
    device: str,
    place: Ranks = ALONE,
    say: Say,
    progress: bool,
) -> dict[str, Any]:
    """Compare samples with real images; write figures and pictures into a folder.

    Several processes share what a network has to be run for, sampling and looking through
    Inception; the first does the rest, and alone says, writes and returns what was found.

    All images are rounded to 8 bits first, as picture files are.

    Args:
        samples: a checkpoint or the name of a bundled network, of which samples are drawn into
            out/samples first; a folder of ``ncsn-fast sample``; or what ``load_pixels`` reads.
        out: folder for evaluation.json, evaluation.html, samples.png and, with ``train``,
            nearest.png.
        reference, train: what ``load_pixels`` reads, or the word "digits": of the bundled digits
            those held out, those trained on. With ``inception`` the reference may be an .npz of
            statistics, ``mu`` and ``sigma``.
        classifier: "digits", "mnist", "fashion", a file, or "none": precision and recall are of
            pixels then.
        inception: file of the weights of FID's network: figures are of its features then, not of
            pixels, beside those of a classifier.
        inception_sha256: what that file has to be, if not the published one.
        save_stats: .npz for the statistics of the reference in Inception's features.
        number: of samples; of images that are there already, the first so many.
        sampling: ``seed``, ``labels``, ``guidance``, ``batch_size`` and settings of the Sampler,
            None where not given.
        device: where samples are drawn, and Inception runs.
        place: which process of how many this is, as torchrun has started them.

    Returns:
        The report: what evaluation.json holds, and more, as docs/use.md describes it.

    Raises:
        ValueError, OSError: for data that cannot be read or do not fit, settings that are not for
            them, or a folder that cannot be written; before samples are drawn.
    """
    files = {"figures": out / "evaluation.json", "page": out / "evaluation.html"}
    files |= {"samples": out / "samples.png"}
    files |= {} if train is None else {"nearest": out / "nearest.png"}
    given_ = {name: value for name, value in sampling.items() if value is not None}
    network = _is_checkpoint(samples)
    _check_drawn(samples, given_, network)
    started, group = time.monotonic(), join(place, device)
    if not place.is_first:
        say, progress = _say_nothing, False
    lock = folder_lock(out, "choose another --out")  # who is refused leaves no folder behind
    with lock if place.is_first else contextlib.nullcontext():
        judges = read_judges(reference, train, classifier, inception, inception_sha256, device)
        group.from_first(lambda: _check_files(files, save_stats, judges, out))
        there = None if network else given(samples, number)
        shape = tuple(load_checkpoint(samples).shape if there is None else there.shape[1:])
        _check_shape(shape, judges, classifier)
        say(f"Reading {reference}" + (f" and {train}" if train else ""))
        real = None if judges.statistics else _pixels(reference, shape, "test")
        trained = None if train is None else _pixels(train, shape, "train")
        drawn = None
        if there is None:
            drawn = group.patiently(
                lambda: _drawn(samples, out, number, given_, device, place, say, progress)
            )
            there = given(str(out / "samples"), number)
        sets = _sets(there, real, trained)
        looks = _look(sets, judges, group, say, progress)
        if not place.is_first:
            return {}
        report: dict[str, Any] = {
            "samples": samples,
            "reference": {"data": reference, "statistics": real is None},
            "train": None if sets.train is None else {"data": train, "images": len(sets.train)},
            "sampling": drawn,
            "identity": None if network else identity(samples),
        }
        named = {"name": classifier, "classes": list(getattr(judges.classifier, "classes", ()))}
        report["classifier"] = None if judges.classifier is None else named
        found = _compare(sets, judges, report, say, progress)
        report["inception"] = _figures(looks, judges, report, save_stats, say)
        report["as_asked"] = _as_asked(words.asked(report), judges.classifier, sets)
        report["remarks"] = words.remarks(report)
        write_text(files["figures"], json.dumps(report, indent=2, allow_nan=False) + "\n")
        write_page(files["page"], report, _draw(files, sets, found))
    say(words.in_text(report))
    files |= {} if save_stats is None else {"statistics": save_stats}
    seconds = round(time.monotonic() - started, 3)
    return {**report, "files": files, "seconds": seconds, **machine_facts(device)}


def _say_nothing(told: str) -> None:
    """What the first process says is said by it alone."""


def _check_files(
    files: dict[str, Path], save_stats: Path | None, judges: Judges, out: Path
) -> None:
    """Refuse to replace what is not ours, and what cannot be written."""
    check_own(list(files.values()), ("quality", "reference"), "ncsn-fast evaluate")
    for path in files.values():
        check_writable(path)
    check_stats_file(save_stats, judges)
    remove_leftovers(out)


def _check_drawn(samples: str, given: dict[str, Any], network: bool) -> None:
    """Refuse settings of sampling for images that are there."""
    if given and not network:
        name, value = next(iter(given.items()))
        told = f"{name}={value}" if isinstance(value, str | int | float) else name
        raise ValueError(f"{samples} holds images that are drawn already: {told}, for a network")


def _is_checkpoint(samples: str) -> bool:
    path = Path(samples)
    if samples in BUNDLED or path.suffix.lower() in _TORCH_FILES:
        return True
    return (path / WEIGHTS).is_file() or (path.is_file() and is_safetensors(path))


def _pixels(data: str, shape: tuple[int, ...], split: str) -> np.ndarray:
    """Images as they are stored, of this shape; those of a folder are brought to its size."""
    parts = {"split": split} if data == "digits" else {}
    pixels = pixels_of(data, image_size=(shape[1], shape[2]), **parts)
    if pixels.shape[1:] != shape:
        raise ValueError(
            f"{data} holds images of shape {pixels.shape[1:]}, the samples have {shape}: they "
            "have to be of one"
        )
    enough(pixels, data)
    return pixels


def _check_shape(shape: tuple[int, ...], judges: Judges, name: str) -> None:
    if len(shape) != 3:
        raise ValueError(f"the samples have shape {shape}: images (C, H, W) can be compared")
    judge = judges.classifier
    if judge is not None and judge.shape != shape:
        raise ValueError(
            f"classifier={name} is of images {judge.shape}, the samples have {shape}: choose "
            f"one of such images, or classifier={NO_CLASSIFIER}"
        )
    if judges.inception is not None:
        check_channels(shape[0])


def _drawn(
    checkpoint: str,
    out: Path,
    number: int,
    settings: dict[str, Any],
    device: str,
    place: Ranks,
    say: Say,
    progress: bool,
) -> dict[str, Any]:
    """Draw samples of a network, but for those in the folder; how they were made."""
    report = sample(
        Path(checkpoint) if checkpoint in BUNDLED else Path(checkpoint).absolute(),
        out / "samples",
        ids=range(number),
        seed=settings.pop("seed", 0),
        labels=settings.pop("labels", ()),
        guidance=settings.pop("guidance", None),
        batch_size=settings.pop("batch_size", None),
        settings=settings,
        config=None,
        image_size=None,
        animate=None,
        device=device,
        place=place,
        say=say,
        progress=progress,
    )
    kept = ("checkpoint", "settings", "seed", "sample_ids", "precision", "convolutions")
    told = {name: report[name] for name in kept}
    told["checkpoint"]["file"] = str(told["checkpoint"]["file"])
    return told


def _sets(samples: Images, whole: np.ndarray | None, train: np.ndarray | None) -> _Sets:
    number = len(samples)
    reference = None if whole is None else _some(whole, number)
    if train is None:
        return _Sets(samples, reference, whole, None, None)
    most = max(number, _MOST_BYTES // train[0].size)
    if len(train) > most:
        _log.warning(
            "of %s training images %s at random are searched", f"{len(train):,}", f"{most:,}"
        )
    some = _some(train, most)
    return _Sets(samples, reference, whole, some, _some(some.numpy(), number))


def _some(pixels: np.ndarray, most: int) -> Tensor:
    """At most so many of the images, at random but always the same."""
    if len(pixels) <= most:
        return eight_bits(pixels)
    picked = np.random.default_rng(0).choice(len(pixels), most, replace=False)
    return eight_bits(pixels[np.sort(picked)])


def _compare(
    sets: _Sets, judges: Judges, report: dict[str, Any], say: Say, progress: bool
) -> Tensor | None:
    """Add to the report what is measured without Inception; the nearest training images, int64
    (N,), if there are any."""
    report |= {"quality": None, "nearness": None}
    if sets.reference is None:
        return None
    facts = report["reference"]
    facts["images"] = facts["compared"] = len(sets.reference)
    if judges.by_pixels:
        say(f"Comparing {len(sets.samples):,} samples with {len(sets.reference):,} images")
        reference = Reference(sets.reference, judges.classifier)
        real = None if sets.real is None else _plain(reference.quality(sets.real))
        report["quality"] = {"samples": _plain(reference.quality(sets.samples)), "real": real}
        if reference.seen is not None:
            facts["confident"] = reference.seen.confident
            facts["counts"] = reference.seen.counts.tolist()
    if sets.train is None:
        return None
    say(f"Searching {len(sets.train):,} training images for the nearest ones")
    found = nearest(sets.samples, sets.train, progress=progress)
    held_out = nearest(sets.reference, sets.train, progress=progress)
    near = nearness(found.distances[:, 0] / 255, held_out.distances[:, 0] / 255)
    report["nearness"] = asdict(near)
    return found.indices[:, 0]


class _Seen(NamedTuple):
    """Through Inception: the ``reference``, the ``samples``, and ``real`` (training) images."""

    reference: Looks | Statistics
    samples: Looks
    real: Looks | None


def _look(sets: _Sets, judges: Judges, group: Group, say: Say, progress: bool) -> _Seen | None:
    """All sets through Inception, by all processes; all of the reference counts."""
    net = judges.inception
    if net is None:
        return None

    def through(images: Images, of: str) -> Looks:
        say(f"Looking at {len(images):,} {of} through Inception")
        return look(net, images, group, progress)

    reference: Looks | Statistics | None = judges.statistics
    if reference is None:
        assert sets.whole is not None
        reference = through(sets.whole, "images of the reference")
    samples = through(sets.given, "samples")
    real = None if sets.real is None else through(sets.real.numpy(), "training images")
    return _Seen(reference, samples, real)


def _figures(
    looks: _Seen | None,
    judges: Judges,
    report: dict[str, Any],
    save_stats: Path | None,
    say: Say,
) -> dict[str, Any] | None:
    """What is measured in Inception's features."""
    net = judges.inception
    if looks is None or net is None:
        return None
    if save_stats is not None and isinstance(looks.reference, Looks):
        write_statistics(save_stats, looks.reference.moments, net.weights.sha256)
    reference = InceptionReference(looks.reference, net.device)
    report["reference"]["images"] = reference.images
    say("Measuring distances in Inception's features")
    samples = asdict(reference.measure(looks.samples))
    real = None if looks.real is None else asdict(reference.measure(looks.real))
    return {
        "samples": samples,
        "real": real,
        "weights": net.weights._asdict(),
        "package": net.package,
        "dtype": "float32, sums in float64",
        "resize": RESIZE,
    }


def _as_asked(labels: list[str], judge: Classifier | None, sets: _Sets) -> float | None:
    """The share of samples that the classifier takes for the class they were drawn of; None: of no
    class, or of such as it does not know."""
    if judge is None or not labels or not isinstance(sets.given, InPieces):
        return None
    names = [name.lower() for name in judge.classes]
    if not {label.lower() for label in labels} <= set(names):
        return None
    asked = [names.index(labels[i % len(labels)].lower()) for i in sets.given.ids()]
    found = seen(judge, sets.samples).probabilities.argmax(1)
    return float((found == torch.tensor(asked)).double().mean())


def _plain(quality: Quality) -> dict[str, Any]:
    values = asdict(quality)
    if quality.counts is not None and quality.proportions is not None:
        values["standard_errors"] = standard_errors(torch.tensor(quality.counts)).tolist()
        values["proportions"] = quality.proportions._asdict()
    return values


def _draw(files: dict[str, Path], sets: _Sets, neighbours: Tensor | None) -> dict[str, Path]:
    """Draw the pictures; those of the page, by their titles."""

    def shown(images: Tensor) -> Tensor:
        return plots.visible(unit_interval(images[:_SHOWN]))

    samples = shown(eight_bits(sets.given[:_SHOWN]))
    panels = {"samples": samples}
    if sets.reference is not None:
        panels["real (reference)"] = shown(sets.reference)
    plots.save_panels(files["samples"], panels)
    drawn = {"Samples": files["samples"]}
    if sets.train is not None and neighbours is not None:
        nearest_ones = shown(sets.train[neighbours[:_SHOWN]])
        near = {"samples": samples, "their nearest training images": nearest_ones}
        plots.save_panels(files["nearest"], near)
        drawn["Samples and the training images nearest to them"] = files["nearest"]
    return drawn


__all__ = ["NO_CLASSIFIER", "PUBLISHED", "evaluate"]
