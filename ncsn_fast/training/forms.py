"""What a run's results depend on by rounding: its precision, the forms of its convolutions."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import torch

from ncsn_fast.device import backends
from ncsn_fast.distributed.group import Group
from ncsn_fast.inference.automatic import for_training
from ncsn_fast.inference.forms import as_text
from ncsn_fast.models import trained_conv
from ncsn_fast.models.base import ScoreNetwork
from ncsn_fast.models.conv_forms import DIRECT, NAMES
from ncsn_fast.sampling.sampler import Sampler
from ncsn_fast.support.files import sha256_of_values
from ncsn_fast.training import state
from ncsn_fast.training.config import TrainConfig

_log = logging.getLogger("ncsn_fast")


def settled(config: TrainConfig, net: ScoreNetwork, resume: bool, group: Group) -> TrainConfig:
    """The settings of all processes, with a precision in place of "auto": for a run that goes on
    the one of its checkpoint, since another machine, or the same one measured anew, may find
    another one faster.

    Raises:
        ValueError: where there is no checkpoint, or it is damaged; for a batch of fewer samples
            than there are processes; and where these were given other settings.
    """
    asked = sha256_of_values({**vars(config), "out": None, "resume": resume})
    if not all(group.are_same([int(asked[:15], 16)])):
        raise ValueError(
            f"{group.ranks} was given other settings than others: give all the same TrainConfig "
            "and resume, but for out"
        )
    return group.from_first(lambda: _settled(config, net, resume, group.ranks.size))


def _settled(config: TrainConfig, net: ScoreNetwork, resume: bool, processes: int) -> TrainConfig:
    if config.batch_size < processes:
        raise ValueError(
            f"batch_size = {config.batch_size} for {processes} processes, which share a batch: "
            "start fewer, or give more samples"
        )
    if config.precision != "auto":
        return config
    if resume and config.out is not None:
        began = state.read(Path(config.out)).settings.get("precision", "")
        config, reason = replace(config, precision=began), "as the run began"
    else:
        precision, reason = for_training(net)
        config = replace(config, precision=precision)
    _log.info("%s trains in %s: %s", type(net).__name__, config.precision, reason)
    return config


def forms_of_run(net: ScoreNetwork, config: TrainConfig, share: int) -> str:
    """In which forms convolutions run here, as a text that differs where any of them does.

    "direct", where none is filtered; else those of its samples (``Sampler.convolutions``), and
    those of its steps. They are found by two calls of the network.

    Args:
        share: how many samples of a batch are this process's.
    """
    sampled = NAMES[DIRECT] if config.sample_every is None else Sampler(net).convolutions
    trained = _trained(net, config, share)
    return sampled if trained == NAMES[DIRECT] else f"{sampled}, in training {trained}"


def _trained(net: ScoreNetwork, config: TrainConfig, share: int) -> str:
    filters = (
        net.sigmas.device.type == "cpu"
        and config.precision == "fp32"
        and len(net.shape) == 3
        and backends.wished()[0] != "torch"
        and all(parameter.dtype == torch.float32 for parameter in net.parameters())
    )
    if not filters:
        return NAMES[DIRECT]
    at_once = min(config.batch_size // config.accumulate, share)
    found = trained_conv.forms(net, (at_once, *net.shape))
    return as_text(
        (tile, f"{name} {what}")
        for name, tiles in found.items()
        for what, tile in tiles._asdict().items()
    )


def tell_other_forms(there: str, here: str) -> None:
    """Warn where a run goes on in other forms than those in which it was saved."""
    if there == here:
        return
    remedy = "where it was begun, with the decisions and NCSN_FAST_CONV of then, it goes on exactly"
    if there == NAMES[DIRECT]:
        remedy = "with NCSN_FAST_CONV=direct it goes on exactly"
    _log.warning(
        "the convolutions of this run ran otherwise so far (%.160s; from here on %s): it will "
        "differ by rounding from a run that was not stopped; %s",
        there,
        here,
        remedy,
    )


__all__ = ["forms_of_run", "settled", "tell_other_forms"]
