"""What the GPU kernels are compiled to, and whether that keeps within their budgets; no GPU needed.

    python -m ncsn_fast.benchmarks.static

compiles each kernel ahead of time, as its launcher launches it, and prints a row per kernel,
variant and target (``rows.py`` says what the fields are). It exits with 1 where a budget is
exceeded, saying which.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from itertools import chain

from ncsn_fast.benchmarks.static import passes, rows, variants
from ncsn_fast.benchmarks.static.compiled import TARGETS, compile_all
from ncsn_fast.benchmarks.static.variants import Variant
from ncsn_fast.kernels.triton.common import launch


def all_variants() -> rows.Variants:
    """Those of all areas, by kernel and name."""
    areas = chain(variants.variants(), passes.variants())
    found: dict[tuple[str, str], Variant] = {}
    for variant in areas:
        key = variant.kernel, variant.name
        if found.setdefault(key, variant) is not variant:
            raise ValueError(f"two variants of one kernel have the same name: {', '.join(key)}")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 1 where a budget is exceeded."""
    parser = argparse.ArgumentParser(
        prog="python -m ncsn_fast.benchmarks.static",
        description="Compile the GPU kernels without a GPU and check them against their budgets.",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print a JSON list")
    form.add_argument("--markdown", action="store_true", help="print the README's table (sm_90)")
    parser.add_argument("--target", action="append", choices=TARGETS, help="may be repeated")
    parser.add_argument("--quick", action="store_true", help="most variants for sm_90 only")
    chosen = parser.parse_args(arguments)
    if launch.INTERPRETED:
        parser.error("nothing can be compiled under TRITON_INTERPRET: unset it")
    targets = [rows.PUBLISHED] if chosen.markdown else chosen.target or list(TARGETS)
    compiled_for = all_variants()
    found = compile_all(compiled_for, targets, chosen.quick)
    if chosen.json:
        print(json.dumps([asdict(row) for row in found], indent=1))
    else:
        print(rows.markdown(found) if chosen.markdown else rows.table(found))
    faults = rows.check(found, compiled_for)
    print(*faults, sep="\n", end="\n" if faults else "", file=sys.stderr)
    return 1 if faults else 0


__all__ = ["all_variants", "main"]
