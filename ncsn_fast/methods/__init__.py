"""Method + noise levels -> table: pure functions in float64, on no device."""

from ncsn_fast.methods.by_name import METHODS

__all__ = ["METHODS"]
