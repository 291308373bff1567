"""Fixtures of the kernels' tests."""

import pytest
from cases.common import Way

from ncsn_fast.device import native


@pytest.fixture
def way(request):
    """Whose kernels run a test; those of the CPU as they are compiled for one capability of it."""
    found: Way = request.param
    if not found.is_native:
        yield found
        return
    native.ops().capability(found.capability)
    yield found
    native.ops().capability("")


@pytest.fixture
def small_launches(monkeypatch):
    """Launches of Triton's kernels that take a few samples at most."""
    rows = pytest.importorskip("ncsn_fast.kernels.triton.common.rows")
    monkeypatch.setattr(rows, "_MOST_VECTORS", 20)
    rows.rows.cache_clear()
    yield
    rows.rows.cache_clear()
