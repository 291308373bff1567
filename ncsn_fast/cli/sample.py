"""ncsn-fast sample."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from ncsn_fast.cli.common import (
    CHECKPOINT,
    COUNT,
    PIXELS,
    SEED,
    WORDS,
    Command,
    Count,
    device_of,
    device_option,
)
from ncsn_fast.cli.output import Output
from ncsn_fast.distributed import ranks
from ncsn_fast.runs import sample as work
from ncsn_fast.runs.sample import ANIMATIONS
from ncsn_fast.runs.samples.manifest import DTYPES, FORMATS

_MOST_SAMPLES = 10_000_000
_GROUPS = {
    "Main options": [
        *("number", "out", "seed", "labels", "guidance", "method", "steps"),
        *("gif", "preview", "open", "device"),
    ],
    "Which network, which images": ("config", "image_size", "first_id"),
    "How they are sampled": [
        *("spacing", "rho", "eta", "snr", "step_size", "steps_per_level"),
        *("denoise", "hold_noise", "batch_size"),
    ],
    "How they are stored": ("format_", "dtype", "shard_size", "part", "animate"),
}


class Part(click.ParamType):
    """I/N: the I-th of N parts, counted from 0."""

    name = "part"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> ranks.Ranks:
        found = re.fullmatch(r"(\d{1,7})/(\d{1,7})", str(value).strip())
        if found is None or not int(found[1]) < int(found[2]):
            self.fail(
                f"{value!r:.80}: give I/N, such as 0/8 for the first of 8 parts and 7/8 for the "
                "last",
                param,
                ctx,
            )
        return ranks.Ranks(int(found[1]), int(found[2]))


@click.command(cls=Command, opens=True, previews=True, groups=_GROUPS)
@click.argument("checkpoint", type=CHECKPOINT, default="digits", metavar="[CHECKPOINT]")
@click.option(
    "-n",
    "--number",
    type=Count(1, _MOST_SAMPLES),
    default=64,
    show_default=True,
    help="How many images.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("samples"),
    show_default=True,
    help="Folder for samples.npz and grid.png; of more than a shard, for shards/.",
)
@click.option(
    "--seed", type=SEED, default=0, show_default=True, help="Another one gives other images."
)
@click.option(
    "--first-id",
    type=Count(0, 2**48 - _MOST_SAMPLES),
    default=0,
    show_default=True,
    help="Id of the first image: 64 here continues a set of 64.",
)
@click.option(
    "--label",
    "labels",
    type=WORDS,
    metavar="CLASS[,CLASS...]",
    default=None,
    help="Classes by name or number, one after the other; none: images of no class. Default: all, "
    "each of them in its turn.",
)
@click.option(
    "--guidance",
    type=float,
    default=None,
    help="How much the class is exaggerated: 1 as trained, 2 clearer and less varied.",
)
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    default=None,
    help="The YAML file of an official checkpoint.",
)
@click.option("--image-size", type=PIXELS, default=None, help="Where the checkpoint does not say.")
@click.option(
    "--method",
    metavar="NAME",
    default=None,
    help="How to get from noise to an image: annealed_langevin (the usual default: what the "
    "checkpoint says), consistent_annealed, reverse_diffusion, ancestral, predictor_corrector, "
    "euler, heun or dpmpp_2m. The last six take --steps. With few dpmpp_2m --eta 1 is the "
    "best that was measured: 10 to 20, while a network is still learning too.",
)
@click.option(
    "--steps",
    type=Count(1, 100_000),
    default=None,
    help="How often the network is run, at most: fewer is faster. Default: what the checkpoint "
    "says of its method, else once per noise level.",
)
@click.option(
    "--spacing",
    metavar="NAME",
    default=None,
    help="Which noise levels the steps visit: auto (the default: those of the training where "
    "these are geometric), ladder, nearest, geometric, karras or linear.",
)
@click.option("--rho", type=float, default=None, help="ρ of --spacing karras. Default: 7.")
@click.option(
    "--eta",
    type=float,
    default=None,
    help="How much fresh noise a step adds: 0 none, 1 that of the reverse SDE. Default: what the "
    "checkpoint says of its method, else 1 with ancestral, 0 with dpmpp_2m.",
)
@click.option(
    "--snr",
    type=float,
    default=None,
    help="r of predictor_corrector, 0.1 to 0.3. Default: from the checkpoint's ε.",
)
@click.option(
    "--step-size",
    type=float,
    default=None,
    help="ε of annealed_langevin, consistent_annealed, predictor_corrector. Default: the "
    "checkpoint's.",
)
@click.option(
    "--steps-per-level",
    type=Count(1, 10_000),
    default=None,
    help="T of annealed_langevin, k of consistent_annealed. Default: the checkpoint's.",
)
@click.option("--denoise/--no-denoise", default=None, help="Last step of theirs without noise.")
@click.option(
    "--hold-noise/--no-hold-noise",
    default=None,
    help="Whether an image on its way, which says itself how noisy it is, is kept as noisy as each "
    "step expects, of networks that do not see the noise level. Default: with euler, heun and "
    "dpmpp_2m; can be asked for with ancestral and consistent_annealed.",
)
@click.option(
    "--batch-size",
    type=COUNT,
    default=None,
    help="Images at once; an image depends on it by rounding alone.",
)
@click.option(
    "--format",
    "format_",
    type=click.Choice(FORMATS),
    default=None,
    help="How images are stored: npz (the default), png (folders of files), or tar (of files, as "
    "webdataset reads them).",
)
@click.option(
    "--dtype",
    type=click.Choice(DTYPES),
    default=None,
    help="float32 (the default of npz), or uint8, as pictures are.",
)
@click.option(
    "--shard-size",
    type=COUNT,
    default=None,
    help="Images in a shard, a file that is written once. Default: 1000, fewer of large ones.",
)
@click.option(
    "--shard",
    "part",
    type=Part(),
    default=None,
    metavar="I/N",
    help="Make every N-th shard alone, from the I-th on, counted from 0: as one of N jobs.",
)
@click.option("--gif", is_flag=True, help="Also animate the first images, from noise on.")
@click.option(
    "--animate",
    type=click.Choice(ANIMATIONS),
    default=None,
    help="Also animate them, as chain.gif (as --gif does), .webp (smaller, all greys and colours) "
    "or .mp4 (needs ffmpeg).",
)
@device_option
@click.pass_obj
def sample(
    output: Output,
    checkpoint: Path,
    number: int,
    out: Path,
    seed: int,
    first_id: int,
    labels: tuple[str, ...] | None,
    guidance: float | None,
    config: Path | None,
    image_size: int | None,
    batch_size: int | None,
    format_: str | None,
    dtype: str | None,
    shard_size: int | None,
    part: ranks.Ranks | None,
    gif: bool,
    animate: str | None,
    device: str | None,
    **settings: Any,
) -> None:
    """Sample images from a checkpoint: ours or the official ones.

    CHECKPOINT may be "digits", the default, "mnist" or "fashion": the network of that name that
    comes along. Writes samples.npz (the images as numbers), grid.png (a picture of them) and, with
    --gif or --animate, how they come out of noise; of many images shards/ in place of samples.npz.
    Stopped half-way, the same command goes on where it was; given several times at once, or by
    torchrun, it shares the work. ncsn-fast verify checks what it has written.

    \b
    Examples:
      ncsn-fast sample -n 100 --gif
      ncsn-fast sample -n 36 --animate mp4
      ncsn-fast sample digits -n 100 --method dpmpp_2m --steps 10 --out quick
      ncsn-fast sample fashion --label boot,bag --guidance 2 --out boots
      ncsn-fast sample runs/photos/model.safetensors -n 16 --out photos
      ncsn-fast sample checkpoint_300000.pth --config cifar10.yml -n 16
      torchrun --nproc-per-node 8 -m ncsn_fast sample cifar10.safetensors -n 50000 --format png
    """
    if gif and animate not in (None, "gif"):
        raise click.UsageError(f"--gif and --animate {animate}: give one of them")
    here = ranks.from_environment()
    ranks.share_cores(here)
    if here.size == 1:
        here = ranks.of_slurm()
    report = work.sample(
        checkpoint,
        out,
        ids=range(first_id, first_id + number),
        seed=seed,
        settings=settings,
        labels=labels or (),
        guidance=guidance,
        config=config,
        image_size=image_size,
        batch_size=batch_size,
        layout={"format": format_, "dtype": dtype, "shard": shard_size},
        place=part or here,
        part_only=part is not None,
        animate="gif" if gif else animate,
        device=device_of(device),
        say=output.say,
        progress=output.progress,
    )
    if "grid" in report["files"]:
        output.preview(report["files"]["grid"])
        output.show(report["files"]["grid"])
    output.told(report)


__all__ = ["sample"]
