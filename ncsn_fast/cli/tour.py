"""ncsn-fast tour."""

from __future__ import annotations

from pathlib import Path

import click

from ncsn_fast.cli.common import Command
from ncsn_fast.cli.output import Output
from ncsn_fast.runs import tour as work


@click.command(cls=Command, opens=True, groups={"Options": ["step", "out", "quick"]})
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("ncsn_fast_tour"),
    show_default=True,
    help="Folder for the page and its numbers.",
)
@click.option("--step", default=None, metavar="NAME", help="This step alone.")
@click.option("--quick", is_flag=True, help="Fewer chains and less training, wider bounds.")
@click.pass_context
def tour(context: click.Context, out: Path, step: str | None, quick: bool) -> None:
    """See how it works: from gradient ascent to images out of noise, as one page.

    Runs each step of the idea on this engine, checks its numbers, and writes a page with moving
    figures that needs no network. Ends with exit code 1 where a number is not within its bounds.

    \b
    Examples:
      ncsn-fast tour
      ncsn-fast tour --quick
      ncsn-fast tour --step langevin
    """
    output: Output = context.obj
    report = work.tour(out, step=step, quick=quick, progress=output.progress)
    wide = max(len(number["what"]) for some in report["numbers"].values() for number in some)
    for name, numbers in report["numbers"].items():
        output.say(f"\n{name}")
        for number in numbers:
            output.say(
                f"  {number['what']:{wide}}  {number['shown']:>10}   wanted {number['wanted']}, "
                f"allowed {number['bounds']}"
            )
            if not number["holds"]:
                output.warn(f"  {name}: {number['what']} is not within its bounds")
    output.say("")
    output.told(report)
    output.show(report["files"]["page"])
    if not report["holds"]:
        context.exit(1)


__all__ = ["tour"]
