"""What holds the pages to the code reads them as others do, and notices commands that are wrong."""

import pytest
from markdown_pages import anchors, blocks, links
from shell_commands import commands, ours, parse

PAGE = """# One, *two*: `a_b` & α!

## Again
## Again

[a](b.md#c) ![p](p.png) <img src="q.png">

<!-- not run: needs
     a GPU -->
```python
x = 1
```

- in a list

  ```sh
  ncsn-fast demo
  ```

Text.

    indented
"""


@pytest.fixture
def page(tmp_path):
    path = tmp_path / "page.md"
    path.write_text(PAGE, encoding="utf-8")
    return path


def test_blocks_have_their_language_line_and_reason(page):
    first, second, third = blocks(page)
    assert first == ("python", "x = 1\n", 11, "needs a GPU")
    assert second == ("sh", "ncsn-fast demo\n", 17, None)
    assert third.language == ""


def test_headings_and_links_are_found_as_others_find_them(page):
    assert anchors(page) == {"one-two-a_b--α", "again", "again-1"}
    assert links(page) == ["b.md#c", "p.png", "q.png"]


def test_commands_are_taken_apart_as_a_shell_does():
    code = (
        'A=1 ncsn-fast demo \\\n  --seconds 5 && pip install -e ".[test]" | jq x > y  # why\ncd z\n'
    )
    assert list(commands(code)) == [
        ["A=1", "ncsn-fast", "demo", "--seconds", "5"],
        ["pip", "install", "-e", ".[test]"],
        ["jq", "x"],
        ["cd", "z"],
    ]
    assert ours(["A=1", "nsys", "profile", "-o", "x", "python", "-m", "y"]) == ["python", "-m", "y"]


@pytest.mark.parametrize(
    "command",
    [
        "ncsn-fast dream",
        "ncsn-fast demo --second 5",
        "ncsn-fast sample -n none",
        "ncsn-fast train --data x",
        "python -m ncsn_fast.benchmarks --slow",
        "python -m ncsn_fast.benchmarks.nothing",
        "python -m pytest tests/nothing",
        "python -m pytest -m nothing",
        "python nothing.py",
        "torchrun --nproc-per-node 2 -m ncsn_fast sample --nothing",
        "torchrun --nothing 2 -m ncsn_fast sample",
        "pip install -c nothing.txt -e .",
        'pip install -e ".[nothing]"',
        "pip install nothing",
        "frobnicate x",
    ],
)
def test_a_wrong_command_is_noticed(command):
    (words,) = commands(command)
    with pytest.raises((pytest.fail.Exception, AssertionError, ImportError, SystemExit)):
        parse(words)
