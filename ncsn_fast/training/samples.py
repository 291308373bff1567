"""Samples drawn while training goes on: pictures to look at, and a distance to held-out images."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ncsn_fast.checkpoints.load_save import save_checkpoint
from ncsn_fast.evaluation.inception.figures import Fid, check_channels
from ncsn_fast.evaluation.pixel_distance import pixel_frechet_distance
from ncsn_fast.models.base import ScoreNetwork
from ncsn_fast.models.space import to_images
from ncsn_fast.pictures import images as plots
from ncsn_fast.sampling.sampler import Sampler
from ncsn_fast.support.checks import count
from ncsn_fast.support.files import refuse_link
from ncsn_fast.training.config import TrainConfig
from ncsn_fast.training.log import warned
from ncsn_fast.training.state import BEST

_log = logging.getLogger("ncsn_fast")
SHOWN = 100
FOLDER = "samples"
Wanted = Callable[[int, int], bool]


@dataclass(frozen=True)
class TrainingSamples:
    """What is drawn, how often, of which network, and what it is compared with."""

    every: int
    number: int
    seed: int
    held_out: Tensor | Fid | None
    averaged: bool = True

    @staticmethod
    def of(
        net: ScoreNetwork, config: TrainConfig, held_out: Tensor | Fid | None
    ) -> TrainingSamples | None:
        """The samples a run asks for, or None.

        Raises:
            ValueError: where the network does not know how to sample, held-out images do not fit
                it, or the folder for the pictures is a link.
        """
        if config.sample_every is None:
            return None
        if net.sampling is None:
            raise ValueError(
                "sample_every needs to know how to sample: set net.sampling, for example to "
                "nf.auto_schedule(images).sampling"
            )
        Sampler(net)  # refuses settings that do not work now, not after a thousand steps
        if isinstance(held_out, Fid):
            check_channels(net.shape[0])
            count("samples", config.samples, 4)
        elif held_out is not None:
            _check(held_out, net)
        elif config.out is None:
            raise ValueError(
                "sample_every without a folder (out) or held-out images draws samples for nobody"
            )
        if config.out is not None:
            refuse_link(Path(config.out) / FOLDER)
        averaged = config.ema > 0
        return TrainingSamples(config.sample_every, config.samples, config.seed, held_out, averaged)

    def are_due(self, step: int) -> bool:
        """Whether samples belong to this step."""
        return step > 0 and step % self.every == 0

    def draw(self, net: ScoreNetwork, step: int, out: Path | None, wanted: Wanted) -> float | None:
        """Draw them; write a picture into ``out``/samples; return the distance, if there is one.

        The seed is that of the run at every step, so that pictures show the same chains as the
        network changes. Of a network that knows classes they are of each in its turn.

        Raises:
            Unwanted: where they are no longer ``wanted``, which is asked, and told how many of the
                sampler's steps are done, after every row.
        """

        def watch(done: int, total: int) -> None:
            if not wanted(done, total):
                raise Unwanted

        extra = in_turn(net, self.number)
        states = Sampler(net)(self.number, seed=self.seed, extra=extra, progress=watch)
        images = to_images(net, states).cpu()
        if out is not None and len(net.shape) == 3:
            refuse_link(out / FOLDER)
            # What fails here costs the picture, not the distance.
            with warned(f"the picture of the samples of step {step}"):
                (out / FOLDER).mkdir(exist_ok=True)
                shown = plots.visible(images[:SHOWN])
                plots.save_grid(out / FOLDER / f"step_{step:07d}.png", shown)
        if self.held_out is None or isinstance(self.held_out, Fid):
            return None if self.held_out is None else self.held_out(images)
        return pixel_frechet_distance(images, self.held_out)

    def draw_or_warn(
        self,
        net: ScoreNetwork,
        step: int,
        out: Path | None,
        wanted: Wanted,
        best: float | None,
    ) -> tuple[bool, float | None]:
        """:meth:`draw`, and keep the network in ``out`` where its distance is less than the
        ``best`` so far. What goes wrong is told, and does not end the run.

        Returns:
            Whether that is done, and the distance, if there is one.
        """
        try:
            distance = self.draw(net, step, out, wanted)
        except Unwanted:
            return False, None  # when the run goes on, they are drawn first
        except (RuntimeError, ValueError, OSError) as error:
            _log.warning("no samples at step %d (%s): training goes on", step, error)
            return True, None
        if out is not None and distance is not None and (best is None or distance < best):
            with warned("the best model"):
                save_checkpoint(net, out / BEST, averaged=self.averaged)
        return True, distance


def in_turn(net: ScoreNetwork, number: int) -> dict[str, Tensor]:
    """``extra=`` of a sampler for images of each class in its turn; of a network without: none.

    Returns:
        "classes", int64 (number,) on the network's device.
    """
    classes = len(getattr(net, "classes", ()))
    ids = torch.arange(number, device=net.sigmas.device)
    return {"classes": ids % classes} if classes else {}


class Unwanted(Exception):
    """The run is to end before its samples are drawn."""


def _check(held_out: Tensor, net: ScoreNetwork) -> None:
    fits = held_out.is_floating_point() and tuple(held_out.shape[1:]) == net.shape
    if not fits or len(held_out) < 2 or not bool(((held_out >= 0) & (held_out <= 1)).all()):
        raise ValueError(
            f"held_out is {held_out.dtype} of shape {tuple(held_out.shape)}: give at least 2 "
            f"floating-point images of shape {net.shape} in [0, 1]"
        )


__all__ = ["FOLDER", "SHOWN", "TrainingSamples", "Unwanted"]
