"""How good samples are, in a folder: what ``ncsn-fast evaluate`` does."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ncsn_fast.checkpoints.first_bytes import is_safetensors
from ncsn_fast.checkpoints.load_save import BUNDLED, load_checkpoint
from ncsn_fast.data.load import load_pixels, pixels_of
from ncsn_fast.data.pixels import eight_bits, unit_interval
from ncsn_fast.evaluation.classifier import Classifier, load_classifier
from ncsn_fast.evaluation.features import seen
from ncsn_fast.evaluation.neighbours import Nearness, nearest, nearness
from ncsn_fast.evaluation.proportions import standard_errors
from ncsn_fast.evaluation.quality import MOST_VALUES, Quality, Reference
from ncsn_fast.pictures import images as plots
from ncsn_fast.runs.report import check_own, machine_facts
from ncsn_fast.runs.sample import sample
from ncsn_fast.support.files import check_writable, folder_lock, remove_leftovers, write_text

NO_CLASSIFIER = "none"
PUBLISHED = 10_000  # images of each set; figures of fewer are not those that are published
_TORCH_FILES = (".pth", ".pt", ".ckpt")
_LEAST, _SHOWN = 8, 64
_FEW = 0.005  # data sets hold some images twice
_MOST_BYTES = 4 << 30  # of training images, as 8-bit pixels
_log = logging.getLogger("ncsn_fast")
Say = Callable[[str], None]


@dataclass(frozen=True)
class _Sets:
    """The images that are compared, uint8 (N, C, H, W).

    Attributes:
        samples: of the model.
        reference: real images that it did not see, at most as many.
        train: those it was trained on, if they were given.
        real: as many of these at random as there are samples, at most.
    """

    samples: Tensor
    reference: Tensor
    train: Tensor | None
    real: Tensor | None


def evaluate(
    samples: str,
    out: Path,
    *,
    reference: str,
    train: str | None,
    classifier: str,
    number: int,
    sampling: dict[str, Any],
    device: str,
    say: Say,
    progress: bool,
) -> dict[str, Any]:
    """Compare samples with real images; write figures and pictures into a folder.

    All images are rounded to 8 bits first, as picture files are.

    Args:
        samples: a checkpoint or the name of a bundled network, of which samples are drawn into
            out/samples first; a folder of ``ncsn-fast sample``; or what ``load_pixels`` reads.
        out: folder for evaluation.json, samples.png and, with ``train``, nearest.png.
        reference, train: what ``load_pixels`` reads, or the word "digits": of the bundled digits
            those held out, those trained on.
        classifier: "mnist", "fashion", a file, or "none": precision and recall are of pixels then.
        number: of samples; of images that are there already, the first so many.
        sampling: ``seed``, ``labels``, ``guidance``, ``batch_size`` and settings of the Sampler,
            None where not given.
        device: where samples are drawn.

    Returns:
        The report: what evaluation.json holds, and more, as docs/use.md describes it.

    Raises:
        ValueError, OSError: for data that cannot be read or do not fit, settings that are not for
            them, or a folder that cannot be written; before samples are drawn.
    """
    files = {"figures": out / "evaluation.json", "samples": out / "samples.png"}
    files |= {} if train is None else {"nearest": out / "nearest.png"}
    judge = None if classifier == NO_CLASSIFIER else load_classifier(classifier)
    given = {name: value for name, value in sampling.items() if value is not None}
    network = _is_checkpoint(samples)
    if given and not network:
        name, value = next(iter(given.items()))
        told = f"{name}={value}" if isinstance(value, str | int | float) else name
        raise ValueError(f"{samples} holds images that are drawn already: {told}, for a network")
    started = time.monotonic()
    with folder_lock(out, "choose another --out"):  # who is refused leaves no folder behind
        check_own(list(files.values()), ("quality", "reference"), "ncsn-fast evaluate")
        for path in files.values():
            check_writable(path)
        remove_leftovers(out)
        there = None if network else _given(samples)[:number]
        shape = tuple(load_checkpoint(samples).shape if there is None else there.shape[1:])
        _check_shape(shape, judge, classifier)
        say(f"Reading {reference}" + (f" and {train}" if train else ""))
        real = _pixels(reference, shape, "test")
        trained = None if train is None else _pixels(train, shape, "train")
        if there is None:
            there, drawn = _drawn(samples, out, number, given, device, say, progress)
        else:
            drawn = None
        sets = _sets(there, real, trained)
        found = _measure(sets, judge, say, progress)
        report = _report(found, samples=samples, reference=reference, train=train)
        named = None if judge is None else {"name": classifier, "classes": list(judge.classes)}
        report |= {"classifier": named, "sampling": drawn}
        report["as_asked"] = _as_asked(drawn, judge, sets.samples)
        report["remarks"] = _remarks(report)
        write_text(files["figures"], json.dumps(report, indent=2, allow_nan=False) + "\n")
        _draw(files, sets, found.neighbours)
    say(_table(report))
    seconds = round(time.monotonic() - started, 3)
    return {**report, "files": files, "seconds": seconds, **machine_facts(device)}


def _is_checkpoint(samples: str) -> bool:
    path = Path(samples)
    if samples in BUNDLED or path.suffix.lower() in _TORCH_FILES:
        return True
    return path.is_file() and is_safetensors(path)


def _given(samples: str) -> np.ndarray:
    """The images of a folder of ``ncsn-fast sample``, or what else holds some."""
    inside = Path(samples) / "samples.npz"
    ours = inside.is_file()
    return _enough(load_pixels(inside, key="images") if ours else load_pixels(samples), samples)


def _pixels(data: str, shape: tuple[int, ...], split: str) -> np.ndarray:
    """Images as they are stored, of this shape; those of a folder are brought to its size."""
    parts = {"split": split} if data == "digits" else {}
    pixels = pixels_of(data, image_size=(shape[1], shape[2]), **parts)
    if pixels.shape[1:] != shape:
        raise ValueError(
            f"{data} holds images of shape {pixels.shape[1:]}, the samples have {shape}: they "
            "have to be of one"
        )
    return _enough(pixels, data)


def _enough(pixels: np.ndarray, data: str) -> np.ndarray:
    if len(pixels) < _LEAST:
        raise ValueError(f"{data} holds {len(pixels)} images: needed are at least {_LEAST}")
    return pixels


def _check_shape(shape: tuple[int, ...], judge: Classifier | None, name: str) -> None:
    if len(shape) != 3:
        raise ValueError(f"the samples have shape {shape}: images (C, H, W) can be compared")
    if judge is not None and judge.shape != shape:
        raise ValueError(
            f"classifier={name} is of images {judge.shape}, the samples have {shape}: choose "
            f"one of such images, or classifier={NO_CLASSIFIER}"
        )


def _drawn(
    checkpoint: str,
    out: Path,
    number: int,
    given: dict[str, Any],
    device: str,
    say: Say,
    progress: bool,
) -> tuple[np.ndarray, dict[str, Any]]:
    """Samples of a network, and how they were made; those in the folder are not made again."""
    report = sample(
        Path(checkpoint),
        out / "samples",
        ids=range(number),
        seed=given.pop("seed", 0),
        labels=given.pop("labels", ()),
        guidance=given.pop("guidance", None),
        batch_size=given.pop("batch_size", "auto"),
        settings=given,
        config=None,
        image_size=None,
        gif=False,
        device=device,
        say=say,
        progress=progress,
    )
    kept = ("checkpoint", "settings", "seed", "sample_ids", "precision", "convolutions")
    images = load_pixels(report["files"]["samples"], key="images")[:number]
    told = {name: report[name] for name in kept}
    told["checkpoint"]["file"] = str(told["checkpoint"]["file"])
    return images, told


def _sets(samples: np.ndarray, reference: np.ndarray, train: np.ndarray | None) -> _Sets:
    number = len(samples)
    if train is None:
        return _Sets(eight_bits(samples), _some(reference, number), None, None)
    most = max(number, _MOST_BYTES // train[0].size)
    if len(train) > most:
        _log.warning(
            "of %s training images %s at random are searched", f"{len(train):,}", f"{most:,}"
        )
    whole = _some(train, most)
    return _Sets(eight_bits(samples), _some(reference, number), whole, _some(whole.numpy(), number))


def _some(pixels: np.ndarray, most: int) -> Tensor:
    """At most so many of the images, at random but always the same."""
    if len(pixels) <= most:
        return eight_bits(pixels)
    picked = np.random.default_rng(0).choice(len(pixels), most, replace=False)
    return eight_bits(pixels[np.sort(picked)])


@dataclass(frozen=True)
class _Found:
    """What was measured.

    Attributes:
        samples, real: the figures of both; real: of the training images, if they were given.
        reference: what of the reference stands beside them.
        nearness, neighbours: of the samples to the training images; index int64 (N,).
    """

    samples: Quality
    real: Quality | None
    reference: dict[str, Any]
    train: int | None
    nearness: Nearness | None
    neighbours: Tensor | None


def _measure(sets: _Sets, judge: Classifier | None, say: Say, progress: bool) -> _Found:
    say(f"Comparing {len(sets.samples):,} samples with {len(sets.reference):,} images")
    reference = Reference(sets.reference, judge)
    samples = reference.quality(sets.samples)
    facts: dict[str, Any] = {"images": len(sets.reference)}
    if reference.seen is not None:
        facts["confident"] = reference.seen.confident
        facts["counts"] = reference.seen.counts.tolist()
    if sets.train is None or sets.real is None:
        return _Found(samples, None, facts, None, None, None)
    say(f"Searching {len(sets.train):,} training images for the nearest ones")
    found = nearest(sets.samples, sets.train, progress=progress)
    held_out = nearest(sets.reference, sets.train, progress=progress)
    return _Found(
        samples,
        reference.quality(sets.real),
        facts,
        len(sets.train),
        nearness(found.distances[:, 0] / 255, held_out.distances[:, 0] / 255),
        found.indices[:, 0],
    )


def _report(found: _Found, *, samples: str, reference: str, train: str | None) -> dict[str, Any]:
    return {
        "samples": samples,
        "reference": {"data": reference, **found.reference},
        "train": None if train is None else {"data": train, "images": found.train},
        "quality": {
            "samples": _plain(found.samples),
            "real": None if found.real is None else _plain(found.real),
        },
        "nearness": None if found.nearness is None else asdict(found.nearness),
    }


def _as_asked(
    drawn: dict[str, Any] | None, judge: Classifier | None, samples: Tensor
) -> float | None:
    """The share of samples that the classifier takes for the class they were drawn of; None: of no
    class, or of such as it does not know."""
    labels = None if drawn is None else drawn["settings"]["labels"]
    if judge is None or not labels:
        return None
    names = [name.lower() for name in judge.classes]
    if not {label.lower() for label in labels} <= set(names):
        return None
    asked = [names.index(labels[i % len(labels)].lower()) for i in range(len(samples))]
    found = seen(judge, samples).probabilities.argmax(1)
    return float((found == torch.tensor(asked)).double().mean())


def _plain(quality: Quality) -> dict[str, Any]:
    values = asdict(quality)
    if quality.counts is not None and quality.proportions is not None:
        values["standard_errors"] = standard_errors(torch.tensor(quality.counts)).tolist()
        values["proportions"] = quality.proportions._asdict()
    return values


def _draw(files: dict[str, Path], sets: _Sets, neighbours: Tensor | None) -> None:
    def shown(images: Tensor) -> Tensor:
        return plots.visible(unit_interval(images[:_SHOWN]))

    real = {"samples": shown(sets.samples), "real (reference)": shown(sets.reference)}
    plots.save_panels(files["samples"], real)
    if sets.train is not None and neighbours is not None:
        nearest_ones = shown(sets.train[neighbours[:_SHOWN]])
        near = {"samples": shown(sets.samples), "their nearest training images": nearest_ones}
        plots.save_panels(files["nearest"], near)


def _table(report: dict[str, Any]) -> str:
    """The figures in words, those of real images beside them."""
    samples, real = report["quality"]["samples"], report["quality"]["real"]
    columns = [samples] if real is None else [samples, real]
    of = "pixels" if report["classifier"] is None else "the classifier's features"

    def row(title: str, *values: str) -> str:
        return f"{title:44}" + "".join(f"{value:>17}" for value in values)

    lines = ["", row("", "samples", *(["training images"] if real else []))]
    lines += [row("images", *(f"{one['images']:,}" for one in columns))]
    if samples["frechet"] is not None:
        shown = (f"{one['frechet']:.3f}" for one in columns)
        lines += [row("pixel Fréchet distance to the reference", *shown)]
    for name in ("precision", "recall"):
        lines += [row(f"{name} (k = 3, {of})", *(f"{one[name]:.3f}" for one in columns))]
    if samples["confident"] is not None:
        shown = (f"{one['confident']:.1%}" for one in columns)
        lines += [row("given a class with probability above 0.9", *shown)]
        if report["as_asked"] is not None:
            lines += [row("given the class that was asked for", f"{report['as_asked']:.1%}")]
        tests = [one["proportions"] for one in columns]
        degrees = tests[0]["degrees"]
        shown = (f"{one['chi_square']:.1f} (p {one['p_value']:.2g})" for one in tests)
        lines += [row(f"classes: χ², {degrees} degrees of freedom", *shown)]
    near = report["nearness"]
    if near is not None:
        lines += ["", row("", "samples", "reference")]
        pairs = [(near[name], near[f"{name}_error"]) for name in ("samples", "held_out")]
        shown = (f"{mean:.3f} ± {error:.3f}" for mean, error in pairs)
        lines += [row("distance to the nearest training image", *shown)]
        shown = (f"{near[name]:.3f}" for name in ("smallest", "held_out_smallest"))
        lines += [row("the smallest of these distances", *shown)]
        shown = (f"{near[name]:.1%}" for name in ("copies", "held_out_copies"))
        lines += [row("equal to it", *shown)]
        lines += [row("nearer than 99 % of the reference", f"{near['near']:.1%}", "1.0%")]
    return "\n".join([*lines, "", *report["remarks"], ""])


def _remarks(report: dict[str, Any]) -> list[str]:
    """What a reader has to know beside the figures."""
    samples, real = report["quality"]["samples"], report["quality"]["real"]
    found = []
    if samples["images"] < PUBLISHED:
        found.append(
            f"The figures depend on the number of images: compare them with others of "
            f"{samples['images']:,} only. Published ones are of {PUBLISHED:,} or more."
        )
    if samples["confident"] is not None:
        seen, classes = report["reference"]["confident"], report["classifier"]["classes"]
        found.append(f"Of the reference {seen:.1%} get a class with probability above 0.9.")
        off = samples["proportions"]["deviations"]
        worst = max(range(len(off)), key=lambda i: abs(off[i]))
        share = samples["counts"][worst] / samples["images"]
        there = report["reference"]["counts"][worst] / report["reference"]["images"]
        found.append(
            f"Farthest from its share is {classes[worst]}: {share:.1%} of the samples, {there:.1%} "
            f"of the reference, {abs(off[worst]):.1f} standard errors."
        )
    near = report["nearness"]
    if near is not None and near["held_out_copies"] > _FEW:
        found.append(
            f"{near['held_out_copies']:.1%} of the reference are training images themselves: give "
            "images that were not trained on, or the figures say nothing of copies."
        )
    if report["as_asked"] is not None:
        found.append("Classes were asked for: their proportions are not the network's own.")
    if real is None:
        found.append("What real images reach is not known: give training images by --train.")
    if samples["frechet"] is None:
        found.append(f"No Fréchet distance: the images have more than {MOST_VALUES:,} values.")
    return found


__all__ = ["NO_CLASSIFIER", "PUBLISHED", "evaluate"]
