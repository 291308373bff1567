"""Curves inside a page: lines that stay thin and words that stay legible at any width."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ncsn_fast.pictures.page import Markup, details, element, table, text

STYLE = """
.chart { margin: .5rem 0 1rem }
.chart figcaption, .chart .below { color: var(--soft); font-size: .9rem }
.chart .below { text-align: center; margin: 0 0 .3rem }
.chart .keys { display: flex; flex-wrap: wrap; gap: .1rem 1.1rem; margin: .2rem 0 .5rem; padding: 0;
  list-style: none; font-size: .9rem }
.chart .keys svg { width: 1.8rem; height: .8rem; margin-right: .4rem; vertical-align: middle }
.plot { display: grid; grid-template: 15rem 1.5rem / var(--labels) 1fr; gap: .2rem .5rem;
  padding: .4rem .6rem 0 0; font-size: .8rem; color: var(--soft);
  font-variant-numeric: tabular-nums }
.plot > div { position: relative }
.plot span { position: absolute; white-space: nowrap }
.plot .y span { right: 0; transform: translateY(50%); line-height: 1 }
.plot .x { grid-column: 2 }
.plot .x span { transform: translateX(-50%) }
.chart svg { overflow: visible; fill: none; stroke-width: 2 }
.plot svg { width: 100%; height: 100% }
.chart path { vector-effect: non-scaling-stroke; stroke-linejoin: round; stroke-linecap: round }
.grid { stroke: var(--line); stroke-width: 1 }
.faint { opacity: .5; stroke-width: 1 }
.points { stroke-width: 7 }
.s1 { stroke: var(--c1) } .s2 { stroke: var(--c2); stroke-dasharray: 7 5 }
.s3 { stroke: var(--c3); stroke-dasharray: 2 5 } .s4 { stroke: var(--c4); stroke-dasharray: 12 5 }
.s5 { stroke: var(--c5); stroke-dasharray: 12 5 2 5 } .s6 { stroke: var(--c6) }
.points, .faint { stroke-dasharray: none }
"""
SHADES = 6
_SIDE = 1000  # of the drawing's own square, which is stretched
_MOST_POINTS, _MOST_ROWS, _MOST_TICKS = 500, 16, 6
_LARGE_RATIO = 5.0


@dataclass(frozen=True)
class Curve:
    """A curve of a chart.

    Attributes:
        name: what it is.
        x, y: (K,) each; what is not finite, or not positive on a logarithmic axis, is left out.
        kind: "line", "points", both ("line points") or "faint", a thin line behind others.
        shade: its colour and dashes, 1 to 6.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    kind: str = "line"
    shade: int = 1


def chart(
    title: str,
    curves: Sequence[Curve],
    *,
    xlabel: str,
    ylabel: str,
    log_x: bool = False,
    log_y: bool | None = None,
) -> Markup:
    """Curves over a grid, with their numbers as a table for who wants those or does not see.

    Args:
        title: what is shown, in a sentence.
        xlabel, ylabel: with the unit.
        log_x, log_y: whether an axis is logarithmic; None: where all values are positive, and the
            largest is more than five times the smallest.

    Returns:
        A figure, for a page whose style has ``STYLE``.

    Raises:
        ValueError: where there is not a single point.
    """
    if log_y is None:
        lines = [curve.y for curve in curves if curve.kind != "faint"] or [c.y for c in curves]
        log_y = _spans_much([y for values in lines for y in values])
    points = [_points(curve, log_x, log_y) for curve in curves]
    if not any(points):
        raise ValueError(f"there is nothing to draw of {title!r}: give at least one point")
    across = _Axis([x for some in points for x, _ in some], log_x)
    up = _Axis([y for some in points for _, y in some], log_y, margin=0.05)
    paths = [_grid(across, up)]
    for curve, some in zip(curves, points, strict=True):
        places = [(_SIDE * across.place(x), _SIDE * (1 - up.place(y))) for x, y in some]
        paths += _paths(curve, places)
    drawing = element(
        "svg",
        *paths,
        viewBox=f"0 0 {_SIDE} {_SIDE}",
        preserveAspectRatio="none",
        role="img",
        aria_label=_in_words(title, curves, points),
    )
    widest = max((len(words) for _, words in up.ticks), default=1)
    plot = element(
        "div", up.labels("y", "bottom"), drawing, across.labels("x", "left"),
        class_="plot", style=f"--labels: {widest + 1}ch",
    )  # fmt: skip
    parts = [element("figcaption", text(ylabel)), *_keys(curves), plot]
    parts.append(element("p", text(xlabel), class_="below"))
    parts.append(details("Numbers", _numbers(title, xlabel, curves, points)))
    return element("figure", *parts, class_="chart")


def number(value: float) -> str:
    """A number for readers: four digits, and all of those of whole numbers that are not large."""
    return f"{value:,.0f}" if abs(value) < 1e8 and value == int(value) else f"{value:.4g}"


