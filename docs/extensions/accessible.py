"""What the theme leaves to be done for keyboards and screen readers."""

from __future__ import annotations

from typing import Any

from docutils.nodes import document
from sphinx.application import Sphinx

# What scrolls sideways has to be reached by keys; a heading says of which level it is.
REPLACED = {
    "<pre>": '<pre tabindex="0">',
    '<div class="table-wrapper': '<div tabindex="0" class="table-wrapper',
    'role="heading">': 'role="heading" aria-level="2">',
}


def mend(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: document | None
) -> None:
    """Rewrite the body and the contents list of a page."""
    for part in ("body", "furo_navigation_tree"):
        for old, new in REPLACED.items():
            if part in context:
                context[part] = context[part].replace(old, new)


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("html-page-context", mend, priority=900)  # after the theme's own
    return {"parallel_read_safe": True, "parallel_write_safe": True}
