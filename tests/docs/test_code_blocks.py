"""Every block of code of README, CONTRIBUTING and docs/ runs, or its page says why not.

The blocks of Python of a page run as they stand there, in order, as one program; of the pages in
COMPLETE each is one. Commands are read by the parsers that would read them.
``stand_ins/<page>.py``, run first in the same folder, makes what a page takes for granted (a
reader's files and names); its SMALLER says what is written smaller in blocks of Python, its RUN
which commands are also run, and how they are written smaller. A block below
``<!-- not run: the reason -->`` is compiled or read only.
"""

from __future__ import annotations

import ast
import functools
import re
import shlex
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from helpers.command import succeed
from markdown_pages import PAGES, Block, blocks, code_in_text, name_of
from shell_commands import LEFT_OUT, commands, ours, parse

import ncsn_fast as nf

# Modules that others import are started here as commands, as far as their arguments.
pytestmark = pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")

STAND_INS = Path(__file__).parent / "stand_ins"
SHELL = ("sh", "bash")
LANGUAGES = {"python", *SHELL, "text", "yaml", "json", "math", "bibtex"}
# Packages of single examples, which the tests do without.
OPTIONAL = {"azula", "deepinv", "sbi", "torchebm"}
# Whose examples a reader copies into a file: each looks at its result, too.
COMPLETE = ("docs/use.md", "docs/posterior.md")


class Example(NamedTuple):
    """Blocks of Python that make one program."""

    page: Path
    blocks: list[Block]

    def __str__(self) -> str:
        return f"{name_of(self.page)}:{self.blocks[0].line}"


def _examples() -> list[Example]:
    found = []
    for page in PAGES:
        python = [block for block in blocks(page) if block.language == "python"]
        alone = name_of(page) in COMPLETE
        found += [Example(page, some) for some in ([[b] for b in python] if alone else [python])]
    return [example for example in found if example.blocks]


EXAMPLES = _examples()
NOT_RUN = [Example(page, [one]) for page in PAGES for one in blocks(page) if one.not_run]


def _stand_ins(page: Path) -> Path:
    return STAND_INS / f"{page.stem}.py"


def _smaller(page: Path, name: str) -> dict[str, str]:
    """SMALLER or RUN of the page's stand-ins, read without running them."""
    source = path.read_text(encoding="utf-8") if (path := _stand_ins(page)).exists() else ""
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return ast.literal_eval(node.value)
    return {}


def _prepared(page: Path) -> dict[str, Any]:
    """What stands for a reader's files and names, made in the folder of now."""
    names: dict[str, Any] = {"__name__": "__main__"}
    if (path := _stand_ins(page)).exists():
        exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), names)
    return names


def _missing(example: Example) -> set[str]:
    """Optional packages that it needs and that are not here."""
    source = "\n".join(block.code for block in example.blocks)
    nodes = list(ast.walk(ast.parse(source)))
    used = {a.name for node in nodes if isinstance(node, ast.Import) for a in node.names}
    used |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
    return {
        top
        for top in (name.split(".")[0] for name in used)
        if top in OPTIONAL and find_spec(top) is None
    }


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_says_its_language(page):
    for block in blocks(page):
        known = block.language in LANGUAGES or block.language.startswith("{")  # a directive
        assert known, f"{name_of(page)}:{block.line} is {block.language or 'indented'}: fence it"


@pytest.mark.parametrize("example", EXAMPLES, ids=str)
def test_python_runs(example, tmp_path, monkeypatch):
    if missing := _missing(example):
        pytest.skip(f"{', '.join(missing)} is not installed")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names = _prepared(example.page)
    for block in example.blocks:
        code = block.code
        for written, smaller in _smaller(example.page, "SMALLER").items():
            code = code.replace(written, smaller)
        # Its lines are those of the page, which is where a traceback then points.
        code = "\n" * (block.line - 1) + code
        program = compile(code, str(example.page), "exec")
        if not block.not_run:
            exec(program, names)


def test_a_complete_example_looks_at_its_result():
    complete = [one for one in EXAMPLES if name_of(one.page) in COMPLETE]
    assert len(complete) > 15
    assert [str(one) for one in complete if "assert" not in one.blocks[0].code] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_are_those_of_the_parsers(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = [
        (block, words)
        for block in blocks(page)
        if block.language in SHELL
        for words in commands(block.code)
    ]
    for block, words in found:
        if not block.not_run or ours(words):
            parse(words)
    if small := _smaller(page, "RUN"):
        _prepared(page)
    for _, words in found:
        if command := small.get(shlex.join(words)):
            succeed(*shlex.split(command)[1:])


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_and_names_in_the_text_exist(page):
    for code in code_in_text(page):
        if re.match(r"(ncsn-fast|torchrun|python -m) ", code) and not LEFT_OUT.search(code):
            for words in commands(code):
                parse(words, whole=False)
        for name in re.findall(r"\bnf\.(\w+(?:\.\w+)*)", code):
            functools.reduce(getattr, name.split("."), nf)


def test_what_is_written_smaller_stands_in_its_page():
    pages = {_stand_ins(page): page for page in PAGES}
    for path in STAND_INS.glob("*.py"):
        python = [one.code for one in blocks(pages[path]) if one.language == "python"]
        shell = [one.code for one in blocks(pages[path]) if one.language in SHELL]
        written = [shlex.join(words) for code in shell for words in commands(code)]
        assert [one for one in _smaller(pages[path], "SMALLER") if one not in "".join(python)] == []
        assert [one for one in _smaller(pages[path], "RUN") if one not in written] == []


@pytest.mark.parametrize("example", NOT_RUN, ids=str)
def test_not_run(example):
    """Skipped, each with the page's reason, so that a run of the tests counts them."""
    pytest.skip(str(example.blocks[0].not_run))
