"""The forms of the convolutions that a run's results depend on, by rounding."""

from __future__ import annotations

import logging

from ncsn_fast.models.base import ScoreNetwork
from ncsn_fast.models.conv_forms import DIRECT, NAMES
from ncsn_fast.sampling.sampler import Sampler
from ncsn_fast.training.config import TrainConfig

_log = logging.getLogger("ncsn_fast")


def forms_of_run(net: ScoreNetwork, config: TrainConfig) -> str:
    """In which forms convolutions run here, as a text that differs where any of them does.

    "direct", where none is filtered, or those of its samples (``Sampler.convolutions``). It is
    found by one call of the network.
    """
    if config.sample_every is None:
        return NAMES[DIRECT]
    return Sampler(net).convolutions


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


__all__ = ["forms_of_run", "tell_other_forms"]
