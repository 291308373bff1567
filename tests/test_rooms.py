"""docs/rooms.md: who may import whom, circles, sizes of rooms, files and functions."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "rooms.md").read_text(encoding="utf-8")
FACE = "face"
# Folders of the checkout, and what they are called inside the package.
FOLDERS = {
    "ncsn_fast": "ncsn_fast",
    "kernels": "ncsn_fast.kernels",
    "benchmarks": "ncsn_fast.benchmarks",
}
# The face imports all rooms, the gate of the benchmarks none.
FREE = {"ncsn_fast", "ncsn_fast.benchmarks"}
MOST_AT_THE_TOP, MOST_IN_A_ROOM, MOST_LINES, MOST_LINES_OF_A_FUNCTION = 6, 14, 450, 60


class Import(NamedTuple):
    """One imported module, as far as it lies in the package by its full name."""

    target: str
    line: int
    inside: bool  # a function


@cache
def rules() -> dict[str, list[str]]:
    rows = re.findall(r"^\| ([\w.]+) \| ?([\w., ]*) ?\|$", PAGE, re.MULTILINE)
    table = {room: re.findall(r"[\w.]+", allowed) for room, allowed in rows if room != "room"}
    package = [
        room for room in table if not re.match(r"cli|compat|benchmarks|__main__|kernels", room)
    ]
    return {
        room: [one for name in allowed for one in (package if name == "package" else [name])]
        for room, allowed in table.items()
    }


@cache
def modules() -> dict[str, Path]:
    """By full name, all files of the product."""
    found = {}
    for folder, name in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = (name, *path.relative_to(ROOT / folder).with_suffix("").parts)
            found[".".join(part for part in parts if part != "__init__")] = path
    return found


def imports_of(module: str, source: str, known: set[str], package: bool) -> Iterator[Import]:
    """Every import of a file, wherever it stands; ``package``: it is an ``__init__.py``."""
    tree = ast.parse(source)
    functions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
    inside = {id(n) for f in ast.walk(tree) if isinstance(f, functions) for n in ast.walk(f)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield Import(name.name, node.lineno, id(node) in inside)
        elif isinstance(node, ast.ImportFrom):
            origin = node.module or ""
            if node.level:
                above = module.split(".")[: len(module.split(".")) - node.level + package]
                origin = ".".join([*above, *([origin] if origin else [])])
            for name in node.names:
                full = f"{origin}.{name.name}"
                handed_on = origin == "ncsn_fast" and full not in known
                target = full if full in known and not handed_on else origin
                yield Import(target, node.lineno, id(node) in inside)


@cache
def imports() -> dict[str, list[Import]]:
    known = set(modules())
    return {
        name: list(imports_of(name, path.read_text("utf-8"), known, path.name == "__init__.py"))
        for name, path in modules().items()
    }


def place(module: str) -> str:
    """A module's name without the package: what the table calls it, or begins with."""
    return FACE if module == "ncsn_fast" else module.removeprefix("ncsn_fast.")


def lies_in(name: str, room: str) -> bool:
    return name == room or name.startswith(room + ".")


def room_of(module: str) -> str | None:
    """The row of the table that a module belongs to, the most precise one."""
    rows = [room for room in rules() if lies_in(place(module), room)]
    return max(rows, key=len, default=None)


def is_ours(target: str) -> bool:
    return target.split(".")[0] == "ncsn_fast"


