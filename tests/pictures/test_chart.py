from __future__ import annotations

import math
import re
from typing import Any

import pytest
from helpers.pages import Page

from ncsn_fast.pictures.chart import STYLE, Curve, chart, number
from ncsn_fast.pictures.page import page


def drawn(*curves: Curve, **keywords: Any) -> str:
    return chart("What is shown", curves, **{"xlabel": "step", "ylabel": "loss", **keywords})


def places(source: str, kind: str) -> list[tuple[float, float]]:
    """The points of the first path of a kind, (0, 0) at the top left, (1000, 1000) the end."""
    found = re.search(rf'<path class="s\d {kind}" d="([^"]*)"', source)
    assert found is not None
    return [(float(x), float(y)) for x, y in re.findall(r"([\d.-]+),([\d.-]+)", found[1])]


def labels(source: str, axis: str) -> list[str]:
    inside = re.search(rf'<div class="{axis}"[^>]*>(.*?)</div>', source)
    assert inside is not None
    return re.findall(r">([^<]+)</span>", inside[1])


def test_points_stand_where_their_values_are() -> None:
    found = places(drawn(Curve("a", [0, 5, 10], [0, 1, 2]), log_y=False), "line")
    assert [x for x, _ in found] == [0, 500, 1000]
    (low, middle, high) = (y for _, y in found)
    assert low > middle > high  # upwards
    assert middle == 500
    assert low == pytest.approx(1000 - high)


def test_a_logarithmic_axis_has_equal_ratios_at_equal_distances() -> None:
    source = drawn(Curve("a", [0.01, 0.1, 1], [1, 10, 100]), log_x=True)  # log_y by itself
    (x0, y0), (x1, y1), (x2, y2) = places(source, "line")
    assert (x0, x1, x2) == (0, 500, 1000)
    assert y0 - y1 == pytest.approx(y1 - y2, abs=1)
    assert labels(source, "x") == ["0.01", "0.1", "1"]
    assert labels(source, "y") == ["1", "10", "100"]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 100], ["0", "20", "40", "60", "80", "100"]),
        ([0, 300_000], ["0", "100k", "200k", "300k"]),
        ([5, 5], ["3", "4", "5", "6", "7"]),
        ([0, 0], ["-1", "-0.5", "0", "0.5", "1"]),
        ([0.9, 1.1], ["0.9", "0.95", "1", "1.05", "1.1"]),
        ([0, 2e12], ["0", "5e11", "1e12", "1.5e12", "2e12"]),
    ],
)
def test_axes_have_round_numbers(values: list[float], expected: list[str]) -> None:
    assert labels(drawn(Curve("a", values, [1, 1])), "x") == expected


def test_what_cannot_be_drawn_is_left_out() -> None:
    curve = Curve("a", [1, 2, 3, 4], [1.0, math.nan, -1.0, 100.0])
    assert len(places(drawn(curve, log_y=True), "line")) == 2
    with pytest.raises(ValueError, match=r"nothing to draw of 'What is shown'"):
        drawn(Curve("a", [], []))
    with pytest.raises(ValueError, match=r"at least one point"):
        drawn(Curve("a", [1, 2], [math.nan, math.inf]))


def test_a_single_point_is_visible() -> None:
    assert len(places(drawn(Curve("a", [3], [7])), "points")) == 1


def test_long_curves_are_thinned_and_keep_their_end() -> None:
    steps = list(range(1, 300_001))
    source = drawn(Curve("a", steps, [1.0] * len(steps)))
    assert len(places(source, "line")) <= 501
    assert places(source, "line")[-1][0] == 1000
    assert len(source) < 30_000


def test_who_does_not_see_it_gets_ends_and_numbers() -> None:
    curves = [Curve("raw", [1, 2], [30.0, 12.5], "faint"), Curve("mean", [1, 2], [30.0, 20.0])]
    read = Page(page("T", [drawn(*curves)], style=STYLE))
    (told,) = [tag["aria-label"] for name, tag in read.tags if tag.get("role") == "img"]
    assert told == "What is shown. raw: from 30 at 1 to 12.5 at 2; mean: from 30 at 1 to 20 at 2"
    assert "step raw mean 1 30 30 2 12.5 20" in read.words


def test_only_several_curves_need_their_names() -> None:
    assert "keys" not in drawn(Curve("a", [1, 2], [1, 2]))
    source = drawn(Curve("a", [1, 2], [1, 2]), Curve("b", [1, 2], [2, 1], shade=2))
    assert source.count("<li>") == 2


def test_numbers_are_told_with_four_digits() -> None:
    assert [number(v) for v in (0.123456, 1234.5678, 12000.0, 0.0, 1e-7)] == [
        "0.1235", "1235", "12,000", "0", "1e-07",
    ]  # fmt: skip
