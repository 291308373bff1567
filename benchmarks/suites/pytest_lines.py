"""A plugin of pytest that writes a line of JSON for each test, as soon as it is over."""

from __future__ import annotations

import json
import os
from typing import Any

_OPTION = "--lines-to"


def pytest_addoption(parser: Any) -> None:
    parser.addoption(_OPTION, type=int, metavar="DESCRIPTOR", help="write a line per test there")


def pytest_configure(config: Any) -> None:
    # Workers tell their tests to the process that has started them.
    if config.getoption(_OPTION) is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Lines(config.getoption(_OPTION)))


class _Lines:
    """Writes the outcome of each test once: the first that is not "passed", or that of its body."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.told: set[str] = set()

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.nodeid not in self.told and (report.when == "call" or not report.passed):
            self._tell(report)

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self._tell(report)

    def _tell(self, report: Any) -> None:
        self.told.add(report.nodeid)
        line = {
            "id": report.nodeid,
            "outcome": report.outcome,
            "seconds": getattr(report, "duration", 0.0),
            "why": "" if report.passed else _last_line(report),
        }
        os.write(self.descriptor, (json.dumps(line) + "\n").encode())


def _last_line(report: Any) -> str:
    """What went wrong, or why it was skipped, in a line."""
    crash = getattr(report.longrepr, "reprcrash", None)
    if crash is not None:
        return str(crash.message)
    if isinstance(report.longrepr, tuple):
        return str(report.longrepr[2])
    lines = [line for line in str(report.longrepr or "").splitlines() if line.strip()]
    return lines[-1] if lines else ""
