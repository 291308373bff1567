"""Prepared networks are tested with direct convolutions and with those that differ most."""

import pytest


@pytest.fixture(autouse=True, params=["direct", "F4"])
def convolutions(request, monkeypatch):
    """The form of all 3×3 convolutions."""
    monkeypatch.setenv("NCSN_FAST_CONV", request.param)
    return request.param
