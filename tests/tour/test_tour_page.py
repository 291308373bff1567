"""The page of the tour: one file, without the network, for eyes, hands and ears of all kinds."""

import base64
import re
from itertools import pairwise

import numpy as np
import pytest
from helpers.pages import Page

from ncsn_fast.tour import drawing
from ncsn_fast.tour.figure import (
    Arrows,
    Axis,
    Bars,
    Field,
    Figure,
    Line,
    Panel,
    Pictures,
    Points,
    Trails,
)
from ncsn_fast.tour.maths import formula
from ncsn_fast.tour.page import highlighted, page
from ncsn_fast.tour.step import Number, Step, source

K = 5
RNG = np.random.default_rng(0)
UNIT = Axis("x", 0, 1), Axis("y", 0, 1)


def add(a, b):
    """Never shown."""
    return a + b  # <shown>


def a_step(name="one", layers=None, axes=UNIT):
    moving = RNG.random((K, 7, 2))
    layers = layers or [
        Field(RNG.random((4, 6)), label="field"),
        Bars([0, 0.5, 1], RNG.random((K, 2)), label="bars"),
        Line([0, 0.5, 1], [0.1, np.nan, 0.2], "wanted", "line"),
        Trails(moving),
        Arrows(RNG.random((3, 2)), RNG.random((K, 3, 2))),
        Points(moving, label="points & more"),
    ]
    pictures = Panel([Pictures(RNG.random((K, 6, 1, 4, 4)), columns=3)])
    figure = Figure(
        "all_kinds", [Panel(layers, axes), pictures], "It is 0.5.", [f"at {k}" for k in range(K)]
    )
    return Step(
        name=name,
        title="One & only",
        claim="It is so.",
        formula=formula("x ← x + 2 z"),
        code=source(add),
        figures=[figure],
        numbers=[Number("a number", "1", 1.0, 0.9, 1.1)],
    )


@pytest.fixture(scope="module")
def text():
    return page([a_step("one"), a_step("two")], "made by a test")


@pytest.fixture(scope="module")
def tree(text):
    return Page(text)


def all_of(tree, *names):
    return [attributes for tag, attributes in tree.tags if tag in names]


def test_nothing_comes_from_the_network(text):
    assert re.findall(r"https?:|url\(|@import|import\(|fetch\(", text) == []


