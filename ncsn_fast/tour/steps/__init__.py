"""The steps of the tour by name, in their order.

A step is a function (quick, told) -> Step; the same numbers come out of it every time.
"""

from ncsn_fast.tour.step import StepFunction
from ncsn_fast.tour.steps.ascent import ascent

STEPS: dict[str, StepFunction] = {
    "ascent": ascent,
}

__all__ = ["STEPS"]