class _Axis:
    """From values to places between 0 and 1.

    Attributes:
        ticks: places and what stands there.
    """

    def __init__(self, values: Sequence[float], log: bool, margin: float = 0.0) -> None:
        self._log = log
        low, high = self._of(min(values)), self._of(max(values))
        spare = margin * (high - low) if high > low else 0.3 if log else 0.5 * abs(high) or 1.0
        self._low, self._high = low - spare, high + spare
        found = _log_ticks(self._low, self._high) if log else _ticks(self._low, self._high)
        self.ticks = [(self.place(value), _short(value)) for value in found]

    def _of(self, value: float) -> float:
        return math.log10(value) if self._log else value

    def place(self, value: float) -> float:
        return (self._of(value) - self._low) / (self._high - self._low)

    def labels(self, kind: str, side: str) -> Markup:
        inside = [
            element("span", text(words), style=f"{side}: {100 * place:.1f}%")
            for place, words in self.ticks
        ]
        return element("div", *inside, class_=kind, aria_hidden="true")


def _spans_much(values: Sequence[float]) -> bool:
    return bool(values) and min(values) > 0 and max(values) > _LARGE_RATIO * min(values)


def _points(curve: Curve, log_x: bool, log_y: bool) -> list[tuple[float, float]]:
    """What can be drawn of a curve; of many points every so many, and the last."""
    found = [
        (float(x), float(y))
        for x, y in zip(curve.x, curve.y, strict=True)
        if math.isfinite(x) and math.isfinite(y) and (x > 0 or not log_x) and (y > 0 or not log_y)
    ]
    return _thinned(found, _MOST_POINTS)


def _thinned(points: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """At most so many and one, evenly spaced, the last among them."""
    stride = -(-len(points) // most) if points else 1
    return list(points[::-1][::stride][::-1])


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers between two, a few of them."""
    rough = (high - low) / (_MOST_TICKS - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
    return [
        k * step for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    ]


def _log_ticks(low: float, high: float) -> list[float]:
    """Round numbers between two whose decimal logarithms these are."""
    powers = range(math.floor(low), math.ceil(high) + 1)
    for among in ((1, 2, 5), (1,)):
        found = [m * 10.0**k for k in powers for m in among]
        found = [value for value in found if low - 1e-9 <= math.log10(value) <= high + 1e-9]
        if len(found) <= _MOST_TICKS:
            break
    if len(found) < 2:
        return [value for value in _ticks(10.0**low, 10.0**high) if value > 0]
    return found[:: -(-len(found) // _MOST_TICKS)]


def _short(value: float) -> str:
    size = abs(value)
    if size and not 1e-3 <= size < 1e9:
        digits, power = f"{value:.1e}".split("e")
        return f"{digits.removesuffix('.0')}e{int(power)}"
    for unit, word in ((1e6, "M"), (1e4, "k")):
        if size >= unit:
            return f"{value / (1e3 if word == 'k' else unit):g}{word}"
    return f"{value:.4g}"


def _grid(across: _Axis, up: _Axis) -> Markup:
    lines = [f"M{_SIDE * place:.0f},0V{_SIDE}" for place, _ in across.ticks]
    lines += [f"M0,{_SIDE * (1 - place):.0f}H{_SIDE}" for place, _ in up.ticks]
    return Markup(f'<path class="grid" d="{"".join(lines)}"/>')


def _paths(curve: Curve, places: Sequence[tuple[float, float]]) -> list[Markup]:
    """A line, and points as lines of no length, which are round whatever the stretching."""
    ends = [f"{x:.0f},{y:.0f}" for x, y in places]
    kinds = curve.kind.split()
    if len(ends) == 1 and "points" not in kinds:
        kinds.append("points")
    forms = {"points": "".join(f"M{end}h0" for end in ends)}
    line = "M" + "L".join(ends)
    return [
        Markup(f'<path class="s{curve.shade} {kind}" d="{forms.get(kind, line)}"/>')
        for kind in kinds
        if ends
    ]


def _keys(curves: Sequence[Curve]) -> list[Markup]:
    """What the lines are, where there are several."""
    if len(curves) < 2:
        return []
    items = []
    for curve in curves:
        drawn = _paths(curve, [(2, 8), (28, 8)] if curve.kind != "points" else [(15, 8)])
        swatch = element("svg", *drawn, viewBox="0 0 30 16", aria_hidden="true")
        items.append(element("li", swatch, text(curve.name)))
    return [element("ul", *items, class_="keys")]


def _in_words(
    title: str, curves: Sequence[Curve], points: Sequence[Sequence[tuple[float, float]]]
) -> str:
    """What is to be seen, for who does not see it."""
    words = [
        f"{curve.name}: from {number(some[0][1])} at {number(some[0][0])} to "
        f"{number(some[-1][1])} at {number(some[-1][0])}"
        for curve, some in zip(curves, points, strict=True)
        if some
    ]
    return f"{title}. {'; '.join(words)}"


def _numbers(
    title: str,
    xlabel: str,
    curves: Sequence[Curve],
    points: Sequence[Sequence[tuple[float, float]]],
) -> Markup:
    """Some of the points, each curve a column."""
    columns = [dict(_thinned(some, _MOST_ROWS)) for some in points]
    head = [xlabel, *(curve.name for curve in curves)]
    rows = [
        [number(x), *(number(column[x]) if x in column else "" for column in columns)]
        for x in sorted({x for column in columns for x in column})
    ]
    return table(title, rows, head)


__all__ = ["SHADES", "STYLE", "Curve", "chart", "number"]
