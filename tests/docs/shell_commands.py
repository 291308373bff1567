"""The command lines of the documentation, read by the parsers that would read them."""

from __future__ import annotations

import argparse
import contextlib
import re
import runpy
import shlex
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import metadata
from importlib.util import find_spec
from itertools import pairwise

import click
import pytest
from markdown_pages import ROOT
from packaging.requirements import Requirement
from torch.distributed.run import get_args_parser

from ncsn_fast.cli import main

# Others start what is ours, and their own options are theirs.
STARTERS = {"srun", "nsys", "ncu", "time", "nohup"}
OF_OTHERS = {"cd", "git", "jq", "ls", "mkdir", "source", "."}
# In text, what says that a command is not whole.
LEFT_OUT = re.compile(r"COMMAND|…|<|\[|\.\.\.")


def commands(code: str) -> Iterator[list[str]]:
    """The commands of a block, each as its words, without what goes where by > and <."""
    for line in re.sub(r"\\\n\s*", " ", code).splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split, lexer.commenters = True, "#"
        words: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set(";&|"):
                words = words[: min([i for i, w in enumerate(words) if w in "<>"], default=None)]
                if words:
                    yield words
                words = []
            else:
                words.append(word)


class _ParsedError(Exception):
    """The end of a command whose arguments have been understood."""


def ours(words: list[str]) -> list[str]:
    """From the word on that starts what is ours; none where nothing is."""
    while words and re.match(r"\w+=", words[0]):
        words = words[1:]
    if words and words[0] in STARTERS:
        words = words[next((i for i, word in enumerate(words) if word in PARSERS), 0) :]
    return words if words and words[0] in PARSERS else []


def parse(words: list[str], *, whole: bool = True) -> None:
    """Refuse a command that is nobody's, or that does not have the options it is given.

    Of one that is not ``whole``, as text names it, what it needs may be left out.
    """
    if not (known := ours(words)):
        if words[0] not in OF_OTHERS:
            pytest.fail(f"{shlex.join(words)}: no command that is known; say above it why not")
        return
    try:
        PARSERS[known[0]](known[1:])
    except click.UsageError as error:
        if whole or not isinstance(error, (click.MissingParameter, click.BadOptionUsage)):
            pytest.fail(f"{shlex.join(words)}: {error.format_message()}")


def _ncsn_fast(words: list[str]) -> None:
    if not words or words[0] in ("-h", "--help", "--version"):
        return
    command = main.get_command(click.Context(main), words[0])
    if command is None:
        pytest.fail(f"ncsn-fast {words[0]}: no such command")
    with contextlib.suppress(click.exceptions.Exit):  # of --help
        command.make_context(words[0], words[1:])


def _python(words: list[str]) -> None:
    if words[:1] != ["-m"]:
        assert not words or (ROOT / words[0]).exists(), words
        return
    module, given = words[1], words[2:]
    if module == "ncsn_fast":
        _ncsn_fast(given)
    elif module == "pytest":
        _pytest(given)
    elif module == "pip":
        _pip(given)
    elif module.startswith(("ncsn_fast.", "tests.")):
        _argparse(module, given)
    else:  # of another extra than the tests', which need not be installed
        assert module in _declared() or find_spec(module) is not None, module


def _argparse(module: str, given: list[str]) -> None:
    """Start it as a command that ends where it has read its arguments."""
    if "triton" not in sys.modules and find_spec("triton") is None:
        assert find_spec(module) is not None, module
        return
    whole = argparse.ArgumentParser.parse_args

    def only_parse(parser, *arguments, **keywords):
        whole(parser, *arguments, **keywords)
        raise _ParsedError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", only_parse)
        patch.setattr(sys, "argv", [module, *given])
        try:
            runpy.run_module(module, run_name="__main__")
        except _ParsedError:
            return
        except SystemExit as end:
            pytest.fail(f"python -m {module} {shlex.join(given)}: {end}")
    pytest.fail(f"python -m {module} takes no arguments")


def _torchrun(words: list[str]) -> None:
    options = get_args_parser().parse_args(words)
    assert options.module, f"torchrun {shlex.join(words)}: ours is a module"
    _python(["-m", options.training_script, *options.training_script_args])


def _pytest(words: list[str]) -> None:
    settings = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    markers = set(re.findall(r'^    "(\w+): ', settings, re.MULTILINE))
    for option, word in zip(["", *words], words, strict=False):
        if option == "-m":
            assert set(word.split()) - {"and", "not", "or"} <= markers, word
        elif "/" in word:
            assert (ROOT / word.partition("::")[0]).exists(), word


def _declared() -> set[str]:
    """What the package and its extras ask for, by name."""
    asked = metadata("ncsn_fast").get_all("Requires-Dist") or ()
    return {Requirement(one).name for one in asked}


def _pip(words: list[str]) -> None:
    assert words[0] == "install", words
    extras = set(metadata("ncsn_fast").get_all("Provides-Extra") or ())
    for option, word in pairwise(words):
        if option in ("-c", "-r"):
            assert (ROOT / word).exists(), word
        elif word.startswith("."):
            assert set(re.findall(r"[\w-]+", word[1:])) <= extras, word
        elif re.match(r"\w", word) and option not in ("-c", "-r", "-d"):
            known = _declared() | {"ncsn_fast", "azula", "deepinv", "sbi", "torchebm"}
            assert Requirement(word).name in known or word.endswith(".whl"), word


def _there(words: list[str]) -> None:
    assert (ROOT / ".ci" / "run").exists()


PARSERS: dict[str, Callable[[list[str]], None]] = {
    "ncsn-fast": _ncsn_fast,
    "python": _python,
    "python3": _python,
    "torchrun": _torchrun,
    "pip": _pip,
    ".ci/run": _there,
}
