"""The examples of docs/use.md and docs/posterior.md run as they stand."""

import importlib.util
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"
# What comes before the sections of a page is one by the page's title.
TEXTS = [(DOCS / name).read_text(encoding="utf-8") for name in ("use.md", "posterior.md")]
PAGES = "\n".join(f"#{text}" for text in TEXTS)
EXAMPLES = {
    f"{title}, {number}" if number else title: code
    for title, section in re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGES, re.S | re.M)
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", section, re.DOTALL))
}
# Packages of single examples, which the tests do without.
OTHERS = ("azula", "deepinv", "sbi", "torchebm")


@pytest.mark.parametrize("title", EXAMPLES)
def test_example_runs(title, tmp_path, monkeypatch):
    assert "assert" in EXAMPLES[title]  # each looks at its result
    for package in OTHERS:
        used = re.search(rf"^(import|from) {package}\b", EXAMPLES[title], re.MULTILINE)
        if used and importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    monkeypatch.chdir(tmp_path)
    exec(compile(EXAMPLES[title], f"docs: {title}", "exec"), {"__name__": "__main__"})
