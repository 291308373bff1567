"""The tour: the steps are run, their numbers held to their bounds, and all written as one page."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

from ncsn_fast.runs.report import check_own, machine_facts
from ncsn_fast.support.files import check_writable, remove_leftovers, write_text
from ncsn_fast.support.locks import folder_lock
from ncsn_fast.support.progress import Progress, ProgressWish
from ncsn_fast.tour.page import page
from ncsn_fast.tour.step import Number, Step
from ncsn_fast.tour.steps import STEPS


def tour(
    out: Path,
    *,
    step: str | None = None,
    quick: bool = False,
    progress: ProgressWish = None,
) -> dict[str, Any]:
    """Run the tour, or one step of it; write the page and its numbers.

    Args:
        out: the folder of tour.html and tour.json, of one step of <name>.html and <name>.json; made
            if need be.
        step: a name of ``ncsn_fast.tour.steps.STEPS``; None runs all.
        quick: whether with fewer chains and less training, and wider bounds for that.
        progress: True for a bar, or a function (done, total), in hundredths.

    Returns:
        The report: "numbers" by step, each with what was wanted, found and allowed and whether it
        "holds", a bound that there is not being None; whether all hold; "files" by name.

    Raises:
        ValueError, OSError: for an unknown step, or a folder that cannot be written.
    """
    if step is not None and step not in STEPS:
        raise ValueError(f"step={step}: there is none of that name; choose of {', '.join(STEPS)}")
    names = [*STEPS] if step is None else [step]
    stem = step or "tour"
    files = {"numbers": out / f"{stem}.json", "page": out / f"{stem}.html"}
    with folder_lock(out, "choose another with --out"):
        check_own(list(files.values()), ("numbers", "quick"), "ncsn-fast tour")
        for path in files.values():
            check_writable(path)
        remove_leftovers(out)
        began = time.monotonic()
        steps = _run(names, quick, progress)
        facts = {"quick": quick, **_numbers(steps), "seconds": round(time.monotonic() - began, 1)}
        machine = machine_facts("cpu")
        write_text(files["numbers"], json.dumps(facts | machine, indent=2) + "\n")
        write_text(files["page"], page(steps, _footer(step, quick, machine)))
        return {**facts, **machine, "files": files}


def _run(names: list[str], quick: bool, wish: ProgressWish) -> list[Step]:
    steps = []
    with Progress(wish, 100, unit="%") as bar:
        for i, name in enumerate(names):
            bar.note(name)

            def told(part: float, begun: int = i) -> None:
                bar.back_to(round(100 * (begun + part) / len(names)))

            told(0.0)
            steps.append(STEPS[name](quick, told))
            told(1.0)
    return steps


def _numbers(steps: list[Step]) -> dict[str, Any]:
    def finite(value: float) -> float | None:
        return value if math.isfinite(value) else None  # JSON has no other numbers

    def plain(number: Number) -> dict[str, Any]:
        return {
            "what": number.what,
            "wanted": number.wanted,
            "found": finite(number.found),
            "low": finite(number.low),
            "high": finite(number.high),
            "shown": number.shown(number.found),
            "bounds": number.bounds,
            "holds": number.holds,
        }

    return {
        "holds": all(number.holds for step in steps for number in step.numbers),
        "numbers": {step.name: [plain(number) for number in step.numbers] for step in steps},
    }


def _footer(step: str | None, quick: bool, machine: dict[str, Any]) -> str:
    command = "ncsn-fast tour" + (f" --step {step}" if step else "") + (" --quick" if quick else "")
    versions = machine["versions"]
    return (
        f"Made by “{command}”, ncsn_fast {versions['ncsn_fast']}, torch {versions['torch']}, on "
        f"{machine['device_name']}. The same command makes the same page."
    )


__all__ = ["tour"]
