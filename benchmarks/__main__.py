"""Measure what this machine can: python -m ncsn_fast.benchmarks [--quick | --minutes N | …]."""

from __future__ import annotations

import argparse
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import torch

from ncsn_fast.benchmarks import minutes, runner
from ncsn_fast.benchmarks.contest.plans import PLANS
from ncsn_fast.benchmarks.contestants import peer
from ncsn_fast.benchmarks.report import tables
from ncsn_fast.support.signals import on_stop

_EPILOG = """\
examples:
  python -m ncsn_fast.benchmarks --quick           everything that is in the README, in ten minutes
  python -m ncsn_fast.benchmarks --cpu             those of a CPU, in 45 minutes
  python -m ncsn_fast.benchmarks --minutes 8       the most valuable first, killed without loss
  python -m ncsn_fast.benchmarks --only operations the fused operations alone
  python -m ncsn_fast.benchmarks --peer ~/ncsnv2   also the official code itself
  python -m ncsn_fast.benchmarks --pytest -k noise the pytest-benchmark suites
  python -m ncsn_fast.benchmarks.static            instructions of the kernels, without a GPU
  python -m ncsn_fast.benchmarks.studies.precision what 16 bits cost; also .methods, .few_steps
                                                   and others
"""


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 1 where results disagree or ours fails, 128 and its number after a signal."""
    given = sys.argv[1:] if arguments is None else arguments
    if given[:1] == ["--pytest"]:
        return run_pytest(given[1:])
    options = _parser().parse_args(given)
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if options.cpu:
        device = "cpu"
    plan = PLANS[device, _plan(options, device)]
    plan = replace(plan, budget=options.budget or plan.budget, peer=options.peer)
    out = options.out or runner.default_folder(device)
    came = [signal.SIGINT]

    def stop(number: signal.Signals) -> NoReturn:
        came.append(number)
        raise KeyboardInterrupt

    try:
        if device == "cuda" and not torch.cuda.is_available():
            raise ValueError("--device cuda: there is no GPU that this torch can use")
        if options.minutes is not None and (options.only or options.budget):
            raise ValueError("--minutes has tasks and ends of its own: give no --only, no --budget")
        if options.peer is not None:
            peer.check(options.peer)
        print(f"results go to {out}")
        with on_stop(stop):
            if options.minutes is not None:
                results = minutes.run(plan, options.minutes, out, _say)
            else:
                results = runner.run(plan, out, options.only or list(runner.SUITES), _say)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nstopped; what was finished is in {out}", file=sys.stderr)
        return 128 + came[-1]
    print()
    for table in (tables.targets(results), tables.problems(results)):
        if table.lines:
            print(table.markdown())
    return 0 if runner.passed(results) else 1


def _plan(options: argparse.Namespace, device: str) -> str:
    """The name of the plan that is asked for."""
    if options.minutes is not None:
        return "quick" if device == "cuda" else "dry"
    return "full" if options.full else "targets" if options.cpu else "quick"


def run_pytest(arguments: list[str]) -> int:
    """The pytest-benchmark suites of pytest_suites/."""
    import pytest

    # Installed, there is no pyproject.toml beside them that names the files.
    settings = ["-o", "python_files=bench_*.py", "--benchmark-columns=min,median,iqr,rounds"]
    folder = str(Path(__file__).parent / "pytest_suites")
    return int(pytest.main([folder, "-q", "--benchmark-only", *settings, *arguments]))


def _say(line: str) -> None:
    print(line, flush=True)


def _folder(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("give the name of a folder")
    return Path(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ncsn_fast.benchmarks",
        description="Measure operations, sampling and training beside the published code and "
        "PyTorch, after checking that all agree.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "--quick", action="store_true", help="the default: under ten minutes, on a CPU under three"
    )
    size.add_argument(
        "--cpu",
        action="store_true",
        help="the targets for a CPU, on the CPU: NCSNv2 for CIFAR-10 and its rivals, 45 minutes",
    )
    size.add_argument("--full", action="store_true", help="all sizes and networks, up to hours")
    size.add_argument(
        "--minutes",
        type=float,
        metavar="N",
        help="so many minutes: first whether real sizes run, then the tests of GPUs, then the "
        "targets by value; the same command goes on. On a CPU a dry run of it, at tiny sizes",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: a GPU if there is one")
    parser.add_argument(
        "--out", type=_folder, help="folder for rows.jsonl, results.md, report.html"
    )
    parser.add_argument("--only", nargs="+", metavar="SUITE", help="these suites; others stay")
    parser.add_argument("--peer", metavar="PATH", help="a checkout of ermongroup/ncsnv2")
    parser.add_argument("--budget", type=float, metavar="SECONDS", help="time for all suites")
    parser.add_argument(
        "--pytest", action="store_true", help="first of all: run the pytest-benchmark suites"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
