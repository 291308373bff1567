"""The site works from its files alone: no page loads anything from elsewhere."""

from __future__ import annotations

import re
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

# What a browser fetches by itself; a link (<a href>) is followed by whoever wants to.
_FETCHED = re.compile(
    r"<(?:link|script|img|source|iframe|video|audio)\b[^>]*?"
    r"\b(?:src|srcset|href|poster)=[\"']?((?:https?:)?//[^\"'\s>]+)"
    r"|(?:@import|url\()\s*[\"']?((?:https?:)?//[^\"'\s)]+)"
)


def check(app: Sphinx, failure: Exception | None) -> None:
    """Refuse a site of which a file names something to be fetched."""
    if failure is not None:
        return
    for path in Path(app.outdir).rglob("*"):
        if path.suffix in (".html", ".css"):
            found = _FETCHED.search(path.read_text(encoding="utf-8"))
            if found:
                raise ExtensionError(f"{path}: a browser would fetch {found[1] or found[2]}")


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("build-finished", check)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
