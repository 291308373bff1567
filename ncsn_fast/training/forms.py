"""The forms of the convolutions that a run's results depend on, by rounding."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter

from ncsn_fast.models import trained_conv
from ncsn_fast.models.base import ScoreNetwork
from ncsn_fast.models.conv_forms import DIRECT, NAMES
from ncsn_fast.sampling.sampler import Sampler
from ncsn_fast.training.config import TrainConfig

_log = logging.getLogger("ncsn_fast")


def forms_of_run(net: ScoreNetwork, config: TrainConfig) -> str:
    """In which forms convolutions run here, as a text that differs where any of them does.

    "direct", where none is filtered; else those of its samples (``Sampler.convolutions``), and
    those of its steps. They are found by two calls of the network.
    """
    sampled = NAMES[DIRECT] if config.sample_every is None else Sampler(net).convolutions
    trained = _trained(net, config)
    return sampled if trained == NAMES[DIRECT] else f"{sampled}, in training {trained}"


def _trained(net: ScoreNetwork, config: TrainConfig) -> str:
    if net.sigmas.device.type != "cpu" or config.precision != "fp32" or len(net.shape) != 3:
        return NAMES[DIRECT]
    found = trained_conv.forms(net, (config.batch_size // config.accumulate, *net.shape))
    counts = Counter(NAMES[tiles.output] for tiles in found.values() if any(tiles))
    if not counts:
        return NAMES[DIRECT]
    digest = hashlib.sha256(repr(sorted(found.items())).encode()).hexdigest()
    counted = ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
    return f"{counted} ({digest[:12]})"


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
