"""The command line: ncsn-fast demo | train | sample | doctor."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import click

# GNU OpenMP's threads wait for each other in a busy loop of half a second and more. Where another
# program takes one of the cores that makes a training step ten times slower; a short loop costs
# nothing measurable when the machine is idle. Read when torch is loaded, hence here.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")

_SEED = click.IntRange(0, 2**64 - 1)
_COUNT = click.IntRange(min=1)
_MOST_SAMPLES = 10_000_000
_DEFAULT_STEPS = 5000
_FREE_ON_RESUME = {"steps", "learning_rate", "checkpoint_every"}


class _Command(click.Command):
    """Turns the library's refusals into one clear line instead of a traceback."""

    def invoke(self, context: click.Context) -> Any:
        signal.signal(signal.SIGTERM, _terminate)
        try:
            return super().invoke(context)
        except (ValueError, OSError) as error:
            raise click.ClickException(str(error)) from error
        except RuntimeError as error:
            from ncsn_fast import SamplingError, TrainingError

            if isinstance(error, SamplingError | TrainingError):
                raise click.ClickException(str(error)) from error
            raise
        except KeyboardInterrupt as stop:
            click.echo(f"\nstopped{f': {stop}' if str(stop) else ''}", err=True)
            context.exit(130)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="ncsn_fast")
def main() -> None:
    """A fast and trusted engine for Noise Conditional Score Networks."""


def _device(wish: str | None) -> str:
    """The device asked for, or a GPU if there is one; refused where it cannot compute."""
    import torch

    if wish is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        float(torch.zeros(1, device=wish))
    except Exception as error:  # each backend of torch has its own
        reason = str(error).splitlines()[0]
        raise click.UsageError(f"--device {wish} cannot be used here: {reason}") from error
    return wish


def _device_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--device", default=None, help="cpu or cuda[:N]. Default: a GPU if there is one."
    )(command)


@main.command(cls=_Command)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("ncsn_fast_demo"),
    show_default=True,
    help="Folder for the pictures and figures.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(1, 86_400),
    default=60,
    show_default=True,
    help="Training time.",
)
@click.option(
    "--samples",
    type=click.IntRange(4, 400),
    default=400,
    show_default=True,
    help="Images to generate.",
)
@click.option("--seed", type=_SEED, default=0, show_default=True)
@_device_option
def demo(out: Path, seconds: float, samples: int, seed: int, device: str | None) -> None:
    """Train on handwritten digits for a minute, sample, and look at the result."""
    from ncsn_fast import demo as work

    result = work.run(
        out,
        seconds=seconds,
        samples=samples,
        seed=seed,
        device=_device(device),
        say=click.echo,
        progress=sys.stderr.isatty(),
    )
    distance = result.metrics["pixel_frechet_distance_to_held_out"]
    click.echo(
        f"\nPixel Fréchet distance to {result.metrics['held_out_images']} held-out digits "
        f"({samples} images each; 0 is a perfect match):\n"
        f"  generated        {distance['generated']:8.3f}   after "
        f"{result.metrics['training_steps']} training steps\n"
        f"  training images  {distance['training_images']:8.3f}   as good as real images get\n"
        f"  uniform noise    {distance['noise']:8.3f}   what the chains start from\n"
    )
    meaning = {
        "samples": "generated digits beside real ones",
        "chain": "the chains from noise to digits, level by level",
        "loss": "the training loss",
        "metrics": "these figures and the settings",
        "model": f"the network; more: ncsn-fast sample {result.files['model']}",
    }
    for key, path in result.files.items():
        click.echo(f"  {path!s:40} {meaning[key]}")


