"""The report of ``ncsn-fast evaluate`` as one page with its pictures, which needs no other file."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ncsn_fast.runs.evaluation.words import about, tables
from ncsn_fast.support.files import write_text

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 64em; margin: 2em auto; padding: 0 1em }
table { border-collapse: collapse; margin: 1em 0 }
th, td { padding: .25em .9em .25em 0; text-align: left; vertical-align: top }
tr { border-bottom: 1px solid #ddd }
.figures th + th, .figures td { text-align: right; font-variant-numeric: tabular-nums }
td { overflow-wrap: anywhere }
.remarks { border-left: 4px solid #c80; padding-left: 1em }
img { max-width: 100%; image-rendering: pixelated }
"""


def write_page(path: Path, report: Mapping[str, Any], pictures: Mapping[str, Path]) -> None:
    """Write the page.

    Args:
        pictures: .png files by their titles.

    Raises:
        OSError: where it cannot be written, or a picture cannot be read.
    """
    title = f"Evaluation of {report['samples']}"
    parts = [f"<h1>{html.escape(title)}</h1>"]
    parts += [_table([("", *one.heads), *one.rows], "figures") for one in tables(report)]
    if report["remarks"]:
        told = "".join(f"<p>{html.escape(remark)}</p>" for remark in report["remarks"])
        parts.append(f'<div class="remarks">{told}</div>')
    parts += ["<h2>What was compared, and how</h2>", _table(about(report), "about")]
    for name, file in pictures.items():
        data = base64.b64encode(file.read_bytes()).decode()
        shown = html.escape(name)
        parts.append(f'<h2>{shown}</h2><img alt="{shown}" src="data:image/png;base64,{data}">')
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{_STYLE}</style>'
    body = "\n".join(parts)
    write_text(path, f"<!doctype html>\n<html><head>{head}</head><body>{body}</body></html>\n")


def _table(rows: Iterable[tuple[str, ...]], kind: str) -> str:
    lines = []
    for place, (title, *values) in enumerate(rows):
        cell = "th" if kind == "figures" and place == 0 else "td"
        inside = "".join(f"<{cell}>{html.escape(value)}</{cell}>" for value in values)
        lines.append(f"<tr><th>{html.escape(title)}</th>{inside}</tr>")
    return f'<table class="{kind}">{"".join(lines)}</table>'


__all__ = ["write_page"]
