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
