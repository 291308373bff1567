"""One page of HTML that needs no other file and asks for none: for phone and desktop, light and
dark, keyboard and screen reader.

What is called ``Markup`` is HTML already; every ``str`` is text, and is escaped here.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence
from typing import NewType

Markup = NewType("Markup", str)

# Nothing may be fetched, whatever somebody has written into a name.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
_STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1d1f23; --soft: #59606a; --line: #d8dbe0;
  --panel: #f4f5f7; --c1: #1f66b0; --c2: #b1460f; --c3: #2c7a3f; --c4: #7b3fa0; --c5: #806400;
  --c6: #a3265c }
@media (prefers-color-scheme: dark) { :root { --paper: #15171b; --ink: #e6e8eb; --soft: #a5abb5;
  --line: #363b43; --panel: #1f2228; --c1: #6fb3f7; --c2: #f2975a; --c3: #74c88a; --c4: #c79be8;
  --c5: #dcc050; --c6: #f08ab5 } }
* { box-sizing: border-box }
body { margin: 0; font: 16px/1.5 system-ui, sans-serif; background: var(--paper);
  color: var(--ink) }
main { max-width: 62rem; margin: 0 auto; padding: 1.5rem 1rem 4rem }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .5rem; overflow-wrap: anywhere }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .5rem }
p { margin: .4rem 0 }
a { color: var(--c1) }
:focus-visible { outline: 2px solid var(--c1); outline-offset: 2px }
img { max-width: 100%; height: auto; image-rendering: pixelated; display: block }
pre { background: var(--panel); padding: .7rem .9rem; border-radius: 6px; overflow-x: auto }
code { font: .9em ui-monospace, monospace }
.soft { color: var(--soft) }
.remarks { border-left: 4px solid var(--c5); padding-left: 1rem }
.wide { overflow-x: auto }
table { border-collapse: collapse; margin: .5rem 0; font-size: .94rem }
th, td { padding: .25rem .9rem .25rem 0; text-align: left; vertical-align: top; font-weight: 400;
  border-bottom: 1px solid var(--line) }
thead th { color: var(--soft) }
.figures td, .figures thead th + th { text-align: right; font-variant-numeric: tabular-nums }
.figures td { white-space: nowrap }
.bars { width: 100% }
.bars tbody th { width: 60%; min-width: 9rem; overflow-wrap: anywhere }
.bars i { display: block; height: .45rem; margin: .1rem 0 .2rem; border-radius: 2px;
  background: var(--c1) }
summary { cursor: pointer; color: var(--soft); width: fit-content }
"""


def page(title: str, parts: Iterable[Markup], *, style: str = "", script: str = "") -> str:
    """A complete document.

    Args:
        title: of the page, and its heading.
        parts: what stands below that.
        style, script: CSS and JavaScript of this page's own, beside the common style.
    """
    head = [
        '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        '<link rel="icon" href="data:,">',  # or a browser would ask the server for one
        f"<title>{html.escape(title)}</title>",
        f"<style>{_STYLE}{style}</style>",
    ]
    body = ["<main>", f"<h1>{html.escape(title)}</h1>", *parts, "</main>"]
    if script:
        body.append(f"<script>{script}</script>")
    lines = ["<!doctype html>", '<html lang="en"><head>', *head, "</head><body>", *body]
    whole = "\n".join([*lines, "</body></html>\n"])
    # The name of a file may hold bytes that are not UTF-8, which the page is.
    return whole.encode("utf-8", "backslashreplace").decode("utf-8")


def element(tag: str, *inside: Markup | str, **attributes: str | None) -> Markup:
    """An element; its attributes by name, ``class_`` for class, "-" written as "_", those that are
    None left out.

    Args:
        inside: Markup by :func:`element` and its like; text by :func:`text`.
    """
    named = "".join(
        f' {name.strip("_").replace("_", "-")}="{html.escape(value)}"'
        for name, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{tag}{named}>{''.join(inside)}</{tag}>")


def text(words: str) -> Markup:
    """Text as it is."""
    return Markup(html.escape(words))


def heading(words: str) -> Markup:
    return element("h2", text(words))


def paragraph(words: str, kind: str | None = None) -> Markup:
    return element("p", text(words), class_=kind)


def table(
    title: str,
    rows: Sequence[Sequence[str]],
    head: Sequence[str] = (),
    *,
    figures: bool = True,
    bars: Sequence[float] | None = None,
) -> Markup:
    """A table; the first cell of a row says what the row is of.

    Args:
        title: what it is of, for who does not see it.
        head: what the columns are, where that has to be said.
        figures: whether the cells are numbers, which stand below each other.
        bars: (len(rows),) from 0: the length of a bar below what a row is of.
    """

    longest = max(bars or [], default=0.0) or 1.0
    drawn: list[list[Markup]] = [[]] * len(rows)
    if bars:
        drawn = [[element("i", style=f"width: {100 * bar / longest:.1f}%")] for bar in bars]
    lines = [
        element(
            "tr",
            *(element("th", text(cell), *bar, scope="row") for cell in cells[:1]),
            *(element("td", text(cell)) for cell in cells[1:]),
        )
        for cells, bar in zip(rows, drawn, strict=True)
    ]
    # A corner that says nothing heads nothing.
    heads = [element("th", text(cell), scope="col") if cell else element("td") for cell in head]
    parts = [element("thead", element("tr", *heads))] if head else []
    kinds = " ".join(["figures"] * figures + ["bars"] * bool(bars))
    inside = element("table", *parts, element("tbody", *lines), class_=kinds or None)
    # What can be scrolled has to be reached by the keyboard.
    return element("div", inside, class_="wide", role="region", tabindex="0", aria_label=title)


def details(words: str, *inside: Markup) -> Markup:
    """What is shown on demand."""
    return element("details", element("summary", text(words)), *inside)


def command(*lines: str) -> Markup:
    """Lines to be typed into a terminal."""
    code = element("code", text("\n".join(lines)))
    return element("pre", code, tabindex="0", role="region", aria_label="Commands")


def picture(data: bytes, words: str, kind: str = "png") -> Markup:
    """A picture inside the page.

    Args:
        data: the file.
        words: what is to be seen, for who does not see it.
        kind: "png", "webp", …
    """
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"
    return Markup(f'<img alt="{html.escape(words)}" src="{source}">')


__all__ = [
    "Markup",
    "command",
    "details",
    "element",
    "heading",
    "page",
    "paragraph",
    "picture",
    "table",
    "text",
]
