"""The error of the score in each precision, for the page; studies/precision.py tells more."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import ncsn_fast as nf
from ncsn_fast.benchmarks.contest.plans import Plan
from ncsn_fast.benchmarks.contest.rows import Row
from ncsn_fast.benchmarks.studies import precision
from ncsn_fast.data.digits import digits

_IMAGES = 32


def score_error(plan: Plan) -> Iterator[Row]:
    """A row per precision of the bundled network; its figures are σ → relative error."""
    row = Row("precision", "digits", "", _IMAGES, "")
    try:
        net = nf.load_checkpoint("digits").to(plan.device)
        clean = digits("test").images[:_IMAGES].to(plan.device)
        levels = precision.some_levels(net)
        found = precision.score_errors(net, clean, levels)
    except Exception as error:  # of whatever kind: the row says which
        yield row.failed(error)
        return
    names = [f"{float(net.sigmas[level]):.4g}" for level in levels]
    for name, values in found.items():
        figures = dict(zip(names, values, strict=True))
        yield replace(row, contestant=name, precision=name, figures=figures)


__all__ = ["score_error"]
