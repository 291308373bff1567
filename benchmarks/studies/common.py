"""What the studies share: their options, what becomes of a report, and a judge of images."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import ncsn_fast as nf
from ncsn_fast.data.digits import digits
from ncsn_fast.data.load import load_images
from ncsn_fast.data.pixels import eight_bits
from ncsn_fast.evaluation.classifier import Classifier
from ncsn_fast.evaluation.features import seen
from ncsn_fast.evaluation.quality import Quality, Reference
from ncsn_fast.models.base import ScoreNetwork
from ncsn_fast.support.files import write_text

if TYPE_CHECKING:
    from matplotlib.axis import Axis

DISTANCES = tuple(base * 10**power for power in range(-2, 4) for base in (1, 2, 5))
HEAD = ("of its class", "sure of a class", "precision", "recall", "Fréchet distance")


@dataclass(frozen=True)
class Judged:
    """What is known of a set of images.

    Attributes:
        right: the share that is of the class that was asked for; None where none was.
        quality: against as many real images.
    """

    right: float | None
    quality: Quality

    def shown(self) -> list[str]:
        """The cells below ``HEAD``."""
        found = self.quality
        shares = (self.right, found.confident, found.precision, found.recall)
        told = ["" if share is None else f"{100 * share:.1f} %" for share in shares]
        return [*told, "" if found.frechet is None else f"{found.frechet:.2f}"]


class Judge:
    """Compares sets of ``number`` images with as many real ones.

    Args:
        classifier: of such images.
        real: (N, C, H, W) in [0, 1], N at least twice ``number``; which are taken is random but
            always the same.
        number: of images in a set.

    Attributes:
        of_real: what other real images are measured to be.
    """

    def __init__(self, classifier: Classifier, real: Tensor, number: int) -> None:
        if len(real) < 2 * number:
            raise SystemExit(
                f"{number} samples are compared with as many real images, and those with as many "
                f"others: of {len(real)} images give -n at most {len(real) // 2}"
            )
        order = torch.randperm(len(real), generator=torch.Generator().manual_seed(0))
        self._classifier = classifier
        self._reference = Reference(eight_bits(real[order[:number]].numpy()), classifier)
        self.of_real = self(real[order[number : 2 * number]])

    def __call__(self, images: Tensor, classes: Tensor | None = None) -> Judged:
        """Judge images in [0, 1]; ``classes`` (N,) are those that were asked for."""
        told = eight_bits(images.cpu().numpy())
        found = seen(self._classifier, told).probabilities.argmax(1)
        right = None if classes is None else float((found == classes).double().mean())
        return Judged(right, self._reference.quality(told))


def parser(doc: str | None) -> argparse.ArgumentParser:
    """A command that the first line of a docstring describes."""
    return argparse.ArgumentParser(description=(doc or "").split("\n")[0])


def add_number(command: argparse.ArgumentParser, default: int, least: int, of: str) -> None:
    """``-n``: how many images, of which fewer than ``least`` cannot be judged."""

    def number(word: str) -> int:
        if not word.isdecimal() or int(word) < least:
            raise argparse.ArgumentTypeError(f"{word!r}: give a whole number of at least {least}")
        return int(word)

    command.add_argument("-n", "--number", type=number, default=default, help=of)


def add_model(command: argparse.ArgumentParser) -> None:
    """What a study is of, and the images for :func:`held_out`."""
    command.add_argument(
        "model", nargs="?", default="digits", help="a checkpoint, or a bundled network (digits)"
    )
    command.add_argument("--data", help="images that it has not been trained on")


def add_chain(command: argparse.ArgumentParser) -> None:
    """What :func:`full_chain` is told."""
    of = "of the full chain; default: the checkpoint's"
    command.add_argument("--step-size", type=float, help=f"ε {of}")
    command.add_argument("--steps-per-level", type=int, help=of)


def full_chain(net: ScoreNetwork, options: argparse.Namespace) -> dict[str, Any]:
    """The settings of annealed Langevin dynamics over all levels of a network: its own, but for
    those that the options name."""
    named = {name: getattr(options, name) for name in ("step_size", "steps_per_level")}
    told = {name: value for name, value in named.items() if value is not None}
    chain = {"method": "annealed_langevin", **told}
    try:
        nf.Sampler(net, **chain)
    except ValueError as error:
        raise SystemExit(f"--step-size, --steps-per-level: {error}") from None
    return chain


def add_output(command: argparse.ArgumentParser, files: str) -> None:
    """The options that :func:`deliver` goes by; ``files`` says what the folder is for."""
    command.add_argument("--json", action="store_true")
    command.add_argument("--out", type=Path, help=f"folder for {files}")


def held_out(model: str, data: str | None) -> Tensor:
    """Real images (N, C, H, W) in [0, 1] that a model has not been trained on: those of a place
    that :func:`load_images` reads, of the digits' own model the held-out digits."""
    if data is not None:
        return load_images(data)
    if model != "digits":
        raise SystemExit(f"which images has {model} not been trained on? Say with --data")
    return digits("test").images


def trained_on(model: str, data: str | None) -> Tensor | None:
    """As :func:`held_out`, those it has been trained on; None where they are not known."""
    if data is not None:
        return load_images(data)
    return digits("train").images if model == "digits" else None


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table; its first column is of words, all others of numbers."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def plain_ticks(axis: Axis, ticks: Sequence[float]) -> None:
    """Those of ``ticks`` that a logarithmic axis reaches, as numbers without powers of ten; where
    it reaches fewer than two, others."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

    lowest, highest = axis.get_view_interval()
    found = [tick for tick in ticks if lowest <= tick <= highest]
    if len(found) < 2:
        others = MaxNLocator(4).tick_values(lowest, highest)
        found = [float(tick) for tick in others if lowest <= tick <= highest]
    axis.set_ticks(found)
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def deliver(options: argparse.Namespace, name: str, report: Any, table: str) -> None:
    """Print a report, as JSON or as its table, and write both where there is a folder."""
    as_json = json.dumps(report, indent=1)
    print(as_json if options.json else table)
    if options.out is None:
        return
    options.out.mkdir(parents=True, exist_ok=True)
    for file, text in ((f"{name}.json", as_json), (f"{name}.md", table)):
        write_text(options.out / file, text + "\n")


__all__ = [
    "DISTANCES",
    "HEAD",
    "Judge",
    "Judged",
    "add_chain",
    "add_model",
    "add_output",
    "deliver",
    "full_chain",
    "held_out",
    "markdown",
    "parser",
    "plain_ticks",
    "trained_on",
]
