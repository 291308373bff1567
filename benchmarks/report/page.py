"""The rows of a run as one page with pictures: report.html, which needs no other file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ncsn_fast.benchmarks.contest.rows import Results, Row
from ncsn_fast.benchmarks.report.tables import Table, tables
from ncsn_fast.benchmarks.suites.hardware import facts
from ncsn_fast.pictures import page as pages
from ncsn_fast.pictures.chart import SHADES, STYLE, Curve, chart
from ncsn_fast.pictures.page import Markup

_INTENSITIES = (0.1, 1e4)  # FLOP per byte


def page(results: Results) -> str:
    """The page, complete with its pictures."""
    parts: list[Markup] = []
    for title, picture in pictures(results):
        parts += [pages.heading(title), picture]
    for table in tables(results):
        parts += [pages.heading(table.title), *_shown(table)]
    made = sorted({fact for row in results for fact in row.environment.items()})
    parts += [pages.heading("Where and when"), pages.table("Where and when", made, figures=False)]
    return pages.page("Benchmark of ncsn_fast", parts, style=STYLE)


def _shown(table: Table) -> list[Markup]:
    """A table; what was not measured on demand."""
    measured = table.head.index("measured") if "measured" in table.head else 0
    later = [line for line in table.lines if line[measured] == "–"]
    now = [line for line in table.lines if line[measured] != "–"]
    parts = [pages.paragraph(table.note)] if table.note else []
    if now:
        parts.append(pages.table(table.title, now, table.head, figures=False))
    if later:
        rest = pages.table(f"{table.title}, not measured", later, table.head, figures=False)
        parts.append(pages.details(f"{len(later)} that this run has no figure for", rest))
    return parts


def pictures(results: Results) -> Iterator[tuple[str, Markup]]:
    """(title, picture) of all that there are rows for."""
    chains = results.timed(suite="chain")
    for case in dict.fromkeys(row.case for row in chains):
        mine = [row for row in chains if row.case == case]
        if len({row.size for row in mine}) > 1:
            yield f"Images per second, {case}", throughput(mine)
        else:
            yield f"Time of a step, {case}, batch {mine[0].size}", times(mine)
    copies = results.timed(suite="hardware", case="copy")
    if copies:
        yield "Roofline", roofline(results, copies[0].figures["bandwidth"])
    precisions = results.where(suite="precision", status="ok")
    if errors := [row for row in precisions if any(row.figures.values())]:
        yield "Error of the score by noise level", score_errors(errors)


def times(rows: Sequence[Row]) -> Markup:
    """Who takes how long, the fastest first."""
    told = sorted(
        (1e3 * row.median_s, f"{row.contestant} ({row.precision})") for row in rows if row.median_s
    )
    cells = [(who, f"{time:.4g}") for time, who in told]
    head = ("who", "ms")
    return pages.table("Time of a step", cells, head, bars=[time for time, _ in told])


def throughput(rows: Sequence[Row]) -> Markup:
    """Images per second of a network's whole chain over the batch."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        point = (float(row.size), row.figures["images_per_s"])
        lines.setdefault(f"{row.contestant} {row.precision}", []).append(point)
    return _logarithmic(lines, "Images per second over the batch", "batch", "images a second")


def score_errors(rows: Sequence[Row]) -> Markup:
    """The relative error of the score in each precision, over σ."""
    lines = {
        row.contestant: [(float(sigma), error) for sigma, error in row.figures.items() if error]
        for row in rows
    }
    title = "Relative error of the score over the noise level"
    return _logarithmic(lines, title, "noise level σ", "relative error of the score")


def roofline(results: Results, bandwidth: float) -> Markup:
    """What was reached, below what the copy and the matrix products of this run allow.

    Args:
        bandwidth: of the copy, in GB/s.
    """
    curves = []
    peaks = {n: peak for n, peak in facts(results.rows).items() if n.startswith("peak_")}
    for i, (name, peak) in enumerate(peaks.items()):
        corners = (_INTENSITIES[0], peak / bandwidth / 1e9, _INTENSITIES[1])
        roof = [min(peak, 1e9 * bandwidth * x) for x in corners]
        name = f"roof, {name.removeprefix('peak_')}"
        curves.append(Curve(name, corners, roof, shade=SHADES - i % SHADES))
    reached = {"operations: ours": _of_operations(results)}
    for name in ("official", "eager channels_last", "ours"):
        reached[f"chain: {name}"] = [
            (row.figures["intensity"], row.figures["done_flops"])
            for row in results.timed(suite="chain", contestant=name)
            if "done_flops" in row.figures
        ]
    for shade, (name, points) in enumerate(reached.items(), 1):
        if points:
            x, y = zip(*points, strict=True)
            curves.append(Curve(name, x, y, "points", shade))
    return chart(
        "Roofline: what was reached, below what the device allows",
        curves,
        xlabel="FLOP per byte (chains: of the convolutions)",
        ylabel="FLOP a second",
        log_x=True,
        log_y=True,
    )


def _of_operations(results: Results) -> list[tuple[float, float]]:
    """FLOP per byte and per second of our operations."""
    found = []
    for row in results.timed(suite="operations", contestant="ours"):
        per_element = row.figures["flops_per_element"]
        if per_element and row.median_s:
            speed = per_element * row.size / row.median_s
            found.append((per_element / row.figures["bytes_per_element"], speed))
    return found


def _logarithmic(
    lines: dict[str, list[tuple[float, float]]], title: str, xlabel: str, ylabel: str
) -> Markup:
    """Lines through points over two logarithmic axes."""
    curves = []
    for i, (name, points) in enumerate((n, sorted(p)) for n, p in lines.items() if p):
        x, y = zip(*points, strict=True)
        curves.append(Curve(name, x, y, "line points", 1 + i % SHADES))
    return chart(title, curves, xlabel=xlabel, ylabel=ylabel, log_x=True, log_y=True)


__all__ = ["page", "pictures"]
