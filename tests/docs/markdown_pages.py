"""The pages of the documentation, taken apart: blocks of code, links, headings, code in text."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache
from pathlib import Path
from typing import NamedTuple

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[2]
# A folder of docs/ that begins with _ is made, not written.
PAGES = sorted(
    path
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    if not any(part.startswith("_") for part in path.relative_to(ROOT).parts)
)
_NOT_RUN = re.compile(r"<!-- not run: (.+?) -->", re.DOTALL)


class Block(NamedTuple):
    """A block of code; ``not_run`` is the page's reason not to run it, if it gives one."""

    language: str  # none of a block that is indented
    code: str
    line: int  # of its first line of code, counted from 1
    not_run: str | None


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@cache
def _tokens(page: Path) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8"))


def _inline(page: Path) -> list[Token]:
    return [child for token in _tokens(page) for child in token.children or ()]


@cache
def blocks(page: Path) -> list[Block]:
    """Fenced and indented blocks, in the page's order."""
    found, reason = [], None
    for token in _tokens(page):
        if token.type in ("fence", "code_block"):
            assert token.map is not None
            first = token.map[0] + 1 + (token.type == "fence")
            found.append(Block(token.info.strip(), token.content, first, reason))
        said = _NOT_RUN.fullmatch(token.content.strip()) if token.type == "html_block" else None
        reason = " ".join(said[1].split()) if said else None
    return found


def links(page: Path) -> list[str]:
    """Where links and pictures of the page lead, of Markdown and of HTML."""
    tokens = [*_tokens(page), *_inline(page)]
    marked = [
        token.attrGet({"link_open": "href", "image": "src"}.get(token.type, "")) for token in tokens
    ]
    html = "".join(token.content for token in tokens if token.type.startswith("html"))
    return [str(one) for one in marked if one] + re.findall(r'(?:href|src|srcset)="([^"]+)"', html)


@cache
def anchors(page: Path) -> set[str]:
    """What a link to a heading of the page ends in, as GitHub makes it of the heading's words."""
    seen: Counter[str] = Counter()
    found = set()
    for opening, words in zip(_tokens(page), _tokens(page)[1:], strict=False):
        if opening.type == "heading_open":
            text = "".join(child.content for child in words.children or ())
            slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
            found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
            seen[slug] += 1
    return found


def code_in_text(page: Path) -> list[str]:
    return [
        " ".join(token.content.split()) for token in _inline(page) if token.type == "code_inline"
    ]