def faults(module: str, found: list[Import]) -> list[str]:
    """What of a file's imports its room may not have."""
    room = room_of(module)
    allowed = [room, *rules()[room]] if room else []
    return [
        f"{module}:{one.line} imports {one.target}, which {room} may not"
        for one in found
        if is_ours(one.target) and not any(lies_in(place(one.target), name) for name in allowed)
    ]


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Groups of nodes that reach each other."""
    reach: dict[str, set[str]] = {}
    for node in edges:
        seen, todo = set(), [node]
        while todo:
            for following in edges.get(todo.pop(), ()):
                if following not in seen:
                    seen.add(following)
                    todo.append(following)
        reach[node] = seen
    groups = {
        tuple(sorted(other for other in reach[node] if node in reach.get(other, ())))
        for node in edges
        if node in reach[node]
    }
    return [list(group) for group in sorted(groups)]


def whole(module: str) -> str:
    """The room as a whole, where the table has a row for a part of it too."""
    return min((room for room in rules() if lies_in(place(module), room)), key=len, default=FACE)


def test_every_file_lies_in_a_room_of_the_table():
    assert len(rules()) > 20
    assert [m for m in modules() if m not in FREE and room_of(m) is None] == []


def test_every_row_of_the_table_is_there_and_names_rooms_that_are():
    places = [place(module) for module in modules()]
    for room, allowed in rules().items():
        for name in (room, *allowed):
            assert name == FACE or any(lies_in(one, name) for one in places), (room, name)


def test_rooms_import_only_what_they_may():
    bound = {module: some for module, some in imports().items() if module not in FREE}
    assert [fault for module, some in bound.items() for fault in faults(module, some)] == []


def test_no_file_is_part_of_a_circle():
    known = set(modules())
    edges = {
        module: {one.target for one in found if one.target in known and one.target != module}
        for module, found in imports().items()
    }
    assert circles(edges) == []


def test_no_room_is_part_of_a_circle():
    edges: dict[str, set[str]] = {}
    for module, found in imports().items():
        if module not in FREE:
            others = {whole(one.target) for one in found if is_ours(one.target)}
            edges.setdefault(whole(module), set()).update(others - {whole(module), FACE})
    assert circles(edges) == []


def test_imports_inside_functions_are_those_that_have_to_be():
    listed = re.search(r"\| imported where it is used \|\n\|---\|\n\| ([^|]+) \|", PAGE)
    assert listed is not None
    allowed = listed.group(1).split(", ")
    found = [
        f"{module}:{one.line} {one.target}"
        for module, some in imports().items()
        for one in some
        if one.inside and not any(lies_in(place(one.target), name) for name in allowed)
    ]
    assert found == []


def test_the_top_and_the_rooms_are_small():
    sizes: dict[Path, int] = {}
    for path in modules().values():
        own = path.name != "__init__.py" or path.parent == ROOT / "ncsn_fast"
        sizes[path.parent] = sizes.get(path.parent, 0) + own
    assert sizes.pop(ROOT / "ncsn_fast") <= MOST_AT_THE_TOP
    assert {str(folder): n for folder, n in sizes.items() if n > MOST_IN_A_ROOM} == {}


def test_files_and_functions_are_short():
    long = []
    for path in [*modules().values(), *(ROOT / "kernels").rglob("*.[ch]*")]:
        source = path.read_text(encoding="utf-8")
        if (lines := source.count("\n")) > MOST_LINES:
            long.append(f"{path}: {lines} lines")
        if path.suffix == ".py":
            long += [f"{path}:{f.lineno} {f.name}: {n} lines" for f, n in long_functions(source)]
    assert long == []


def long_functions(source: str) -> Iterator[tuple[ast.FunctionDef, int]]:
    """Functions whose body, without its docstring, does not fit a screen."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            lines = 1 + node.end_lineno - body[0].lineno if body and node.end_lineno else 0
            if lines > MOST_LINES_OF_A_FUNCTION:
                yield node, lines


def test_files_of_tests_have_names_of_their_own():
    """Two of one name keep pytest from collecting anything at all."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert [name for name in names if names.count(name) > 1] == []


@pytest.mark.parametrize(
    ("module", "source", "told"),
    [
        ("ncsn_fast.support.a", "def f():\n    from ncsn_fast.models import base", "models.base"),
        ("ncsn_fast.models.a", "if TYPE_CHECKING:\n    import ncsn_fast.sampling.loop", "sampling"),
        ("ncsn_fast.data.a", "from ..checkpoints.layouts import b", "checkpoints.layouts"),
        ("ncsn_fast.models.a", "from ncsn_fast.methods.tables import b", "methods.tables"),
        ("ncsn_fast.kernels.triton.a", "from ncsn_fast.ops import library", "ops.library"),
        ("ncsn_fast.runs.a", "from ncsn_fast.benchmarks.contest import rows", "benchmarks"),
        ("ncsn_fast.benchmarks.contest.a", "from ncsn_fast import cli", "cli"),
        ("ncsn_fast.training.a", "import ncsn_fast as nf", "ncsn_fast"),
        ("ncsn_fast.attic.a", "from ncsn_fast import noise", "noise"),
    ],
)
def test_an_import_that_is_not_allowed_is_found(module, source, told):
    found = faults(module, list(imports_of(module, source, set(modules()), package=False)))
    assert len(found) == 1
    assert told in found[0]


def test_a_circle_is_found():
    edges = {"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"d"}, "e": set()}
    assert circles(edges) == [["b", "c"], ["d"]]
