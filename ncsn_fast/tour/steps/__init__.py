"""The steps of the tour by name, in their order.

A step is a function (quick, told) -> Step; the same numbers come out of it every time.
"""

from ncsn_fast.tour.step import StepFunction
from ncsn_fast.tour.steps.annealing import annealing
from ncsn_fast.tour.steps.ascent import ascent
from ncsn_fast.tour.steps.digits import digits
from ncsn_fast.tour.steps.empty_regions import empty_regions
from ncsn_fast.tour.steps.few_steps import few_steps
from ncsn_fast.tour.steps.ladder import ladder
from ncsn_fast.tour.steps.langevin import langevin
from ncsn_fast.tour.steps.one_level import one_level
from ncsn_fast.tour.steps.score_matching import score_matching

STEPS: dict[str, StepFunction] = {
    "ascent": ascent,
    "langevin": langevin,
    "score-matching": score_matching,
    "empty-regions": empty_regions,
    "one-level": one_level,
    "ladder": ladder,
    "annealing": annealing,
    "digits": digits,
    "few-steps": few_steps,
}

__all__ = ["STEPS"]
