"""The examples of docs/use.md run as they stand."""

import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parent.parent / "docs" / "use.md").read_text(encoding="utf-8")
EXAMPLES = {
    f"{title}, {number}" if number else title: code
    for title, section in re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", section, re.DOTALL))
}


@pytest.mark.parametrize("title", EXAMPLES)
def test_example_runs(title, tmp_path, monkeypatch):
    assert "assert" in EXAMPLES[title]  # each looks at its result
    monkeypatch.chdir(tmp_path)
    exec(compile(EXAMPLES[title], f"docs/use.md: {title}", "exec"), {"__name__": "__main__"})
