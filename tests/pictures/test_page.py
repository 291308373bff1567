from __future__ import annotations

import os

from helpers.pages import Page

from ncsn_fast.pictures import page as pages
from ncsn_fast.pictures.page import Markup, page

HOSTILE = '<script>alert("x")</script>'


def test_what_is_text_is_shown_and_never_run() -> None:
    parts = [
        pages.heading(HOSTILE),
        pages.paragraph(HOSTILE),
        pages.table(HOSTILE, [(HOSTILE, HOSTILE)], (HOSTILE, HOSTILE)),
        pages.details(HOSTILE, pages.command(HOSTILE)),
        pages.picture(b"x", HOSTILE),
    ]
    source = page(HOSTILE, parts)
    read = Page(source)
    assert read.count("script") == 0
    assert read.words.count(HOSTILE) == 10  # the title stands in the head and above the page
    assert dict(read.tags)["img"]["alt"] == HOSTILE


def test_names_that_are_no_utf_8_can_be_told() -> None:
    name = os.fsdecode(b"run-\xff")
    assert "run-\\udcff" in Page(page(name, [pages.command(name)])).words


def test_a_page_may_fetch_nothing() -> None:
    (policy,) = [
        tag["content"] for name, tag in Page(page("Title", [])).tags
        if tag.get("http-equiv") == "Content-Security-Policy"
    ]  # fmt: skip
    assert "default-src 'none'" in policy
    assert "http" not in policy


def test_a_page_is_for_light_and_dark_and_narrow_screens() -> None:
    source = page("Title", [], style=".own { }", script="let own = 1;")
    assert "prefers-color-scheme: dark" in source
    assert "width=device-width" in source
    assert ".own { }" in source
    assert "<script>let own = 1;</script>" in source


def test_cells_say_which_column_and_row_they_are_of() -> None:
    read = Page(page("T", [pages.table("Speeds", [("ours", "3")], ("who", "speed"))]))
    scopes = [tag["scope"] for name, tag in read.tags if name == "th"]
    assert scopes == ["col", "col", "row"]
    assert "<thead><tr><td></td><th" in pages.table("Speeds", [("ours", "3")], ("", "speed"))


def test_attributes_are_escaped_and_none_is_left_out() -> None:
    assert pages.element("p", Markup("<b>x</b>"), class_=None, aria_label='a "b"') == (
        '<p aria-label="a &quot;b&quot;"><b>x</b></p>'
    )