def test_ids_are_there_once_and_links_lead_to_them(tree):
    ids = [attributes["id"] for _, attributes in tree.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {a["href"][1:] for a in all_of(tree, "a")} | {"yours"} <= set(ids)


def test_headings_are_in_order(tree):
    levels = [int(tag[1]) for tag, _ in tree.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_figures_and_what_moves_them_have_words(tree):
    panels = [a for a in all_of(tree, "div") if a.get("role") == "img"]
    assert [a["aria-label"] for a in panels] == ["It is 0.5."] * 2
    assert all(a["aria-label"].endswith("all kinds") for a in all_of(tree, "button", "input"))
    assert len(all_of(tree, "button", "input")) == 4


def test_figures_are_drawn_without_javascript(tree):
    drawn = [a["d"] for a in all_of(tree, "path")]
    assert all(re.fullmatch(r"(M-?\d[^a]*)", path) for path in drawn)  # no "nan" either
    assert len(all_of(tree, "image")) == 4


def test_it_says_claim_code_number_and_command(text):
    for words in ("It is so.", "One &amp; only", "points &amp; more", "0.900 to 1.100"):
        assert words in text
    assert "ncsn-fast tour --step two" in text
    assert "Never shown" not in text
    assert "return</b> a + b  <i># &lt;shown&gt;</i>" in text


def frames_of(svg, kind):
    """What travels to the player: (K, vertices, 2) in units of the drawing."""
    data = re.search(rf'data-kind="{kind}" data-frames="([^"]+)"', svg)[1]
    return np.frombuffer(base64.b64decode(data), "<i2").reshape(K, -1, 2) / 10


def test_the_player_gets_the_vertices_of_every_frame():
    at = RNG.random((K, 9, 2))
    svg = drawing.panel_svg(Panel([Points(at)], UNIT, height=200), K)
    found = frames_of(svg, "points")
    left, right = found[..., 0].min(), found[..., 0].max()
    scale = (right - left) / np.ptp(at[..., 0])
    np.testing.assert_allclose(
        found[..., 0] - left, (at[..., 0] - at[..., 0].min()) * scale, atol=0.2
    )
    np.testing.assert_allclose(
        np.diff(found[..., 1], axis=1), -np.diff(at[..., 1], axis=1) * 200, atol=0.2
    )
    # The picture that is there without it is the last frame.
    last = re.search(r'd="([^"]+)" stroke-width', svg)[1]
    drawn = np.array(re.findall(r"M(\S+) (\S+)h0", last), float)
    np.testing.assert_allclose(drawn, found[-1])


def test_a_logarithmic_axis_puts_powers_at_equal_distances():
    axes = Axis("steps", 1, 1000, log=True), Axis("y", 0, 1)
    at = np.stack([np.array([1, 10, 100, 1000.0]), np.zeros(4)], -1)
    svg = drawing.panel_svg(Panel([Points(np.stack([at] * K))], axes), K)
    gaps = np.diff(frames_of(svg, "points")[0, :, 0])
    np.testing.assert_allclose(gaps, gaps[0], atol=0.2)
    assert all(f">{n}</text>" in svg for n in (1, 10, 100, 1000))


def test_large_and_small_numbers_at_an_axis_are_powers():
    wide = Axis("large", 0, 1e6, ticks=[0, 2e5, -1e6]), Axis("small", 1e-4, 1, log=True)
    svg = drawing.panel_svg(Panel([Line([0], [1])], wide), K)
    assert all(f">{n}</text>" in svg for n in ("0", "2·10⁵", "−10⁶", "10⁻⁴", "0.01", "1"))


def test_a_layer_of_another_length_is_refused():
    panel = Panel([Points(RNG.random((K + 1, 3, 2)))], UNIT)
    with pytest.raises(ValueError, match="6 frames and its figure 5 captions"):
        drawing.panel_svg(panel, K)
    with pytest.raises(ValueError, match="6 frames and its figure 5 captions"):
        drawing.panel_svg(Panel([Field(RNG.random((K + 1, 3, 2)))], UNIT), K)


def test_an_unknown_style_and_a_panel_without_axes_are_refused():
    with pytest.raises(ValueError, match="'red' is unknown"):
        drawing.panel_svg(Panel([Line([0, 1], [0, 1], "red")], UNIT), K)
    with pytest.raises(ValueError, match="without axes"):
        drawing.panel_svg(Panel([Line([0, 1], [0, 1])]), K)


def test_marked_code_is_the_code():
    code = 'def f(x: int) -> str:\n    """A "text" & <more>."""\n    return f"{x}"  # why\n\n\nf(1)'
    plain = re.sub("</?[bi]>", "", highlighted(code))
    assert (
        plain.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", '"').replace("&amp;", "&")
        == code
    )
    assert "<b>def</b>" in highlighted(code)


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0.9, 1.1, "0.900 to 1.100"),
        (float("-inf"), 2, "at most 2.000"),
        (1e-5, float("inf"), "at least 1.0 × 10⁻⁵"),
        (0, 0, "exactly 0"),
    ],
)
def test_bounds_in_words(low, high, words):
    assert Number("n", "", 1.0, low, high).bounds == words


def test_a_number_outside_its_bounds_does_not_hold_and_the_page_says_so():
    bad = Number("n", "1", float("nan"), 0.9, 1.1)
    assert not bad.holds
    step = a_step()
    text = page([Step(**{**vars(step), "numbers": [bad]})], "")
    assert "NOT within" in text
