"""Every step of the tour: its numbers, and what a step may look like."""

import pytest
import torch

from ncsn_fast.tour.page import page
from ncsn_fast.tour.steps import STEPS
from ncsn_fast.tour.steps.annealing import SIGMAS, STEPS_PER_LEVEL, _figure

MOST_BYTES = 5e6 / len(STEPS)  # of a step, so that the page of all is below 5 MB


@pytest.fixture(scope="module", params=STEPS)
def step(request):
    made = STEPS[request.param](True, lambda part: None)
    assert made.name == request.param
    return made


def test_its_numbers_are_within_their_bounds(step):
    assert [number for number in step.numbers if not number.holds] == []


def test_its_code_has_at_most_ten_lines(step):
    assert sum(bool(line.strip()) for line in step.code.splitlines()) <= 10


def test_its_claim_is_one_sentence(step):
    assert step.claim.endswith(".")
    assert ". " not in step.claim


def test_its_part_of_the_page_is_small(step):
    assert len(page([step], "").encode()) < MOST_BYTES


def test_what_is_asserted_can_fail(step):
    """A bound that nothing can miss asserts nothing."""
    assert all(number.low > float("-inf") or number.high < float("inf") for number in step.numbers)


def test_the_axis_of_the_ladder_ends_with_the_last_update():
    """The last frame, without the noise, is no update of the chain."""
    states = {name: torch.zeros(len(SIGMAS) + 2, 3, 2) for name in "abc"}
    (axis, _) = _figure(states).panels[-1].axes
    assert axis.high == len(SIGMAS) * STEPS_PER_LEVEL == 600
