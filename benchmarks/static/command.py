"""What the GPU kernels are compiled to, and whether that keeps within their budgets; no GPU needed.

    python -m ncsn_fast.benchmarks.static

compiles each kernel ahead of time, as its launcher launches it, and prints a row per kernel,
variant and target (``rows.py`` says what the fields are). It exits with 1 where a budget is
exceeded, saying which.

    python -m ncsn_fast.benchmarks.static --step cifar10 --batch 128

prints a model of a step of that preset's network: what its kernels have to do at least, how long
that takes on GPUs by their published peaks, and beside it the convolutions (``model.py``).
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from itertools import chain

from ncsn_fast.benchmarks.static import model, passes, rows, variants
from ncsn_fast.benchmarks.static.compiled import TARGETS, compile_all
from ncsn_fast.benchmarks.static.networks import Step
from ncsn_fast.benchmarks.static.variants import Variant
from ncsn_fast.device.precision import PRECISIONS
from ncsn_fast.kernels.triton.common import launch
from ncsn_fast.training.presets import PRESETS

_MOST_SAMPLES = 100_000


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
    form.add_argument("--markdown", action="store_true", help="print the table of docs/kernels.md")
    parser.add_argument("--target", action="append", choices=TARGETS, help="may be repeated")
    parser.add_argument("--quick", action="store_true", help="most variants for sm_90 only")
    step = parser.add_argument_group("a model of a step, instead")
    step.add_argument("--step", choices=PRESETS, help="of the network of this preset")
    step.add_argument("--batch", type=_batch, help="samples (default: 128)")
    step.add_argument("--precision", choices=PRECISIONS, help="it computes in (default: fp16)")
    step.add_argument("--train", action="store_true", help="a training step, not one of a chain")
    chosen = parser.parse_args(arguments)
    of_a_step = chosen.batch or chosen.precision or chosen.train
    if chosen.step is None and of_a_step:
        parser.error("--batch, --precision and --train are of a step: say which, by --step")
    if chosen.step is not None and (chosen.json or chosen.target or chosen.quick):
        parser.error("--json, --target and --quick are of the table of kernels, not of --step")
    if launch.INTERPRETED:
        parser.error("nothing can be compiled under TRITON_INTERPRET: unset it")
    if chosen.step is not None:
        batch, precision = chosen.batch or 128, chosen.precision or "fp16"
        found = model.model(Step(chosen.step, batch, chosen.train, precision))
        print((rows.marked if chosen.markdown else rows.aligned)(model.cells(found)))
        return 0
    return _table(chosen)


def _batch(text: str) -> int:
    """A number of samples, for argparse."""
    if not text.isdecimal() or not 1 <= int(text[:9]) <= _MOST_SAMPLES:
        raise argparse.ArgumentTypeError(
            f"{text[:40]!r} is no number of samples: give 1 to {_MOST_SAMPLES}"
        )
    return int(text)


def _table(chosen: argparse.Namespace) -> int:
    """The table of kernels; 1 where a budget is exceeded."""
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
