"""ncsn-fast evaluate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ncsn_fast.cli.common import COUNT, SEED, WORDS, Command, Count, device_of, device_option
from ncsn_fast.cli.output import Output
from ncsn_fast.distributed import ranks
from ncsn_fast.runs import evaluate as work

_GROUPS = {
    "Main options": ("reference", "train", "classifier", "number", "out", "open", "device"),
    "Figures of Inception features": ("inception", "inception_sha256", "save_stats"),
    "How a network is sampled": (
        "method",
        "steps",
        "eta",
        "labels",
        "guidance",
        "seed",
        "batch_size",
    ),
}


@click.command(cls=Command, opens=True, groups=_GROUPS)
@click.argument("samples", metavar="SAMPLES")
@click.option(
    "--reference",
    metavar="DATA",
    required=True,
    help="Real images that were not trained on; with --inception also an .npz of statistics.",
)
@click.option(
    "--train",
    metavar="DATA",
    default=None,
    help="The images that were trained on: to see what real images reach, and whether samples "
    "repeat some of them.",
)
@click.option(
    "--classifier",
    metavar="NAME",
    default=work.NO_CLASSIFIER,
    show_default=True,
    help="By which classes and features are judged: digits, mnist, fashion, a file of one, or "
    "none: precision and recall are of pixels then.",
)
@click.option(
    "--inception",
    type=click.Path(path_type=Path),
    metavar="FILE",
    default=None,
    help="Weights of FID's network, a local file: FID, KID, precision and recall in its features "
    "and the Inception score, in place of figures of pixels. It takes torch-fidelity.",
)
@click.option(
    "--inception-sha256",
    metavar="HEX",
    default=None,
    help="What that file has to be, where other weights than the published ones are meant.",
)
@click.option(
    "--save-stats",
    type=click.Path(path_type=Path),
    metavar="FILE",
    default=None,
    help="Also write mean and covariance of the reference's Inception features, an .npz that "
    "--reference takes in place of the images, as pytorch-fid, clean-fid and EDM do.",
)
@click.option(
    "-n",
    "--number",
    type=Count(8, 10_000_000),
    default=work.PUBLISHED,
    show_default=True,
    help="How many samples.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("evaluation"),
    show_default=True,
    help="Folder for evaluation.json, evaluation.html and pictures.",
)
@click.option(
    "--method", metavar="NAME", default=None, help="How a network is sampled, as in sample."
)
@click.option(
    "--steps",
    type=Count(1, 100_000),
    default=None,
    help="How often a network is run, at most, as in sample.",
)
@click.option("--eta", type=float, default=None, help="How much noise a step adds, as in sample.")
@click.option(
    "--label",
    "labels",
    type=WORDS,
    metavar="CLASS[,CLASS...]",
    default=None,
    help="Classes of a network's samples, as in sample; by the classifier: how many are of them.",
)
@click.option("--guidance", type=float, default=None, help="Towards these classes, as in sample.")
@click.option("--seed", type=SEED, default=None, help="Of a network's samples. Default: 0.")
@click.option("--batch-size", type=COUNT, default=None, help="Images at once; changes no image.")
@device_option
@click.pass_obj
def evaluate(
    output: Output,
    samples: str,
    reference: str,
    train: str | None,
    classifier: str,
    inception: Path | None,
    inception_sha256: str | None,
    save_stats: Path | None,
    number: int,
    out: Path,
    device: str | None,
    **sampling: Any,
) -> None:
    """Judge samples against real images: distance, precision and recall, classes, copies.

    SAMPLES is a checkpoint, or "digits", "mnist" or "fashion", which come along, of which samples
    are drawn first (stopped half-way, the same command goes on); a folder of `ncsn-fast sample`; or
    images. DATA is what `ncsn-fast train --data` takes; the word "digits" stands for the held-out
    or the training part of the bundled digits. With --train each figure stands beside that of as
    many training images, which is what it can be at best. With --inception the reference may be
    statistics of images, mu and sigma in an .npz; published figures take the training set for it.

    \b
    Examples:
      ncsn-fast evaluate digits -n 1000 --reference digits --train digits --classifier digits
      ncsn-fast evaluate runs/mnist/model.safetensors --classifier mnist \\
        --reference t10k-images-idx3-ubyte.gz --train train-images-idx3-ubyte.gz
      ncsn-fast evaluate samples --reference photos/ -n 5000
      ncsn-fast evaluate samples -n 50000 --reference cifar10-32x32.npz \\
        --inception weights-inception-2015-12-05-6726825d.pth
      torchrun --nproc-per-node=4 -m ncsn_fast evaluate samples -n 50000 \\
        --reference cifar10-32x32.npz --inception weights-inception-2015-12-05-6726825d.pth
    """
    here = ranks.from_environment()
    report = work.evaluate(
        samples,
        out,
        reference=reference,
        train=train,
        classifier=classifier,
        inception=inception,
        inception_sha256=inception_sha256,
        save_stats=save_stats,
        number=number,
        sampling=sampling,
        device=device_of(device),
        place=here,
        say=output.say,
        progress=output.progress,
    )
    if here.is_first:
        output.show(report["files"]["page"])
        output.told(report)


__all__ = ["evaluate"]
