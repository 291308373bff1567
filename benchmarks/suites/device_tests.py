"""The tests of the checkout as a suite: a row each, as soon as it is over."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from ncsn_fast.benchmarks.contest.plans import Plan
from ncsn_fast.benchmarks.contest.rows import FAILED, LEFT_OUT, Row

SUITE = "tests"
# Of pytest: all passed, some failed, none was there.
_TOLD_BY_ROWS = (0, 1)
CHECKOUT = Path(__file__).resolve().parents[2]


def device_tests(plan: Plan) -> Iterator[Row]:
    """A row for each test that passes or fails, and one for the whole run with their numbers.

    ``plan.tests`` are the arguments of pytest, ``plan.workers`` how many run them at once.
    """
    whole = Row(SUITE, " ".join(plan.tests), "ours", 0, "")
    reason = _missing()
    if reason is not None:
        yield whole.failed(reason, LEFT_OUT)
        return
    reading, writing = os.pipe()
    workers = ["-n", str(plan.workers)] if plan.workers and find_spec("xdist") else []
    plugin = ["-p", "ncsn_fast.benchmarks.suites.pytest_lines", f"--lines-to={writing}"]
    command = [sys.executable, "-m", "pytest", *plan.tests, *workers, *plugin]
    process = subprocess.Popen(command, cwd=CHECKOUT, pass_fds=(writing,))
    os.close(writing)
    counts: Counter[str] = Counter()
    with open(reading, encoding="utf-8") as lines:
        for line in lines:
            told = json.loads(line)
            counts[told["outcome"]] += 1
            if told["outcome"] == "skipped":
                continue
            row = Row(SUITE, told["id"], "ours", 0, "").more({"seconds": told["seconds"]})
            yield row if told["outcome"] == "passed" else row.failed(told["why"], FAILED)
    code = process.wait()
    whole = whole.more({name: float(n) for name, n in sorted(counts.items())})
    if code not in _TOLD_BY_ROWS:
        yield whole.failed(f"pytest ended with exit code {code}: see the log")
    elif not counts["passed"] and not counts["failed"]:
        yield whole.failed(f"all {counts['skipped']} tests were skipped here", LEFT_OUT)
    else:
        yield whole


def _missing() -> str | None:
    if not (CHECKOUT / "tests" / "gpu_smoke.txt").exists():
        return "the tests lie in a checkout, and this is none: git clone"
    return None if find_spec("pytest") else "not installed: pip install ncsn_fast[test]"


__all__ = ["SUITE", "device_tests"]
