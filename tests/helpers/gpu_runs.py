"""Runs of the tests on a GPU: which are the first, and what is done when the GPU is lost."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch

TESTS = Path(__file__).parent.parent
SMOKE, ALONE = "gpu_smoke", "alone"
_LOST = 70  # the exit status of a process that cannot use its GPU any more


def smoke_lines() -> list[str]:
    """The lines of gpu_smoke.txt that name tests."""
    lines = (TESTS / f"{SMOKE}.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def places(ids: Iterable[str], lines: Iterable[str]) -> dict[str, int]:
    """Id of a test → the first line that names it."""
    found: dict[str, int] = {}
    patterns = [re.compile(".*".join(map(re.escape, line.split("*")))) for line in lines]
    for one in ids:
        for place, pattern in enumerate(patterns):
            if pattern.fullmatch(one):
                found[one] = place
                break
    return found


def only_on_gpus(config: pytest.Config) -> bool:
    """Whether nothing but tests of GPUs is asked for, by -m."""
    asked = config.option.markexpr
    return re.match(rf"(gpu|{SMOKE}|{ALONE})\b", asked) is not None and " or " not in asked


def is_smoke(config: pytest.Config) -> bool:
    """Whether the run is that of gpu_smoke alone: files that it does not name are not imported."""
    return str(config.option.markexpr).strip() == SMOKE


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    if not is_smoke(config) or collection_path.suffix != ".py":
        return None
    named = {line.partition("::")[0] for line in smoke_lines()}
    return None if collection_path in {TESTS.parent / path for path in named} else True


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    of_gpus = (item.nodeid for item in items if item.get_closest_marker("gpu"))
    found = places(of_gpus, smoke_lines())
    for item in items:
        if item.nodeid in found:
            item.add_marker(SMOKE)
        alone = {ALONE, "gpu"} <= {mark.name for mark in item.iter_markers()}
        if alone and hasattr(config, "workerinput"):
            reason = f"needs the GPU for itself: run -m {ALONE} without -n"
            item.add_marker(pytest.mark.skip(reason=reason))
    if is_smoke(config):
        items.sort(key=lambda item: found.get(item.nodeid, 0))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> object:
    """A test that loses the GPU, by reading where nothing is, loses it for all that follow.

    Such an error stays for the life of a process. A worker ends by it, and pytest-xdist starts
    another one; without workers the run ends.
    """
    failed = item.session.testsfailed
    result = yield
    if item.session.testsfailed > failed and "gpu" in item.keywords and (error := lost()):
        told = f"{item.nodeid} has lost the GPU ({error})"
        if not hasattr(item.config, "workerinput"):
            pytest.exit(f"{told}: no test can use it in this process any more", _LOST)
        print(told, file=sys.stderr, flush=True)
        os._exit(_LOST)
    return result


def lost() -> str | None:
    """The error of a GPU that this process cannot use any more."""
    if not torch.cuda.is_available():
        return None
    try:
        torch.cuda.synchronize()
    except AssertionError:  # no CUDA in this torch: what says that there is a GPU stands for one
        return None
    except RuntimeError as error:
        return str(error).split("\n")[0]
    return None
