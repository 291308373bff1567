"""Feed everything that reads with damaged and wrong files, for as long as one likes.

    python -m tests.fuzz                     ten minutes
    python -m tests.fuzz --seconds 30 --seed 7 --only "YAML,network"

Case i of seed s is the same input whenever and wherever it is made. A case that goes as it never
may is written to a file, named in the message with the command that repeats it; the code is then 1.
"""

from __future__ import annotations

import argparse
import collections
import itertools
import logging
import random
import resource
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))  # hostile/ and helpers/, as in the tests

from hostile import targets


def main() -> int:
    options = _options()
    chosen = [t for t in targets.TARGETS if options.only is None or t.name in options.only]
    if not chosen:
        sys.exit(f"none of {[t.name for t in targets.TARGETS]} is meant by --only")
    torch.set_num_threads(1)
    logging.getLogger("ncsn_fast").addHandler(logging.NullHandler())  # what is warned of, unprinted
    for target in chosen:  # what is imported and made once counts for no case
        for data in target.valid():
            if target.name != "options" and targets.outcome(target, data) != "read":
                sys.exit(f"{target.name}: a right file is refused")
    _limit_memory()
    counts: dict[str, collections.Counter[str]] = {t.name: collections.Counter() for t in chosen}
    faults = 0
    end = time.monotonic() + options.seconds
    told = time.monotonic()
    for case in itertools.count(options.case or 0):
        for target in chosen:
            faults += _run(target, options.seed, case, counts[target.name], options.out)
        if options.case is not None or time.monotonic() > end:
            break
        if time.monotonic() - told > 30:
            told = time.monotonic()
            left = max(0, end - told)
            print(
                f"{(case + 1) * len(chosen):,} cases, {faults} faults, {left:.0f} s left",
                flush=True,
            )
    print(
        f"seed {options.seed}: {sum(c.total() for c in counts.values()):,} cases, {faults} faults"
    )
    for name, found in counts.items():
        outcomes = ", ".join(f"{what} {n}" for what, n in sorted(found.items()))
        print(f"  {name:34} {found.total():6}  {outcomes}")
    return 1 if faults else 0


def _run(
    target: targets.Target, seed: int, case: int, counts: collections.Counter[str], out: Path
) -> int:
    """One case; how many faults it has."""
    data = target.input(random.Random(f"{seed} {case} {target.name}"))
    try:
        counts[targets.outcome(target, data)] += 1
        return 0
    except targets.Fault as fault:
        counts["FAULT"] += 1
        out.mkdir(parents=True, exist_ok=True)
        path = (
            out / f"{target.name.replace(' ', '_').replace('/', '_')}-{seed}-{case}-{target.file}"
        )
        path.write_bytes(data)
        print(
            f"FAULT {fault}\n  the input: {path}\n  again: python -m tests.fuzz --seed {seed} "
            f"--case {case} --only '{target.name}'",
            flush=True,
        )
        return 1


def _limit_memory(more: int = 4 << 30) -> None:
    """A case that takes all memory ends, and not the machine."""
    with open("/proc/self/statm", encoding="ascii") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + more, size + more))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seconds", type=float, help="in the place of --minutes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int, help="this one alone")
    parser.add_argument("--only", type=lambda text: text.split(","), help="names of targets")
    parser.add_argument("--out", type=Path, default=Path("fuzz-faults"), help="for failing inputs")
    options = parser.parse_args()
    options.seconds = options.minutes * 60 if options.seconds is None else options.seconds
    return options


if __name__ == "__main__":
    sys.exit(main())
