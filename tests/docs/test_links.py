"""What the pages and the code point to is there: files, headings, other files' names."""

import re
from urllib.parse import unquote, urlparse

import pytest
from markdown_pages import PAGES, ROOT, anchors, code_in_text, links, name_of

TOPS = ("", "ncsn_fast", "tests")  # what a page may leave away

# What a page says how to make.
OF_READERS = (
    "build/docs/index.html",
    "kernels/triton/gate.py",
    "ncsn_fast/models/small.py",
    "ncsn_fast/ops/gate.py",
    "tests/kernels/test_gate.py",
)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_somewhere(page):
    for link in links(page):
        if urlparse(link).scheme:
            assert re.match(r"https://[\w-]+(\.[\w-]+)+(/|$)|mailto:", link), link
            continue
        file, _, heading = unquote(link).partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), link
        if heading:
            assert heading in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_file_named_is_there(page):
    for code in code_in_text(page):
        if re.fullmatch(r"[\w.]+/[\w/.]+\.\w+", code) and code not in OF_READERS:
            assert any((ROOT / top / code).exists() for top in TOPS), code


def test_every_file_named_in_the_code_is_there():
    for folder in ("ncsn_fast", "kernels", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            named = re.findall(
                r"``([\w/.]+\.py)``|:mod:`([\w.]+)`", path.read_text(encoding="utf-8")
            )
            for file, module in named:
                place = file or module.replace(".", "/") + ".py"
                tops = [ROOT, ROOT / "ncsn_fast", path.parent]
                found = any((top / place).exists() for top in tops)
                assert found or (ROOT / place.removesuffix(".py")).is_dir(), f"{path}: {place}"
