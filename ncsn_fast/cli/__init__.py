"""The command line: ncsn-fast demo | schedule | train | sample | evaluate | bench | ..."""

from __future__ import annotations

import click

from ncsn_fast.cli.bench import bench
from ncsn_fast.cli.common import Group
from ncsn_fast.cli.convert import convert
from ncsn_fast.cli.demo import demo
from ncsn_fast.cli.doctor import doctor
from ncsn_fast.cli.evaluate import evaluate
from ncsn_fast.cli.output import write
from ncsn_fast.cli.profile import profile
from ncsn_fast.cli.sample import sample
from ncsn_fast.cli.schedule import schedule
from ncsn_fast.cli.tour import tour
from ncsn_fast.cli.train import train
from ncsn_fast.cli.verify import verify

_FIRST = """\
ncsn_fast trains score networks on images, and samples from them. Begin with:

  ncsn-fast sample         draw digits from a network that comes along: seconds
  ncsn-fast demo --open    train one on handwritten digits for a minute, and look at its own
  ncsn-fast train --data photos/ --image-size 32 --out runs/photos
                           train on a folder of your pictures

How it works, as a page of moving figures: ncsn-fast tour --open
All commands: ncsn-fast --help. What one does, with examples: ncsn-fast demo --help"""


@click.group(
    cls=Group,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="ncsn_fast")
@click.pass_context
def main(context: click.Context) -> None:
    """A fast and trusted engine for Noise Conditional Score Networks.

    Without a command: what to do first. What a command does, with examples:
    ncsn-fast COMMAND --help.
    """
    if context.invoked_subcommand is None:
        write(_FIRST)


main.add_section("Start here", (demo, tour, doctor))
main.add_section("Work", (schedule, train, sample, verify, evaluate, convert))
main.add_section("Look at speed", (bench, profile))

__all__ = ["main"]
