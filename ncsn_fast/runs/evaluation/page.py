"""The report of ``ncsn-fast evaluate`` as one page with its pictures, which needs no other file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ncsn_fast.pictures.page import element, heading, page, paragraph, picture, table
from ncsn_fast.runs.evaluation.words import about, tables
from ncsn_fast.support.files import write_text


def write_page(path: Path, report: Mapping[str, Any], pictures: Mapping[str, Path]) -> None:
    """Write the page.

    Args:
        pictures: .png files by their titles.

    Raises:
        OSError: where it cannot be written, or a picture cannot be read.
    """
    parts = [table("Figures", one.rows, ("", *one.heads)) for one in tables(report)]
    if report["remarks"]:
        parts.append(element("div", *map(paragraph, report["remarks"]), class_="remarks"))
    title = "What was compared, and how"
    parts += [heading(title), table(title, about(report), figures=False)]
    for name, file in pictures.items():
        parts += [heading(name), picture(file.read_bytes(), name)]
    write_text(path, page(f"Evaluation of {report['samples']}", parts))


__all__ = ["write_page"]
