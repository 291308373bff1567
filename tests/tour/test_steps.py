"""Every step of the tour: its numbers, and what a step may look like."""

import pytest

from ncsn_fast.tour.steps import STEPS


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
