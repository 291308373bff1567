"""What takes long in a contest and is not what the tests are about."""

import pytest

from ncsn_fast.benchmarks.contest import contest
from ncsn_fast.benchmarks.suites import sampling


@pytest.fixture(autouse=True)
def brief(monkeypatch):
    """Short profiles, and no search for garbage after each contestant."""
    monkeypatch.setattr(contest, "_clean_up", lambda device: None)
    monkeypatch.setattr(sampling, "_PROFILED", 1)
    monkeypatch.setattr(sampling, "_PROFILED_OURS", 1)
