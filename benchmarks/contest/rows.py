"""The results: one row per contestant and size, kept as JSON Lines."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
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

    def failed(self, error: BaseException | str, status: str = FAILED) -> Row:
        """This row without figures, and why."""
        text = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
        return replace(self, status=status, message=_first_lines(text))


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
    "read_rows",
    "write_rows",
]
