"""The rows of a run as one page with pictures: report.html, which needs no other file."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ncsn_fast.benchmarks.contest.rows import Results
from ncsn_fast.benchmarks.report.tables import Table, environment, tables
from ncsn_fast.benchmarks.suites.hardware import facts
from ncsn_fast.pictures.curves import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_STYLE = """
body { font: 15px/1.5 sans-serif; max-width: 75em; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 1em 0; display: block; overflow-x: auto }
td, th { border-bottom: 1px solid #ddd; padding: 0.25em 0.8em; text-align: left }
img { max-width: 100% }
"""


def page(results: Results) -> str:
    """The page, complete with its pictures."""
    parts = [f"<h1>Results</h1><pre>{html.escape(environment(results))}</pre>"]
    for title, figure in pictures(results):
        parts.append(f'<h2>{html.escape(title)}</h2><img alt="{html.escape(title)}" ')
        parts.append(f'src="data:image/png;base64,{_encoded(figure)}">')
    parts += [_html(table) for table in tables(results)]
    head = f'<meta charset="utf-8"><title>ncsn_fast: results</title><style>{_STYLE}</style>'
    return f"<!doctype html><html><head>{head}</head><body>{''.join(parts)}</body></html>\n"


def pictures(results: Results) -> Iterator[tuple[str, Figure]]:
    """(title, figure) of all that there are rows for."""
    copies = results.timed(suite="hardware", case="copy")
    if copies:
        yield "Roofline", roofline(results, copies[0].figures["bandwidth"])
    for case in dict.fromkeys(row.case for row in results.timed(suite="chain")):
        yield f"Images per second, {case}", throughput(results, case)
    if results.where(suite="precision", status="ok"):
        yield "Error of the score by noise level", errors(results)


def roofline(results: Results, bandwidth: float) -> Figure:
    """What was reached, below what the copy and the matrix products of this run allow.

    Args:
        bandwidth: of the copy, in GB/s.
    """
    figure, axes = _figure()
    intensities = [0.1, 1e4]
    peaks = {n: peak for n, peak in facts(results.rows).items() if n.startswith("peak_")}
    for name, peak in peaks.items():
        roof = [min(peak, 1e9 * bandwidth * x) for x in (intensities[0], peak / bandwidth / 1e9)]
        corners = [intensities[0], peak / bandwidth / 1e9, intensities[1]]
        axes.plot(corners, [*roof, peak], linewidth=1, label=f"roof, {name.removeprefix('peak_')}")
    for row in results.timed(suite="operations", contestant="ours"):
        per_element = row.figures["flops_per_element"]
        if not per_element:
            continue
        x = per_element / row.figures["bytes_per_element"]
        axes.plot([x], [per_element * row.size / (row.median_s or 1)], "k.", markersize=5)
    for name, marker in (("official", "s"), ("eager channels_last", "^"), ("ours", "o")):
        rows = results.timed(suite="chain", contestant=name)
        rows = [row for row in rows if "done_flops" in row.figures]
        if rows:
            x_values = [row.figures["intensity"] for row in rows]
            speeds = [row.figures["done_flops"] for row in rows]
            axes.plot(x_values, speeds, marker, markersize=5, label=f"chain: {name}")
    axes.plot([], [], "k.", label="operations: ours")
    _log(axes, "FLOP per byte (chains: of the convolutions)", "FLOP/s")
    return figure


def throughput(results: Results, case: str) -> Figure:
    """Images per second of a network's whole chain over the batch."""
    figure, axes = _figure()
    rows = results.timed(suite="chain", case=case)
    for key in dict.fromkeys((row.contestant, row.precision) for row in rows):
        mine = sorted(
            (row.size, row.figures["images_per_s"])
            for row in rows
            if (row.contestant, row.precision) == key
        )
        axes.plot(*zip(*mine, strict=True), marker="o", label=" ".join(key))
    _log(axes, "batch", "images/s, whole chain")
    return figure


def errors(results: Results) -> Figure:
    """The relative error of the score in each precision, over σ."""
    figure, axes = _figure()
    for row in results.where(suite="precision", status="ok"):
        points = sorted((float(sigma), error) for sigma, error in row.figures.items() if error)
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", label=row.contestant)
    _log(axes, "σ", "relative error of the score")
    return figure


def _figure() -> tuple[Figure, Axes]:
    figure = new_figure(8, 5, dpi=110)
    return figure, figure.add_subplot()


def _log(axes: Axes, xlabel: str, ylabel: str) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid(True, which="major", alpha=0.3)
    axes.legend(frameon=False, fontsize=9)


def _encoded(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _html(table: Table) -> str:
    def row(cells: tuple[str, ...], kind: str) -> str:
        inside = "".join(f"<{kind}>{html.escape(cell)}</{kind}>" for cell in cells)
        return f"<tr>{inside}</tr>"

    lines = "".join(row(line, "td") for line in table.lines)
    title, note = html.escape(table.title), html.escape(table.note)
    return f"<h2>{title}</h2><p>{note}</p><table>{row(table.head, 'th')}{lines}</table>"


__all__ = ["page", "pictures"]
