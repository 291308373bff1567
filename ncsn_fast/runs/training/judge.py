"""What the samples of a training run are judged by: held-out images, or statistics of images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ncsn_fast.data.digits import digits
from ncsn_fast.data.load import load_images
from ncsn_fast.distributed.group import Group
from ncsn_fast.evaluation.inception.figures import Fid, look
from ncsn_fast.evaluation.inception.network import load_inception
from ncsn_fast.evaluation.inception.statistics import Statistics, are_statistics, read_statistics
from ncsn_fast.training.config import TrainConfig, TrainRun

HeldOut = Tensor | Statistics | None


def held_out_of(run: TrainRun, loading: Mapping[str, Any]) -> HeldOut:
    """Images (M, C, H, W) in [0, 1] that a run is not trained on, statistics of images, or nothing.

    Args:
        loading: how images are read.

    Raises:
        ValueError, OSError: for what cannot be read, and for statistics without Inception.
    """
    if run.held_out is None:
        return digits("test").images if run.data == "digits" else None
    if not are_statistics(run.held_out):
        return load_images(run.held_out, **loading)
    if run.inception is None:
        raise ValueError(
            f"held_out = {run.held_out} holds statistics of Inception's features: give the file of "
            "its weights too, by inception"
        )
    return read_statistics(run.held_out)


def number_of(held_out: HeldOut) -> int | None:
    """Of how many images that is; None: the statistics do not say."""
    if isinstance(held_out, Statistics):
        return held_out.images
    return 0 if held_out is None else len(held_out)


def fid_of(
    run: TrainRun, held_out: HeldOut, config: TrainConfig, device: str, say: Callable[[str], None]
) -> Fid:
    """What tells the FID of samples.

    Raises:
        ValueError, OSError: where there is nothing to compare with, or the weights are not those
            that are meant, of the statistics either.
    """
    if held_out is None:
        raise ValueError(
            f"inception = {run.inception}: FID is a distance to images, or statistics of images: "
            "say which, by held_out"
        )
    meant = {} if run.inception_sha256 is None else {"sha256": run.inception_sha256}
    net = load_inception(Path(str(run.inception)), device, **meant)
    of = run.held_out or "the held-out digits"
    if isinstance(held_out, Statistics):
        if held_out.weights not in (None, net.weights.sha256):
            raise ValueError(
                f"{of} is of Inception weights with the SHA-256 {held_out.weights}, "
                f"{run.inception} has {net.weights.sha256}: give statistics of these weights"
            )
        seen: Any = held_out
    else:
        say(f"Looking at the {len(held_out):,} images of {of} through Inception")
        seen = look(net, held_out.numpy(), Group())
    say(f"Samples are judged by the FID of {config.samples:,}: compare it within this run alone.")
    return Fid(net, seen)


__all__ = ["HeldOut", "fid_of", "held_out_of", "number_of"]
