"""The command line: ncsn-fast demo | schedule | train | sample | evaluate | bench | ..."""

from __future__ import annotations

import click

from ncsn_fast.cli.bench import bench
from ncsn_fast.cli.common import Group
from ncsn_fast.cli.convert import convert
from ncsn_fast.cli.demo import demo
from ncsn_fast.cli.doctor import doctor
from ncsn_fast.cli.evaluate import evaluate
from ncsn_fast.cli.profile import profile
from ncsn_fast.cli.sample import sample
from ncsn_fast.cli.schedule import schedule
from ncsn_fast.cli.tour import tour
from ncsn_fast.cli.train import train
from ncsn_fast.cli.verify import verify


@click.group(
    cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(package_name="ncsn_fast")
def main() -> None:
    """A fast and trusted engine for Noise Conditional Score Networks.

    \b
    Begin with:
      ncsn-fast demo                   train on handwritten digits for a minute, and sample
      ncsn-fast sample                 sample digits from the network that comes along
      ncsn-fast schedule photos/       choose noise levels and step size, and see why
      ncsn-fast train --data photos/ --image-size 32 --out runs/photos
      ncsn-fast COMMAND --help         what a command does, with examples
    """


commands = (demo, tour, schedule, train, sample, verify, evaluate, bench, profile, convert, doctor)
for command in commands:
    main.add_command(command)

__all__ = ["main"]