@main.command(cls=_Command)
@click.option(
    "--data",
    default="digits",
    show_default=True,
    help="digits, a .npy / .npz file, or a folder of images of one size.",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the run.")
@click.option(
    "--resume",
    is_flag=True,
    help="Go on with the run in --out; new may be --steps, --learning-rate and --checkpoint-every.",
)
@click.option(
    "--network",
    default="NCSNv2",
    show_default=True,
    type=click.Choice(["NCSN", "NCSNv2", "NCSNv2Deeper", "NCSNv2Deepest"]),
)
@click.option("--ngf", type=_COUNT, default=32, show_default=True, help="Width of the network.")
@click.option(
    "--activation",
    default="elu",
    show_default=True,
    type=click.Choice(["elu", "relu", "lrelu", "swish"]),
)
@click.option("--steps", type=_COUNT, default=None, help="Optimiser steps. Default: 5000.")
@click.option("--batch-size", type=_COUNT, default=64, show_default=True)
@click.option("--learning-rate", type=float, default=1e-3, show_default=True)
@click.option(
    "--ema",
    type=float,
    default=0.999,
    show_default=True,
    help="Rate of the weights' moving average; 0 for none.",
)
@click.option(
    "--ema-warmup/--no-ema-warmup",
    default=True,
    show_default=True,
    help="Lower that rate at the beginning, which short runs need.",
)
@click.option(
    "--checkpoint-every",
    type=_COUNT,
    default=500,
    show_default=True,
    help="Steps between two saves: what a power failure can cost.",
)
@click.option("--dequantize", type=click.Choice(["uniform", "gaussian"]), default=None)
@click.option("--flip", is_flag=True, help="Mirror half of the images.")
@click.option(
    "--sigma-min",
    type=float,
    default=0.01,
    show_default=True,
    help="Smallest noise level; the others follow from the data.",
)
@click.option("--steps-per-level", type=_COUNT, default=5, show_default=True)
@click.option("--seed", type=_SEED, default=0, show_default=True)
@_device_option
def train(out: Path, resume: bool, device: str | None, **options: Any) -> None:
    """Train a score network; noise levels and step size are chosen from the data.

    \b
    Examples:
      ncsn-fast train --out runs/digits
      ncsn-fast train --data photos/ --out runs/photos --flip --dequantize uniform
      ncsn-fast train --out runs/digits --resume --steps 20000
    """
    from dataclasses import fields, replace

    from ncsn_fast import train_run as work
    from ncsn_fast.training import TrainConfig

    if resume:
        given = _settings_on_resume()
        run, config = work.read_run(out)
        config = replace(config, **{name: options[name] for name in given})
    else:
        if options["steps"] is None:
            options["steps"] = _DEFAULT_STEPS
        if options["data"] != "digits":
            options["data"] = str(Path(options["data"]).resolve())
        names = {field.name for field in fields(work.TrainRun)}
        run = work.TrainRun(**{k: v for k, v in options.items() if k in names})
        training = {k: v for k, v in options.items() if k not in names}
        config = TrainConfig(out=out, **training)
    model = work.train(
        run,
        config,
        resume=resume,
        device=_device(device),
        say=click.echo,
        progress=sys.stderr.isatty(),
    )
    click.echo(f"Done. Now: ncsn-fast sample {model}")


def _settings_on_resume() -> set[str]:
    """The settings given on the command line; those a run cannot change are refused."""
    context = click.get_current_context()
    source = click.core.ParameterSource.COMMANDLINE
    given = {name for name in context.params if context.get_parameter_source(name) == source}
    given -= {"out", "resume", "device"}
    refused = sorted(given - _FREE_ON_RESUME)
    if refused:
        flags = ", ".join("--" + name.replace("_", "-") for name in refused)
        raise click.UsageError(f"{flags} cannot change on --resume: the run has its settings")
    return given


@main.command(cls=_Command)
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option(
    "-n",
    "--number",
    type=click.IntRange(1, _MOST_SAMPLES),
    default=64,
    show_default=True,
    help="How many images.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("samples"),
    show_default=True,
    help="Folder for samples.npz and grid.png.",
)
@click.option("--seed", type=_SEED, default=0, show_default=True)
@click.option(
    "--first-id",
    type=click.IntRange(0, 2**48 - _MOST_SAMPLES),
    default=0,
    show_default=True,
    help="Id of the first image: 64 here continues a set of 64.",
)
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    default=None,
    help="The YAML file of an official checkpoint.",
)
@click.option("--image-size", type=_COUNT, default=None, help="Where the checkpoint does not say.")
@click.option("--step-size", type=float, default=None, help="ε. Default: the checkpoint's.")
@click.option("--steps-per-level", type=_COUNT, default=None, help="T. Default: the checkpoint's.")
@click.option("--denoise/--no-denoise", default=None, help="Last step without noise.")
@click.option("--batch-size", type=_COUNT, default=None, help="Images at once; changes no image.")
@click.option("--gif", is_flag=True, help="Also animate the first chains.")
@_device_option
def sample(
    checkpoint: Path,
    number: int,
    out: Path,
    seed: int,
    first_id: int,
    config: Path | None,
    image_size: int | None,
    batch_size: int | None,
    gif: bool,
    device: str | None,
    **settings: Any,
) -> None:
    """Sample images from a checkpoint: ours or the official ones.

    Stopped half-way, the same command goes on where it was.

    \b
    Examples:
      ncsn-fast sample ncsn_fast_demo/model.safetensors -n 100 --gif
      ncsn-fast sample checkpoint_300000.pth --config cifar10.yml -n 16
    """
    from ncsn_fast import sample_run as work

    files = work.sample(
        checkpoint,
        out,
        ids=range(first_id, first_id + number),
        seed=seed,
        settings=settings,
        config=config,
        image_size=image_size,
        batch_size="auto" if batch_size is None else batch_size,
        gif=gif,
        device=_device(device),
        say=click.echo,
        progress=sys.stderr.isatty(),
    )
    for path in files.values():
        click.echo(f"  {path}")


@main.command(cls=_Command)
def doctor() -> None:
    """What is installed, which backend is used and why, and a self-test."""
    from ncsn_fast import doctor as work

    for finding in work.environment():
        click.echo(f"  {finding.name:18} {finding.value}")
    click.echo("\nSelf-test")
    results = work.self_test()
    for finding in results:
        click.echo(f"  {'ok ' if finding.good else 'BAD'} {finding.name:14} {finding.value}")
    if not all(finding.good for finding in results):
        sys.exit(1)


if __name__ == "__main__":
    main()
