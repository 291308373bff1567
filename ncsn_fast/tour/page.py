"""The page of the tour: one file of HTML that needs no network.

Without JavaScript it is whole but for the motion: each figure is drawn as its last frame.
"""

from __future__ import annotations

import io
import json
import keyword
import tokenize
from collections.abc import Sequence
from html import escape
from importlib.resources import files

from ncsn_fast.pictures.page import Markup, command
from ncsn_fast.pictures.page import page as document
from ncsn_fast.tour.drawing import labels_of, panel_svg
from ncsn_fast.tour.figure import Figure, Panel
from ncsn_fast.tour.step import Number, Step

_TITLE = "From gradient ascent to images out of noise"
_LEAD = (
    "How a noise conditional score network draws what it has never seen, in steps that each claim "
    "one thing. Every figure was computed by the code below it, and every number was checked when "
    "this page was made."
)
_PLAY = (
    '<path class="play" d="M3 1l11 7-11 7z"/><path class="pause" d="M2 1h4v14H2zM10 1h4v14h-4z"/>'
)
_YOURS = (
    "ncsn-fast schedule photos/ --image-size 32",
    "ncsn-fast train --data photos/ --image-size 32 --flip --out runs/photos",
    "ncsn-fast sample runs/photos/model.safetensors -n 100 --gif",
)


def page(steps: Sequence[Step], footer: str) -> str:
    """The whole page.

    Args:
        steps: in their order, at least one.
        footer: what it was made by, and on what; plain text.
    """
    contents = "".join(
        f'<li><a href="#{step.name}"><span>{i}</span>{escape(step.title)}</a></li>'
        for i, step in enumerate(steps, 1)
    )
    parts = [
        f'<p class="lead">{escape(_LEAD)}</p>',
        f'<nav aria-label="Steps"><ol>{contents}</ol></nav>',
        *(_section(i, step) for i, step in enumerate(steps, 1)),
        f"""<section id="yours" aria-labelledby="yours-title">
<h2 id="yours-title"><span class="ordinal">Now yours</span>The same on your own images</h2>
<p class="claim">A folder of photos is enough: noise levels and step size are chosen from it.</p>
{command(*_YOURS)}</section>""",
        f"<footer><p>{escape(footer)}</p></footer>",
    ]
    style, script = _asset("page.css"), _asset("player.js")
    return document(_TITLE, map(Markup, parts), style=style, script=script)


def _section(number: int, step: Step) -> str:
    text = "".join(f'<p class="text">{escape(words)}</p>' for words in step.text)
    figures = "".join(_figure(step, figure) for figure in step.figures)
    return f"""<section id="{step.name}" aria-labelledby="{step.name}-title">
<h2 id="{step.name}-title"><span class="ordinal">{number}</span>{escape(step.title)}</h2>
<p class="claim">{escape(step.claim)}</p>
<div class="formula" tabindex="0" role="region"
 aria-label="Formula of step {number}">{step.formula}</div>
{text}{figures}<div class="proof">
{_table(step.numbers)}
<div><h3>The code that computed it</h3>
<pre tabindex="0" role="region"
 aria-label="Code of step {number}"><code>{highlighted(step.code)}</code></pre>
<p class="command">Make it again: <code>{escape(step.command)}</code></p></div>
</div></section>"""


def _figure(step: Step, figure: Figure) -> str:
    frames = len(figure.captions)
    panels = "".join(_panel(panel, frames) for panel in figure.panels)
    title = escape(figure.name.replace("_", " "))
    captions = escape(json.dumps(list(figure.captions), ensure_ascii=False))
    several = {1: " one", 2: ""}.get(len(figure.panels), " many")
    return f"""<figure class="moving" id="{step.name}-{figure.name}" data-title="{title}" \
data-seconds="{figure.seconds:g}" data-captions="{captions}">
<div class="panels{several}" role="img" aria-label="{escape(figure.alt)}">{panels}</div>
<div class="controls" hidden><button type="button" aria-label="Play: {title}">\
<svg viewBox="0 0 16 16" aria-hidden="true">{_PLAY}</svg></button>\
<input type="range" min="0" max="{frames - 1}" value="{frames - 1}" \
aria-label="Moment shown: {title}"></div>
<figcaption class="when">{escape(figure.captions[-1])}</figcaption>
</figure>"""


def _panel(panel: Panel, frames: int) -> str:
    title = f'<p class="panel-title">{escape(panel.title)}</p>' if panel.title else ""
    items = "".join(
        f'<li class="{kind}"><i></i>{escape(label)}</li>' for kind, label in labels_of(panel)
    )
    legend = f'<ul class="legend">{items}</ul>' if items else ""
    return f'<div class="panel">{title}{panel_svg(panel, frames)}{legend}</div>'


def _table(numbers: Sequence[Number]) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(number.what)}</th>'
        f'<td data-head="wanted">{escape(number.wanted)}</td>'
        f'<td data-head="found" class="found">{number.shown(number.found)}</td>'
        f'<td data-head="{"within" if number.holds else "NOT within"}">{number.bounds}</td></tr>'
        for number in numbers
    )
    return (
        '<table><caption>Asserted</caption><thead><tr><th scope="col">what</th>'
        '<th scope="col">wanted</th><th scope="col">found</th><th scope="col">has to be</th>'
        f"</tr></thead><tbody>{rows}</tbody></table>"
    )


def highlighted(code: str) -> str:
    """Python as HTML, its keywords and comments marked."""
    lines, marked, end = code.splitlines(keepends=True), [], (1, 0)
    tokens = tokenize.generate_tokens(io.StringIO(code).readline)
    for token in tokens:
        name = token.type == tokenize.NAME and keyword.iskeyword(token.string)
        tag = "b" if name else "i" if token.type == tokenize.COMMENT else ""
        if tag:
            marked.append(escape(_between(lines, end, token.start)))
            marked.append(f"<{tag}>{escape(token.string)}</{tag}>")
            end = token.end
    return "".join(marked) + escape(_between(lines, end, (len(lines) + 1, 0)))


def _between(lines: Sequence[str], start: tuple[int, int], end: tuple[int, int]) -> str:
    """The text from one place (line from 1, column) to another."""
    if start[0] == end[0]:
        return lines[start[0] - 1][start[1] : end[1]]
    last = lines[end[0] - 1][: end[1]] if end[0] <= len(lines) else ""
    return lines[start[0] - 1][start[1] :] + "".join(lines[start[0] : end[0] - 1]) + last


def _asset(name: str) -> str:
    return (files("ncsn_fast.tour") / "assets" / name).read_text(encoding="utf-8")


__all__ = ["highlighted", "page"]
