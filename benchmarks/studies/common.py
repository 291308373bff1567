"""What the studies share as commands: their options, and what becomes of a report."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ncsn_fast.data.digits import digits
from ncsn_fast.data.load import load_images
from ncsn_fast.support.files import write_text


def parser(doc: str | None) -> argparse.ArgumentParser:
    """A command that the first line of a docstring describes."""
    return argparse.ArgumentParser(description=(doc or "").split("\n")[0])


def add_model(command: argparse.ArgumentParser) -> None:
    """What a study is of, and the images for :func:`held_out`."""
    command.add_argument(
        "model", nargs="?", default="digits", help="a checkpoint, or a bundled network (digits)"
    )
    command.add_argument("--data", help="images that it has not been trained on")


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


def deliver(options: argparse.Namespace, name: str, report: Any, table: str) -> None:
    """Print a report, as JSON or as its table, and write both where there is a folder."""
    as_json = json.dumps(report, indent=1)
    print(as_json if options.json else table)
    if options.out is None:
        return
    options.out.mkdir(parents=True, exist_ok=True)
    for file, text in ((f"{name}.json", as_json), (f"{name}.md", table)):
        write_text(options.out / file, text + "\n")


__all__ = ["add_model", "add_output", "deliver", "held_out", "markdown", "parser", "trained_on"]
