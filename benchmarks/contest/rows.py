"""The results: one row per contestant and size, kept as JSON Lines."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ncsn_fast.benchmarks.contest.timing import Times
from ncsn_fast.support.files import write_text
from ncsn_fast.support.parsers import parse_json, read_text

OK, DISAGREES, FAILED, LEFT_OUT = "ok", "disagrees", "failed", "left out"


@dataclass(frozen=True)
class Row:
    """What is known of one contestant.

    Attributes:
        suite, case: what was measured, for example "chain" and "NCSNv2 CIFAR-10".
        contestant: who, for example "ours" or "official".
        size: images in the batch, or elements of an operation.
        precision: of the network, or of what an operation reads.
        status: "ok", "disagrees" (with the reference: no figure is given), "failed" or "left out".
        message: why, where the status is not "ok".
        median_s, low_s, high_s: quantiles 0.5, 0.2, 0.8 of the time of one unit (a call of an
            operation, a forward pass, a step of a chain, a training step), in seconds.
        rounds: how often it was measured.
        warm_up_s: preparation and first call: compilation, tuning, capture.
        error: difference from the reference, relative.
        figures: what else was measured; see the suites.
        environment: device, versions, commit and time.
    """

    suite: str
    case: str
    contestant: str
    size: int
    precision: str
    status: str = OK
    message: str = ""
    median_s: float | None = None
    low_s: float | None = None
    high_s: float | None = None
    rounds: int = 0
    warm_up_s: float | None = None
    error: float | None = None
    figures: dict[str, float] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def which(self) -> tuple[str, str, str, int, str]:
        """What two rows of the same contestant have in common."""
        return self.suite, self.case, self.contestant, self.size, self.precision

    def timed(self, times: Times, units: int = 1) -> Row:
        """This row with its times: a call does so many units of work."""
        return replace(
            self,
            median_s=times.median / units,
            low_s=times.low / units,
            high_s=times.high / units,
            rounds=times.rounds,
        )

    def more(self, figures: Mapping[str, float]) -> Row:
        """This row with further figures."""
        return replace(self, figures={**self.figures, **figures})

    def with_profile(self, figures: Mapping[str, float]) -> Row:
        """This row with the figures of its kernels, and what they say beside its time.

        ``idle`` is the share of the time, measured without the profiler, in which no kernel runs;
        ``over_convolutions`` that time over the time of the convolution kernels. (On a CPU, where
        the profiler itself costs time, that of all operators over that of the convolutions.)
        """
        found = self.more(figures).figures
        whole = self.median_s if "launches" in figures else figures["busy_s"]
        if whole and "launches" in figures:
            found["idle"] = max(0.0, 1 - figures["busy_s"] / whole)
        if whole and figures.get("convolutions_s"):
            found["over_convolutions"] = whole / figures["convolutions_s"]
        return replace(self, figures=found)

    def failed(self, error: BaseException | str, status: str = FAILED) -> Row:
        """This row without figures, and why."""
        text = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
        return replace(self, status=status, message=_first_lines(text))


def kept(rows: Sequence[Row], row: Row) -> list[Row]:
    """The rows with one more, which takes the place of an older one of the same contestant.

    A profile, which has no time of its own, joins the row that has.
    """
    places = [i for i, one in enumerate(rows) if one.which == row.which]
    if not places:
        return [*rows, row]
    before = rows[places[0]]
    if row.status == OK and before.median_s and not row.median_s:
        row = (
            before.with_profile(row.figures)
            if row.figures
            else replace(before, message=row.message)
        )
    return [row if i == places[0] else one for i, one in enumerate(rows) if i not in places[1:]]


class Results:
    """Rows, and how to find one."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.rows = list(rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def where(self, **wanted: Any) -> list[Row]:
        """The rows whose attributes have these values."""
        return [row for row in self if all(getattr(row, name) == v for name, v in wanted.items())]

    def timed(self, **wanted: Any) -> list[Row]:
        """Those among them that have a time."""
        return [row for row in self.where(status=OK, **wanted) if row.median_s]

    def one(self, **wanted: Any) -> Row | None:
        """The first of these, if there is one."""
        return next(iter(self.timed(**wanted)), None)


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """One JSON object a line; the file is complete or the one of before."""
    write_text(path, "".join(as_json(row) + "\n" for row in rows))


def as_json(row: Row) -> str:
    return json.dumps(asdict(row), ensure_ascii=False)


def read_rows(path: str | os.PathLike[str]) -> list[Row]:
    """The rows of a file; fields that this version does not know are left out.

    A last line without its end, left by a process that was stopped, is not a row.

    Raises:
        ValueError: for a file that holds something else.
    """
    known = {one.name for one in fields(Row)}
    rows = []
    for line in read_text(path).splitlines(keepends=True):
        if not line.endswith("\n"):
            break
        try:
            values = parse_json(line, "a line")
            rows.append(Row(**{name: value for name, value in values.items() if name in known}))
        except (TypeError, AttributeError, ValueError) as error:
            raise ValueError(
                f"{path} holds no rows of a benchmark ({error}): give a rows.jsonl"
            ) from error
    return rows


def _first_lines(text: str, most: int = 300) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 1] + "…"


__all__ = [
    "DISAGREES",
    "FAILED",
    "LEFT_OUT",
    "OK",
    "Results",
    "Row",
    "as_json",
    "kept",
    "read_rows",
    "write_rows",
]
