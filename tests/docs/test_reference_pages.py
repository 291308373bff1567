"""The reference, docs/api/, is complete: every public name once."""

from collections import Counter
from importlib import import_module

import pytest
from public_names import API, NAMES, found, public

import ncsn_fast as nf
from ncsn_fast.methods import METHODS

ADAPTERS = ("azula", "deepinv", "diffusers", "sbi", "torchebm")
PROJECTS = ("diffusers", "k_diffusion", "ncsn", "ncsnv2", "score_sde")
ROOMS = [
    *("checkpoints", "data", "guidance", "guidance.operators", "guidance.posterior", "models"),
    *("noise", "ops"),
    *(f"compat.{project}" for project in PROJECTS),
    *(f"compat.adapters.{project}" for project in ADAPTERS),
]


def test_no_name_stands_there_twice():
    assert [name for name, times in Counter(NAMES).items() if times > 1] == []
    # Nor one thing by two names.
    times = Counter(id(found(name)) for name in NAMES)
    assert [name for name in NAMES if times[id(found(name))] > 1] == []


@pytest.mark.parametrize("room", ["", *ROOMS])
def test_every_public_name_is_in_the_reference(room):
    module = import_module(f"ncsn_fast.{room}".strip("."))
    listed = {id(found(name)) for name in NAMES}
    missing = [name for name, value in public(module).items() if id(value) not in listed]
    assert missing == []


def test_every_adapter_is_in_the_reference():
    folder = API.parents[1] / "ncsn_fast" / "compat" / "adapters"
    assert {path.stem for path in folder.glob("[a-z]*.py")} == {*ADAPTERS, "times"}


def test_every_method_known_by_name_is_in_the_reference():
    listed = [found(name) for name in NAMES]
    assert [name for name, method in METHODS.items() if method.table not in listed] == []


def test_the_streams_of_noise_are_told():
    page = (API / "operations.md").read_text(encoding="utf-8")
    streams = [name for name in nf.noise.__all__ if name.isupper()]
    assert len(streams) > 5
    assert [name for name in streams if f"`{name}`" not in page] == []
