"""ncsn-fast bench."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

import click

from ncsn_fast.cli.common import Command, device_of, device_option
from ncsn_fast.cli.output import Output


@click.command(cls=Command, opens=True)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=None,
    help="Folder to keep the results in: rows.jsonl, results.md and report.html with plots. "
    "Default: none, with --open benchmark.",
)
@device_option
@click.pass_obj
def bench(output: Output, out: Path | None, device: str | None) -> None:
    """How fast this machine samples, in about a minute.

    The engine, the published code and plain PyTorch run the same steps of the same network, taking
    turns: NCSNv2 for CIFAR-10 on a GPU, the network of the bundled digits on a CPU. The fused
    operations follow. Nobody gets a figure whose results are not those of the published code.

    All that the README tells, with training and torch.compile, is measured by
    `python -m ncsn_fast.benchmarks --quick` (ten minutes on a GPU) or --full.

    \b
    Examples:
      ncsn-fast bench
      ncsn-fast bench --out benchmark
    """
    # Here, because they bring Triton, which is slow to import.
    from ncsn_fast.benchmarks import runner
    from ncsn_fast.benchmarks.contest.plans import PLANS
    from ncsn_fast.benchmarks.report import tables

    if output.opens and out is None:
        out = Path("benchmark")
    kind = device_of(device).split(":")[0]
    if (kind, "short") not in PLANS:
        raise click.UsageError(f"--device {device}: there are benchmarks for cpu and cuda")
    results = runner.run(PLANS[kind, "short"], out, ("operations", "chain"), output.say)
    output.say("\n" + tables.environment(results))
    output.say(tables.brief(results))
    problems = tables.problems(results)
    if problems.lines:
        output.say("\n" + problems.markdown())
    output.report({"rows": [asdict(row) for row in results.rows]})
    if out is not None:
        output.show(out / runner.PAGE)
    if not runner.passed(results):
        sys.exit(1)


__all__ = ["bench"]
