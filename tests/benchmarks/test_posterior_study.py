"""benchmarks.studies.posterior: what it says of each guidance, with few samples."""

import collections

import pytest

from ncsn_fast.benchmarks.studies import posterior


@pytest.fixture(scope="module")
def report():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(posterior, "cost", lambda: collections.defaultdict(lambda: 1.5))
        return posterior.measure(300, 0)


def test_mmps_is_near_the_posterior_and_others_where_they_are_exact(report):
    gaussian = [title for title in posterior.problems() if title != "mixture, curved"]
    for title in gaussian:
        off, wide = report["errors"]["mmps, 3 iterations"][title]
        assert off < 0.12  # 300 samples: 0.06 by chance
        assert 0.9 < wide < 1.05
    assert report["errors"]["gaussian_likelihood"]["correlated, blur"][0] > 0.5
    assert report["errors"]["pgdm"]["equal variances, mask"][0] < 0.1
    assert report["errors"]["tmpd"]["independent, mask"][0] < 0.1


def test_the_table_has_a_row_for_each_guidance(report):
    lines = posterior.as_markdown(report).splitlines()
    titles = " | ".join(posterior.problems())
    assert lines[2] == f"|  | {titles} | cost of a row |"
    linear = next(line for line in lines if line.startswith("| gaussian_likelihood"))
    assert linear.endswith("|  | 1.5 |")  # none for what is not linear
    assert len(lines) == 4 + len(report["errors"])
