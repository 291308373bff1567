"""Links between files of the repository, as the site has them.

Every page is plain Markdown that reads as well where the repository is browsed: it links to
``../README.md``, or to a table of results in ``../benchmarks``. On the site the README is the front
page, those beside it are pages too (``PAGES``), any other file is one to download, and a folder is
only named.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}

_LINK = re.compile(
    r"(?P<shown>!?\[(?P<text>[^\[\]]*)\])\((?P<path>[^\s()#:]+)(?P<anchor>#[\w-]+)?\)"
)
_INCLUDE = re.compile(r"^```\{include\} (\S+)\n```$", re.MULTILINE)


def resolved(text: str, folder: Path, page_folder: Path) -> str:
    """``text`` of a file in ``folder``, with the links of a page of the site in ``page_folder``.

    Links that lead to no file are left as they are: the build refuses them.
    """

    def link(match: re.Match[str]) -> str:
        target = Path(os.path.normpath(folder / match["path"]))
        if not target.exists() or not target.is_relative_to(ROOT):
            return match[0]
        if target.is_dir():
            return match["text"]
        name = PAGES.get(target.relative_to(ROOT).as_posix())
        target = DOCS / name if name else target
        path = Path(os.path.relpath(target, page_folder)).as_posix()
        inside = target.is_relative_to(DOCS) or match["shown"].startswith("!")
        return f"{match['shown']}({'' if inside else 'path:'}{path}{match['anchor'] or ''})"

    return _LINK.sub(link, text)


def read(app: Sphinx, docname: str, source: list[str]) -> None:
    """Give a page the links of the site, and the files of the repository that it includes."""
    page = Path(app.env.doc2path(docname))
    if page.suffix != ".md":
        return

    def included(match: re.Match[str]) -> str:
        file = Path(os.path.normpath(page.parent / match[1]))
        app.env.note_dependency(str(file))
        return resolved(file.read_text(encoding="utf-8"), file.parent, page.parent)

    source[0] = _INCLUDE.sub(included, resolved(source[0], page.parent, page.parent))


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("source-read", read)
    return {"parallel_read_safe": True}
