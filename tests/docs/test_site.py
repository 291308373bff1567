"""What the site makes of pages and docstrings (with Sphinx, which the extra `docs` brings)."""

import sys
from pathlib import Path

import click
import pytest

from ncsn_fast.cli.common import Command

pytest.importorskip("sphinx")

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


@pytest.fixture
def extension(monkeypatch):
    """A module of docs/extensions, by its name."""
    monkeypatch.syspath_prepend(str(DOCS / "extensions"))

    def of(name):
        monkeypatch.delitem(sys.modules, name, raising=False)
        return __import__(name)

    return of


@pytest.mark.parametrize(
    ("folder", "link", "shown"),
    [
        (DOCS, "[a](cpu.md#networks-of-others)", "[a](cpu.md#networks-of-others)"),
        (DOCS, "[a](../README.md#measured)", "[a](index.md#measured)"),
        (DOCS, "[a](../setup.py)", "[a](path:../setup.py)"),
        (DOCS, "[the *rooms*](../ncsn_fast/)", "the *rooms*"),
        (DOCS, "[a](https://arxiv.org)", "[a](https://arxiv.org)"),
        (DOCS, "[a](nowhere.md)", "[a](nowhere.md)"),  # for the build to refuse
        (ROOT, "![a](docs/digits.png)", "![a](digits.png)"),
        (ROOT, "[a](CONTRIBUTING.md)", "[a](contributing.md)"),
    ],
)
def test_a_link_of_the_repository_becomes_one_of_the_site(extension, folder, link, shown):
    assert extension("links").resolved(f"See {link}.", folder, DOCS) == f"See {shown}."


def test_a_docstring_is_not_read_as_markup(extension):
    told = [
        "x of (N, *shape) and σ_, as :func:`nf.sample` and ``**settings``.",
        "",
        "    x ← a·x + b·n",
        "",
        "Args:",
        "    x: (N, *shape).",
        "",
        "Returns:",
        "    a pair: (N, *shape) both.",
    ]
    lines = [line for block in extension("docstrings").blocks(told) for line in block]
    assert lines == [
        r"x of (N, \*shape) and σ\_, as :func:`nf.sample <ncsn_fast.sample>` and ``**settings``.",
        "",
        "::",
        "",
        "    x ← a·x + b·n",
        "",
        "Args:",
        r"    x: (N, \*shape).",
        "",
        r":returns: a pair: (N, \*shape) both.",
    ]


@pytest.mark.parametrize(
    ("page", "fetched"),
    [
        ('<script async src="https://a.org/x.js"></script>', "https://a.org/x.js"),
        ('<link rel="stylesheet" href="//a.org/x.css">', "//a.org/x.css"),
        ("<style>@import 'https://a.org/x.css'</style>", "https://a.org/x.css"),
        ('<a href="https://a.org">a</a><script src="_static/x.js"></script>', None),
    ],
)
def test_what_a_browser_would_fetch_is_found(extension, page, fetched):
    found = extension("offline")._FETCHED.search(page)
    assert (found and (found[1] or found[2])) == fetched


def test_the_help_of_a_command_has_every_option(extension):
    @click.group()
    def group():
        pass

    for name, groups in (("few", None), ("many", {"Main": ["a"], "More": ["b"]})):
        options = [click.Option(["--a"], help="one"), click.Option(["--b"], help="two")]
        group.add_command(Command(name, params=options, groups=groups))
    section = object.__new__(extension("commands").Commands).section
    for name in ("few", "many"):
        assert all(flag in section(group, name) for flag in ("--a", "--b", "--quiet"))
