"""Moving figures as plain data: what lies on which axes at which moment; drawn by ``drawing.py``.

A figure is panels side by side that share one clock of K frames; a panel is axes and layers. What a
layer shows is an array for all frames, (K, …), or one without that leading K, which stands still.
Between two frames the page moves lines, points, bars and arrows evenly; pictures and fields jump.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

# What is looked at; what it should be (dashed); what is beside the point. The page has one colour.
STYLES = ("accent", "wanted", "muted")


@dataclass(frozen=True)
class Axis:
    """One axis: its label with the unit if there is one, its ends, where the labelled marks are.

    Attributes:
        ticks: where; None: chosen evenly. With ``names`` each has a name instead of its number.
        log: whether it is logarithmic; both ends are positive then.
    """

    label: str
    low: float
    high: float
    log: bool = False
    ticks: Sequence[float] | None = None
    names: Sequence[str] | None = None


@dataclass(frozen=True)
class Line:
    """A curve through x (P,) and y (P,) or (K, P); of NaN in y it has a gap, in every frame."""

    x: Any
    y: Any
    style: str = "accent"
    label: str = ""


@dataclass(frozen=True)
class Points:
    """Dots at (N, 2) or (K, N, 2), of this radius.

    Attributes:
        jumps: whether they are only ever where a frame has them: for those whose frames are many
            steps apart, or that keep to a curve.
    """

    at: Any
    style: str = "accent"
    label: str = ""
    radius: float = 2.5
    jumps: bool = False


@dataclass(frozen=True)
class Trails:
    """The ways of N points (K, N, 2) from the first frame to the present one."""

    at: Any
    style: str = "accent"
    label: str = ""


@dataclass(frozen=True)
class Bars:
    """A histogram: edges (B + 1,) ascending, heights (B,) or (K, B)."""

    edges: Any
    heights: Any
    style: str = "accent"
    label: str = ""


@dataclass(frozen=True)
class Arrows:
    """Arrows from ``tail`` (M, 2) to ``head`` (M, 2), either of them perhaps (K, M, 2)."""

    tail: Any
    head: Any
    style: str = "muted"
    label: str = ""


@dataclass(frozen=True)
class Field:
    """Values in [0, 1] over the whole panel, (H, W) or (K, H, W), as so much of the colour.

    The first row is the lowest of y, the first column the lowest of x.
    """

    values: Any
    style: str = "muted"
    label: str = ""


@dataclass(frozen=True)
class Pictures:
    """Images in [0, 1], (N, C, H, W) or (K, N, C, H, W), C = 1 or 3; a panel without axes.

    Attributes:
        columns: images per row; they fill the panel.
    """

    images: Any
    columns: int
    label: str = ""


Layer = Line | Points | Trails | Bars | Arrows | Field | Pictures


@dataclass(frozen=True)
class Panel:
    """Axes and what lies on them, the first layer lowest.

    Attributes:
        title: a few words above it.
        axes: x and y; None for a panel of pictures.
        height: of the drawing, in units of which it is 480 wide.
    """

    layers: Sequence[Layer]
    axes: tuple[Axis, Axis] | None = None
    title: str = ""
    height: float = 300.0


@dataclass(frozen=True)
class Figure:
    """Panels that move together.

    Attributes:
        name: within its step, a word; the page links to it.
        alt: what a reader sees who cannot see it, a sentence or two with the number in it.
        captions: (K,) what is written below each frame, as "step 40"; its length is K.
        seconds: how long it plays.
    """

    name: str
    panels: Sequence[Panel]
    alt: str
    captions: Sequence[str]
    seconds: float = 8.0


__all__ = [
    "STYLES",
    "Arrows",
    "Axis",
    "Bars",
    "Field",
    "Figure",
    "Layer",
    "Line",
    "Panel",
    "Pictures",
    "Points",
    "Trails",
]
