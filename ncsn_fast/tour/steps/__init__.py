"""The steps of the tour by name, in their order.

A step is a function (quick, told) -> Step; the same numbers come out of it every time.
"""

from ncsn_fast.tour.step import StepFunction
from ncsn_fast.tour.steps.ascent import ascent
from ncsn_fast.tour.steps.langevin import langevin

STEPS: dict[str, StepFunction] = {
    "ascent": ascent,
    "langevin": langevin,
}

__all__ = ["STEPS"]
