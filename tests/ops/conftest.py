"""Fixtures of the operations' tests."""

import pytest
from helpers import operations

from ncsn_fast.device import native


@pytest.fixture(params=operations.EVERY[1:])
def backend(request, monkeypatch):
    """Whose kernels a test is about; its tensors are where these run."""
    if request.param == "triton":
        pytest.importorskip("triton")
    if request.param == "cpp":
        if reason := native.missing():
            pytest.skip(reason)
        monkeypatch.setattr(operations, "_device", "cpu")
    return request.param
