"""Proportions of classes against SciPy, and against chance itself."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import chi2_contingency

from ncsn_fast.evaluation.proportions import compare_counts, standard_errors


def test_the_test_is_pearsons() -> None:
    a, b = torch.tensor([30, 50, 20, 0, 7]), torch.tensor([60, 80, 60, 0, 3])
    expected = chi2_contingency(torch.stack([a, b])[:, a + b > 0].numpy(), correction=False)
    found = compare_counts(a, b)
    assert found.chi_square == pytest.approx(expected.statistic, rel=1e-12)
    assert found.p_value == pytest.approx(expected.pvalue, rel=1e-9)
    assert found.degrees == expected.dof == 3


def test_of_two_classes_it_is_the_square_of_the_deviation() -> None:
    found = compare_counts(torch.tensor([40, 60]), torch.tensor([110, 90]))
    assert found.deviations[0] ** 2 == pytest.approx(found.chi_square, rel=1e-12)
    assert found.deviations[0] == pytest.approx(-found.deviations[1], rel=1e-12)
    assert found.deviations[0] < 0  # the first set has fewer of the first class


def test_equal_proportions_do_not_differ() -> None:
    found = compare_counts(torch.tensor([10, 20, 30]), torch.tensor([100, 200, 300]))
    assert (found.chi_square, found.p_value) == (pytest.approx(0, abs=1e-12), 1)


def test_one_class_alone_says_nothing() -> None:
    found = compare_counts(torch.tensor([0, 9]), torch.tensor([0, 5]))
    assert (found.chi_square, found.degrees, found.p_value) == (0, 0, 1)
    assert found.deviations == [0, 0]


def test_of_sets_that_differ_by_chance_one_in_twenty_is_below_5_percent() -> None:
    random = torch.Generator().manual_seed(0)
    share = torch.tensor([0.1, 0.2, 0.3, 0.4])
    drawn = [torch.multinomial(share, 400, True, generator=random) for _ in range(800)]
    counts = [some.bincount(minlength=4) for some in drawn]
    found = [compare_counts(a, b) for a, b in zip(counts[::2], counts[1::2], strict=True)]
    below = sum(one.p_value < 0.05 for one in found)
    assert 8 <= below <= 34  # 20 ± 3.2 standard deviations
    spread = torch.tensor([one.deviations for one in found]).std(dim=0)
    torch.testing.assert_close(spread, torch.ones(4), atol=0.12, rtol=0)


def test_the_standard_error_is_that_of_a_share() -> None:
    found = standard_errors(torch.tensor([25, 75]))
    assert found.tolist() == pytest.approx([(0.25 * 0.75 / 100) ** 0.5] * 2)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ([1, 2], [1, 2, 3], r"b has torch.int64 \(3,\)"),
        ([1.0, 2.0], [1.0, 2.0], "a has torch.float32"),
        ([0, 0], [1, 2], r"a = \[0, 0\]"),
        ([1, 2], [-1, 2], r"b = \[-1, 2\]"),
    ],
)
def test_what_are_no_counts_is_refused(a: list[int], b: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compare_counts(torch.tensor(a), torch.tensor(b))
