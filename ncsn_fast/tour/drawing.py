"""Figures as SVG: the last frame as it stands, and with it what the page's player moves.

All vertices of a layer are computed here, in units of the drawing; for the player they travel as
base64 of 16-bit numbers, tenths of a unit, in the attribute ``data-frames`` of the layer's path.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from ncsn_fast.tour.figure import (
    STYLES,
    Arrows,
    Axis,
    Bars,
    Field,
    Layer,
    Line,
    Panel,
    Pictures,
    Points,
    Trails,
)
from ncsn_fast.tour.maths import superscript

_WIDTH = 480.0
# Around the axes there is room for their labels, which are larger on a phone.
_LEFT, _RIGHT, _TOP, _BOTTOM = 60.0, 14.0, 38.0, 60.0
_ACCENT, _GREY = (217, 84, 43), (128, 128, 128)  # of fields: their opacity is the value
_MOST = 32_767

Box = tuple[float, float, float, float]  # left, top, width, height


def panel_svg(panel: Panel, frames: int) -> str:
    """One panel as <svg>; its text alternative is that of its figure."""
    left, right, top, bottom = (_LEFT, _RIGHT, _TOP, _BOTTOM) if panel.axes else (0, 0, 0, 0)
    box = (left, top, _WIDTH - left - right, panel.height)
    whole = panel.height + top + bottom
    parts = [f'<svg viewBox="0 0 {_WIDTH:g} {whole:g}" aria-hidden="true" focusable="false">']
    if panel.axes:
        parts.append(_axes(*panel.axes, box))
    parts += [_layer(layer, panel.axes, box, frames) for layer in panel.layers]
    return "".join([*parts, "</svg>"])


def _layer(layer: Layer, axes: tuple[Axis, Axis] | None, box: Box, frames: int) -> str:
    if isinstance(layer, Pictures):
        return _pictures(layer, box, frames)
    if layer.style not in STYLES:
        raise ValueError(f"style {layer.style!r} is unknown: choose one of {STYLES}")
    if isinstance(layer, Field):
        return _field(layer, box, frames)
    if axes is None:
        raise ValueError(f"a panel without axes holds pictures, not {type(layer).__name__}")
    kind, points = _vertices(layer)
    if points.ndim == 3 and len(points) != frames:
        raise ValueError(f"a layer has {len(points)} frames and its figure {frames} captions")
    placed = np.stack(
        [
            box[0] + _along(axes[0], points[..., 0]) * box[2],
            box[1] + (1 - _along(axes[1], points[..., 1])) * box[3],
        ],
        axis=-1,
    )
    tenths = np.round(placed * 10).clip(-_MOST, _MOST)
    moves = points.ndim == 3
    last = tenths / 10 if kind == "trails" else (tenths[-1] if moves else tenths) / 10
    radius = f' stroke-width="{2 * layer.radius:g}"' if isinstance(layer, Points) else ""
    data = ""
    if moves:
        data = f' data-kind="{kind}" data-frames="{_base64(np.nan_to_num(tenths, nan=_MOST))}"'
        data += " data-jumps" * getattr(layer, "jumps", False)
    path = f'<path class="{kind} {layer.style}" d="{_path(kind, last)}"{radius}{data}/>'
    # Half a dot would look like another, so that one on the edge is drawn whole.
    return _clipped(path, box, layer.radius if isinstance(layer, Points) else 0.0)


def _clipped(path: str, box: Box, margin: float) -> str:
    """What of a path lies within the axes; nothing of an inner <svg> is drawn outside of it."""
    x, y, width, height = box[0] - margin, box[1] - margin, box[2] + 2 * margin, box[3] + 2 * margin
    return (
        f'<svg x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" '
        f'viewBox="{x:g} {y:g} {width:g} {height:g}" aria-hidden="true">{path}</svg>'
    )


def _vertices(layer: Line | Points | Trails | Bars | Arrows) -> tuple[str, np.ndarray]:
    """The kind of path, and its vertices (V, 2) or (K, V, 2) in coordinates of the axes."""
    if isinstance(layer, Line):
        x, y = np.broadcast_arrays(_array(layer.x), _array(layer.y))
        return "line", np.stack([x, y], axis=-1)
    if isinstance(layer, Bars):
        edges, heights = _array(layer.edges), _array(layer.heights)
        y = np.zeros((*heights.shape[:-1], 2 * len(edges)))
        y[..., 1:-1] = np.repeat(heights, 2, axis=-1)
        x = np.broadcast_to(np.repeat(edges, 2), y.shape)
        return "bars", np.stack([x, y], axis=-1)
    if isinstance(layer, Arrows):
        tail, head = np.broadcast_arrays(_array(layer.tail), _array(layer.head))
        return "arrows", np.stack([tail, head], axis=-2).reshape(*tail.shape[:-2], -1, 2)
    return ("points" if isinstance(layer, Points) else "trails"), _array(layer.at)


def _path(kind: str, at: np.ndarray) -> str:
    """The path through vertices (V, 2), of trails (K, V, 2), as ``player.js`` makes it."""
    if kind == "trails":
        return "".join(_path("line", at[:, n]) for n in range(at.shape[1]))
    words = [f"{x:g} {y:g}" for x, y in at]
    if kind == "points":
        return "".join(f"M{word}h0" for word in words)
    if kind == "arrows":
        return "".join(_arrow(*at[i], *at[i + 1]) for i in range(0, len(at), 2))
    path, pen = "", "M"
    for word in words:
        if "nan" in word:
            pen = "M"
            continue
        path, pen = path + pen + word, "L"
    return path + ("Z" if kind == "bars" else "")


def _arrow(x: float, y: float, u: float, v: float) -> str:
    """A line and two strokes of its head, a third as long but at most six units."""
    length = math.hypot(u - x, v - y)
    if length < 1:
        return f"M{u:g} {v:g}h0"
    size = min(length / 3, 6) / length
    a, b = (x - u) * size, (y - v) * size
    one, other = (u + a - b * 0.6, v + b + a * 0.6), (u + a + b * 0.6, v + b - a * 0.6)
    return (
        f"M{x:g} {y:g}L{u:g} {v:g}M{one[0]:.1f} {one[1]:.1f}L{u:g} {v:g}"
        f"L{other[0]:.1f} {other[1]:.1f}"
    )


def _along(axis: Axis, values: np.ndarray) -> np.ndarray:
    """Where on an axis values lie, its ends being 0 and 1."""
    low, high = axis.low, axis.high
    if axis.log:
        with np.errstate(divide="ignore", invalid="ignore"):
            values = np.log(np.maximum(values, 1e-300))
        low, high = math.log(low), math.log(high)
    return (values - low) / (high - low)


def _axes(x: Axis, y: Axis, box: Box) -> str:
    left, top, width, height = box
    bottom = top + height
    lines, words = [f"M{left:g} {bottom:g}h{width:g}"], []
    for value, name in _ticks(x):
        at = left + float(_along(x, np.float64(value))) * width
        lines.append(f"M{at:.1f} {bottom:g}v5")
        words.append(f'<text class="x" x="{at:.1f}" y="{bottom + 24:g}">{escape(name)}</text>')
    for value, name in _ticks(y):
        at = bottom - float(_along(y, np.float64(value))) * height
        lines.append(f"M{left:g} {at:.1f}h-5")
        words.append(f'<text class="y" x="{left - 9:g}" y="{at + 6:.1f}">{escape(name)}</text>')
    words += [
        f'<text class="x" x="{left + width / 2:g}" y="{bottom + 51:g}">{escape(x.label)}</text>',
        f'<text x="0" y="18">{escape(y.label)}</text>',
    ]
    return f'<path class="axes" d="{"".join(lines)}"/>{"".join(words)}'


def _ticks(axis: Axis) -> list[tuple[float, str]]:
    """Where marks are, and what is written at them."""
    if axis.ticks is None:
        from matplotlib.ticker import LogLocator, MaxNLocator

        locator = LogLocator() if axis.log else MaxNLocator(5, steps=[1, 2, 2.5, 5, 10])
        ticks = [float(v) for v in locator.tick_values(axis.low, axis.high)]
        slack = 1e-9 * abs(axis.high - axis.low)
        ticks = [v for v in ticks if axis.low - slack <= v <= axis.high + slack]
    else:
        ticks = list(axis.ticks)
    names = axis.names or [_name(v) for v in ticks]
    return list(zip(ticks, names, strict=True))


def _name(value: float) -> str:
    """A round number, a large or small one as a power of ten."""
    name = f"{abs(value):g}"
    if value and not 1e-3 < abs(value) < 1e4:
        factor, power = f"{abs(value):e}".split("e")
        name = f"{float(factor):g}·10{superscript(int(power))}".removeprefix("1·")
    return f"−{name}" if value < 0 else name


def _field(layer: Field, box: Box, frames: int) -> str:
    values = _array(layer.values)
    values = values[None] if values.ndim == 2 else values
    alpha = np.round(values.clip(0, 1)[:, ::-1] * 255).astype(np.uint8)
    colour = _ACCENT if layer.style == "accent" else _GREY
    cells = np.empty((*alpha.shape, 4), np.uint8)
    cells[..., :3], cells[..., 3] = colour, alpha
    return _sheet(cells, box, frames, "field")


def _pictures(layer: Pictures, box: Box, frames: int) -> str:
    images = _array(layer.images)
    images = images[None] if images.ndim == 4 else images
    k, n, channels, height, width = images.shape
    rows = -(-n // layer.columns)
    # Opaque but for a line between them, of one of their pixels.
    page = np.zeros((k, rows * layer.columns, channels + 1, height + 1, width + 1))
    page[:, :n, :channels, :-1, :-1] = images.clip(0, 1)
    page[:, :n, channels, :-1, :-1] = 1
    page = page.reshape(k, rows, layer.columns, *page.shape[2:]).transpose(0, 1, 4, 2, 5, 3)
    page = page.reshape(k, rows * (height + 1), layer.columns * (width + 1), -1)[:, :-1, :-1]
    return _sheet(np.round(page * 255).astype(np.uint8), box, frames, "pictures")


def _sheet(cells: np.ndarray, box: Box, frames: int, kind: str) -> str:
    """All frames (K, H, W, 2 or 4), grey or colours and how opaque, on one sheet of paper, of which
    one is seen at a time."""
    from PIL import Image

    k, height, width, channels = cells.shape
    if k not in (1, frames):
        raise ValueError(f"a layer has {k} frames and its figure {frames} captions")
    across = math.ceil(math.sqrt(k))
    sheet = np.zeros((-(-k // across) * height, across * width, channels), np.uint8)
    for i, cell in enumerate(cells):
        top, left = i // across * height, i % across * width
        sheet[top : top + height, left : left + width] = cell
    file = io.BytesIO()
    Image.fromarray(sheet).save(file, "PNG", optimize=True)
    link = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    x, y = -((k - 1) % across) * width, -((k - 1) // across) * height
    move = f' data-kind="sheet" data-cell="{across} {width} {height}"' if k > 1 else ""
    return (
        f'<svg class="{kind}" x="{box[0]:g}" y="{box[1]:g}" width="{box[2]:g}" '
        f'height="{box[3]:g}" viewBox="0 0 {width} {height}" preserveAspectRatio="none" '
        'aria-hidden="true">'
        f'<image x="{x}" y="{y}" width="{sheet.shape[1]}" height="{sheet.shape[0]}" '
        f'href="{link}"{move}/></svg>'
    )


def _array(values: Any) -> np.ndarray:
    return np.asarray(getattr(values, "numpy", lambda: values)(), dtype=np.float64)


def _base64(numbers: np.ndarray) -> str:
    return base64.b64encode(numbers.astype("<i2").tobytes()).decode()


def labels_of(panel: Panel) -> Sequence[tuple[str, str]]:
    """(kind and style, label) of the layers that have one."""
    named = [layer for layer in panel.layers if layer.label]
    return [
        (f"{type(one).__name__.lower()} {getattr(one, 'style', '')}", one.label) for one in named
    ]


__all__ = ["labels_of", "panel_svg"]
