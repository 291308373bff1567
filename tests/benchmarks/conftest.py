"""What takes long in a contest and is not what the tests are about."""

import pytest
import torch

from ncsn_fast.benchmarks.contest import contest
from ncsn_fast.benchmarks.suites import sampling


@pytest.fixture(autouse=True)
def brief(monkeypatch):
    """Short profiles, and no search for garbage after each contestant."""
    monkeypatch.setattr(contest, "_clean_up", lambda device: None)
    monkeypatch.setattr(sampling, "_PROFILED", 1)
    monkeypatch.setattr(sampling, "_PROFILED_OURS", 1)


@pytest.fixture
def one_thread(monkeypatch):
    """For networks so small that threads only wait for each other, here and in processes."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
